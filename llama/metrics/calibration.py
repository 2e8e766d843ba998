"""Whether a classifier knows how sure it may be: of predictions made with 80 % probability, 80 % should be right.

Try: let a bin hold its lower edge instead of its upper; tests/test_metrics_calibration.py
(test_worked_example_edges_belong_to_the_bin_below) fails.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple


class Bin(NamedTuple):
    """Predictions of similar confidence."""

    count: int
    confidence: float           # on average
    accuracy: float


def reliability(confidences: Sequence[float], correct: Sequence[bool], bins: int = 15) -> list[Bin]:
    """The predictions, sorted into `bins` intervals of equal width, ((m - 1) / M, m / M]; empty ones are left out.

    confidences  the probability of what was predicted, from 0 to 1; 0 itself is in the first bin

    Raises ValueError for other confidences, or not as many of them as of the others.
    """
    if len(confidences) != len(correct) or not correct or bins < 1:
        raise ValueError(f"there are {len(confidences)} confidences for {len(correct)} predictions, in {bins} bins; "
                         "give one for each, at least one, and at least one bin")
    if bad := [confidence for confidence in confidences if not 0 <= confidence <= 1]:
        raise ValueError(f"a confidence is {bad[0]}; it must be a probability, from 0 to 1")
    sorted_in: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for confidence, right in zip(confidences, correct, strict=True):
        m = max(0, math.ceil(confidence * bins) - 1)
        # Where the product was rounded across an edge, the edge itself decides.
        m += confidence > (m + 1) / bins
        m -= m > 0 and confidence <= m / bins
        sorted_in[m].append((confidence, right))
    return [Bin(len(each), sum(confidence for confidence, _ in each) / len(each),
                sum(bool(right) for _, right in each) / len(each)) for each in sorted_in if each]


def expected_calibration_error(confidences: Sequence[float], correct: Sequence[bool], bins: int = 15) -> float:
    """The mean distance of accuracy and confidence, bin by bin (Guo and others 2017, arXiv:1706.04599, eq. 3)."""
    return sum(each.count * abs(each.accuracy - each.confidence)
               for each in reliability(confidences, correct, bins)) / len(correct)
