"""Fused parts for generating: the same numbers, the same names, no second copy, and the way back."""

import io
from dataclasses import replace

import pytest
import torch
from conftest import same_choices
from torch import nn
from torch.testing import assert_close

from llama.benchmark.measure_generation import bytes_a_token
from llama.cache import KVCache
from llama.checkpoint import PretrainedLlama, plain_tensors, save_model
from llama.config import preset
from llama.fast.compiled_step import compile_step
from llama.fast.fused_block import FusedBlock, fuse, unfuse
from llama.fast.fused_linear import FusedLinear, PrepackedLinear, PrepackedSwiGLU, packs_bfloat16
from llama.heads import HeadConfig, add_head
from llama.lora import LoRAConfig, add_lora
from llama.quantize import quantize

TINY = preset("test")
PACKED = pytest.mark.skipif(not packs_bfloat16(), reason="oneDNN packs no bfloat16 on this processor")
VARIANTS = {"tied": TINY, "untied, biases": replace(TINY, tie_word_embeddings=False, attention_bias=True),
            "Qwen's biases": replace(TINY, qkv_bias=True), "one key-value head": replace(TINY, num_key_value_heads=1)}


def tiny(config=TINY):
    torch.manual_seed(0)
    model = PretrainedLlama(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith("norm.weight"):
                parameter.normal_(0, 0.2)
    return model.eval()


@torch.inference_mode()
def logits(model):
    """Of a prompt, then of single tokens and of two rows, through a cache."""
    tokens = torch.arange(24).view(1, 24) % model.config.vocab_size
    cache = KVCache(model.config, 1, 32, dtype=model.dtype, device="cpu")
    steps = [model(piece, cache=cache) for piece in tokens.split([9, 1, 1, 5, 1, 7], dim=1)]
    return torch.cat([*steps, model(tokens.view(2, 12)).flatten(0, 1)[None]], dim=1)


@pytest.mark.parametrize("name", VARIANTS)
def test_two_ways_fused_equals_readable(name):
    model = tiny(VARIANTS[name])
    before = logits(model)
    fuse(model)
    assert isinstance(model.layers[0], FusedBlock) and isinstance(model.lm_head, FusedLinear)
    assert_close(logits(model), before, atol=1e-5, rtol=0)
    same_choices(logits(model), before, gap=1e-4)


def test_property_unfuse_gives_back_the_modules_that_were_there():
    model = tiny()
    modules = [(name, type(module), id(module)) for name, module in model.named_modules()]
    before = logits(model)
    fuse(model)
    unfuse(model)
    assert [(name, type(module), id(module)) for name, module in model.named_modules()] == modules
    assert torch.equal(logits(model), before)


def test_property_unfuse_leaves_a_model_with_a_head_of_labels_as_it_is():
    model = tiny()
    add_head(model, HeadConfig(("a", "b"), "sequence"))
    before = logits(model)
    unfuse(model)
    assert torch.equal(logits(model), before)


def test_property_names_and_numbers_of_the_parameters_stay():
    model = tiny(VARIANTS["untied, biases"])
    before = {name: tensor.clone() for name, tensor in plain_tensors(model).items()}
    fuse(model)
    after = plain_tensors(model)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    torch.save(model.state_dict(), io.BytesIO())


@PACKED
@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN packs nothing")
def test_two_ways_packed_equals_readable_and_back():
    model = tiny(VARIANTS["untied, biases"]).to(torch.bfloat16)
    before = {name: tensor.clone() for name, tensor in plain_tensors(model).items()}
    expected = logits(model)
    fuse(model)
    block = model.layers[0]
    assert all(isinstance(product, PrepackedLinear | PrepackedSwiGLU) for product in block.products)
    assert block.self_attn.q_proj.weight.numel() == 0
    assert_close(logits(model), expected, atol=0.02 * expected.abs().max().item(), rtol=0)
    same_choices(logits(model), expected, gap=0.02)
    unfuse(model)
    after = plain_tensors(model)
    assert all(torch.equal(before[name], after[name]) for name in before)


@PACKED
def test_refusal_of_what_would_mean_nothing_to_a_fused_model(tmp_path):
    model = tiny().to(torch.bfloat16)
    fuse(model)
    for use in (lambda: save_model(model, tmp_path / "x"), lambda: add_lora(model, LoRAConfig(rank=2)),
                lambda: quantize(model, bits=8), lambda: compile_step(model), lambda: model.to(torch.float32)):
        with pytest.raises(ValueError, match=r"this model is fused.*unfuse it first"):
            use()
    assert not (tmp_path / "x").exists()


def test_property_no_second_copy():
    model = tiny()
    fuse(model)
    attn, (qkv, *_) = model.layers[0].self_attn, model.layers[0].products
    assert qkv.weight.data_ptr() == attn.q_proj.weight.data_ptr()
    assert qkv.weight[len(attn.q_proj.weight) :].data_ptr() == attn.k_proj.weight.data_ptr()
    assert model.lm_head.weight is model.embed_tokens.weight


def test_property_what_learns_stays_as_it_is():
    model = tiny()
    add_lora(model, LoRAConfig(rank=2, targets=("q_proj",)))
    before = logits(model)
    fuse(model)
    assert not isinstance(model.layers[0], FusedBlock)
    assert not any(type(child) is nn.Linear and child is model.lm_head for child in model.children())
    assert_close(logits(model), before, atol=1e-5, rtol=0)


@pytest.mark.parametrize("bits", [8, 4])
def test_property_whole_numbers_stay_as_they_are(bits):
    model = tiny()
    quantize(model, bits=bits)
    before = logits(model)
    fuse(model)
    assert not any(isinstance(layer, FusedBlock) for layer in model.layers) and torch.equal(logits(model), before)


@PACKED
def test_property_fused_model_reads_as_many_bytes():
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny(VARIANTS["untied, biases"]).to(dtype)
        before = bytes_a_token(model, 10)
        fuse(model)
        assert bytes_a_token(model, 10) == before
