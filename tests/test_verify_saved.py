import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_lora import stir

from llama.checkpoint import save_model
from llama.lora import LoRAConfig, adapter_names, add_lora, has_lora, save_adapter, set_active
from llama.training import verify_saved

WHOLE = LoRAConfig(rank=2, dora=True, modules_to_save=("embed_tokens",))


def _state(model):
    return ({name: (id(p), p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()},
            adapter_names(model), adapter_names(model, active=True), model.training, model.tokenizer.chat_template)


def _same(a, b):
    return a[1:] == b[1:] and a[0].keys() == b[0].keys() and all(
        a[0][name][:2] == b[0][name][:2] and torch.equal(a[0][name][2], b[0][name][2]) for name in a[0])


@pytest.mark.parametrize("config", [LoRAConfig(rank=2), WHOLE], ids=["layers", "whole"])
def test_property_a_saved_adapter_is_proven_and_everything_stays_as_it_is(config, tiny_model, tmp_path, capsys):
    add_lora(tiny_model, config)
    stir(tiny_model).train()
    save_adapter(tiny_model, tmp_path / "a")
    before = _state(tiny_model)
    verify_saved.verify_saved(tiny_model, tmp_path / "a")
    assert _same(_state(tiny_model), before) and "the same text as before saving" in capsys.readouterr().err


def test_property_an_adapter_is_proven_beside_others(tiny_model, tmp_path):
    add_lora(tiny_model, LoRAConfig(rank=1), name="other")
    stir(tiny_model)
    add_lora(tiny_model, LoRAConfig(rank=2, dora=True, targets=("q_proj", "lm_head")))
    save_adapter(stir(tiny_model, seed=2), tmp_path / "a")
    before = _state(tiny_model)
    verify_saved.prove_adapter(tiny_model, tmp_path / "a")
    assert _same(_state(tiny_model), before)
    set_active(tiny_model, [])                                      # not in use, an adapter is not what is proven
    with pytest.raises(ValueError, match="'default' is not active"):
        verify_saved.prove_adapter(tiny_model, tmp_path / "a")


@pytest.mark.parametrize("name", ["model", "model.pt"])
def test_property_a_saved_model_is_proven(name, tiny_model, tmp_path, capsys):
    before = _state(tiny_model)
    save_model(tiny_model, tmp_path / name)
    verify_saved.verify_saved(tiny_model, tmp_path / name)
    assert _same(_state(tiny_model), before) and not has_lora(tiny_model)
    assert "the same text as before saving" in capsys.readouterr().err


@pytest.mark.parametrize("key, value, words", [
    ("lora_alpha", 99, r"a does not hold the model in memory: its logits differ by up to \d"),
    ("use_rslora", True, "its logits differ"),
    ("r", 3, "a was saved, but cannot be loaded again: .*shape"),
    ("use_dora", False, "cannot be loaded again: .*also holds"),
])
def test_refusal_a_saved_adapter_that_computes_something_else(key, value, words, tiny_model, tmp_path):
    add_lora(tiny_model, LoRAConfig(rank=2, dora=True))
    save_adapter(stir(tiny_model), tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | {key: value}), encoding="utf-8")
    before = _state(tiny_model)
    with pytest.raises(RuntimeError, match=words):
        verify_saved.prove_adapter(tiny_model, tmp_path / "a")
    assert _same(_state(tiny_model), before)


def _other_theta(folder):
    path = folder / "config.json"
    path.write_text(path.read_text(encoding="utf-8").replace("10000.0", "20000.0"), encoding="utf-8")


def _rounded(folder):
    path = folder / "model.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def _one_number(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][3] += 0.25
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("damage, words", [
    (_other_theta, "its logits differ by up to"),
    (_rounded, "is torch.bfloat16 instead of torch.float32"),
    (_one_number, "norm.weight differs by up to 2.5e-01"),
    (_cut_short, "was saved, but cannot be loaded again"),
    (shutil.rmtree, "was saved, but cannot be loaded again"),
    (lambda folder: (folder / "tokenizer.json").unlink(), "its tokenizer or vocabulary differs"),
])
def test_refusal_a_saved_model_that_is_another(damage, words, tiny_model, tmp_path):
    save_model(tiny_model, tmp_path / "model")
    damage(tmp_path / "model")
    with pytest.raises(RuntimeError, match=words):
        verify_saved.prove_model(tiny_model, tmp_path / "model")
