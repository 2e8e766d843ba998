import torch
from torch import nn

from docs.tour.exercises.adamw_step import adamw_step

SETTINGS = {"lr": 0.01, "beta1": 0.9, "beta2": 0.95}


def test_worked_example_the_first_step_is_the_learning_rate():
    zero = torch.zeros(2)
    theta, m, v = adamw_step(torch.ones(2), torch.tensor([0.001, -1000.0]), zero, zero, 1, decay=0.0, **SETTINGS)
    torch.testing.assert_close(theta, torch.tensor([0.99, 1.01]))
    torch.testing.assert_close(m, torch.tensor([0.0001, -100.0]))


def test_property_without_a_gradient_there_is_decay_alone():
    zero = torch.zeros(1)
    assert abs(adamw_step(torch.ones(1), zero, zero, zero, 1, decay=0.1, **SETTINGS)[0].item() - 0.999) < 1e-6


def test_two_ways_equals_torch_s():
    weight = nn.Parameter(torch.randn(3, 4))
    optimizer = torch.optim.AdamW([weight], lr=0.01, betas=(0.9, 0.95), weight_decay=0.1)
    theta, m, v = weight.detach().clone(), torch.zeros(3, 4), torch.zeros(3, 4)
    for t in range(1, 6):
        weight.grad = torch.randn(3, 4)
        theta, m, v = adamw_step(theta, weight.grad, m, v, t, decay=0.1, **SETTINGS)
        optimizer.step()
        torch.testing.assert_close(theta, weight.detach())
