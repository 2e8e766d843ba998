"""Entities and words that were found in texts: a span counts if its beginning, its end and its type are right.

    gold         B-PER I-PER O   B-LOC          (0, 2, PER), (3, 4, LOC)
    predicted    B-PER O     O   B-LOC          (0, 1, PER), (3, 4, LOC): one of two is right, of two predicted

Try: count tags instead of spans; tests/test_metrics_spans.py (test_worked_example_of_the_conll_task) fails.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

from llama.datasets.tags import Span, spans_of
from llama.metrics.counts import Counts, check_pairs, total


def entity_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """`precision`, `recall` and `f1` of all entities together, as conlleval has them; sentences of tags.

    Any scheme of datasets/tags.py, broken rows read as conlleval reads them (Tjong Kim Sang and De Meulder 2003).
    Raises ValueError if a sentence has more tags than the other.
    """
    return total(entity_counts(gold, predicted).values()).scores()


def entity_counts(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, Counts]:
    """The same by type of entity, in the order of their names."""
    check_pairs(gold, predicted)
    for i, (a, b) in enumerate(zip(gold, predicted, strict=True)):
        if len(a) != len(b):
            raise ValueError(f"sentence {i + 1} has {len(a)} tags, and {len(b)} were predicted; give one a token")
    return span_counts(map(spans_of, gold), map(spans_of, predicted))


def word_scores(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, float]:
    """`precision`, `recall` and `f1` of the words of segmented texts (SIGHAN bakeoff: Sproat and Emerson 2003).

    A word is right if it begins and ends at the right characters. Raises ValueError for two different texts.
    """
    check_pairs(gold, predicted)
    for i, (a, b) in enumerate(zip(gold, predicted, strict=True)):
        if "".join(a) != "".join(b):
            raise ValueError(f"text {i + 1} is «{''.join(a):.30}», and its predicted words make «{''.join(b):.30}»; "
                             "words must make up their text")
    return total(span_counts(map(_places, gold), map(_places, predicted)).values()).scores()


def span_counts(gold: Iterable[Iterable[Span]], predicted: Iterable[Iterable[Span]]) -> dict[str, Counts]:
    """Text by text, spans that are equal; by their type."""
    found: dict[str, list[Counts]] = defaultdict(list)
    for a, b in zip(gold, predicted, strict=True):
        a, b = set(a), set(b)
        for which, one in ((a & b, Counts(1, 1, 1)), (b - a, Counts(0, 1, 0)), (a - b, Counts(0, 0, 1))):
            for _, _, kind in which:
                found[kind].append(one)
    return {kind: total(found[kind]) for kind in sorted(found)}


def _places(words: Sequence[str]) -> list[Span]:
    spans, end = [], 0
    for word in words:
        spans.append((end, end + len(word), ""))
        end += len(word)
    return spans
