"""Rows of embedding and head that an adapter learns by themselves."""

import json

import pytest
import torch
from safetensors.torch import load_file
from test_lora import TIED, TOKENS, bits, build, logits, same, stir

from llama.checkpoint import load_model, save_model
from llama.lora import LoRAConfig, add_lora, load_adapter, merge_lora, remove_lora, save_adapter, unmerge_lora
from llama.lora.peft_folder import CONFIG, TENSORS
from llama.quantization.swap import quantize

NEW = (5, 70, 499)                                                  # 5 and 70 stand in TOKENS, 499 does not
EMBEDDING = "base_model.model.model.embed_tokens."
HEAD = "base_model.model.lm_head."


def rows(tied, *, targets=(), ids=NEW):
    names = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    return LoRAConfig(rank=2, targets=targets, rows=dict.fromkeys(names, ids))


@TIED
def test_property_new_rows_start_as_they_were_and_learn_alone(tied):
    model = build(tied=tied)
    before, base = logits(model), bits(model)
    add_lora(model, rows(tied))
    others = [id for id in range(512) if id not in NEW]
    assert torch.equal(logits(model)[..., others], before[..., others])
    torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-6)            # another product
    model(TOKENS).square().mean().backward()
    learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert [tuple(each.shape) for each in learned.values()] == [(3, 32)] * (1 if tied else 2)
    heard = [parameter.grad.any(1).tolist() for parameter in learned.values()]
    assert heard == ([[True] * 3] if tied else [[True, True, False], [True] * 3])    # 499 is not read, but may be said
    stir(model)
    after = bits(model)
    assert all(torch.equal(value, after[name.replace("embed_tokens.", "embed_tokens.base.").replace(
        "lm_head.", "lm_head.base.")]) for name, value in base.items())


@pytest.mark.parametrize("targets", [(), ("q_proj", "down_proj")], ids=["rows alone", "beside LoRA"])
@TIED
def test_two_ways_merged_equals_adapter_and_old_rows_stay(tied, targets):
    model, plain = build(tied=tied), build(tied=tied)
    add_lora(model, rows(tied, targets=targets))
    beside = logits(stir(model))
    merge_lora(model)
    torch.testing.assert_close(logits(model), beside, rtol=1e-5, atol=1e-5)
    for name in ("embed_tokens", "lm_head"):
        ours, was = model.get_submodule(name).weight, plain.get_submodule(name).weight
        moved = (ours != was).any(1).nonzero().flatten().tolist()
        assert moved == list(NEW)
    assert model.config.tie_word_embeddings == tied == (model.lm_head.weight is model.embed_tokens.weight)
    unmerge_lora(model)
    assert torch.equal(logits(model), beside)
    remove_lora(model, "default")
    assert same(bits(model), bits(plain))


@pytest.mark.parametrize("targets", [(), ("q_proj",)], ids=["rows alone", "beside LoRA"])
@TIED
def test_two_ways_saved_equals_loaded(tied, targets, tmp_path):
    save_model(build(tied=tied), tmp_path / "base")
    model, again = load_model(tmp_path / "base"), load_model(tmp_path / "base")
    add_lora(model, rows(tied, targets=targets))
    save_adapter(stir(model), tmp_path / "a")
    load_adapter(again, tmp_path / "a", name="other")
    assert torch.equal(logits(again), logits(model))
    save_adapter(again, tmp_path / "b", name="other")
    for name in (CONFIG, TENSORS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@TIED
def test_worked_example_names_and_keys_of_peft(tied, tmp_path):
    for number, targets in enumerate([(), ("q_proj",)]):
        model = build(tied=tied)
        add_lora(model, rows(tied, targets=targets))
        save_adapter(model, tmp_path / str(number))
    names = [set(load_file(tmp_path / folder / TENSORS)) for folder in ("0", "1")]
    alone, beside = (json.loads((tmp_path / folder / CONFIG).read_text(encoding="utf-8")) for folder in ("0", "1"))
    assert names[0] == {EMBEDDING + "trainable_tokens_delta", HEAD + "trainable_tokens_delta"}
    assert alone["peft_type"] == "TRAINABLE_TOKENS" and alone["token_indices"] == list(NEW)
    assert alone["target_modules"] == ["embed_tokens"] + ["lm_head"] * (not tied)
    assert {name for name in names[1] if "lora" not in name} == {
        f"{each}token_adapter.trainable_tokens_delta" for each in (EMBEDDING, HEAD)[: 1 if tied else 2]}
    assert beside["trainable_token_indices"] == dict.fromkeys(alone["target_modules"], list(NEW))
    assert "ensure_weight_tying" not in beside


def test_two_ways_rows_beside_few_bits_equal_rows_beside_their_numbers():
    few = build(tied=False)
    quantize(few, bits=8)
    floats = build(tied=False)
    for name, parameter in list(floats.named_parameters()):
        module, _, leaf = name.rpartition(".")
        packed = getattr(few.get_submodule(module), "packed", None)
        if leaf == "weight" and packed is not None:
            parameter.data = packed.dequantize(torch.float32)
    for model in (few, floats):
        add_lora(model, rows(False))
        stir(model)
    torch.testing.assert_close(logits(few), logits(floats), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="into which no adapter can be folded"):
        merge_lora(few)


def test_property_a_tied_head_needs_no_name_and_two_such_adapters_do_not_stack():
    model, other = build(), build()
    add_lora(model, LoRAConfig(targets=(), rows={"lm_head": NEW}))
    add_lora(other, LoRAConfig(targets=(), rows={"embed_tokens": NEW, "lm_head": NEW}))
    assert torch.equal(logits(stir(model)), logits(stir(other)))
    with pytest.raises(ValueError, match="two such adapters can be swapped, but not stacked"):
        add_lora(model, rows(True), name="b")


def test_refusal_of_rows_that_there_are_not():
    with pytest.raises(ValueError, match="row 512 of embed_tokens is to be learned, and it has 512"):
        add_lora(build(), rows(True, ids=(1, 512)))
    with pytest.raises(ValueError, match="embeddings and head are tied, and share their rows"):
        add_lora(build(), LoRAConfig(rows={"embed_tokens": (1,), "lm_head": (2,)}))
    with pytest.raises(ValueError, match="lm_head is to be learned by rows and in another way at once"):
        add_lora(build(tied=False), rows(False, targets=("lm_head",)))
    with pytest.raises(ValueError, match="rows names 'norm'; only embed_tokens and lm_head"):
        LoRAConfig(rows={"norm": (1,)})
    with pytest.raises(ValueError, match="rows of embed_tokens are .* give ids, each once"):
        LoRAConfig(rows={"embed_tokens": (1, 1)})
    with pytest.raises(ValueError, match="targets names no layer"):
        LoRAConfig(targets=())
    for more in ({"rows": {"embed_tokens": (1,), "lm_head": (2,)}}, {"rows": {"lm_head": (2,)},
                                                                     "modules_to_save": ("score",)}):
        with pytest.raises(ValueError, match="rows alone are learned by the same ids .* give targets"):
            LoRAConfig(targets=(), **more)
