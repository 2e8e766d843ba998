"""One sha256 over plain values and tensors: it tells whether a state is what was written, and a run still the same run.

Every number counts, as it lies in memory; tensors of a GPU are copied, one at a time.

Try: leave kinds and lengths out of `_add`; tests/test_digest.py (test_property_no_two_values_share_a_digest) fails.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llama.tasks.generation import Blocks
from llama.tasks.task import Sample

AT_ONCE = 1 << 20                                                   # ids of a token file that are looked at


def digest(value: Any) -> bytes:
    """Of tensors and plain values, in lists, tuples and dictionaries, which have an order."""
    found = hashlib.sha256()
    _add(found, value)
    return found.digest()


def samples_digest(samples: Sequence[Sample]) -> bytes:
    """Of all that a run learns from samples; not of the places that they are from, which may be called otherwise."""
    found = hashlib.sha256()
    if isinstance(samples, Blocks):
        found.update(repr((samples.block_size, samples.overlap, len(samples.ids))).encode())
        for start in range(0, len(samples.ids), AT_ONCE):
            found.update(np.ascontiguousarray(samples.ids[start : start + AT_ONCE]))
        return found.digest()
    for sample in samples:
        _add(found, repr(replace(sample, place="")))
    return found.digest()


def _add(found: Any, value: Any) -> None:
    """Kind and length first, so that the end of one value cannot be the beginning of another."""
    if isinstance(value, Tensor):
        numbers = value.detach().cpu().contiguous()
        found.update(f"{value.dtype} {tuple(value.shape)} ".encode())
        found.update(numbers.reshape(-1).view(torch.uint8).numpy())
    elif isinstance(value, Mapping):
        found.update(f"{len(value)} named ".encode())
        for item in value.items():
            _add(found, item)
    elif isinstance(value, list | tuple):
        found.update(f"{type(value).__name__} of {len(value)} ".encode())
        for item in value:
            _add(found, item)
    elif value is None or isinstance(value, str | bytes | int | float):
        text = repr(value).encode(errors="surrogatepass")
        found.update(f"{type(value).__name__} of {len(text)} ".encode() + text)
    else:
        raise TypeError(f"{type(value).__name__} is no plain value")
