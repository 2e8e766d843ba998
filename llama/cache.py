"""What attention remembers of the past: keys and values, layer by layer, in full numbers, in bfloat16 or in int8.

Without it every new token would run the whole text again. With it a text costs memory, for each of its B rows

    2 · L · G · K · bytes of a number    a slot; for SmolLM2-135M 46,080 bytes in float32, 23,040 in bfloat16
    2 · L · G · (K + 4)                  a slot in int8: each vector of K has a float32 scale; 12,240 bytes

and a slot is needed for every token, or with a sliding window for as many as it is wide, and a few hundred more.

Five ways to count meet here. A row «the cat» left-padded by two, in a layer that has dropped one slot:

    slot      0    1    2    3    4        of the batch: all rows count alike, padding included
    token     .    .   the  cat   …        KVCache.tokens (B, slots)
    position  0    0    0    1    2        of the text, what rotary embeddings turn by: slot - padding, at least 0
    place     -    0    1    2    3        in a layer's tensors: slot - evicted
    length                        4        slots so far, which is the slot of the next token

Try: in `LayerCache.update`, hand out one slot more than the window needs; tests/test_cache.py
(test_two_ways_a_rolling_cache_equals_the_whole_text) fails: masks are made for those that are needed.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from llama.config import LlamaConfig
from llama.masks import padding_mask

EVICTION_SLACK = 512  # slots beyond the window: so many tokens at once, or so many steps before old ones are dropped
ROLLBACK_SLOTS = 32  # slots beyond the window that are kept when others are dropped, for guesses that prove wrong


class LayerCache:
    """Keys (already rotated) and values of one layer, as float numbers.

    keys, values  (B, G, slots, K); slot s of the text is at place s - evicted
    length        slots of the text so far
    evicted       how many of the first are no longer held: with a sliding window no later query sees them
    """

    stored: tuple[str, ...] = ("keys", "values")                    # the tensors, all of (B, G, slots, some size)

    def __init__(self, config: LlamaConfig, batch_size: int, max_length: int, *, dtype: torch.dtype, device: Any):
        self.window = config.sliding_window
        self.length = self.evicted = 0
        shape = (batch_size, config.num_key_value_heads, self._capacity(max_length))
        self._allocate(shape, config.head_dim, dtype, device)

    def update(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k and v (B, G, T, K) behind what is there and return what T queries may look at, (B, G, S, K).

        That is everything so far, as it was stored, or with a sliding window the last window - 1 + T slots.
        """
        T = k.shape[2]
        self.advance(T)
        end = self.length - self.evicted
        self._write(slice(end - T, end), k, v)
        return self._read(slice(max(end - (self.window - 1 + T), 0) if self.window else 0, end), k.dtype)

    def advance(self, T: int) -> None:
        """Count T more slots and make sure there is a place for them; somebody else writes keys and values there."""
        held, places = self.length - self.evicted, self.keys.shape[2]
        if held + T > places:
            assert self.window, f"{held} slots are held and {T} more are given to a cache of {places}"
            kept = min(held, self.window - 1 + ROLLBACK_SLOTS)
            free = max(places, kept + T) - kept
            self._change(lambda x: functional.pad(x[:, :, held - kept : held], (0, 0, 0, free)))
            self.evicted += held - kept
        self.length += T

    def can_truncate(self, length: int) -> bool:
        """Whether what a query at slot `length` sees, but for itself, is held."""
        return self.evicted <= max(min(self.length, length) - self.window + 1, 0)

    def truncate(self, length: int) -> None:
        self.length = min(self.length, length)
        self.evicted = min(self.evicted, self.length)

    def select(self, rows: Sequence[int], start: int) -> None:
        gone = max(start - self.evicted, 0)
        self._change(lambda x: x[rows, :, gone:])
        self.length, self.evicted = max(self.length - start, 0), max(self.evicted - start, 0)

    def expand(self, padding: Sequence[int]) -> None:
        """From one row to several, each moved to the right; what stands in a row's first slots means nothing then."""
        assert self.evicted == 0 or not any(padding)
        self._change(lambda x: torch.stack([x[0].roll(blank, dims=1) for blank in padding]))

    def stack(self, others: Sequence["LayerCache"], max_length: int) -> "LayerCache":
        """The rows of this one and the others, each moved to the right to end where the longest does."""
        layers = (self, *others)
        assert not any(layer.evicted for layer in layers)
        other = copy.copy(self)
        other.length = max(layer.length for layer in layers)
        free = self._capacity(max_length) - other.length
        for name in self.stored:
            held = [getattr(layer, name)[:, :, : layer.length] for layer in layers]
            setattr(other, name, torch.cat([functional.pad(x, (0, 0, other.length - x.shape[2], free)) for x in held]))
        return other

    def replace(self, rows: Sequence[int], other: "LayerCache") -> None:
        """Write the rows of `other`, no longer than this, over `rows`, to end where these do."""
        assert not self.evicted and not other.evicted
        for name in self.stored:
            getattr(self, name)[rows, :, self.length - other.length : self.length] = \
                getattr(other, name)[:, :, : other.length]

    def reserve(self, length: int) -> None:
        if (more := self._capacity(length) - self.keys.shape[2]) > 0:
            self._change(lambda x: functional.pad(x, (0, 0, 0, more)))

    def nbytes(self) -> int:
        return sum(getattr(self, name).nbytes for name in self.stored)

    def _capacity(self, length: int) -> int:
        return min(length, self.window - 1 + ROLLBACK_SLOTS + EVICTION_SLACK) if self.window else length

    def _change(self, f: Callable[[Tensor], Tensor]) -> None:
        for name in self.stored:
            setattr(self, name, f(getattr(self, name)))

    # What a way of storing numbers has to say

    def _allocate(self, shape: tuple[int, ...], K: int, dtype: torch.dtype, device: Any) -> None:
        self.keys = torch.zeros(*shape, K, dtype=dtype, device=device)
        self.values = torch.zeros(*shape, K, dtype=dtype, device=device)

    def _write(self, places: slice, k: Tensor, v: Tensor) -> None:
        self.keys[:, :, places] = k
        self.values[:, :, places] = v

    def _read(self, places: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        return self.keys[:, :, places].to(dtype), self.values[:, :, places].to(dtype)


class Int8LayerCache(LayerCache):
    """A quarter of float32's memory: each vector of K numbers is rounded to 255 levels, the largest of them ±127.

    No number is further off than 1/254 of the largest in its vector. A scale for every head and slot, since a few
    features of keys are ten times as large as the others, and a token's vector is written once and never again.
    """

    stored = ("keys", "values", "key_scales", "value_scales")

    def _allocate(self, shape: tuple[int, ...], K: int, dtype: torch.dtype, device: Any) -> None:
        super()._allocate(shape, K, torch.int8, device)
        self.key_scales = torch.zeros(*shape, 1, device=device)     # (B, G, slots, 1)
        self.value_scales = torch.zeros(*shape, 1, device=device)

    def _write(self, places: slice, k: Tensor, v: Tensor) -> None:
        self.keys[:, :, places], self.key_scales[:, :, places] = _quantize_per_vector(k)
        self.values[:, :, places], self.value_scales[:, :, places] = _quantize_per_vector(v)

    def _read(self, places: slice, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        k = self.keys[:, :, places] * self.key_scales[:, :, places]
        v = self.values[:, :, places] * self.value_scales[:, :, places]
        return k.to(dtype), v.to(dtype)


def _quantize_per_vector(x: Tensor) -> tuple[Tensor, Tensor]:
    """int8 and the scale of each vector along the last axis; a vector of zeros stays one."""
    scale = x.float().abs().amax(-1, keepdim=True) / 127
    return (x.float() / scale.clamp(min=1e-30)).round().to(torch.int8), scale


class KVCache:
    """What attention needs to remember of the past, made by the caller and passed to every forward pass.

    dtype  float32, bfloat16, float16 or int8, whatever the model computes in: layers get their own dtype back

    Dynamic NTK turns all of a text otherwise with every token beyond the trained length. Keys could be rotated late,
    but they come from states that were computed under the old rotation, in every layer but the first. So such keys and
    values are of no further use: beyond `config.rope_stable_length` the cache gives back the ids of the whole text to
    be run anew. That is slow, a whole pass a token, and it is what dynamic NTK means; a cache that goes on without
    writes another text than no cache.
    """

    def __init__(self, config: LlamaConfig, batch_size: int, max_length: int, *, dtype: torch.dtype, device: Any):
        self.max_length, self.rope_stable_length = max_length, config.rope_stable_length
        self.length = 0                                             # slots in use
        self.tokens = torch.zeros(batch_size, max_length, dtype=torch.int64, device=device)
        kind = Int8LayerCache if dtype == torch.int8 else LayerCache
        self.layers = [kind(config, batch_size, max_length, dtype=dtype, device=device)
                       for _ in range(config.num_hidden_layers)]

    @property
    def contiguous(self) -> int:
        """Up to how many slots all are kept, and what they hold stays true."""
        window = self.layers[0].window
        return min(self.rope_stable_length, window) if window else self.rope_stable_length

    def prepare(self, tokens: Tensor, positions: Tensor, mask: Tensor | None = None) -> \
            tuple[Tensor, Tensor, Tensor | None, Sequence[LayerCache | None]]:
        """Take T more tokens; returns what has to run for their sake, and where its keys and values go.

        That is what was given, and the layers of this cache, unless the slots before hold no keys that can be used:
        then earlier tokens come in front, with their positions, and a mask that hides what is padding among them.

        Raises ValueError where there is no room for T more.
        """
        T = tokens.shape[1]
        if self.length + T > self.max_length:
            raise ValueError(f"the cache has room for {self.max_length} positions, {self.length} are used and {T} more "
                             "were given")
        self._count(tokens)
        stable = self.length <= self.rope_stable_length
        start = min(layer.length for layer in self.layers) if stable else 0
        layers = self.layers if stable else [None] * len(self.layers)
        if start == self.length - T:
            return tokens, positions, mask, layers
        padding = (self.length - 1 - positions[..., -1]).expand(len(tokens))
        slots = torch.arange(start, self.length, device=tokens.device)
        mask = padding_mask(padding, self.length - start, self.length)
        return self.tokens[:, start : self.length], (slots - padding[:, None]).clamp(min=0), mask, layers

    def advance(self, tokens: Tensor) -> None:
        """Count T more tokens (B, T) as stored in all layers, for a step that writes their keys and values itself.

        Not beyond `rope_stable_length`, and not behind an interrupted pass: cut that off first.
        """
        self._count(tokens)
        for layer in self.layers:
            layer.advance(tokens.shape[1])

    def truncate(self, length: int) -> int:
        """Forget every slot from `length` on, in all layers, even if a forward pass was interrupted half way.

        ->  how many slots are left. None, where a sliding window has gone so far that what it saw from `length` is
            dropped: that text has to run again from its beginning.
        """
        if not all(layer.can_truncate(length) for layer in self.layers):
            length = 0
        self.length = min(self.length, length)
        for layer in self.layers:
            layer.truncate(length)
        return self.length

    def select(self, rows: Sequence[int], *, start: int = 0) -> None:
        """Go on with these rows alone, each as often as it is named, and without their first `start` slots.

        Keys are rotated by position, not by slot, so they may move.
        """
        self.tokens = self.tokens[rows, start:]
        self.max_length, self.length = self.max_length - start, self.length - start
        for layer in self.layers:
            layer.select(rows, start)

    def expand(self, padding: Sequence[int]) -> "KVCache":
        """A new cache of as many rows, each a copy of the one here, moved to the right to have padding on its left.

        What is pushed beyond the last slot in use is lost.
        """
        other = copy.copy(self)
        other.layers = [copy.copy(layer) for layer in self.layers]
        other.tokens = torch.stack([self.tokens[0].roll(blank) for blank in padding])
        for layer in other.layers:
            layer.expand(padding)
        return other

    def stack(self, others: Sequence["KVCache"], max_length: int) -> "KVCache":
        """A new cache with the rows of this one and then of the others, padded on their left up to the longest.

        None may have evicted slots behind a sliding window, or be longer than `rope_stable_length`. They are taken
        apart, layer after layer, so that never all is there twice.
        """
        caches = (self, *others)
        other = copy.copy(self)
        other.length, other.max_length = max(cache.length for cache in caches), max_length
        other.tokens = torch.cat([functional.pad(cache.tokens[:, : cache.length], (
            other.length - cache.length, max_length - other.length)) for cache in caches])
        other.layers = []
        while self.layers:
            layer, *same = (cache.layers.pop(0) for cache in caches)
            other.layers.append(layer.stack(same, max_length))
        return other

    def replace(self, rows: Sequence[int], other: "KVCache") -> None:
        """Rows that are no longer needed become those of `other`, moved to the right to end where all others do.

        Nothing else is copied, as `select` and `stack` do. `other` is no longer than this, and the condition of `stack`
        holds.
        """
        start = self.length - other.length
        assert start >= 0
        self.tokens[rows, start : self.length] = other.tokens[:, : other.length]
        for layer, new in zip(self.layers, other.layers, strict=True):
            layer.replace(rows, new)

    def reserve(self, length: int) -> None:
        """Make room for `length` slots in all, keeping what is stored."""
        if (more := length - self.max_length) > 0:
            self.max_length, self.tokens = length, functional.pad(self.tokens, (0, more))
            for layer in self.layers:
                layer.reserve(length)

    def nbytes(self) -> int:
        """Of keys and values, whether the slots are in use or not."""
        return sum(layer.nbytes() for layer in self.layers)

    def _count(self, tokens: Tensor) -> None:
        start, self.length = self.length, self.length + tokens.shape[1]
        self.tokens[:, start : self.length] = tokens
