"""How well texts were sorted into classes.

                    predicted
                    a   b   c       precision of b  3 / (1 + 3 + 0), its column
    gold     a      5   1   0       recall of b     3 / (0 + 3 + 2), its row
             b      0   3   2       accuracy        (5 + 3 + 4) / 15, the diagonal
             c      0   0   4       macro F1        the mean of the labels' F1: a rare label counts like a frequent one

Try: average macro F1 over frequent labels alone; tests/test_metrics_classification.py
(test_worked_example_the_table_of_the_module) fails.
"""

from collections import Counter
from collections.abc import Sequence

from llama.metrics.counts import Counts, check_pairs, total


def classification_scores(gold: Sequence[str], predicted: Sequence[str]) -> dict[str, float]:
    """`accuracy`, `macro_f1`, `micro_f1` (which for one label a text is accuracy again) and `mcc`.

    macro_f1  over the labels that occur, right or predicted (Sokolova and Lapalme 2009)
    mcc       Matthews' correlation for any number of classes (Gorodkin 2004): 0 for guessing, however unequal they are
    """
    counts = label_counts([[label] for label in gold], [[label] for label in predicted])
    f1 = [each.f1 for each in counts.values()]
    every = total(counts.values())
    return {"accuracy": every.correct / len(gold), "macro_f1": sum(f1) / len(f1), "micro_f1": every.f1,
            "mcc": _matthews(counts, len(gold))}


def multilabel_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """The same for texts with several labels or none; `accuracy` asks for exactly the right ones."""
    counts = label_counts(gold, predicted)
    f1 = [each.f1 for each in counts.values()]
    right = sum(set(a) == set(b) for a, b in zip(gold, predicted, strict=True))
    return {"accuracy": right / len(gold), "macro_f1": sum(f1) / len(f1) if f1 else 0.0,
            "micro_f1": total(counts.values()).f1}


def label_counts(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, Counts]:
    """For each label that occurs, in the order of their names: how often it was right, predicted, and gold."""
    check_pairs(gold, predicted)
    correct, guessed, right = Counter(), Counter(), Counter()
    for a, b in zip(gold, predicted, strict=True):
        correct.update(set(a) & set(b))
        guessed.update(set(b))
        right.update(set(a))
    return {label: Counts(correct[label], guessed[label], right[label]) for label in sorted(guessed | right)}


def confusion_matrix(gold: Sequence[str], predicted: Sequence[str], labels: Sequence[str]) -> list[list[int]]:
    """How often which label (row) was taken for which (column). Raises ValueError for labels that are not listed."""
    check_pairs(gold, predicted)
    if unknown := {*gold, *predicted} - set(labels):
        raise ValueError(f"the labels {', '.join(sorted(unknown))} are not among {', '.join(labels)}; list them all")
    pairs = Counter(zip(gold, predicted, strict=True))
    return [[pairs[row, column] for column in labels] for row in labels]


def _matthews(counts: dict[str, Counts], n: int) -> float:
    correct = sum(each.correct for each in counts.values())
    both = sum(each.predicted * each.gold for each in counts.values())
    spread = [n * n - sum(getattr(each, name) ** 2 for each in counts.values()) for name in ("predicted", "gold")]
    return (correct * n - both) / (spread[0] * spread[1]) ** 0.5 if spread[0] * spread[1] else 0.0
