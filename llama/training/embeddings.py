"""What a model reads, changed on its way in: a hook behind the embeddings, from outside.

Word dropout (word_dropout.py), noise and adversarial training (llama/methods/) are this hook with another function.
It sees vectors, not weights, so it does not matter whether these learn, are frozen, or are held in few bits, nor by how
many processes they are shared.

Try: leave the hook in place; tests/test_word_dropout.py (test_worked_example_a_run_that_drops_words) fails.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def on_embeddings(model: nn.Module, change: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within, while the model is in training mode, blocks read change(vectors) of the vectors (B, T, D) of tokens."""
    def hook(embedding: nn.Module, inputs: tuple[Tensor], vectors: Tensor) -> Tensor:
        return change(vectors) if embedding.training else vectors

    handle = model.embed_tokens.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
