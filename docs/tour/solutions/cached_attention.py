"""A solution of the exercise of docs/tour/06-cache.md."""

import torch
from torch import Tensor


def cached_attention(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, length: int) -> Tensor:
    T, K = q.shape
    S = length + T
    keys[length:S], values[length:S] = k, v
    scores = q @ keys[:S].T * K**-0.5                               # (T, S)
    seen = torch.ones(T, S, dtype=torch.bool).tril(length)
    return scores.masked_fill(~seen, float("-inf")).softmax(-1) @ values[:S]
