"""One text that a model remembers: what was read before is not read again (a prefix cache).

Try: keep one id more than both texts have in common; tests/test_loglikelihood.py and tests/test_speculative.py fail.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llama.generation import BatchDecoder, common_prefix_length
from llama.model import Llama


class PrefixCache:
    """A model and one text that it remembers: reads on from the longest beginning that it has read before.

    What may be kept is found by comparing ids, never assumed. So whoever changes the text, cuts it off, or breaks into
    a step needs to do nothing else. Options are those of BatchDecoder.
    """

    def __init__(self, model: Llama, *, slots: int = 1024, chunk: int = 512, **options: Any):
        self.decoder, self.chunk = BatchDecoder(model, [0], slots, **options), chunk
        self.ids: list[int] = []                                    # whose keys and values are in the cache

    def truncate(self, length: int) -> None:
        """Remember the first `length` ids alone."""
        del self.ids[self.decoder.cache.truncate(length):]

    def read(self, ids: Sequence[int], count: int = 1) -> Tensor:
        """The logits (count, V) that follow the last `count` of these ids."""
        cache, ids = self.decoder.cache, list(ids)
        kept = cache.truncate(min(common_prefix_length([self.ids, ids]), len(ids) - count))
        del self.ids[kept:]
        if len(ids) > cache.max_length:     # it doubles: for 128k tokens of an 8B, 16 GB would be taken at once
            cache.reserve(max(len(ids), 2 * cache.max_length))
        while kept < len(ids):                                      # the last piece is the longest: it holds `count`
            piece = ids[kept : kept + ((len(ids) - kept) % self.chunk or self.chunk)]
            logits = self.decoder.read(torch.tensor([piece], device=self.decoder.model.device), min(count, len(piece)))
            self.ids += piece                                       # only now: a step may be interrupted
            kept += len(piece)
        return logits[0]
