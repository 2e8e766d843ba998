import torch

from llama import bandwidth


def test_property_the_block_is_larger_than_caches():
    assert bandwidth.SIZE >= 1 << 30 and bandwidth.SIZE % (4 * bandwidth.ROW) == 0


def test_worked_example_a_block_is_written_memory(monkeypatch):
    x = bandwidth.block(1 << 20)
    assert x.dtype == torch.float32 and x.nbytes == 1 << 20 and x.sum() == 1 << 18
    clock = iter([0.0, 0.5, 1.0, 1.25])                             # passes of half and of a quarter second
    monkeypatch.setattr(bandwidth.time, "perf_counter", lambda: next(clock))
    assert bandwidth.measure_bandwidth(size=1 << 20, passes=2) == (1 << 20) / 0.25
