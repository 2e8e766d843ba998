import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_lora import TIED, WHOLE, bits, build, logits, same, stir

from llama.checkpoint import load_model, save_model
from llama.lora import (
    LoRAConfig,
    add_lora,
    load_adapter,
    merge_lora,
    peft_folder,
    remove_lora,
    save_adapter,
    unmerge_lora,
)

PEFT = Path(__file__).parent / "fixtures" / "peft"


@pytest.fixture
def folder(tmp_path):
    """A base in tmp_path/base, a stirred adapter of it in tmp_path/adapter."""
    save_model(build(), tmp_path / "base")
    model = load_model(tmp_path / "base")
    add_lora(model, LoRAConfig(rank=2))
    save_adapter(stir(model), tmp_path / "adapter")
    return tmp_path


def edit(folder, **changes):
    path = folder / peft_folder.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def refused(folder, words, base="base"):
    """Loading the adapter is refused with these words, and the model is as it was."""
    model = load_model(folder / base)
    model.requires_grad_(True)
    before = bits(model)
    with pytest.raises((ValueError, FileNotFoundError), match=words) as error:
        load_adapter(model, folder / "adapter")
    assert "adapter" in str(error.value) and same(bits(model), before)
    assert all(parameter.requires_grad for parameter in model.parameters())


# ---- out and in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [
    LoRAConfig(rank=3, alpha=7.5, targets=("k_proj", "down_proj"), layers=(1,)), WHOLE,
    LoRAConfig(targets=("q_proj", "lm_head"), dora=True),
    LoRAConfig(targets="all-linear", exclude=r".*\.mlp\..*", rslora=True, rank_pattern={"q_proj": 2},
               alpha_pattern={r"layers\.1\..*": 3.0})], ids=["layers", "whole", "head, dora", "patterns, rslora"])
@TIED
def test_two_ways_saved_equals_loaded(tied, config, tmp_path):
    save_model(build(tied=tied), tmp_path / "base")
    model, again = load_model(tmp_path / "base"), load_model(tmp_path / "base")
    add_lora(model, config)
    save_adapter(stir(model), tmp_path / "a")
    random = torch.get_rng_state()
    load_adapter(again, tmp_path / "a", name="other")
    assert torch.equal(random, torch.get_rng_state())               # loading is no reason for other samples later
    assert torch.equal(logits(again), logits(model))
    save_adapter(again, tmp_path / "b", name="other")
    for name in (peft_folder.CONFIG, peft_folder.TENSORS):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@TIED
def test_worked_example_names_and_keys_of_peft(tied, tmp_path):
    model = build(tied=tied)
    add_lora(model, LoRAConfig(rank=4, targets=("q_proj",), modules_to_save=("embed_tokens", "lm_head")))
    save_adapter(model, tmp_path / "a", base="someone/some-llama")
    assert sorted(os.listdir(tmp_path / "a")) == ["adapter_config.json", "adapter_model.safetensors"]
    assert {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "a" / peft_folder.TENSORS).items()} == {
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": (4, 32),
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": (32, 4),
        "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight": (4, 32),
        "base_model.model.model.layers.1.self_attn.q_proj.lora_B.weight": (32, 4),
        "base_model.model.model.embed_tokens.weight": (512, 32),
        "base_model.model.lm_head.weight": (512, 32),
    }
    config = json.loads((tmp_path / "a" / peft_folder.CONFIG).read_text(encoding="utf-8"))
    assert config.get("ensure_weight_tying", False) == tied
    assert config | {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 4, "lora_alpha": 16, "lora_dropout": 0.0,
                     "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"], "bias": "none",
                     "base_model_name_or_path": "someone/some-llama"} == config


@pytest.mark.parametrize("name", [config.parent.name for config in PEFT.glob("*/adapter_config.json")])
def test_two_ways_an_adapter_of_peft_computes_what_it_does_there(name, caplog):
    """Folders and logits written by peft: python -m tests.parity.variants. Merged, it still computes the same."""
    model = load_model(PEFT / "base")
    load_adapter(model, PEFT / name)
    there = load_file(PEFT / name / "logits.safetensors")["logits"]
    tokens = torch.tensor([[(7 * i * i + 3) % 48 for i in range(24)]])
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[0], there, rtol=0, atol=1e-5)
        merge_lora(model)
        torch.testing.assert_close(model(tokens)[0], there, rtol=0, atol=1e-5)
    apart = "alone" in name or "head" in name
    assert ("no longer tied" in caplog.text) == apart != model.config.tie_word_embeddings


def test_two_ways_an_adapter_of_an_older_peft(tmp_path):
    """adapter_model.bin, a pickle: the tensors of a folder written by peft, two of them views of one storage."""
    shutil.copy(PEFT / "plain" / peft_folder.CONFIG, tmp_path)
    tensors = load_file(PEFT / "plain" / peft_folder.TENSORS)
    (first, second), rest = list(tensors)[:2], list(tensors)[2:]
    shared = torch.cat([tensors[first].flatten(), tensors[second].flatten()])
    views = shared.split([tensors[first].numel(), tensors[second].numel()])
    torch.save({first: views[0].view_as(tensors[first]), second: views[1].view_as(tensors[second]),
                **{name: tensors[name].T.contiguous().T for name in rest}}, tmp_path / "adapter_model.bin")
    model = load_model(PEFT / "base")
    load_adapter(model, tmp_path)
    tokens = torch.tensor([[(7 * i * i + 3) % 48 for i in range(24)]])
    with torch.no_grad():
        torch.testing.assert_close(model(tokens)[0], load_file(PEFT / "plain" / "logits.safetensors")["logits"],
                                   rtol=0, atol=1e-5)


def test_refusal_an_adapter_that_would_run_code(folder, tmp_path):
    (folder / "adapter" / peft_folder.TENSORS).unlink()

    class Command:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save({"x": Command()}, folder / "adapter" / "adapter_model.bin")
    refused(folder, "adapter_model.bin: its content calls .posix mkdir.")
    (folder / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps({"x": Command()}))
    refused(folder, "adapter_model.bin: this is a bare pickle")
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("moved", [True, False])
def test_two_ways_an_adapter_that_unties_embeddings_as_pefts_do(moved, tmp_path):
    """PEFT leaves the head alone when embeddings below a tied head are learned; the folder then has no tie to keep."""
    model = build()
    add_lora(model, LoRAConfig(rank=2, modules_to_save=("embed_tokens",)))
    save_adapter(stir(model) if moved else model, tmp_path / "a")
    edit(tmp_path / "a", ensure_weight_tying=False, modules_to_save=["embed_tokens"])
    tensors = load_file(tmp_path / "a" / peft_folder.TENSORS)
    learned = tensors["base_model.model.model.embed_tokens.weight"].clone()         # of a file that is written anew
    del tensors["base_model.model.lm_head.weight"]
    save_file(tensors, tmp_path / "a" / peft_folder.TENSORS)

    again, head = build(), build().lm_head.weight
    load_adapter(again, tmp_path / "a")
    merge_lora(again)
    assert torch.equal(again.embed_tokens.weight, learned) and torch.equal(again.lm_head.weight, head)
    assert again.config.tie_word_embeddings != moved                # equal matrices can stay one
    unmerge_lora(again)
    remove_lora(again, "default")
    assert same(bits(again), bits(build())) and again.lm_head.weight is again.embed_tokens.weight


def test_two_ways_the_bases_head_beside_an_adapter_of_the_head(tmp_path):
    """With the head a target, PEFT saves the base's own head, too: the same one is fine, another is another base."""
    model = build(tied=False)
    add_lora(model, LoRAConfig(rank=2, targets=("lm_head",)))
    save_adapter(stir(model), tmp_path / "a")
    path = tmp_path / "a" / peft_folder.TENSORS
    key, head = "base_model.model.lm_head.base_layer.weight", model.lm_head.weight.detach()
    save_file(load_file(path) | {key: head.bfloat16()}, path)
    again = build(tied=False)
    load_adapter(again, tmp_path / "a")
    assert torch.equal(logits(again), logits(model))
    save_file(load_file(path) | {key: head + 1}, path)
    with pytest.raises(ValueError, match="lm_head.base_layer.weight is not this model's"):
        load_adapter(build(tied=False), tmp_path / "a")


def test_property_targets_that_no_llama_has_are_passed_over(folder):
    edit(folder / "adapter", target_modules=["query_key_value", *LoRAConfig().targets])
    load_adapter(load_model(folder / "base"), folder / "adapter")


def test_property_saving_again_replaces_the_adapter_and_nothing_else(folder):
    model = build()
    add_lora(model, LoRAConfig(rank=1, targets=("q_proj",)))
    save_adapter(model, folder / "adapter")
    assert len(load_file(folder / "adapter" / peft_folder.TENSORS)) == 4
    with pytest.raises(ValueError, match="exists and is no adapter folder"):
        save_adapter(model, folder / "base")
    assert sorted(os.listdir(folder)) == ["adapter", "base"]


def test_property_a_failed_save_leaves_the_older_adapter(folder, monkeypatch):
    before = {path.name: path.read_bytes() for path in (folder / "adapter").iterdir()}
    model = stir(build())
    add_lora(model, LoRAConfig(rank=1))
    renamed = []

    def full_disk(source, target, *, rename=os.rename):
        renamed.append(target)
        if len(renamed) == 2:                                       # the older one is aside, the new one not in place
            raise OSError(28, "No space left on device")
        rename(source, target)

    monkeypatch.setattr(peft_folder.os, "rename", full_disk)
    with pytest.raises(RuntimeError, match="adapter cannot be written: No space"):
        save_adapter(model, folder / "adapter")
    assert {path.name: path.read_bytes() for path in (folder / "adapter").iterdir()} == before
    assert sorted(os.listdir(folder)) == ["adapter", "base"]


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_refusal_an_adapter_of_another_base_by_its_fingerprint(folder, caplog):
    save_model(build(seed=1), folder / "other")
    refused(folder, r"learned on .*base \(fingerprint \w{12}\), not on .*other \(\w{12}\)", base="other")
    save_model(build().bfloat16(), folder / "rounded")              # the same base in another dtype is the same base
    load_adapter(load_model(folder / "rounded"), folder / "adapter")
    assert "fingerprint" not in caplog.text


def test_refusal_an_adapter_of_another_shape_without_fingerprint(folder, caplog):
    path = folder / "adapter" / peft_folder.TENSORS
    save_file(load_file(path), path)
    load_adapter(load_model(folder / "base"), folder / "adapter")
    assert "no fingerprint of the base is recorded" in caplog.text
    save_model(build(hidden_size=64, head_dim=8), folder / "wide")
    refused(folder, "made for a base with hidden size 32, this model has 64", base="wide")
    save_model(build(num_hidden_layers=3), folder / "deep")
    refused(folder, r"lacks layers\.2\.mlp\.down_proj\.lora_A\.weight, .* and 10 more", base="deep")
    save_model(build(num_hidden_layers=1), folder / "flat")
    refused(folder, r"also holds layers\.1\.", base="flat")


def test_property_an_adapter_on_a_merged_model_records_no_base(folder, caplog):
    model = load_model(folder / "base")
    load_adapter(model, folder / "adapter")
    merge_lora(model, keep_undo=False)
    add_lora(model, LoRAConfig(rank=1))
    save_adapter(model, folder / "second")
    assert peft_folder.read_adapter(folder / "second").fingerprint == ""
    assert peft_folder.read_adapter(folder / "adapter").fingerprint != ""


@pytest.mark.parametrize("option, value", [
    ("bias", "all"), ("bias", "lora_only"), ("fan_in_fan_out", True), ("lora_bias", True), ("layers_pattern", "h"),
    ("target_parameters", ["x"]), ("trainable_token_indices", [900]), ("layer_replication", [[0, 2]]),
    ("alora_invocation_tokens", [1]), ("use_qalora", True), ("kasa_config", {"x": 1}), ("init_lora_weights", "olora"),
    ("rank_pattern", {"q_proj": "4"}), ("rank_pattern", [4]), ("layers_to_transform", "0"), ("alpha_pattern", 4),
    ("target_modules", "q_proj"), ("peft_type", "LOHA"), ("init_lora_weights", "pissa"), ("r", "8"),
    ("an_option_of_tomorrow", {"x": 1}), ("lora_alpha", None), ("target_modules", [1]), ("target_modules", []),
    ("modules_to_save", ["norm"]), ("r", 4)])
def test_refusal_options_that_are_not_built_here(folder, option, value):
    edit(folder / "adapter", **{option: value})
    words = {"r": "r is '8'; it must be a whole number|shape", "modules_to_save": "'norm'",
             "trainable_token_indices": "row 900 of embed_tokens is to be learned, and it has 512"}
    refused(folder, words.get(option, option.removesuffix("_modules")))


@pytest.mark.parametrize("option, value, words", [
    ("use_dora", True, "lacks layers.0.mlp.down_proj.lora_magnitude_vector"),
    ("layers_to_transform", [0], "also holds"),
    ("rank_pattern", {"q_proj": 4}, "shape"), ("exclude_modules", ["q_proj"], "also holds"),
    ("target_modules", r".*\.q_proj", "also holds"), ("target_modules", "all-linear", "")])
def test_refusal_tensors_that_are_not_those_of_the_options(folder, option, value, words):
    edit(folder / "adapter", **{option: value})
    if words:
        refused(folder, words)
    else:
        load_adapter(load_model(folder / "base"), folder / "adapter")


@pytest.mark.parametrize("name", [peft_folder.TENSORS, peft_folder.CONFIG])
@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 100, b"\x08\0\0\0\0\0\0\0[1, 2, 3", 0.01, 0.5, 0.99])
def test_refusal_damaged_files(folder, name, content):
    path = folder / "adapter" / name
    whole = path.read_bytes()
    path.write_bytes(content if isinstance(content, bytes) else whole[: int(len(whole) * content)])
    refused(folder, "damaged|not JSON|JSON list")


@pytest.mark.parametrize("factor, alpha", [(1e9, 16), (1e7, 1e6)])
def test_refusal_of_a_product_that_would_not_be_finite(folder, factor, alpha):
    """Finite factors, and queries of NaN: the text would come without that layer, and nobody be told."""
    path = folder / "adapter" / peft_folder.TENSORS
    save_file({name: tensor * factor for name, tensor in load_file(path).items()}, path)
    edit(folder / "adapter", lora_alpha=alpha)
    refused(folder, r"the adapter's product B A for [\w.]+ holds [\d.]+e\+\d\d, which nothing learns")


def test_refusal_missing_and_empty(folder):
    save_file({}, folder / "adapter" / peft_folder.TENSORS)
    refused(folder, "the adapter is empty")
    (folder / "adapter" / peft_folder.TENSORS).unlink()
    refused(folder, "adapter_model.safetensors is missing, and so is adapter_model.bin")
    (folder / "adapter" / peft_folder.CONFIG).unlink()
    refused(folder, "no adapter folder: there is no adapter_config.json in it; give one that finetune.py --lora")
    (folder / "adapter" / "config.json").write_text("{}", encoding="utf-8")
    refused(folder, "no adapter folder: .*; it is a model, which --model takes")
    with pytest.raises(ValueError, match="the adapter is empty"):
        peft_folder.write_adapter(folder / "new", peft_folder.Adapter(LoRAConfig(), {}))
    assert not (folder / "new").exists()


@TIED
def test_worked_example_an_adapter_that_carries_its_bases_embeddings(tied, tmp_path):
    """PEFT's save_embedding_layers: the same numbers are passed over, others are another base."""
    save_model(build(tied=tied), tmp_path / "base")
    model = load_model(tmp_path / "base")
    add_lora(model, LoRAConfig(rank=2))
    save_adapter(stir(model), tmp_path / "adapter")
    path = tmp_path / "adapter" / peft_folder.TENSORS
    rows = {"base_model.model.model.embed_tokens.weight": model.embed_tokens.weight.detach().clone(),
            "base_model.model.lm_head.weight": model.lm_head.weight.detach().clone()}
    save_file(load_file(path) | rows, path)
    again = load_model(tmp_path / "base")
    load_adapter(again, tmp_path / "adapter")
    assert torch.equal(logits(again), logits(model))
    rows["base_model.model.lm_head.weight"] += 1
    save_file(load_file(path) | rows, path)
    refused(tmp_path, "lm_head.weight is not this model's; the adapter belongs to another base, or learned")
