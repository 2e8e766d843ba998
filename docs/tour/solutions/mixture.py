"""A solution of the exercise of docs/tour/19-mixture-of-experts.md."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Expert = Callable[[Tensor], Tensor]


def mixture(x: Tensor, gate: Tensor, experts: Sequence[Expert], top_k: int) -> Tensor:
    scores, chosen = (gate @ x).topk(top_k)
    weights = scores.softmax(0)                                     # over the chosen alone: these sum to 1
    y = torch.zeros_like(x)
    for weight, number in zip(weights, chosen.tolist(), strict=True):
        y = y + weight * experts[number](x)
    return y
