"""Exercise of docs/tour/12-backward.md: python -m pytest docs/tour/exercises/test_12_silu_backward.py"""

from torch import Tensor


def silu_backward(dy: Tensor, x: Tensor) -> Tensor:
    """∂loss/∂x of y = x σ(x), from dy = ∂loss/∂y; without autograd. All of one shape."""
    raise NotImplementedError
