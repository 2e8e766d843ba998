"""Exercise of docs/tour/04-rotary.md: python -m pytest docs/tour/exercises/test_04_rotate.py"""

from torch import Tensor


def rotate(x: Tensor, position: int, theta: float) -> Tensor:
    """Turn the pairs (i, i + K/2) of one vector by position · theta^(-2i/K) radians.

    x  (K,), K even;  ->  (K,)
    """
    raise NotImplementedError
