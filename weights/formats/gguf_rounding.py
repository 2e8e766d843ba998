"""Numbers into llama.cpp's K formats: which scales, minima and whole numbers. Their bytes: gguf_blocks.py.

    Q4_K, Q5_K    x ≈ d s q - dm m    8 groups of 32: s and m of 6 bits, q of 4 or 5; the block has d and dm, float16
    Q6_K          x ≈ d s q           16 groups of 16: s of 8 bits, q from -32 to 31; the block has d, float16

A format says what whole numbers mean, not which to take. Here the squared error is made small, in two stages. (With
minima, the square of each x's error counts by |x| + the root mean square of its group: large weights do more, and what
the model says changes less than with plain squares, although these would be smaller: docs/formats.md.)

    a group    as if scale and minimum could be any numbers. Given q, the best are a line through the points (least
               squares); given the line, the best q are the nearest. Taking turns ends in the valley where it began,
               so it begins in four: the range of the numbers, one step more than they need, one and two steps fewer.
               (The first finds 16 levels again, as Q4_1 has them, among the 32 of Q5_K.)
    a block    the scales become whole numbers of d, the minima of dm, whose largest are the largest that fit. Each
               group tries three neighbouring s, each with the m that fits it best; then d and dm are fitted to all
               256 numbers (least squares again), and once more.

What it costs and what it gains over llama.cpp's own choice: docs/formats.md.

Try: leave -1 out of `STEPS`; tests/test_gguf_rounding.py (test_property_16_levels_are_found_among_32) fails.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

STEPS = (-1, 0, 1, 2)                   # by which the range of a group is too long for the levels, at the start
NEIGHBOURS = (-1, 0, 1)                 # of a group's s
TURNS = 2                               # of either stage


class Rounded(NamedTuple):
    """B blocks of G groups of n: float32, though all but d and dm are whole numbers."""

    d: Tensor                           # (B,)
    s: Tensor                           # (B, G)
    q: Tensor                           # (B, G, n)
    dm: Tensor                          # (B,); 0 in Q6_K, as is m
    m: Tensor                           # (B, G)


# ---- Q4_K and Q5_K ---------------------------------------------------------------------------------------------------


class Points(NamedTuple):
    """The numbers of B blocks in groups, and how much the square of each one's error counts."""

    x: Tensor                           # (B, 8, 32)
    weights: Tensor                     # (B, 8, 32)
    n: Tensor                           # (B, 8, 1): Σ w of each group, as all sums that follow
    total: Tensor                       # (B, 8, 1): Σ w x


def with_minima(x: Tensor, bits: int) -> Rounded:
    """x (B, 8, 32) float32 -> x ≈ d s q - dm m, q of so many bits. Numbers that are none end in a d that is none."""
    weights = x.abs() + x.square().mean(-1, keepdim=True).sqrt()
    points = Points(x, weights, weights.sum(-1, keepdim=True), (weights * x).sum(-1, keepdim=True))
    top = 2**bits - 1
    _, s, m = _best(_lines(points, top))
    d, dm = _half(s.amax(1, keepdim=True) / 63), _half(m.amax(1, keepdim=True) / 63)
    s, m = _whole(s / _divisor(d), 0, 63), _whole(m / _divisor(dm), 0, 63)
    for _ in range(TURNS):
        _, s, m, *sums = _best(_neighbours(points, top, d, dm, s, m))
        d, dm = _refitted(points, d, dm, s, m, *sums)
    return Rounded(d.flatten(), s.squeeze(-1), _nearest(x, d * s, dm * m, top), dm.flatten(), m.squeeze(-1))


def _lines(points: Points, top: int) -> Iterator[tuple[Tensor, ...]]:
    """Error, scale and minimum of each group, from each start. A minimum lies at 0 or below, since m has no sign."""
    low, high = points.x.amin(-1, keepdim=True).clamp(max=0), points.x.amax(-1, keepdim=True)
    for steps in STEPS:
        s = (high - low) / (top + steps)
        m = (s * top - low - high).clamp(min=0) / 2                 # the middle of the levels is that of the range
        for _ in range(TURNS):
            q = _nearest(points.x, s, m, top)
            s, m = _line(points, *_sums(points, q))
        yield _error(points, s, m, *_sums(points, q)), s, m


def _line(points: Points, q: Tensor, qq: Tensor, qx: Tensor) -> tuple[Tensor, Tensor]:
    """The s and m ≥ 0 of the smallest Σ w (s q - m - x)², from sums over a group."""
    determinant = points.n * qq - q * q
    determinant = torch.where(determinant > 1e-6 * points.n * qq, determinant, torch.inf)       # all q are alike
    s = (points.n * qx - q * points.total) / determinant
    m = (s * q - points.total) / _divisor(points.n)
    return torch.where(m < 0, qx / _divisor(qq), s).clamp(min=0), m.clamp(min=0)


def _neighbours(points: Points, top: int, d: Tensor, dm: Tensor, s: Tensor, m: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Error, s, m and the sums of q, for each s nearby: q by the m of before, then m by these q."""
    for step in NEIGHBOURS:
        near = (s + step).clamp(0, 63)
        sums = _sums(points, _nearest(points.x, d * near, dm * m, top))
        best = (d * near * sums[0] - points.total) / _divisor(points.n)
        best = _whole(best / _divisor(dm), 0, 63)
        yield _error(points, d * near, dm * best, *sums), near, best, *sums


def _refitted(points: Points, d: Tensor, dm: Tensor, s: Tensor, m: Tensor, q: Tensor, qq: Tensor, qx: Tensor
              ) -> tuple[Tensor, Tensor]:
    """The d and dm of the smallest Σ w (d s q - dm m - x)² over a block, where that has an answer."""
    over = lambda sums: sums.sum(1, keepdim=True)                   # noqa: E731  a block's groups
    a, b, c = over(s * s * qq), over(s * m * q), over(m * m * points.n)
    p, r = over(s * qx), over(m * points.total)
    determinant = a * c - b * b
    fitted, other = (p * c - b * r) / _divisor(determinant), (b * p - a * r) / _divisor(determinant)
    sound = (determinant > 1e-6 * a * c) & (fitted > 0) & (other > 0)
    return _half(torch.where(sound, fitted, d)), _half(torch.where(sound, other, dm))


def _nearest(x: Tensor, s: Tensor, m: Tensor, top: int) -> Tensor:
    return ((x + m) / _divisor(s)).round_().clamp_(0, top)


def _sums(points: Points, q: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Σ w q, Σ w q² and Σ w q x of each group."""
    weighted = points.weights * q
    return tuple(each.sum(-1, keepdim=True) for each in (weighted, weighted * q, weighted * points.x))


def _error(points: Points, s: Tensor, m: Tensor, q: Tensor, qq: Tensor, qx: Tensor) -> Tensor:
    """Σ w (s q - m - x)² - Σ w x² of each group, from its sums."""
    return s * (s * qq - 2 * m * q - 2 * qx) + m * (m * points.n + 2 * points.total)


# ---- Q6_K ------------------------------------------------------------------------------------------------------------


def without_minima(x: Tensor) -> Rounded:
    """x (B, 16, 16) float32 -> x ≈ d s q, q from -32 to 31, s from -128 to 127: as above, with lines through 0.

    The number of largest size in a group is to become a negative q, which reach one further; hence scales have signs.
    """
    nearest = lambda s: (x / _divisor(s)).round_().clamp_(-32, 31)  # noqa: E731
    sums = lambda q: ((q * q).sum(-1, keepdim=True), (q * x).sum(-1, keepdim=True))              # noqa: E731
    largest = x.gather(-1, x.abs().argmax(-1, keepdim=True))        # (B, 16, 1)

    def lines() -> Iterator[tuple[Tensor, ...]]:
        for steps in STEPS:
            s = largest / -(32 + steps)
            for _ in range(TURNS):
                qq, qx = sums(nearest(s))
                s = qx / _divisor(qq)
            yield -s * qx, s

    def neighbours(d: Tensor, s: Tensor) -> Iterator[tuple[Tensor, ...]]:
        for step in NEIGHBOURS:
            near = (s + step).clamp(-128, 127)
            qq, qx = sums(nearest(d * near))
            yield d * near * (d * near * qq - 2 * qx), near, qq, qx

    _, s = _best(lines())
    d = _half(s.gather(1, s.abs().argmax(1, keepdim=True)) / -128)
    s = _whole(s / _divisor(d), -128, 127)
    for _ in range(TURNS):
        _, s, qq, qx = _best(neighbours(d, s))
        a = (s * s * qq).sum(1, keepdim=True)
        d = _half(torch.where(a > 0, (s * qx).sum(1, keepdim=True) / _divisor(a), d))
    nothing = torch.zeros_like(d)
    return Rounded(d.flatten(), s.squeeze(-1), nearest(d * s), nothing.flatten(), nothing.expand_as(s).squeeze(-1))


# ---- parts -----------------------------------------------------------------------------------------------------------


def _best(tries: Iterator[tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """Of several tries, each an error and what else belongs to it, the best for each group."""
    best = next(tries)
    for each in tries:
        better = each[0] < best[0]
        best = tuple(torch.where(better, new, old) for new, old in zip(each, best, strict=True))
    return best


def _divisor(x: Tensor) -> Tensor:
    """x, and infinity in the place of 0: what is divided by nothing is to be nothing."""
    return torch.where(x == 0, torch.inf, x)


def _whole(x: Tensor, low: int, high: int) -> Tensor:
    return x.round().clamp(low, high)


def _half(x: Tensor) -> Tensor:
    """As the file will hold it."""
    return x.half().float()
