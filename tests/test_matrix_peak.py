import time

import torch

from llama.matrix_peak import measure_matrix_peak


def test_worked_example_operations_of_a_product(monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))  # a product takes a second
    assert measure_matrix_peak(torch.float32, sizes=(4, 10), passes=2) == 2000
