"""Scores, against scikit-learn, torchmetrics, seqeval, sacrebleu, rouge-score, NLTK, scipy and difflib.

1,000 random cases each, of both languages, broken tag rows and empty texts among them. Left out, because definitions
part there: for CMRC English contractions and quotations, which NLTK splits and we do not; for ROUGE letters beyond
a to z, which rouge-score drops; for ECE confidences exactly on the edge of a bin. CMRC's own script is not a package:
its definition is put together anew of difflib and NLTK.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence

from llama.datasets.tags import spans_of, tags_of
from llama.metrics.answers import answer_scores
from llama.metrics.calibration import expected_calibration_error
from llama.metrics.classification import classification_scores, confusion_matrix, multilabel_scores
from llama.metrics.intervals import wilson_interval
from llama.metrics.overlap import bleu, chrf, rouge_scores
from llama.metrics.spans import entity_counts, entity_scores, word_scores
from tests.parity.judges import Check, Judges

JUDGE = "judge_metrics.py"
CASES = 1000
LABELS = ["正面", "负面", "c", "d"]
ENGLISH = ("the The a An cat dog sat on mat, 1,000.5 U.S. well-known Norman's (in 1066) \"so\" e.g. what? yes! 50% "
           "A.D. B&amp;B x_y end.").split(" ")
CHINESE = [*"今天气很好我们去公园散步，。！？《》“”、·（）—…℃(.", "GPT", " ", "3.5", "1,998", "ok", "%", " b ", "--"]
IDEOGRAPHS = [*"甲乙丙丁，。"]


def checks(judges: Judges) -> Iterator[Check]:
    rng = random.Random(0)
    yield from _labels(judges, rng)
    yield from _tags(judges, rng)
    yield from _answers(judges, rng)
    yield from _texts(judges, rng)
    counts = [(rng.randint(0, n), n) for n in (rng.randint(1, 500) for _ in range(CASES))]
    yield _check(judges, "Wilson's interval of a share", "scipy", "wilson", counts,
                 lambda right, n: [*wilson_interval(right, n, z=1.959963984540054)])


def _labels(judges: Judges, rng: random.Random) -> Iterator[Check]:
    cases = [_pair(rng, lambda n: rng.choices(LABELS, k=n), 1, 30) for _ in range(CASES)]
    yield _check(judges, "accuracy, macro and micro F1, MCC, confusion", "scikit-learn", "labels", cases, lambda a, b: [
        *(classification_scores(a, b)[name] for name in ("accuracy", "macro_f1", "micro_f1", "mcc")),
        *sum(confusion_matrix(a, b, sorted({*a, *b})), [])])
    # At least two labels occur: a table with one column is for scikit-learn one of the classes 0 and 1.
    some = [_pair(rng, lambda n: [["c", "d"], *(rng.sample(LABELS, rng.randrange(3)) for _ in range(n))], 0, 9)
            for _ in range(CASES)]
    yield _check(judges, "several labels: accuracy, macro and micro F1", "scikit-learn", "label_sets", some,
                 lambda a, b: [*multilabel_scores(a, b).values()])
    sure = [_pair(rng, lambda n: [rng.random() for _ in range(n)], 1, 200) for _ in range(CASES)]
    sure = [(a, [int(right < confidence) for confidence, right in zip(a, b, strict=True)]) for a, b in sure]
    yield _check(judges, "expected calibration error, 15 bins", "torchmetrics", "calibration", sure,
                 lambda a, b: [expected_calibration_error(a, b)], within=1e-6)     # it computes in float32


def _tags(judges: Judges, rng: random.Random) -> Iterator[Check]:
    for scheme, letters in (("BIO", "BI"), ("BIOES", "BIES")):
        known = ["O", *(f"{letter}-{kind}" for letter in letters for kind in ("PER", "LOC"))]
        cases = [_rows(rng, lambda n, known=known: rng.choices(known, k=n)) for _ in range(CASES)]
        yield _check(judges, f"entities, {scheme}, most rows broken", "seqeval", "entities", cases, _entity_numbers)
    words = [_rows(rng, lambda n: _cut(rng, n)) for _ in range(CASES)]
    tagged = [tuple([[f"{tag}-W" for tag in _word_tags(row)] for row in side] for side in case) for case in words]
    yield _check(judges, "words of segmented texts", "seqeval", "segments", tagged,
                 lambda a, b: [*word_scores(*([_word_texts(row) for row in side] for side in (a, b))).values()])


def _entity_numbers(gold: list[list[str]], predicted: list[list[str]]) -> list[float]:
    by_type = [each.scores().values() for each in entity_counts(gold, predicted).values()]
    return [*entity_scores(gold, predicted).values(), *(number for numbers in by_type for number in numbers)]


def _cut(rng: random.Random, n: int) -> list[int]:
    """The lengths of the words that n characters are cut into."""
    cuts = [0, *sorted(rng.sample(range(1, n), rng.randrange(n))), n]
    return [end - begin for begin, end in zip(cuts, cuts[1:], strict=False)]


def _word_tags(lengths: list[int]) -> list[str]:
    ends = [sum(lengths[: i + 1]) for i in range(len(lengths))]
    return tags_of([(end - length, end, "") for end, length in zip(ends, lengths, strict=True)], sum(lengths), "BMES")


def _word_texts(tags: list[str]) -> list[str]:
    text = "甲乙丙丁戊己庚辛壬癸"
    return [text[begin:end] for begin, end, _ in spans_of(tags)]


def _answers(judges: Judges, rng: random.Random) -> Iterator[Check]:
    english = [([_edited(rng, ENGLISH, " ") for _ in range(rng.randint(1, 3))], _edited(rng, ENGLISH, " "))
               for _ in range(CASES)]
    english = [(right, rng.choice([found, right[0].upper(), right[0] + "!", "the", ""])) for right, found in english]
    yield _check(judges, "answers, SQuAD: exact match, F1", "torchmetrics", "squad", english,
                 lambda right, found: [*answer_scores([right], [found]).values()], within=1e-6)
    chinese = [_near(rng, CHINESE, "") for _ in range(CASES)]
    chinese = [([right, right[::-1]], found) for right, found in chinese]
    yield _check(judges, "answers, CMRC: exact match, F1", "difflib, nltk", "cmrc", chinese,
                 lambda right, found: [*answer_scores([right], [found], language="zh").values()])


def _texts(judges: Judges, rng: random.Random) -> Iterator[Check]:
    english = [_pairs(rng, ENGLISH, " ") for _ in range(CASES)]
    chinese = [_pairs(rng, CHINESE, "") for _ in range(CASES)]
    for name, cases in (("13a", english), ("zh", chinese), ("char", chinese)):
        yield _check(judges, f"BLEU, words of {name}", "sacrebleu", "bleu", cases,
                     lambda a, b, name=name: [bleu(a, b, tokenization=name)], tokenization=name)
    yield _check(judges, "chrF", "sacrebleu", "chrf", english[::2] + chinese[::2], lambda a, b: [chrf(a, b)])
    yield _check(judges, "ROUGE-1, -2, -L, English", "rouge-score", "rouge", english,
                 lambda a, b: [*rouge_scores(a, b).values()])
    characters = [_pairs(rng, IDEOGRAPHS, "") for _ in range(CASES)]
    yield _check(judges, "ROUGE-1, -2, -L, characters", "rouge-score", "rouge", characters,
                 lambda a, b: [*rouge_scores(a, b).values()], characters=True)


def _check(judges: Judges, what: str, against: str, question: str, cases: Sequence, ours: Callable[..., list[float]],
           within: float = 1e-9, **more: object) -> Check:
    theirs = judges.ask(JUDGE, what=question, cases=cases, **more)
    worst = 0.0
    for case, numbers in zip(cases, theirs, strict=True):
        for mine, their in zip(ours(*case), numbers, strict=True):
            worst = max(worst, abs(mine - their) if mine == mine and their == their else math.inf)   # not so if NaN
    return Check(f"score, {what}", against, f"{len(cases):,} cases", f"Δ {worst:.1e}", worst <= within)


def _pair(rng: random.Random, make: Callable[[int], list], least: int, most: int) -> tuple[list, list]:
    n = rng.randint(least, most)
    return make(n), make(n)


def _rows(rng: random.Random, make: Callable[[int], list]) -> tuple[list, list]:
    """Some sentences of 1 to 10 tokens, twice; a third of them alike."""
    gold, predicted = [], []
    for _ in range(rng.randint(1, 4)):
        a, b = _pair(rng, make, 1, 10)
        gold.append(a)
        predicted.append(a if rng.random() < 0.3 else b)
    return gold, predicted


def _pairs(rng: random.Random, words: Sequence[str], between: str) -> tuple[list[str], list[str]]:
    found, right = zip(*(_near(rng, words, between) for _ in range(rng.randint(1, 4))), strict=True)
    return list(found), list(right)


def _near(rng: random.Random, words: Sequence[str], between: str) -> tuple[str, str]:
    """A text, and one with a few words exchanged, dropped or put in; now and then nothing."""
    text = rng.choices(words, k=rng.randint(1, 20))
    other = [rng.choice(words) if rng.random() < 0.2 else word for word in text if rng.random() < 0.85]
    return between.join(text), between.join(other)


def _edited(rng: random.Random, words: Sequence[str], between: str) -> str:
    return _near(rng, words[: rng.randint(3, len(words))], between)[1]
