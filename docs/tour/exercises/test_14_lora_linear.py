import torch
from torch import nn

from docs.tour.exercises.lora_linear import lora_linear
from llama.lora.layers import LoRALinear, LoRAPart
from llama.lora.targets import LoRAConfig


def test_worked_example_rank_one():
    x, W = torch.tensor([1.0, 2.0]), torch.eye(2)
    A, B = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0], [1.0]])
    assert lora_linear(x, W, A, B, alpha=2.0).tolist() == [1.0, 8.0]                # 2 + 2/1 · 3


def test_property_b_at_zero_changes_nothing():
    x, W = torch.randn(2, 3, 5), torch.randn(4, 5)
    torch.testing.assert_close(lora_linear(x, W, torch.randn(2, 5), torch.zeros(4, 2), 16.0), x @ W.T)


def test_two_ways_equals_the_layer():
    base, x = nn.Linear(6, 4, bias=False), torch.randn(3, 6)
    layer = LoRALinear(base)
    part = layer.adapters["a"] = LoRAPart(base, LoRAConfig(rank=2, alpha=16.0))
    layer.active = ("a",)
    part.lora_B.data.normal_()
    torch.testing.assert_close(lora_linear(x, base.weight, part.lora_A, part.lora_B, 16.0), layer(x))
