"""A solution of the exercise of docs/tour/10-sampling.md."""

import torch
from torch import Tensor


def nucleus(p: Tensor, top_p: float) -> Tensor:
    mass, order = p.sort(descending=True)
    needed = mass.cumsum(0) - mass < top_p                          # what stood before it had not reached top_p
    needed[0] = True
    kept = torch.zeros_like(p).index_copy_(0, order, mass * needed)
    return kept / kept.sum()
