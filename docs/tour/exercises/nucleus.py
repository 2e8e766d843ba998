"""Exercise of docs/tour/10-sampling.md: python -m pytest docs/tour/exercises/test_10_nucleus.py"""

from torch import Tensor


def nucleus(p: Tensor, top_p: float) -> Tensor:
    """Only the fewest likeliest tokens that together reach top_p, at least one; shared out anew.

    p  (V,), sums to 1;  ->  (V,), sums to 1
    """
    raise NotImplementedError
