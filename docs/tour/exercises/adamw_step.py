"""Exercise of docs/tour/13-adamw.md: python -m pytest docs/tour/exercises/test_13_adamw_step.py"""

from torch import Tensor


def adamw_step(theta: Tensor, g: Tensor, m: Tensor, v: Tensor, t: int, *, lr: float, beta1: float, beta2: float,
               decay: float, eps: float = 1e-8) -> tuple[Tensor, Tensor, Tensor]:
    """Step t (the first is 1) of AdamW on one weight: the new theta, m and v, all of its shape."""
    raise NotImplementedError
