"""Whether one thing is better than another, where every run of both comes out a little differently.

    >>> shown([0.80, 0.82, 0.84])
    '0.820 ± 0.020'
    >>> beats([0.80, 0.82, 0.84], [0.70, 0.72, 0.81])
    False

Try: let `beats` compare the means; tests/test_frontier_spread.py (test_worked_example_within_the_spread) fails.
"""

import statistics
from collections.abc import Sequence

ENOUGH = 3                                                          # runs of each, before anything is said


def deviation(values: Sequence[float]) -> float | None:
    """The sample's standard deviation; None of one value, of which nobody knows."""
    return statistics.stdev(values) if len(values) > 1 else None


def shown(values: Sequence[float], digits: int = 3) -> str:
    """Mean ± standard deviation over seeds; of one run its value alone."""
    spread = deviation(values)
    return f"{statistics.fmean(values):.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")


def beats(these: Sequence[float], those: Sequence[float], *, lower: bool = False) -> bool:
    """Whether every value of `these` is better than every one of `those`, and there are ENOUGH of both.

    Of three seeds each, equals would come out so once in 20 times (Mann and Whitney 1947, U = 0), of two once in 6. Who
    compares many will see it by chance, too.
    """
    if min(len(these), len(those)) < ENOUGH:
        return False
    return max(these) < min(those) if lower else min(these) > max(those)
