"""Exercise of docs/tour/02-embeddings.md: python -m pytest docs/tour/exercises/test_02_embedding_gradient.py"""

from torch import Tensor


def embedding_gradient(tokens: Tensor, gradient: Tensor, vocab_size: int) -> Tensor:
    """The gradient of the table, from that of the rows that were looked up.

    tokens  (T,) int64;  gradient  (T, D), of x = E[tokens];  ->  (V, D)
    """
    raise NotImplementedError
