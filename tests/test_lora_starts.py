"""Adapters that begin at the matrices themselves, and LoRA+."""

import json

import pytest
import torch
from torch import nn

from llama.checkpoint import load_model, save_model
from llama.lora import LoRAConfig, add_lora, load_adapter, merge_lora, remove_lora, save_adapter
from llama.lora.layers import DoRA, LoRALinear, LoRAPart
from llama.lora.loftq import begin_at, quantize_around
from llama.lora.starts import loftq, pissa
from llama.lora.swap import wrappers
from llama.quantization.rounding import to_int4, to_int8
from llama.quantization.swap import dequantize, quantize
from llama.runtime import cli
from llama.training.optimizer import make_optimizer, set_rate
from tests.test_lora import bits, build, logits, same, stir

STARTED = pytest.mark.parametrize("config", [
    LoRAConfig(rank=3, lora_init="pissa"), LoRAConfig(rank=2, lora_init="olora", rslora=True),
    LoRAConfig(rank=2, lora_init="pissa", dora=True), LoRAConfig(rank=2, lora_init="olora", rank_pattern={"q_proj": 4},
                                                                 alpha_pattern={"up_proj": 5.0})],
    ids=["pissa", "olora, rslora", "pissa, dora", "olora, patterns"])


def test_worked_example_pissa_two_by_two():
    """W = [[0, 3], [2, 0]] is 3 e₁ e₂ᵀ + 2 e₂ e₁ᵀ: of rank 1 remains the first, shared as √3 and √3."""
    A, B = pissa(torch.tensor([[0.0, 3.0], [2.0, 0.0]]), 1, 1.0)
    torch.testing.assert_close(A.abs(), torch.tensor([[0.0, 3**0.5]]))
    torch.testing.assert_close(B @ A, torch.tensor([[0.0, 3.0], [0.0, 0.0]]))


@STARTED
def test_property_a_new_start_is_the_base_and_the_best_of_its_rank(config):
    model = build()
    before, weights = logits(model), bits(model)
    add_lora(model, config)
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    assert all(torch.equal(wrapper.weight, weights[f"{path}.weight"]) for path, wrapper in wrappers(model).items())
    for wrapper in wrappers(model).values():
        part = wrapper.adapters["default"]
        taken = part.scale * part.lora_B @ part.lora_A              # PiSSA's: no other of its rank is nearer to W
        left = torch.linalg.svdvals((wrapper.weight - taken).detach())
        if config.lora_init == "pissa":
            torch.testing.assert_close(left[0], torch.linalg.svdvals(wrapper.weight)[len(part.lora_A)])
        else:
            torch.testing.assert_close(part.lora_B.T @ part.lora_B, torch.eye(len(part.lora_A)))
    remove_lora(model, "default")
    assert same(bits(model), weights)                               # of the base nothing was changed


@STARTED
def test_two_ways_saved_as_twice_the_rank_equals_memory_and_merged(config, tmp_path):
    model = build()
    save_model(model, tmp_path / "base")
    add_lora(model, config)
    stir(model)
    expected = logits(model)
    save_adapter(model, tmp_path / "adapter")
    written = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert written["r"] == 2 * config.rank and written["init_lora_weights"] is True
    assert list(written["rank_pattern"].values()) == [2 * rank for rank in config.rank_pattern.values()]
    again = load_model(tmp_path / "base")
    load_adapter(again, tmp_path / "adapter")
    torch.testing.assert_close(logits(again), expected, rtol=1e-5, atol=1e-5)
    merge_lora(model)
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)


def test_two_ways_the_gradient_of_a_start_is_that_of_a_base_without_it():
    """(W - s B₀ A₀) + s B A, as the papers write it, with W changed."""
    base, x = nn.Linear(6, 5, bias=False), torch.randn(4, 6)
    part = LoRAPart(base, LoRAConfig(rank=2, lora_init="pissa"))
    layer = LoRALinear(base)
    layer.adapters["default"], layer.active = part, ("default",)
    changed = (base.weight - part.scale * part.lora_B @ part.lora_A).detach()
    part.lora_A.data += 0.1
    layer(x).square().sum().backward()
    A, B = (each.detach().clone().requires_grad_() for each in (part.lora_A, part.lora_B))
    (x @ (changed + part.scale * B @ A).T).square().sum().backward()
    torch.testing.assert_close(part.lora_A.grad, A.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(part.lora_B.grad, B.grad, rtol=1e-4, atol=1e-4)


def test_property_a_start_stands_on_few_bits_and_under_dora():
    model = build(hidden_size=64, intermediate_size=96)
    quantize(model, bits=8, report=False)
    before = logits(model)
    add_lora(model, LoRAConfig(rank=2, lora_init="pissa", dora=True))
    torch.testing.assert_close(logits(model), before, rtol=1e-4, atol=1e-4)
    assert all(isinstance(wrapper.adapters["default"], DoRA) for wrapper in wrappers(model).values())


@pytest.mark.parametrize("to_few", [to_int4, lambda weight: to_int8(weight)], ids=["int4", "int8"])
def test_property_turns_of_loftq_shrink_what_is_lost(to_few):
    weight = torch.randn(48, 64, generator=torch.Generator().manual_seed(0))
    packed, A, B, residuals = loftq(weight, 8, 2.0, to_few)
    alone, first, *_ = residuals
    best = (weight - packed.dequantize() - 2.0 * B @ A).norm() / weight.norm()
    assert best.item() == pytest.approx(min(residuals[1:])) and min(residuals[1:]) <= first < alone
    assert alone == pytest.approx(((weight - to_few(weight).dequantize()).norm() / weight.norm()).item())


def test_property_loftq_loses_less_than_few_bits_alone():
    plain, few, begun = (build(hidden_size=64, intermediate_size=96) for _ in range(3))
    quantize(few, bits=4, report=False)
    config = LoRAConfig(rank=8, lora_init="loftq")
    starts = quantize_around(begun, config, bits=4)
    add_lora(begun, config)
    begin_at(begun, starts)
    for path, start in starts.items():
        wrapper = begun.get_submodule(path)
        kept = wrapper.base.dequantized() + wrapper.adapters["default"].product()
        lost = (kept - plain.get_submodule(path).weight).norm() / plain.get_submodule(path).weight.norm()
        assert lost.item() == pytest.approx(min(start.residuals[1:]), rel=1e-3) and lost < start.residuals[0]
    expected = logits(plain)
    assert (logits(begun) - expected).norm() < (logits(few) - expected).norm()


def test_two_ways_a_base_of_loftq_equals_its_dequantised_folder(tmp_path):
    model, config = build(hidden_size=64, intermediate_size=96), LoRAConfig(rank=4, lora_init="loftq")
    starts = quantize_around(model, config, bits=4)
    save_model(model, tmp_path / "base")
    add_lora(model, config)
    begin_at(model, starts)
    save_adapter(stir(model), tmp_path / "adapter")
    again = load_model(tmp_path / "base")
    dequantize(again)
    load_adapter(again, tmp_path / "adapter")
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-4, atol=1e-4)


def test_worked_example_the_flag_of_ranks_by_layer():
    parser = cli.Parser("test", "test")
    cli.add_flags(parser, LoRAConfig, skip=("rows",))
    given = parser.parse_args(["--rank-pattern", "layers.0.=16,down_proj=4", "--alpha-pattern", "q_proj=0.5"])
    config = cli.from_flags(LoRAConfig, given)
    names = [f"layers.{name}" for name in ("0.self_attn.q_proj", "0.mlp.down_proj", "1.mlp.down_proj",
                                           "10.self_attn.q_proj")]
    assert [config.rank_of(name) for name in names] == [16, 16, 4, 8]
    assert config.scale_of(names[3]) == 0.5 / 8
    with pytest.raises(SystemExit):
        parser.parse_args(["--rank-pattern", "q_proj"])


def test_worked_example_lora_plus_learns_b_faster():
    A, B, gain = (nn.Parameter(torch.ones(*shape)) for shape in ((2, 3), (3, 2), (3,)))
    optimizer = make_optimizer("sgd", [A, B, gain], lr=0.1, weight_decay=0.0, faster=[B], ratio=16.0)
    set_rate(optimizer, 0.01)
    for parameter in (A, B, gain):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert [round(1 - each.flatten()[0].item(), 4) for each in (A, B, gain)] == [0.01, 0.16, 0.01]


def test_refuses_a_rank_that_a_matrix_does_not_have():
    with pytest.raises(ValueError, match="--lora-init pissa takes 65 directions of a matrix that has 32; give"):
        add_lora(build(), LoRAConfig(rank=65, lora_init="pissa"))
    with pytest.raises(ValueError, match="loftq begins at layers of blocks, and lm_head is a target"):
        quantize_around(build(tied=False), LoRAConfig(targets=("lm_head",)), bits=8)


