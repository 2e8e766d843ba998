"""A solution of the exercise of docs/tour/17-speculation.md."""

from torch import Tensor


def verify_guess(guess: int, p: Tensor, q: Tensor) -> tuple[float, Tensor]:
    rest = (p - q).clamp(min=0)
    rest = rest / rest.sum() if rest.any() else p
    return min(1.0, (p[guess] / q[guess]).item()), rest
