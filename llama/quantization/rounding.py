"""Weights into 8 or 4 bits: which whole numbers q, and which scales.

    8 bits, a row or groups of 32    w ≈ scale q             the largest weight decides the scale; 0.5 to 1 % are lost
    4 bits, groups of 32             w ≈ scale q + minimum   the range of a group in 15 steps is only the start

The error of 4 bits is some 8 % of the weights, so a search pays. Given q, the best scale and minimum are a line through
32 points (least squares); given these, the best q are the nearest. Taking turns ends in the valley where it began, so
it begins in several: the whole range, ranges that cut off the outermost weights, and Q4_0's grid, which holds a 0.
Squared errors fall by a fifth. Weights that came from 4 bits are found again without any error, since the first and
the last of these are the grids that llama.cpp rounds to.

Where it is known what a matrix is multiplied with, its output can be kept instead of its weights: what one column lost
is made up for by the columns after it, as far as their inputs go together (GPTQ, arXiv:2210.17323); then lines and q
take turns again, now by what comes out. gptq.py measures the inputs, quantization_loss.py what each rule costs.

Try: leave the last start out of `_initial_grids`; tests/test_rounding.py
(test_property_what_came_from_4_bits_is_found_again) fails for Q4_0.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from weights.formats.quantized_matrix import GROUP, QuantizedMatrix, pack_nibbles

PIECE = 1 << 18                                                     # weights at a time, so that little memory is needed
LARGEST = 65504.0                                                   # that a float16 minimum can be
Grid = tuple[Tensor, Tensor]                                        # of each group: a scale, and what 0 stands for
SHRUNK = (1.0, 0.9, 0.8)                                            # parts of a group's range to begin with
ROUNDS = 8


def to_int8(weight: Tensor, *, grouped: bool = False) -> QuantizedMatrix:
    """Scales such that the largest weight of a row, or of a group of 32, becomes ±127, and the nearest q.

    A row's scale is rounded up to 8 significant bits, which bfloat16 can hold as well: the coarser step adds 0.8 % to
    the error at most, and kernels that take bfloat16 scales compute with the weights that were meant.

    weight  (R, C), any float dtype

    Raises ValueError for weights that are not finite, or beyond float16.
    """
    check_range(weight)
    return _by_rows(weight, _groups_to_int8 if grouped else _rows_to_int8)


def to_int4(weight: Tensor, *, rounds: int = ROUNDS) -> QuantizedMatrix:
    """Groups of 32 whose squared error is small (see above), and 0 for weights that came from Q4_1 or Q4_0.

    weight  (R, C), any float dtype, C a multiple of 32
    rounds  of the search from each start; 0 takes the best start as it is

    Raises ValueError for weights that are not finite, or beyond float16.
    """
    check_range(weight)
    return _by_rows(weight, lambda rows: _rows_to_int4(rows, rounds))


def exact_int4(weight: Tensor) -> QuantizedMatrix | None:
    """The 4 bits that stand for these very weights, where they came from Q4_1 or Q4_0; None for any others.

    weight  (R, C), any float dtype
    """
    def on(grid: Callable[[Tensor], Grid], rows: Tensor) -> QuantizedMatrix | None:
        fit = nearest(groups := rows.reshape(-1, GROUP), *grid(groups))
        return _packed(fit, len(rows)) if not fit.error.any() else None

    return _exact(weight, partial(on, _range_grid)) or _exact(weight, partial(on, _outermost_grid))


def exact_int8(weight: Tensor) -> QuantizedMatrix | None:
    """The 8 bits in groups of 32 that stand for these very weights, where they came from Q8_0; None for any others.

    weight  (R, C), any float dtype
    """
    def on_grid(rows: Tensor) -> QuantizedMatrix | None:
        packed = _groups_to_int8(rows)
        return packed if torch.equal(packed.dequantize(), rows) else None

    return _exact(weight, on_grid)


def _exact(weight: Tensor, on_grid: Callable[[Tensor], QuantizedMatrix | None]) -> QuantizedMatrix | None:
    if weight.shape[1] % GROUP or on_grid(weight[:1].float()) is None:                 # one row, to know it soon
        return None
    return _by_rows(weight, on_grid)


def to_int4_nearest(weight: Tensor) -> QuantizedMatrix:
    """What `to_int4` is better than: the range of each group in 15 steps, and the nearest of them."""
    check_range(weight)
    return _by_rows(weight, lambda rows: _packed(nearest(groups := rows.reshape(-1, GROUP), *_range_grid(groups)),
                                                 len(rows)))


def _by_rows(weight: Tensor, rounded: Callable[[Tensor], QuantizedMatrix | None]) -> QuantizedMatrix | None:
    """Some rows at a time, in float32, each into its place; None as soon as `rounded` gives None."""
    rows, whole = max(1, PIECE // weight.shape[1]), None
    for start in range(0, len(weight), rows):
        if (packed := rounded(weight[start : start + rows].float())) is None:
            return None
        parts = packed.tensors()
        if whole is None:
            whole = QuantizedMatrix(**{part: tensor.new_empty(len(weight), *tensor.shape[1:])
                                       for part, tensor in parts.items()})
        for part, tensor in parts.items():
            getattr(whole, part)[start : start + rows] = tensor
    return whole


def check_range(weight: Tensor) -> None:
    if not (largest := weight.abs().amax().item()) <= LARGEST:      # not a number, too
        raise ValueError(f"the largest weight is {largest}; what is rounded must be finite and at most {LARGEST:.0f}")


# ---- 8 bits ----------------------------------------------------------------------------------------------------------


def _rows_to_int8(weight: Tensor) -> QuantizedMatrix:
    scale = _eight_bits_up(weight.abs().amax(-1) / 127)             # (R,)
    return QuantizedMatrix(_nearest_int8(weight, scale), scale)


def _groups_to_int8(weight: Tensor) -> QuantizedMatrix:
    groups = weight.unflatten(-1, (-1, GROUP))                      # (R, groups, 32)
    scale = (groups.abs().amax(-1) / 127).half()
    return QuantizedMatrix(_nearest_int8(groups, scale).flatten(-2), scale)


def _nearest_int8(x: Tensor, scale: Tensor) -> Tensor:
    return (x / _divisor(scale)).round_().clamp_(-127, 127).to(torch.int8)


def _eight_bits_up(x: Tensor) -> Tensor:
    """The next larger bfloat16 of positive float32 numbers, as float32: their upper half, one more if that cut any."""
    return (x.view(torch.int32) + 0xFFFF & ~0xFFFF).view(torch.float32)


def _divisor(scale: Tensor) -> Tensor:
    """Something to divide by, also where all weights are 0."""
    return scale.float().where(scale != 0, 1.0).unsqueeze(-1)


# ---- 4 bits ----------------------------------------------------------------------------------------------------------


class Fit(NamedTuple):
    """q (groups, 32) float32, whole; scale and minimum (groups,) float16; squared error (groups,) float32."""

    q: Tensor
    scale: Tensor
    minimum: Tensor
    error: Tensor


def _rows_to_int4(weight: Tensor, rounds: int) -> QuantizedMatrix:
    return _packed(search(weight.reshape(-1, GROUP), rounds), weight.shape[0])


def _packed(fit: Fit, R: int) -> QuantizedMatrix:
    return QuantizedMatrix(pack_nibbles(fit.q.view(R, -1, GROUP)), fit.scale.view(R, -1), fit.minimum.view(R, -1))


def search(groups: Tensor, rounds: int) -> Fit:
    best = _best(groups, 0)
    inexact = best.error > 0
    if rounds and inexact.any():
        for old, new in zip(best, _best(groups[inexact], rounds), strict=True):
            old[inexact] = new
    return best


def _best(groups: Tensor, rounds: int) -> Fit:
    """Rounding scales to float16 can make a later round worse than an earlier one, so the best of all is kept."""
    best = None
    for scale, minimum in _initial_grids(groups):
        for _ in range(rounds + 1):
            fit = nearest(groups, scale, minimum)
            best = fit if best is None else _better(best, fit)
            scale, minimum = _least_squares(groups, fit.q)
    return best


def _initial_grids(groups: Tensor) -> list[Grid]:
    return [*(_range_grid(groups, part) for part in SHRUNK), _outermost_grid(groups)]


def _range_grid(groups: Tensor, part: float = 1.0) -> Grid:
    low, width = groups.amin(-1), groups.amax(-1) - groups.amin(-1)
    return width * part / 15, low + width * (1 - part) / 2


def _outermost_grid(groups: Tensor) -> Grid:
    low, high = groups.amin(-1), groups.amax(-1)
    outermost = torch.where(high > -low, high, low)
    return outermost / -8, outermost


def nearest(groups: Tensor, scale: Tensor, minimum: Tensor) -> Fit:
    scale, minimum = scale.half(), minimum.half()
    start = minimum.float().unsqueeze(-1)
    q = ((groups - start) / _divisor(scale)).round_().clamp_(0, 15)
    error = (q * scale.float().unsqueeze(-1)).add_(start).sub_(groups).square_().sum(-1)
    return Fit(q, scale, minimum, error)


def _least_squares(groups: Tensor, q: Tensor) -> tuple[Tensor, Tensor]:
    """The line through the points (q, w) of each group: slope and intercept."""
    mean_q, mean = q.mean(-1), groups.mean(-1)
    away = q - mean_q.unsqueeze(-1)
    slope = (away * groups).sum(-1) / away.square().sum(-1).clamp(min=1e-9)
    return slope, mean - slope * mean_q


def _better(first: Fit, second: Fit) -> Fit:
    better = second.error < first.error
    return Fit(*(torch.where(better.unsqueeze(-1) if new.dim() == 2 else better, new, old)
                 for old, new in zip(first, second, strict=True)))
