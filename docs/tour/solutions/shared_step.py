"""A solution of the exercise of docs/tour/18-distribution.md."""

from collections.abc import Sequence

from torch import Tensor


def handed_in(gradients: Sequence[Tensor], all_targets: int, size: int) -> Tensor:
    return sum(gradients) * size / all_targets
