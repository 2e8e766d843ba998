"""Exercise of docs/tour/17-speculation.md: python -m pytest docs/tour/exercises/test_17_verify_guess.py"""

from torch import Tensor


def verify_guess(guess: int, p: Tensor, q: Tensor) -> tuple[float, Tensor]:
    """The chance that a guess drawn from q is kept, and what to draw from where it is not.

    p, q  (V,), each sums to 1;  ->  a number in [0, 1], and (V,) that sums to 1; p where the two are the same
    """
    raise NotImplementedError
