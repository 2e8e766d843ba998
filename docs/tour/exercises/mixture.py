"""Exercise of docs/tour/19-mixture-of-experts.md: python -m pytest docs/tour/exercises/test_19_mixture.py"""

from collections.abc import Callable, Sequence

from torch import Tensor

Expert = Callable[[Tensor], Tensor]


def mixture(x: Tensor, gate: Tensor, experts: Sequence[Expert], top_k: int) -> Tensor:
    """One token through a mixture of experts; those that it does not choose are never called.

    x  (D,), gate  (E, D), an expert  (D,) -> (D,);  ->  (D,)
    """
    raise NotImplementedError
