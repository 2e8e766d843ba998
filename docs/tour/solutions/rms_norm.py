"""A solution of the exercise of docs/tour/03-rms-norm.md."""

from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    size = (wide * wide).mean(dim=-1, keepdim=True).add(eps).sqrt()     # (…, 1)
    return (wide / size).to(x.dtype) * weight
