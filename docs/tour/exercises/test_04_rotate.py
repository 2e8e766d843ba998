import math

import torch

from docs.tour.exercises.rotate import rotate
from llama.config import preset
from llama.model import apply_rotary, rotary_tables


def test_worked_example_two_pairs_at_position_three():
    turned = rotate(torch.tensor([1.0, 0.0, 0.0, 1.0]), 3, 100.0)   # speeds 1 and 0.1
    torch.testing.assert_close(turned, torch.tensor([math.cos(3), -math.sin(0.3), math.sin(3), math.cos(0.3)]))


def test_property_lengths_are_kept_and_position_0_changes_nothing():
    x = torch.randn(8)
    torch.testing.assert_close(rotate(x, 41, 10000.0).norm(), x.norm())
    torch.testing.assert_close(rotate(x, 0, 10000.0), x)


def test_property_a_score_depends_on_the_distance_alone():
    q, k = torch.randn(2, 8)
    near = rotate(q, 7, 10000.0) @ rotate(k, 3, 10000.0)
    torch.testing.assert_close(rotate(q, 27, 10000.0) @ rotate(k, 23, 10000.0), near, atol=1e-4, rtol=1e-4)


def test_two_ways_equals_the_model_s():
    config = preset("test")
    x = torch.randn(config.head_dim)
    turned = apply_rotary(x.view(1, 1, 1, -1), *rotary_tables(torch.tensor([5]), config)).flatten()
    torch.testing.assert_close(rotate(x, 5, config.rope_theta), turned)
