import torch
from torch.nn import functional

from docs.tour.exercises.silu_backward import silu_backward


def test_worked_example_at_zero_half_comes_back():
    torch.testing.assert_close(silu_backward(torch.tensor([3.0]), torch.tensor([0.0])), torch.tensor([1.5]))


def test_two_ways_equals_autograd():
    x, dy = torch.randn(2, 4, 5)
    x.requires_grad_()
    functional.silu(x).backward(dy)
    torch.testing.assert_close(silu_backward(dy, x.detach()), x.grad)
