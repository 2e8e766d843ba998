import torch
from torch import nn

from docs.tour.exercises.merge import merge
from llama.lora.layers import LoRALinear, LoRAPart
from llama.lora.targets import LoRAConfig


def test_worked_example_of_the_page():
    A, B = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5], [-0.5]])
    assert merge(torch.eye(2), A, B, 2.0).tolist() == [[2.0, 2.0], [-1.0, -1.0]]


def test_property_small_parts_are_not_rounded_away_before_they_are_added():
    W, A, B = torch.ones(1, 1, dtype=torch.bfloat16), torch.full((2, 1), 0.0625), torch.full((1, 2), 0.0401)
    before = W.clone()
    assert merge(W, A, B, 2.0).item() == torch.tensor(1 + 2 * 0.0625 * 0.0401).bfloat16().item() != 1.0
    assert torch.equal(W, before)


def test_two_ways_equals_the_layer_s():
    base = nn.Linear(6, 4, bias=False).bfloat16()
    layer = LoRALinear(base)
    part = layer.adapters["a"] = LoRAPart(base, LoRAConfig(rank=2, alpha=16.0))
    layer.active = ("a",)
    part.lora_B.data.normal_()
    assert torch.equal(merge(base.weight, part.lora_A, part.lora_B, 16.0), layer.merged(torch.bfloat16))
