"""How far a share of right answers may be off by chance.

    Wilson        (k + z²/2 ± z √(k (n - k) / n + z²/4)) / (n + z²)         k of n right, z = 1.96 for 95 %

Wilson's interval (1927) holds what it promises also for few questions, and for all or none right, where the textbook's
p ± z √(p (1 - p) / n) has no width. Of a mean of several shares the variances are added, each from p̃ = (k + z²/2) / ñ
and ñ = n + z² (Agresti and Coull 1998), for the same reason.

Try: leave z²/4 out; tests/test_multiple_choice.py (test_worked_example_error_bars) fails.
"""

from collections.abc import Sequence

Z = 1.96                                                            # 95 % of a normal distribution lie within so many σ


def wilson_interval(right: int, count: int, z: float = Z) -> tuple[float, float]:
    """The least and the greatest share that `right` of `count` speak for. Raises ValueError for none to count."""
    if not 0 <= right <= count or not count:
        raise ValueError(f"{right} of {count} is no share; count at least one, and no more right than there are")
    middle, whole = right + z * z / 2, count + z * z
    half = z * (right * (count - right) / count + z * z / 4) ** 0.5
    return max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole)


def margin_of_mean(counts: Sequence[tuple[int, int]], z: float = Z) -> float:
    """The half width of the interval of the plain mean of shares, each as (right, count)."""
    shares = [((right + z * z / 2) / (count + z * z), count + z * z) for right, count in counts]
    return z * sum(p * (1 - p) / n for p, n in shares) ** 0.5 / len(shares)
