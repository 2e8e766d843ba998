"""A solution of the exercise of docs/tour/14-lora.md."""

from torch import Tensor


def lora_linear(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    R = A.shape[0]
    return x @ W.T + (x @ A.T) @ B.T * (alpha / R)                  # (…, R) in between
