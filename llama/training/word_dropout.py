"""Inputs that are made harder while a model learns: tokens that it may not see.

Of few examples a model soon knows each by heart. Where every time other words are missing it must decide by the rest,
so that it learns what all of them say (word dropout: Iyyer and others 2015, section 2.2). The vector of a token that
is missing is 0; its position stays.

Try: leave out the scale of each row; tests/test_word_dropout.py (test_property_rows_lose_different_parts) fails: some
texts then never come nearly whole, as they will come in use.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from llama.training.embeddings import on_embeddings


@contextmanager
def word_dropout(model: nn.Module, part: float) -> Iterator[None]:
    """Within, while the model is in training mode, each token is missing with the probability that its text drew.

    That is even between 0 and twice `part`, so that on the average `part` of the tokens are missing.
    """
    if not part:
        yield
        return

    with on_embeddings(model, lambda vectors: vectors * kept(vectors.shape[:-1], part, vectors.device).unsqueeze(-1)):
        yield


def kept(shape: tuple[int, ...], part: float, device: torch.device) -> Tensor:
    """Which tokens of (B, T) stay: bool."""
    missing = 2 * part * torch.rand(shape[0], *[1] * (len(shape) - 1), device=device)   # a part for each text
    return torch.rand(shape, device=device) >= missing
