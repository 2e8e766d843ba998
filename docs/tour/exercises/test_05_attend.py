import math

import torch

from docs.tour.exercises.attend import attend
from llama.model import naive_attention


def test_worked_example_two_tokens():
    q = k = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    v = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    own = math.exp(2**-0.5) / (1 + math.exp(2**-0.5))               # scores of the second query: 0 and 1/√2
    torch.testing.assert_close(attend(q, k, v), torch.tensor([[1.0, 0.0], [1 - own, own]]))


def test_property_no_query_sees_what_comes_later():
    q, k, v = torch.randn(3, 5, 4)
    before = attend(q, k, v)
    k[3:], v[3:] = 7.0, 7.0
    torch.testing.assert_close(attend(q, k, v)[:3], before[:3])


def test_two_ways_equals_the_model_s_whole_and_behind_a_cache():
    q, k, v = torch.randn(3, 6, 4)
    for T in (6, 2, 1):
        expected = naive_attention(q[None, None, -T:], k[None, None], v[None, None])[0, 0]
        torch.testing.assert_close(attend(q[-T:], k, v), expected)
