import torch

from docs.tour.exercises.rms_norm import rms_norm
from llama.model import RMSNorm


def test_worked_example_three_and_four():
    x, weight = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 2.0])
    rms = 12.5**0.5                                                 # √((9 + 16) / 2)
    torch.testing.assert_close(rms_norm(x, weight, 0.0), torch.tensor([3 / rms, 8 / rms]))


def test_property_each_token_is_measured_by_itself():
    x = torch.randn(2, 3, 8)
    longer = x * torch.tensor([1.0, 10.0, 100.0])[:, None]
    torch.testing.assert_close(rms_norm(longer, torch.ones(8), 0.0), rms_norm(x, torch.ones(8), 0.0))


def test_property_float16_does_not_overflow():
    x = torch.full((1, 64), 300.0, dtype=torch.float16)             # 300² is infinite in float16
    torch.testing.assert_close(rms_norm(x, torch.ones(64, dtype=torch.float16), 1e-5), torch.ones_like(x))


def test_two_ways_equals_the_model_s():
    norm, x = RMSNorm(16, eps=1e-5), torch.randn(2, 5, 16)
    norm.weight.data.normal_()
    torch.testing.assert_close(rms_norm(x, norm.weight, 1e-5), norm(x))
