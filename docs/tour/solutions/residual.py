"""A solution of the exercise of docs/tour/08-block.md."""

from collections.abc import Callable, Sequence

from torch import Tensor

Part = Callable[[Tensor], Tensor]


def residual(x: Tensor, parts: Sequence[tuple[Part, Part]]) -> tuple[Tensor, list[Tensor]]:
    added = []
    for norm, f in parts:
        added.append(f(norm(x)))
        x = x + added[-1]                                           # not +=: the caller's x stays as it is
    return x, added
