"""Exercise of docs/tour/09-logits.md: python -m pytest docs/tour/exercises/test_09_candidates.py"""

from torch import Tensor


def candidates(hidden: Tensor, head: Tensor, count: int) -> Tensor:
    """The `count` likeliest tokens to follow each row's last, the likeliest first.

    hidden  (B, T, D), normalised;  head  (V, D);  ->  (B, count) int64
    """
    raise NotImplementedError
