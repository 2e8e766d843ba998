"""Prompts in, answers out, for a model with an encoder: it reads a prompt whole, and the answer begins with nothing.

    prompts  ->  right-padded, encoded once  ->  [ sample -> push -> drop rows that ended -> step ]*

The loop is that of llama/generation.py, which asks a decoder for `step` and `select` alone.

Try: in `select`, leave the source as it is; tests/test_relatives.py (test_two_ways_a_ragged_batch_of_prompts) fails as
soon as a row ends.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llama.cache import KVCache


class TextToTextDecoder:
    """Answers under way, each to a prompt that an encoder has read.

    source  keys and values of the prompts in each layer, and who of them is seen;  cache  those of the answers
    """

    def __init__(self, model: Any, source: Any, cache: KVCache, vocab_size: int):
        self.model, self.source, self.cache, self.vocab_size = model, source, cache, vocab_size

    @classmethod
    def read(cls, model: Any, prompts: Sequence[Sequence[int]], slots: int, *, vocab_size: int,
             cache_dtype: torch.dtype | None) -> tuple["TextToTextDecoder", Tensor]:
        """Encode prompts; their decoder, and the logits (B, V) of the first token of each answer.

        slots  of an answer at most
        """
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=model.device)
        longest = int(lengths.max())
        padded = [list(prompt) + [0] * (longest - len(prompt)) for prompt in prompts]
        source = model.read(torch.tensor(padded, device=model.device), lengths)
        cache = KVCache(model.config, len(prompts), slots + 1, dtype=cache_dtype or model.dtype, device=model.device)
        decoder = cls(model, source, cache, vocab_size)
        start = torch.full((len(prompts), 1), model.config.decoder_start_token_id, device=model.device)
        return decoder, decoder.step(start)

    def step(self, tokens: Tensor) -> Tensor:
        """Run the next tokens (B, 1) of every answer and return the logits (B, V) that follow."""
        hidden = self.model.decode(tokens, self.source, cache=self.cache)
        return self.model.lm_head(hidden[:, -1])[..., : self.vocab_size]

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows alone, each as often as it is named."""
        remembered, seen = self.source
        self.source = [(k[rows], v[rows]) for k, v in remembered], seen[rows]
        self.cache.select(rows)
