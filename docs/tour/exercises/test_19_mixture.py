import math

import torch

from docs.tour.exercises.mixture import mixture
from llama.config import preset
from llama.relatives.mixture_of_experts import MixtureOfExperts


def test_worked_example_two_of_three():
    """Odds of 4 : 2 : 1.9: the first two are taken as 2/3 and 1/3, and multiply by 1 and 10."""
    gate = torch.tensor([[math.log(4.0)], [math.log(2.0)], [math.log(1.9)]])
    y = mixture(torch.tensor([1.0]), gate, [lambda v: v, lambda v: 10 * v, lambda v: 100 * v], 2)
    torch.testing.assert_close(y, torch.tensor([4.0]))


def test_property_the_others_do_not_compute():
    asked = []

    def expert(number):
        return lambda v: asked.append(number) or v

    x = torch.tensor([1.0, -1.0])
    gate = torch.tensor([[0.0, 1.0], [3.0, 0.0], [1.0, 0.0], [0.0, 3.0]])               # scores -1, 3, 1, -3
    y = mixture(x, gate, [expert(number) for number in range(4)], 2)
    assert sorted(asked) == [1, 2]
    torch.testing.assert_close(y, x)                                # the weights sum to 1


def test_two_ways_equals_the_model_s_mixture():
    torch.manual_seed(0)
    theirs = MixtureOfExperts(preset("test"), experts=5, top_k=3).requires_grad_(False)
    x = torch.randn(4, 32)
    ours = torch.stack([mixture(token, theirs.gate.weight, theirs.experts, 3) for token in x])
    torch.testing.assert_close(ours, theirs(x))
