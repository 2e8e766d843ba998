import math

import torch

from docs.tour.exercises.swiglu import swiglu
from llama.config import preset
from llama.model import MLP


def test_worked_example_one_feature():
    one = torch.ones(1, 1)
    silu = 2 / (1 + math.exp(-2))
    torch.testing.assert_close(swiglu(torch.tensor([2.0]), one, 3 * one, one), torch.tensor([silu * 6]))


def test_property_a_gate_that_is_shut_gives_nothing():
    one = torch.ones(1, 1)
    torch.testing.assert_close(swiglu(torch.tensor([1.0]), -1000 * one, one, one), torch.zeros(1))


def test_two_ways_equals_the_model_s():
    mlp, x = MLP(preset("test")), torch.randn(2, 5, 32)
    weights = (mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)
    torch.testing.assert_close(swiglu(x, *weights), mlp(x))
