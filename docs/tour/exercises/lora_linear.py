"""Exercise of docs/tour/14-lora.md: python -m pytest docs/tour/exercises/test_14_lora_linear.py"""

from torch import Tensor


def lora_linear(x: Tensor, W: Tensor, A: Tensor, B: Tensor, alpha: float) -> Tensor:
    """W x + α/R · B A x, without a matrix of the size of W beside W itself.

    x  (…, in);  W  (out, in);  A  (R, in);  B  (out, R);  ->  (…, out)
    """
    raise NotImplementedError
