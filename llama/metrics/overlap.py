"""Generated texts against written ones: how many pieces, of which length, they have in common.

    ROUGE-1, -2   share of single words, pairs of words        F1, averaged over texts     Lin 2004
    ROUGE-L       longest words in common in their order, gaps allowed       the same      Lin 2004, section 3
    chrF          characters, 1 to 6 in a row                  recall counts twice         Popović 2015
    BLEU          words, 1 to 4 in a row                       precision, and a penalty for short texts
                                                                                           Papineni and others 2002

chrF and BLEU are of a whole set: counts are added up before they are divided. What a word is, is part of a score:

    ROUGE            letters and digits, without case; of Chinese and Japanese each character is a word
    BLEU «13a»       as mteval-v13a.pl of NIST splits Western languages
    BLEU «zh»        each Chinese character and wide sign, everything else as 13a; as sacrebleu does
    BLEU «char»      every character that is no blank

Try: average the BLEU of single texts; tests/test_metrics_overlap.py (test_worked_example_bleu_adds_up_counts) fails.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence

from llama.metrics.counts import Counts, check_pairs

BLEU_ORDER, CHRF_ORDER, CHRF_BETA = 4, 6, 2

# Ideographs with all their extensions, and kana.
_IDEOGRAPH = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_ROUGE_WORD = re.compile(rf"[{_IDEOGRAPH}]|[^\W_{_IDEOGRAPH}]+")


# ---- ROUGE -----------------------------------------------------------------------------------------------------------


def rouge_scores(predicted: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """`rouge_1`, `rouge_2` and `rouge_l`, from 0 to 1: the F1 of each text against its reference, averaged."""
    check_pairs(references, predicted)
    each = [(_rouge_words(a), _rouge_words(b)) for a, b in zip(predicted, references, strict=True)]
    scores = {"rouge_1": [_ngram_counts(a, b, 1).f1 for a, b in each],
              "rouge_2": [_ngram_counts(a, b, 2).f1 for a, b in each],
              "rouge_l": [Counts(common_length(a, b), len(a), len(b)).f1 for a, b in each]}
    return {name: sum(values) / len(values) for name, values in scores.items()}


def common_length(a: Sequence[str], b: Sequence[str]) -> int:
    """The length of the longest common subsequence, gaps allowed, a row of its table at a time in the bits of a number.

    Bit i of `row` is 0 where a[: i + 1] has one more in common with b than a[:i] (Crochemore and others 2001).
    """
    places: dict[str, int] = {}
    for i, x in enumerate(a):
        places[x] = places.get(x, 0) | 1 << i
    everything = (1 << len(a)) - 1
    row = everything
    for x in b:
        hits = row & places.get(x, 0)
        row = ((row + hits) | (row - hits)) & everything
    return len(a) - row.bit_count()


def _rouge_words(text: str) -> list[str]:
    return _ROUGE_WORD.findall(text.lower())


# ---- chrF ------------------------------------------------------------------------------------------------------------


def chrf(predicted: Sequence[str], references: Sequence[str]) -> float:
    """chrF2 of a whole set, from 0 to 100: characters without blanks, n from 1 to 6, recall weighing β² = 4.

    Precision and recall are averaged over those n for which both sides have any pieces; then comes the F.
    """
    check_pairs(references, predicted)
    precisions, recalls = [], []
    texts = [("".join(a.split()), "".join(b.split())) for a, b in zip(predicted, references, strict=True)]
    for n in range(1, CHRF_ORDER + 1):
        counts = [_ngram_counts(a, b, n) for a, b in texts]
        correct = sum(each.correct for each in counts)
        found = sum(each.predicted for each in counts if each.gold)         # a reference too short for n judges nothing
        right = sum(each.gold for each in counts)
        if found and right:
            precisions.append(correct / found)
            recalls.append(correct / right)
    if not any(precisions):
        return 0.0
    precision, recall = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return 100 * (1 + CHRF_BETA**2) * precision * recall / (CHRF_BETA**2 * precision + recall)


# ---- BLEU ------------------------------------------------------------------------------------------------------------


def bleu(predicted: Sequence[str], references: Sequence[str], *, tokenization: str = "13a") -> float:
    """BLEU-4 of a whole set with one reference a text, from 0 to 100; case counts.

    An n without any match is taken as 1/2, 1/4, … of a match, one after the other, as mteval does («exp» smoothing).
    Raises ValueError for a tokenization that is not in TOKENIZATIONS.
    """
    check_pairs(references, predicted)
    if tokenization not in TOKENIZATIONS:
        raise ValueError(f"the tokenization '{tokenization}' is not known; BLEU has {', '.join(TOKENIZATIONS)}")
    words = TOKENIZATIONS[tokenization]
    pairs = [(words(a), words(b)) for a, b in zip(predicted, references, strict=True)]
    found, right = (sum(map(len, side)) for side in zip(*pairs, strict=True))
    logs, unmatched, any_match = 0.0, 0, False
    for n in range(1, BLEU_ORDER + 1):
        counts = [_ngram_counts(a, b, n) for a, b in pairs]
        correct, total = sum(each.correct for each in counts), sum(each.predicted for each in counts)
        if not total:
            return 0.0
        any_match = any_match or correct > 0
        unmatched += not correct
        logs += math.log((correct or 0.5**unmatched) / total)
    return 100 * math.exp(logs / BLEU_ORDER + min(0.0, 1 - right / found)) if any_match else 0.0


def _western_words(text: str) -> list[str]:
    """mteval-v13a: signs stand alone, but for a full stop or comma within a number and a dash not behind a digit."""
    text = text.replace("<skipped>", "").replace("-\n", "").replace("\n", " ")
    for name, sign in (("&quot;", '"'), ("&amp;", "&"), ("&lt;", "<"), ("&gt;", ">")):
        text = text.replace(name, sign)
    return _split_signs(f" {text} ")


def _split_signs(text: str) -> list[str]:
    text = re.sub(r"([!-&(-+/:-@\[-`{-~])", r" \1 ", text)
    text = re.sub(r"([^0-9])([.,])", r"\1 \2 ", text)
    text = re.sub(r"([.,])([^0-9])", r" \1 \2", text)
    return re.sub(r"([0-9])(-)", r"\1 \2 ", text).split()


# Wide signs as sacrebleu 2.6 has them. Its list means to hold CJK extension B, and holds U+2001 to U+2A6D instead:
# quotation marks, arrows and the like.
_WIDE = re.compile("([\u2001-\u2a6d\u2e80-\u2fdf\u2ff0-\u303f\u3100-\u312f\u31a0-\u31bf\u31c0-\u31ef\u3200-\u4db5"
                   "\u4e00-\u9fbb\uf900-\ufa2d\ufa30-\ufa6a\ufa70-\ufad9\ufe10-\ufe1f\ufe30-\ufe4f\uff00-\uffef])")


def _chinese_words(text: str) -> list[str]:
    return _split_signs(_WIDE.sub(r" \1 ", text.strip()))


def _characters(text: str) -> list[str]:
    return [sign for sign in text if not sign.isspace()]


TOKENIZATIONS: dict[str, Callable[[str], list[str]]] = {"13a": _western_words, "zh": _chinese_words,
                                                        "char": _characters}


# ---- what all three count --------------------------------------------------------------------------------------------


def _ngram_counts(predicted: Sequence[str], reference: Sequence[str], n: int) -> Counts:
    """Pieces of n neighbours; one that stands there twice and was predicted three times is right twice."""
    found, right = (Counter(zip(*(side[i:] for i in range(n)), strict=False)) for side in (predicted, reference))
    return Counts((found & right).total(), found.total(), right.total())
