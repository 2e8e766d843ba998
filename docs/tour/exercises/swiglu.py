"""Exercise of docs/tour/07-swiglu.md: python -m pytest docs/tour/exercises/test_07_swiglu.py"""

from torch import Tensor


def swiglu(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """down (silu(gate x) ⊙ (up x)), with silu written out.

    x  (…, D);  gate, up  (F, D);  down  (D, F), as nn.Linear keeps them;  ->  (…, D)
    """
    raise NotImplementedError
