"""Tensors in pages of 2 MB instead of 4 KB, where Linux lends them to those who ask.

To read an address a processor looks up its page, and remembers the last few hundred. Decoding a token reads a whole
model in order, from tens of thousands of small pages, none of which is remembered when its turn comes again. In large
pages the same step takes a tenth to a fifth less time (docs/experiments.md).

    x = in_huge_pages(x)                # a copy; or x itself where it is there, or there are none to be had

Try: leave `madvise` out; tests/test_huge_pages.py (test_property_linux_gives_large_pages) fails where there are any.
"""

import contextlib
import mmap

import torch
from torch import Tensor, nn

CHUNK = 64 << 20        # bytes asked for at a time; what is not used of them takes no memory
ALIGNED = 64            # bytes, a line of the processor's cache

_free = torch.empty(0, dtype=torch.uint8)                           # what is left of the last chunk
_chunks: set[int] = set()                                           # where they begin


def in_huge_pages(x: Tensor) -> Tensor:
    """A copy of a tensor on the CPU. It stays in memory until all that was put beside it is gone, too."""
    global _free
    if x.device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE") or x.untyped_storage().data_ptr() in _chunks:
        return x
    size = -(-x.nbytes // ALIGNED) * ALIGNED
    if size > len(_free):
        _free = _chunk(max(size, CHUNK))
    place, _free = _free[: x.nbytes], _free[size:]
    return place.view(x.dtype).view(x.shape).copy_(x)


def move_to_huge_pages(module: nn.Module) -> None:
    """Move all parameters, in place, one at a time."""
    for parameter in module.parameters():
        parameter.data = in_huge_pages(parameter.data)


def _chunk(size: int) -> Tensor:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):                              # a Linux without large pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    chunk = torch.frombuffer(memory, dtype=torch.uint8)
    _chunks.add(chunk.data_ptr())
    return chunk
