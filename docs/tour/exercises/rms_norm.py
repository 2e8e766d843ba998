"""Exercise of docs/tour/03-rms-norm.md: python -m pytest docs/tour/exercises/test_03_rms_norm.py"""

from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight · x / √(mean(x²) + eps) over the last axis, computed in float32.

    x  (…, D) of any float dtype;  weight  (D,);  ->  as x, in its dtype
    """
    raise NotImplementedError
