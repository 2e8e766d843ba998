import torch

from docs.tour.exercises.int8_rows import dequantize, quantize
from llama.quantization.rounding import to_int8


def test_worked_example_one_row():
    q, scale = quantize(torch.tensor([[1.27, -0.5, 0.254]]))
    assert q.tolist() == [[127, -50, 25]] and q.dtype == torch.int8
    torch.testing.assert_close(scale, torch.tensor([0.01]))


def test_property_a_row_of_zeros_stays_one():
    q, scale = quantize(torch.tensor([[0.0, 0.0], [1.0, -1.0]]))
    assert q.tolist() == [[0, 0], [127, -127]] and dequantize(q, scale).isfinite().all()


def test_property_no_weight_is_off_by_more_than_half_a_step():
    W = torch.randn(8, 50) * torch.logspace(-3, 3, 8)[:, None]
    error = (dequantize(*quantize(W)) - W).abs().amax(1)
    assert (error <= W.abs().amax(1) / 253.9).all()


def test_two_ways_nearly_equals_the_project_s():
    W = torch.randn(4, 64)                                          # whose scales are rounded up to bfloat16
    assert (dequantize(*quantize(W)) - to_int8(W).dequantize()).abs().max() < W.abs().max() / 60
