"""Answers to questions: equal to one of the right ones, or how much they share with the nearest.

                    SQuAD (English)                                  CMRC 2018 (Chinese)
    compared        words, without case, punctuation, a, an, the     characters, words of other scripts; no punctuation
    exact_match     the same words                                   the same signs
    f1              words in common, wherever they stand             the longest piece in common, in one

Both take the best over all right answers. What is between two Chinese characters is split into words much as NLTK does
it, which CMRC's script calls; contractions and quotations are the exception: «don't» is one word here, and two there.

Try: count characters in common for Chinese, wherever they stand; tests/test_metrics_answers.py
(test_worked_example_chinese_counts_the_longest_piece) fails.
"""

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

from llama.metrics.counts import check_pairs

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = set(string.punctuation)
# What CMRC's script leaves out: not all there is, brackets of ASCII and «…» for instance stay.
_CHINESE_PUNCTUATION = set("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_CHINESE = re.compile(r"([\u4e00-\u9fa5])")
_ALONE = r"\]\[(){}<>;@#$%&?!\"«»‘„\u2012-\u2015"
# A full stop within a word belongs to it, a comma before a digit too.
_WORD = re.compile(rf"[{_ALONE}]|,(?!\d)|\.{{2,}}|\.(?=\s*$)|(?:[^{_ALONE},.\s]|,(?=\d)|\.(?!\.|\s*$))+")


def answer_scores(answers: Sequence[Sequence[str]], predicted: Sequence[str], *,
                  language: str = "en") -> dict[str, float]:
    """`exact_match` and `f1`, averaged over questions, each with its right answers: none if there is no answer.

    predicted  "" says that there is no answer
    language   "en" as SQuAD 1.1 and 2.0 score (Rajpurkar and others 2016, 2018), "zh" as CMRC 2018 does (Cui and others
               2019)

    If only some questions have an answer, `answerable_f1` and `unanswerable_accuracy` are of the two kinds.
    """
    check_pairs(answers, predicted)
    if language not in _MATCHES:
        raise ValueError(f"the language is '{language}'; answers are compared in one of {', '.join(_MATCHES)}")
    exact, shared = (_best(match, answers, predicted) for match in _MATCHES[language])
    scores = {"exact_match": _mean(exact), "f1": _mean(shared)}
    none = [not right for right in answers]
    if any(none) and not all(none):
        scores["answerable_f1"] = _mean([f1 for f1, no in zip(shared, none, strict=True) if not no])
        scores["unanswerable_accuracy"] = _mean([em for em, no in zip(exact, none, strict=True) if no])
    return scores


def english_exact(answer: str, predicted: str) -> float:
    return float(_english_words(answer) == _english_words(predicted))


def english_f1(answer: str, predicted: str) -> float:
    right, found = _english_words(answer), _english_words(predicted)
    if not right or not found:
        return float(right == found)
    return 2 * (Counter(right) & Counter(found)).total() / (len(right) + len(found))


def chinese_exact(answer: str, predicted: str) -> float:
    return float(_bare(answer) == _bare(predicted))


def chinese_f1(answer: str, predicted: str) -> float:
    if not answer or not predicted:
        return float(answer == predicted)
    right, found = _segments(answer), _segments(predicted)
    return 2 * longest_piece(right, found) / max(1, len(right) + len(found))


def longest_piece(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest piece that stands in both, without a gap."""
    best, before = 0, [0] * (len(b) + 1)                            # before[j]: of those that end before b[j]
    for x in a:
        before = [0] + [before[j] + 1 if x == y else 0 for j, y in enumerate(b)]
        best = max(best, *before)
    return best


def _best(match: Callable[[str, str], float], answers: Sequence[Sequence[str]],
          predicted: Sequence[str]) -> list[float]:
    return [max(match(answer, found) for answer in right or [""])
            for right, found in zip(answers, predicted, strict=True)]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _english_words(text: str) -> list[str]:
    bare = "".join(sign for sign in text.lower() if sign not in _PUNCTUATION)
    return _ARTICLES.sub(" ", bare).split()


def _bare(text: str) -> str:
    return "".join(sign for sign in text.lower().strip() if sign not in _CHINESE_PUNCTUATION)


def _segments(text: str) -> list[str]:
    return [segment for piece in _CHINESE.split(_bare(text)) for segment in _WORD.findall(piece)]


_MATCHES = {"en": (english_exact, english_f1), "zh": (chinese_exact, chinese_f1)}
