"""Rounding for a text: the same as without where inputs do not go together, better where they do; the whole model."""

import json
import sys
from copy import deepcopy

import pytest
import torch
from conftest import TEXT

from llama import quantize
from llama.checkpoint import load_model, save_model
from llama.model import rotary_tables
from llama.quantization import gptq, swap
from llama.quantization.gptq import input_hessians, quantize_by_gptq, round_by_gptq
from llama.quantization.rounding import to_int4
from llama.quantize import read_ids
from weights.formats.gguf_blocks import NAMED

IDS = [(7 * i * i + 3 * i) % 300 for i in range(1000)]


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(gptq, "LENGTH", 32)


def weight_and_inputs(seed=0):
    """A matrix, and inputs of which eight directions make up most."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(512, 8, generator=generator) @ torch.randn(8, 96, generator=generator)
    return torch.randn(24, 96, generator=generator), x + 0.3 * torch.randn(512, 96, generator=generator)


def test_two_ways_inputs_that_do_not_go_together_change_nothing():
    weight, _ = weight_and_inputs()
    first, second = to_int4(weight), round_by_gptq(weight, torch.diag(torch.rand(96) + 0.5), turns=0)
    assert torch.equal(first.dequantize(), second.dequantize())


def test_property_what_comes_out_is_nearer_though_the_weights_are_not():
    weight, x = weight_and_inputs()
    plain, suited = to_int4(weight).dequantize(), round_by_gptq(weight, x.T @ x).dequantize()
    lost = [((numbers - weight) @ x.T).norm().item() for numbers in (plain, suited)]
    assert lost[1] < 0.6 * lost[0]
    assert (suited - weight).norm() > (plain - weight).norm()


def test_property_every_turn_loses_less_and_the_first_most():
    """Of ‖(W - Ŵ) x‖²: GPTQ, then the same after so many turns."""
    weight, x = weight_and_inputs()
    lost = [((round_by_gptq(weight, x.T @ x, turns=turns).dequantize() - weight) @ x.T).square().sum().item()
            for turns in (0, 1, 2, 4)]
    assert lost == sorted(lost, reverse=True) and lost[1] < 0.8 * lost[0] and lost[2] - lost[3] < lost[0] - lost[1]


def test_worked_example_the_best_line_of_a_group():
    """Weights 1, 2, 4 at q 0, 1, 2, the last counting four times: w = 0.81 + 1.57 q, as by weighted least squares."""
    weight, q = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[0.0, 1.0, 2.0]])
    moments = torch.diag(torch.tensor([1.0, 1.0, 4.0]))
    scale, minimum = torch.tensor([1.0]).half(), torch.tensor([1.0]).half()
    half = (q + 1.0 - weight) @ moments
    found = torch.stack(gptq._refit_scale_and_min(q, scale, minimum, half, moments)).flatten()
    design = torch.tensor([[0.0, 1.0], [1.0, 1.0], [2.0, 1.0]])
    by_hand = torch.linalg.solve(design.T @ moments @ design, design.T @ moments @ weight[0])
    torch.testing.assert_close(found.float(), by_hand, atol=1e-3, rtol=0)
    assert gptq._refit_scale_and_min(q[:, :1], scale, minimum, half[:, :1] * 0, moments[:1, :1]) == (scale, minimum)


def test_property_what_came_from_4_bits_stays():
    weight, x = weight_and_inputs()
    weight = NAMED["Q4_1"].unpack(NAMED["Q4_1"].pack(weight.reshape(-1, 32).numpy())).reshape(weight.shape)
    assert torch.equal(round_by_gptq(weight, x.T @ x).dequantize(), weight)


def test_property_inputs_that_are_always_0_or_too_few():
    weight, x = weight_and_inputs()
    for moments in (torch.zeros(96, 96), x[:3].T @ x[:3]):
        assert (round_by_gptq(weight, moments).dequantize() - weight).norm() < 0.2 * weight.norm()


def test_worked_example_moments_are_sums_over_what_layers_read(tiny_model):
    states = [torch.randn(1, 5, 32), torch.randn(1, 5, 32)]
    surroundings = (*rotary_tables(torch.arange(5), tiny_model.config), None, None)
    block = tiny_model.layers[0]
    with torch.no_grad():
        moments = input_hessians(block, states, surroundings)
        x = torch.cat([block.input_layernorm(state)[0] for state in states])
    assert len(moments) == 7 and not any(module._forward_pre_hooks for module in block.modules())
    for name in ("q_proj", "k_proj", "v_proj"):
        torch.testing.assert_close(moments[f"self_attn.{name}"], x.T @ x)
    assert moments["mlp.down_proj"].shape == (64, 64)


@pytest.mark.usefixtures("short")
def test_property_a_model_rounded_for_its_text_is_nearer_on_it(tiny_model):
    with torch.no_grad():                                           # inputs that go together, as in trained models
        tiny_model.embed_tokens.weight.copy_(torch.randn(len(tiny_model.embed_tokens.weight), 4) @ torch.randn(4, 32))
    plain, suited = deepcopy(tiny_model), deepcopy(tiny_model)
    quantize.quantize(plain, bits=4)
    errors = quantize_by_gptq(suited, IDS)
    assert len(errors) == 15 and swap.bits_of(suited) == 4 and suited.lm_head.weight is suited.embed_tokens.weight
    tokens = torch.tensor([IDS[:32]])
    with torch.no_grad():
        lost = [(model.hidden(tokens) - tiny_model.hidden(tokens)).norm().item() for model in (plain, suited)]
    assert lost[1] < 0.97 * lost[0]


@pytest.mark.usefixtures("short")
def test_property_later_blocks_see_what_earlier_ones_lost(tiny_model, monkeypatch):
    seen = []
    monkeypatch.setattr(gptq, "input_hessians", lambda block, states, rest: seen.append(states[0]) or input_hessians(
        block, states, rest))
    floats = deepcopy(tiny_model)
    quantize_by_gptq(tiny_model, IDS)
    surroundings = (*rotary_tables(torch.arange(32), tiny_model.config), None, None)
    with torch.no_grad():
        assert torch.equal(seen[1], tiny_model.layers[0](seen[0], *surroundings))
        assert not torch.allclose(seen[1], floats.layers[0](seen[0], *surroundings), atol=1e-4)


def test_refusal_of_too_little_text_and_of_few_bits(tiny_model):
    with pytest.raises(ValueError, match="the text has 10 tokens; give at least 256, better some 16,384"):
        quantize_by_gptq(tiny_model, IDS[:10])
    quantize.quantize(tiny_model, bits=8)
    with pytest.raises(ValueError, match="quantised already"):
        quantize_by_gptq(tiny_model, IDS)
    tiny_model.tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer, so it reads no text; leave --data out"):
        read_ids(tiny_model, [])


@pytest.mark.usefixtures("short")
def test_worked_example_the_command_with_a_text(tiny_model, tmp_path, monkeypatch, capsys):
    save_model(tiny_model, tmp_path / "floats")
    (tmp_path / "text.txt").write_text("\n\n".join(TEXT * 2), encoding="utf-8")
    command = ["quantize", "--model", str(tmp_path / "floats"), "--data", str(tmp_path / "text.txt"), "--output",
               str(tmp_path / "q"), "--json"]
    monkeypatch.setattr(sys, "argv", [*command, "--bits", "4"])
    quantize.main()
    assert len(json.loads(capsys.readouterr().out)["errors"]) == 15
    assert swap.bits_of(load_model(tmp_path / "q")) == 4
    monkeypatch.setattr(sys, "argv", [*command, "--bits", "8", "--overwrite"])
    with pytest.raises(ValueError, match="--data is for --bits 4"):
        quantize.main()
    lengths = []
    monkeypatch.setattr(quantize, "quantize_by_gptq", lambda model, ids, *, length: (
        lengths.append(length) or quantize_by_gptq(model, ids, length=length)))
    monkeypatch.setattr(sys, "argv", [*command, "--bits", "4", "--overwrite", "--block-size", "64"])
    quantize.main()
    assert lengths == [64]
    monkeypatch.setattr(sys, "argv", [*command[:3], *command[5:-1], "--bits", "4", "--overwrite", "--block-size", "64"])
    with pytest.raises(ValueError, match="--block-size 64 divides a text; give one with --data"):
        quantize.main()
