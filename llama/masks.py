"""Who may look at whom: bool masks, True where a query may look at a key, built outside the forward pass.

    causal      window 2    padded by 1   documents 2, 2     rows are queries, columns keys
    x . . .     x . . .     x . . .       x . . .
    x x . .     x x . .     . x . .       x x . .
    x x x .     . x x .     . x x .       . . x .
    x x x x     . . x x     . x x x       . . x x

Try: align `causal_mask` to the upper left (`tril()` without a diagonal); tests/test_generation.py fails wherever a
cache holds something already, and nowhere else.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Documents:
    """Lengths of texts that lie behind each other in one row; each sees only itself. As a mask: `document_mask`."""

    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Prefix:
    """How many of each row's first tokens are given, (B,) int64: what an encoder reads before a decoder writes on."""

    lengths: Tensor


def causal_mask(T: int, S: int, device: torch.device | str = "cpu") -> Tensor:
    """(T, S) bool, True where query t may look at key s: the T queries are the last of the S positions."""
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


def sliding_window_mask(T: int, S: int, window: int, device: torch.device | str = "cpu") -> Tensor:
    """As `causal_mask`, but a query sees `window` keys at most, itself and those before it (arXiv:2310.06825, sec. 2).

    A layer sees no further; L layers together carry news over L · (window - 1) positions.
    """
    return causal_mask(T, S, device).triu(S - T - window + 1)


def clip_to_window(mask: Tensor | None, T: int, S: int, window: int, device: torch.device) -> Tensor | None:
    """`mask` (None: causal) narrowed to a sliding window; as it is where there is none, or no text beyond it.

    Its last axis is then as long as what T queries may see together, which is also all that a cache gives them.
    """
    if not window or S <= window:
        return mask
    S = min(S, window - 1 + T)
    near = sliding_window_mask(T, S, window, device)
    return near if mask is None else mask[..., -S:] & near


def padding_mask(padding: Tensor, T: int, S: int) -> Tensor:
    """Causal mask of left-padded rows: nobody looks at padding, except a padded position at itself.

    (Without that exception its softmax would be over nothing, and 0/0 would spread from there as NaN.)

    padding  (B,) int64, how many of a row's first slots are padding
    ->       (B, 1, T, S) bool, for the last T of S slots
    """
    slots = torch.arange(S, device=padding.device)
    itself = slots[S - T :, None] == slots
    real = slots >= padding[:, None, None]                          # (B, 1, S)
    return ((causal_mask(T, S, padding.device) & real) | itself).unsqueeze(1)


def bidirectional_mask(lengths: Tensor, T: int) -> Tensor:
    """Every position sees its whole row, what is behind it too, and no padding, which is on the right.

    lengths  (B,) int64, at least 1
    ->       (B, 1, 1, T) bool
    """
    return (torch.arange(T, device=lengths.device) < lengths[:, None])[:, None, None]


def document_mask(lengths: Tensor) -> Tensor:
    """Causal mask of texts that lie behind each other in one row: each position sees its own text, up to itself.

    lengths  (n,) int64, of the texts;  ->  (T, T) bool with T their sum
    """
    text = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    return (text[:, None] == text).tril()


def additive_mask(mask: Any, dtype: torch.dtype) -> Any:
    """A bool mask as numbers to add to scores: what torch's kernel would make of it anew in every layer.

    Other kinds of mask (`Documents`) stay as they are.
    """
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, float("-inf"))
