import pytest
import torch
from torch import nn
from torch.nn import functional

from llama.fast import fused_cross_entropy
from llama.lora.rows import RowsPart, TrainableRows
from llama.lora.targets import LoRAConfig
from llama.quantization.layers import Int8Linear
from llama.quantization.rounding import to_int8


@pytest.mark.parametrize("N", [0, 1, 7])
@pytest.mark.parametrize("learns", [True, False], ids=["head learns", "head frozen"])
def test_two_ways_loss_and_gradients_equal_autograd(N, learns, monkeypatch):
    monkeypatch.setattr(fused_cross_entropy, "LOGITS_AT_ONCE", 33)           # 3 rows of 11
    monkeypatch.setattr(fused_cross_entropy, "FLOATS_AT_ONCE", 22)
    torch.manual_seed(0)
    head, targets = nn.Linear(8, 11, bias=False).requires_grad_(learns), torch.randint(0, 11, (N,))
    results = []
    for loss_of in (lambda h: functional.cross_entropy(head(h), targets, reduction="sum"),
                    lambda h: fused_cross_entropy.fused_linear_cross_entropy(h, targets, head)):
        hidden = torch.randn(N, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
        head.zero_grad()
        loss = loss_of(hidden)
        (3 * loss).backward()
        results.append((loss.detach(), hidden.grad, head.weight.grad if learns else torch.zeros(())))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)


def test_two_ways_a_head_in_few_bits_equals_its_numbers():
    torch.manual_seed(0)
    rounded = Int8Linear(to_int8(torch.randn(11, 32)), dtype=torch.float32)
    plain = nn.Linear(32, 11, bias=False).requires_grad_(False)
    plain.weight.data = rounded.dequantized()
    targets, results = torch.tensor([3, 10]), []
    for head in (plain, rounded):
        hidden = torch.ones(2, 32, requires_grad=True)
        loss = fused_cross_entropy.fused_linear_cross_entropy(hidden, targets, head)
        loss.backward()
        results.append((loss.detach(), hidden.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("few", [False, True], ids=["floats", "8 bits"])
def test_two_ways_learned_rows_of_a_head_equal_autograd(few, monkeypatch):
    monkeypatch.setattr(fused_cross_entropy, "LOGITS_AT_ONCE", 33)
    torch.manual_seed(0)
    weight = torch.randn(11, 32)
    base = Int8Linear(to_int8(weight), dtype=torch.float32) if few else nn.Linear(32, 11, bias=False)
    head, targets = TrainableRows(base.requires_grad_(False)), torch.tensor([9, 3, 0, 10, 9])
    head.adapters["a"] = RowsPart(base, (3, 9, 10), LoRAConfig(targets=(), rows={"lm_head": (3, 9, 10)}))
    head.active = ("a",)
    with torch.no_grad():
        head.rows.add_(torch.randn(3, 32))
    assert fused_cross_entropy.supports_head(head)
    results = []
    for loss_of in (lambda h: functional.cross_entropy(head(h), targets, reduction="sum"),
                    lambda h: fused_cross_entropy.fused_linear_cross_entropy(h, targets, head)):
        hidden = torch.randn(5, 32, generator=torch.Generator().manual_seed(1)).requires_grad_()
        head.zero_grad()
        loss = loss_of(hidden)
        (3 * loss).backward()
        results.append((loss.detach(), hidden.grad, head.rows.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_property_bfloat16_logits_are_summed_in_float32():
    """4,096 equal logits: a sum in bfloat16 would stop at 256."""
    head = nn.Linear(2, 4096, bias=False).to(torch.bfloat16).requires_grad_(False)
    nn.init.zeros_(head.weight)
    states = torch.ones(1, 2, dtype=torch.bfloat16, requires_grad=True)
    loss = fused_cross_entropy.fused_linear_cross_entropy(states, torch.tensor([0]), head)
    assert loss.item() == pytest.approx(8.31777, rel=1e-5) and loss.dtype == torch.float32


def test_property_heads_that_are_known():
    assert fused_cross_entropy.supports_head(nn.Linear(2, 3, bias=False))
    assert not fused_cross_entropy.supports_head(nn.Linear(2, 3))
    assert not fused_cross_entropy.supports_head(nn.Sequential())


@pytest.mark.parametrize("learned", [True, False], ids=["head learns", "head frozen"])
def test_property_other_devices_get_gradients_of_the_same_kind(learned):
    """On the meta device, in place of a GPU: nothing of the CPU takes part, and few kernels are started."""
    head = nn.Linear(8, 4096, bias=False, device="meta", dtype=torch.bfloat16).requires_grad_(learned)
    hidden = torch.empty(300, 8, device="meta", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.empty(300, device="meta", dtype=torch.int64)
    loss = fused_cross_entropy.fused_linear_cross_entropy(hidden, targets, head)
    loss.backward()
    assert loss.dtype == torch.float32 and hidden.grad.shape == (300, 8) and hidden.grad.dtype == torch.bfloat16
    assert (head.weight.grad is not None) == learned
    floats_at_once = fused_cross_entropy.floats_at_once
    assert floats_at_once(hidden.device) > 300 * 4096 > floats_at_once(torch.device("cpu"))
