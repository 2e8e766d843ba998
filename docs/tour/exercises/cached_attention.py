"""Exercise of docs/tour/06-cache.md: python -m pytest docs/tour/exercises/test_06_cached_attention.py"""

from torch import Tensor


def cached_attention(q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor, length: int) -> Tensor:
    """Store k and v behind the `length` slots in use, in place, and attend causally to all that is then stored.

    q, k, v  (T, K) of the new tokens;  keys, values  (slots, K), of which those from `length` on mean nothing yet
    ->       (T, K)
    """
    raise NotImplementedError
