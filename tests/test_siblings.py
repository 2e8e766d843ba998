"""Llama's siblings: their parts against the reference, which is written from the papers, and what each must change."""

import pytest
import torch
from test_model import _close, _tokens

from llama import reference
from llama.cache import KVCache
from llama.checkpoint import PretrainedLlama, load_model, save_model
from llama.config import RopeScaling, preset
from llama.fast.agreement import use_custom_gradients, use_fused_blocks
from llama.fast.compiled_step import compile_step
from llama.lora import LoRAConfig, add_lora, merge_lora
from llama.model import Llama
from llama.quantization.swap import quantize

SIBLINGS = {
    "qwen 3": preset("test", qk_norm="head", head_dim=16),
    "olmo 2": preset("test", qk_norm="all", norm_after=True),
    "smollm 3": preset("test", no_rope_layers=(1,)),
    "smollm 3, yarn": preset("test", no_rope_layers=(0,), rope_scaling=RopeScaling("yarn", 4.0)),
    "granite": preset("test", embedding_multiplier=6.0, residual_multiplier=0.3, attention_multiplier=0.2,
                      logits_scaling=4.0, tie_word_embeddings=False, attention_bias=True),
}


@pytest.fixture(params=SIBLINGS)
def model(request):
    """Of every sibling a tiny one, with norms that are no ones."""
    model = PretrainedLlama(SIBLINGS[request.param]).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.2, generator=generator)
    return model


def test_two_ways_a_sibling_equals_the_reference(model):
    tokens = _tokens(1, 40)
    with torch.no_grad():
        _close(model(tokens)[0], reference.logits(model.config, model.state_dict().__getitem__, tokens[0]))


def test_two_ways_cached_in_pieces_equals_at_once(model):
    tokens = _tokens(2, 30)
    with torch.no_grad():
        cache = KVCache(model.config, 2, 30, dtype=torch.float32, device="cpu")
        pieces = [model(piece, cache=cache) for piece in tokens.split([17, 1, 1, 11], dim=1)]
        _close(torch.cat(pieces, dim=1), model(tokens))


def test_property_each_part_matters(model):
    """With the plain parts the logits are others; else the comparison with the reference would prove little."""
    plain = Llama(preset("test", head_dim=model.config.head_dim, attention_bias=model.config.attention_bias,
                         rope_scaling=model.config.rope_scaling,
                         tie_word_embeddings=model.config.tie_word_embeddings)).eval()
    weights = {name: tensor for name, tensor in model.state_dict().items() if name in plain.state_dict()}
    plain.load_state_dict(weights, strict=False)
    tokens = _tokens(1, 20)
    with torch.no_grad():
        assert (plain(tokens) - model(tokens)).abs().max() > 1e-2 * model(tokens).abs().max()


def test_two_ways_saved_and_loaded_are_the_same(model, tmp_path):
    save_model(model, tmp_path / "model")
    again = load_model(tmp_path / "model")
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_two_ways_fast_versions_equal_the_readable_ones(model):
    tokens = _tokens(2, 16)
    with torch.no_grad():
        before = model(tokens)
    use_custom_gradients(model)
    model(tokens).square().mean().backward()
    quick = [parameter.grad.clone() for parameter in model.parameters()]
    again = PretrainedLlama(model.config)
    again.load_state_dict(model.state_dict())
    again(tokens).square().mean().backward()
    for ours, theirs in zip(quick, (parameter.grad for parameter in again.parameters()), strict=True):
        _close(ours, theirs)
    use_fused_blocks(model)
    with torch.no_grad():
        _close(model(tokens), before)
    with pytest.raises(ValueError, match="has parts of a sibling"):
        compile_step(again)


def test_two_ways_lora_merged_and_beside(model):
    add_lora(model, LoRAConfig(rank=2))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(1))
        beside = model(_tokens(1, 12))
        merge_lora(model)
        _close(model(_tokens(1, 12)), beside)


def test_property_8_bits_are_near(model):
    tokens = _tokens(1, 12)
    with torch.no_grad():
        before = model(tokens)
        quantize(model, bits=8, report=False)
        assert (model(tokens) - before).norm() < 0.05 * before.norm()


def test_refusal_of_a_bare_llama_that_would_leave_the_parts_out():
    with pytest.raises(ValueError, match="parts of a sibling of Llama, which llama.checkpoint.PretrainedLlama puts in"):
        Llama(SIBLINGS["qwen 3"])


@pytest.mark.parametrize("change, words", [
    ({"qk_norm": "each"}, "qk_norm is 'each'; it must be 'head', 'all', or empty"),
    ({"no_rope_layers": (2,)}, "no_rope_layers is .2,.; the blocks are 0 to 1"),
    ({"logits_scaling": 0.0}, "logits_scaling is 0.0; it must be a number above 0"),
    ({"norm_after": 1}, "norm_after is 1; it must be true or false")])
def test_refusal_of_parts_that_are_none(change, words):
    with pytest.raises(ValueError, match=words):
        preset("test", **change)
