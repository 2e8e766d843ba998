import pytest
import torch
from torch import nn
from torch.nn import functional

from llama.lora.layers import DoRA, LoRALinear, LoRAPart
from llama.lora.targets import LoRAConfig


def _layer(part_kind, config, *, weight, bias=None):
    base = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    base.weight.data = weight.clone()
    if bias is not None:
        base.bias.data = bias.clone()
    layer = LoRALinear(base)
    layer.adapters["default"], layer.active = part_kind(base, config), ("default",)
    return layer, layer.adapters["default"]


def _random(config, *, bias=False):
    generator = torch.Generator().manual_seed(0)
    layer, part = _layer(DoRA if config.dora else LoRAPart, config, weight=torch.randn(6, 4, generator=generator),
                         bias=torch.randn(6, generator=generator) if bias else None)
    for parameter in part.parameters():
        parameter.data += torch.randn(parameter.shape, generator=generator)
    return layer, part, torch.randn(3, 4, generator=generator)


def test_worked_example_two_by_two():
    layer, part = _layer(LoRAPart, LoRAConfig(rank=1, alpha=2.0), weight=torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    part.lora_A.data = torch.tensor([[1.0, -1.0]])
    part.lora_B.data = torch.tensor([[0.5], [2.0]])
    # A x = 3 - 1 = 2; B A x = (1, 4); times alpha / rank = 2: (2, 8). W x = (5, 13).
    assert layer(torch.tensor([3.0, 1.0])).tolist() == [7.0, 21.0]
    assert layer.merged(torch.float32).tolist() == [[2.0, 1.0], [7.0, 0.0]]


def test_worked_example_dora_two_by_two():
    layer, part = _layer(DoRA, LoRAConfig(rank=1, alpha=1.0, dora=True), weight=torch.tensor([[3.0, 4.0], [0.0, 2.0]]))
    assert part.magnitude.tolist() == [5.0, 2.0]                    # the lengths of W's rows
    part.lora_A.data = torch.tensor([[1.0, 0.0]])
    part.lora_B.data = torch.tensor([[3.0], [1.5]])
    part.magnitude.data = torch.tensor([10.0 * 52**0.5, 5.0])
    # W + B A = [[6, 4], [1.5, 2]], whose rows are √52 and 2.5 long; scaled to 10 √52 and 5: [[60, 40], [3, 4]].
    torch.testing.assert_close(layer.merged(torch.float32), torch.tensor([[60.0, 40.0], [3.0, 4.0]]))
    torch.testing.assert_close(layer(torch.tensor([1.0, 2.0])), torch.tensor([140.0, 11.0]))


def test_worked_example_the_scale_of_rslora():
    weight = torch.zeros(2, 2)
    for config, scale in [(LoRAConfig(rank=16, alpha=8.0), 0.5), (LoRAConfig(rank=16, alpha=8.0, rslora=True), 2.0)]:
        assert _layer(LoRAPart, config, weight=weight)[1].scale == scale


def test_worked_example_a_starts_as_in_peft():
    parts = [_layer(LoRAPart, LoRAConfig(rank=50), weight=torch.zeros(3, 400))[1] for _ in range(1)]
    part = LoRAPart(nn.Linear(400, 3), LoRAConfig(rank=50), generator=torch.Generator().manual_seed(0))
    again = LoRAPart(nn.Linear(400, 3), LoRAConfig(rank=50), generator=torch.Generator().manual_seed(0))
    assert part.lora_A.abs().max() <= 400**-0.5             # uniform between -1/√in and 1/√in, of variance 1/(3 in)
    assert part.lora_A.std().item() == pytest.approx((3 * 400) ** -0.5, rel=0.02)
    assert torch.equal(part.lora_A, again.lora_A) and not torch.equal(part.lora_A, parts[0].lora_A)
    assert not part.lora_B.any()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("config", [LoRAConfig(rank=2), LoRAConfig(rank=2, dora=True),
                                    LoRAConfig(rank=2, dora=True, rslora=True)], ids=["lora", "dora", "dora, rslora"])
def test_two_ways_merged_equals_beside(config, bias):
    layer, _, x = _random(config, bias=bias)
    merged = functional.linear(x, layer.merged(torch.float32), layer.base.bias)
    torch.testing.assert_close(layer(x), merged, rtol=1e-5, atol=1e-5)
    assert (layer(x) - layer.base(x)).abs().max() > 0.1


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_two_ways_dora_and_its_gradients_equal_the_formula(dropout):
    """m ⊙ (W + s B A) x / ‖W + s B A‖, the lengths being constants (arXiv:2402.09353, eq. 5 and 11)."""
    layer, part, x = _random(LoRAConfig(rank=2, dora=True, dropout=dropout), bias=True)
    torch.manual_seed(0)
    y = layer(x)
    y.square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in part.named_parameters()}
    part.zero_grad()

    torch.manual_seed(0)
    seen = functional.dropout(x, dropout)
    V = layer.weight + part.scale * part.lora_B @ part.lora_A
    expected = seen @ (part.magnitude[:, None] * V / V.detach().norm(dim=1, keepdim=True)).T + layer.base.bias
    expected = expected + (x - seen) @ layer.weight.T               # dropout is the adapter's, the base sees all of x
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
    expected.square().sum().backward()
    for name, parameter in part.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-4)


def test_property_a_new_dora_is_its_base_to_the_last_bit():
    for dtype in (torch.float32, torch.bfloat16):
        base = nn.Linear(8, 5).to(dtype)
        layer = LoRALinear(base)
        layer.adapters["default"], layer.active = DoRA(base, LoRAConfig(rank=2, dora=True)), ("default",)
        x = torch.randn(3, 8).to(dtype)
        assert torch.equal(layer(x), base(x)) and layer(x).dtype == dtype
        assert torch.equal(layer.merged(dtype), base.weight)
