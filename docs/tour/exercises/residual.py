"""Exercise of docs/tour/08-block.md: python -m pytest docs/tour/exercises/test_08_residual.py"""

from collections.abc import Callable, Sequence

from torch import Tensor

Part = Callable[[Tensor], Tensor]


def residual(x: Tensor, parts: Sequence[tuple[Part, Part]]) -> tuple[Tensor, list[Tensor]]:
    """Run x through parts, each a pair (norm, f), and give the stream at the end and what each part added to it."""
    raise NotImplementedError
