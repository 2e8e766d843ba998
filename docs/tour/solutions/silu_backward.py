"""A solution of the exercise of docs/tour/12-backward.md."""

from torch import Tensor


def silu_backward(dy: Tensor, x: Tensor) -> Tensor:
    s = x.sigmoid()                                                 # (x σ)' = σ + x σ',  σ' = σ (1 - σ)
    return dy * (s + x * s * (1 - s))
