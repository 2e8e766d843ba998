"""Joined matrices, made of a Llama's and cut again: the same model, whatever its family calls its parts."""

import json

import pytest
import torch
from safetensors.torch import save_file

from llama.checkpoint import PretrainedLlama, load_model
from llama.config import preset
from llama.config_json import config_to_dict
from weights.convert import convert

CONFIG = preset("test", tie_word_embeddings=False, num_key_value_heads=2)           # H 4, G 2, K 8


@pytest.fixture
def plain():
    torch.manual_seed(0)
    return PretrainedLlama(CONFIG).eval()


def phi3(weights):
    joined = {}
    for name, tensor in weights.items():
        stem, _, part = name.removesuffix(".weight").rpartition(".")
        if part == "q_proj":
            joined[f"model.{stem}.qkv_proj.weight"] = torch.cat([weights[f"{stem}.{x}_proj.weight"] for x in "qkv"])
        elif part == "gate_proj":
            joined[f"model.{stem}.gate_up_proj.weight"] = torch.cat([tensor, weights[f"{stem}.up_proj.weight"]])
        elif part not in ("k_proj", "v_proj", "up_proj"):
            joined[name if name.startswith("lm_head") else f"model.{name}"] = tensor
    return joined


def internlm2(weights):
    names = {"embed_tokens": "model.tok_embeddings", "lm_head": "output", "norm": "model.norm"}
    joined = {f"{theirs}.weight": weights[f"{ours}.weight"] for ours, theirs in names.items()}
    for i in range(CONFIG.num_hidden_layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        q, k, v = (weights[f"{ours}self_attn.{x}_proj.weight"] for x in "qkv")
        rows = []
        for g in range(2):                                          # two queries, a key and a value of eight rows each
            rows += [q[16 * g : 16 * g + 16], k[8 * g : 8 * g + 8], v[8 * g : 8 * g + 8]]
        joined[f"{theirs}attention.wqkv.weight"] = torch.cat(rows)
        for a, b in (("self_attn.o_proj", "attention.wo"), ("mlp.gate_proj", "feed_forward.w1"),
                     ("mlp.up_proj", "feed_forward.w3"), ("mlp.down_proj", "feed_forward.w2"),
                     ("input_layernorm", "attention_norm"), ("post_attention_layernorm", "ffn_norm")):
            joined[f"{theirs}{b}.weight"] = weights[f"{ours}{a}.weight"]
    return joined


def write(folder, tensors, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config_to_dict(CONFIG) | changes), encoding="utf-8")
    save_file({name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()},
              folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("kind, join", [("phi3", phi3), ("internlm2", internlm2)])
def test_two_ways_cut_equals_the_model_it_was_made_of(plain, tmp_path, kind, join):
    folder = write(tmp_path / kind, join(dict(plain.named_parameters())), model_type=kind, bias=False)
    read = load_model(folder)
    assert read.config == CONFIG
    for (name, ours), (_, theirs) in zip(plain.named_parameters(), read.named_parameters(), strict=True):
        assert torch.equal(ours, theirs), name
    made = load_model(convert(folder, tmp_path / "converted"))
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), plain.parameters(), strict=True))


def test_worked_example_phi3s_window_is_mistrals(plain, tmp_path):
    folder = write(tmp_path / "a", phi3(dict(plain.named_parameters())), model_type="phi3", sliding_window=64)
    assert load_model(folder).config.sliding_window == 64


def test_refusal_of_other_arithmetic_and_other_rows(plain, tmp_path):
    tensors = phi3(dict(plain.named_parameters()))
    with pytest.raises(ValueError, match="partial_rotary_factor = 0.75"):
        load_model(write(tmp_path / "a", tensors, model_type="phi3", partial_rotary_factor=0.75))
    with pytest.raises(ValueError, match="qkv_proj.weight has 64 × 32 numbers, but heads and sizes"):
        load_model(write(tmp_path / "a", tensors, model_type="phi3", num_key_value_heads=4))
    with pytest.raises(ValueError, match="bias = True; an InternLM 2 with biases"):
        load_model(write(tmp_path / "a", tensors, model_type="internlm2", bias=True))
    with pytest.raises(ValueError, match="num_attention_heads is '4'; it must be a whole number"):
        load_model(write(tmp_path / "a", tensors, model_type="internlm2", num_attention_heads="4"))
