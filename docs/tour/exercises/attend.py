"""Exercise of docs/tour/05-attention.md: python -m pytest docs/tour/exercises/test_05_attend.py"""

from torch import Tensor


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """One head of causal attention: the T queries are the last T of the S positions.

    q  (T, K);  k, v  (S, K), S ≥ T;  ->  (T, K)
    """
    raise NotImplementedError
