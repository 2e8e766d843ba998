import time

import torch

from llama.benchmark import machine_limits
from llama.benchmark.machine_limits import measure_matrix_peak


def test_property_the_block_is_larger_than_caches():
    assert machine_limits.SIZE >= 1 << 30 and machine_limits.SIZE % (4 * machine_limits.ROW) == 0


def test_worked_example_a_block_is_written_memory(monkeypatch):
    x = machine_limits.block(1 << 20)
    assert x.dtype == torch.float32 and x.nbytes == 1 << 20 and x.sum() == 1 << 18
    clock = iter([0.0, 0.5, 1.0, 1.25])                             # passes of half and of a quarter second
    monkeypatch.setattr(machine_limits.time, "perf_counter", lambda: next(clock))
    assert machine_limits.measure_bandwidth(size=1 << 20, passes=2) == (1 << 20) / 0.25


def test_worked_example_operations_of_a_product(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))  # a product takes a second
    assert measure_matrix_peak(torch.float32, sizes=(4, 10), passes=2) == 2000
