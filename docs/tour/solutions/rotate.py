"""A solution of the exercise of docs/tour/04-rotary.md."""

import torch
from torch import Tensor


def rotate(x: Tensor, position: int, theta: float) -> Tensor:
    K = len(x)
    angles = position * theta ** (-torch.arange(0, K, 2) / K)       # (K/2,)
    first, second = x[: K // 2], x[K // 2 :]
    return torch.cat([first * angles.cos() - second * angles.sin(), first * angles.sin() + second * angles.cos()])
