"""Exercise of docs/tour/18-distribution.md: python -m pytest docs/tour/exercises/test_18_shared_step.py"""

from collections.abc import Sequence

from torch import Tensor


def handed_in(gradients: Sequence[Tensor], all_targets: int, size: int) -> Tensor:
    """What a process hands in, so that the *mean* over all `size` processes is the gradient that one would have had.

    gradients    of this process's own targets, one each
    all_targets  of all processes together
    """
    raise NotImplementedError
