import torch

from docs.tour.exercises.nucleus import nucleus
from llama.sampling import SamplingConfig, probabilities


def test_worked_example_the_token_that_crosses_stays():
    p = torch.tensor([0.2, 0.5, 0.3])
    torch.testing.assert_close(nucleus(p, 0.6), torch.tensor([0.0, 0.625, 0.375]))


def test_worked_example_one_stays_at_least():
    assert nucleus(torch.tensor([0.2, 0.5, 0.3]), 0.0).tolist() == [0.0, 1.0, 0.0]


def test_two_ways_equals_the_sampler_s():
    logits = torch.randn(50)
    for top_p in (0.1, 0.5, 0.9):
        expected = probabilities(logits, SamplingConfig(temperature=1.0, top_p=top_p))
        torch.testing.assert_close(nucleus(logits.softmax(0), top_p), expected)
