"""How fast this machine multiplies matrices: the roof over training, as memory is over generating.

Square matrices that fit the caches, in the dtype to compute in, the best of several sizes and passes.

Try: count n³ operations; tests/test_matrix_peak.py (test_worked_example_operations_of_a_product) fails.
"""

import time

import torch

SIZES = (1024, 2048, 4096)


def measure_matrix_peak(dtype: torch.dtype = torch.bfloat16, *, sizes: tuple[int, ...] = SIZES,
                        passes: int = 5) -> float:
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
