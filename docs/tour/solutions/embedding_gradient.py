"""A solution of the exercise of docs/tour/02-embeddings.md."""

from torch import Tensor


def embedding_gradient(tokens: Tensor, gradient: Tensor, vocab_size: int) -> Tensor:
    table = gradient.new_zeros(vocab_size, gradient.shape[1])
    return table.index_add_(0, tokens, gradient)                    # not table[tokens] += …: that counts a row once
