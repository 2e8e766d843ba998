"""What this machine can do at most: read memory, the roof over generating, and multiply matrices, that over training.

Generating reads all weights for each token. A row of 2^16 numbers at a time is summed by torch, with all its threads,
from one block larger than common caches; the best of several passes counts. Pages of 4 KB cost a look-up each that
halves the figure on some machines, so the block asks for huge pages where the system has them.

Try: make the block 4 MB; tests/test_machine_limits.py (test_property_the_block_is_larger_than_caches) fails, and the
figure would be that of a cache.
"""

import contextlib
import mmap
import time

import torch
from torch import Tensor

SIZE = 1 << 30                                                      # bytes
ROW = 1 << 16                                                       # numbers
SIZES = (1024, 2048, 4096)


def measure_bandwidth(*, size: int = SIZE, passes: int = 8) -> float:
    """Bytes a second."""
    rows, best = block(size).view(-1, ROW), float("inf")
    for _ in range(passes):
        started = time.perf_counter()
        rows.sum(dim=1)
        best = min(best, time.perf_counter() - started)
    return rows.nbytes / best


def block(size: int) -> Tensor:
    """`size` bytes of memory as float32 numbers, all of them written, in huge pages where there are any."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.ones(size // 4)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)           # shared memory has small pages
    with contextlib.suppress(OSError):                              # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(memory, dtype=torch.float32).fill_(1)


def measure_matrix_peak(dtype: torch.dtype, *, sizes: tuple[int, ...] = SIZES, passes: int = 5) -> float:
    """Floating-point operations a second: a product of (n, n) by (n, n) has 2 n³."""
    best = 0.0
    for n in sizes:
        a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
        a @ b
        for _ in range(passes):
            started = time.perf_counter()
            a @ b
            best = max(best, 2 * n**3 / (time.perf_counter() - started))
    return best
