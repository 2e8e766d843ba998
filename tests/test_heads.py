"""Heads of labels: on and off, on disk, and in adapters. Equality with transformers and peft: tests/parity/tasks.py."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from llama.checkpoint import PretrainedLlama, load_model, save_model
from llama.config import preset
from llama.freeze import freeze, trainable_parameters
from llama.heads import HeadConfig, add_head, head_config, head_of, remove_head
from llama.lora import LoRAConfig, add_lora, load_adapter, merge_lora, save_adapter, unmerge_lora
from llama.masks import bidirectional_mask
from llama.model import naive_attention
from llama.quantize import quantize
from llama.training.verify_saved import verify_saved

IDS = torch.tensor([[5, 300, 7, 41, 41, 9]])
LABELS = ("差", "好", "mixed")


def headed(model, kind="sequence", **more):
    labels = ("start", "end") if kind == "spans" else LABELS
    add_head(model, HeadConfig(labels, kind, **more), generator=torch.Generator().manual_seed(1))
    return model


def untied(tokenizer):
    torch.manual_seed(0)
    model = PretrainedLlama(preset("test", vocab_size=tokenizer.vocab_size, tie_word_embeddings=False)).eval()
    model.tokenizer = tokenizer
    return model


@torch.no_grad()
def stir(model):
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += torch.randn(parameter.shape, generator=generator) * 0.1


@pytest.mark.parametrize("kind, architecture, names", [
    ("sequence", "LlamaForSequenceClassification", {"score.weight"}),
    ("tokens", "LlamaForTokenClassification", {"score.weight", "score.bias"}),
    ("spans", "LlamaForQuestionAnswering", {"qa_outputs.weight", "qa_outputs.bias"})])
def test_worked_example_config_and_names_of_each_kind(tiny_model, tmp_path, kind, architecture, names):
    headed(tiny_model, kind, attention="full", about={"unit": "word"}).save(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == [architecture] and config["is_causal"] is False
    assert config["tie_word_embeddings"] is True and config["pad_token_id"] is not None
    labels = ("start", "end") if kind == "spans" else LABELS
    assert config["id2label"] == {str(i): label for i, label in enumerate(labels)}
    assert config["label2id"] == {label: i for i, label in enumerate(labels)}
    assert config.get("problem_type") == ("single_label_classification" if kind == "sequence" else None)
    stored = set(load_file(tmp_path / "m" / "model.safetensors"))
    below = "transformer." if kind == "spans" else "model."
    assert {name for name in stored if not name.startswith(below)} == names


@pytest.mark.parametrize("kind", ["sequence", "tokens", "spans"])
@pytest.mark.parametrize("place", ["folder", "model.pt"])
def test_two_ways_saved_and_loaded_computes_the_same(tiny_model, tmp_path, kind, place):
    model = headed(tiny_model, kind, multi_label=kind == "sequence", about={"unit": "word"})
    save_model(model, tmp_path / place)
    again = load_model(tmp_path / place)
    assert again(IDS).shape == (1, 6, 2 if kind == "spans" else 3)
    assert torch.equal(again(IDS), model(IDS)) and head_config(again) == head_config(model)
    verify_saved(model, tmp_path / place)


def test_worked_example_scores_are_states_times_weights(tiny_model):
    model = headed(tiny_model, "tokens")
    torch.nn.init.normal_(model.score.bias)
    expected = model.hidden(IDS) @ model.score.weight.T + model.score.bias
    torch.testing.assert_close(model(IDS), expected)
    torch.testing.assert_close(model(IDS, rows=(slice(None), -1)), expected[:, -1])


@pytest.mark.parametrize("tied", [True, False])
def test_two_ways_a_head_taken_off_leaves_the_model_that_was(tiny_model, tiny_tokenizer, tied):
    model = tiny_model if tied else untied(tiny_tokenizer)
    before, names, config = model(IDS), dict(model.named_parameters(remove_duplicate=False)), model.config
    remove_head(headed(model))
    after = dict(model.named_parameters(remove_duplicate=False))
    assert torch.equal(model(IDS), before) and model.config == config and after.keys() == names.keys()
    assert (model.lm_head.weight is model.embed_tokens.weight) == tied


def test_two_ways_a_tied_model_loaded_with_a_head_writes_again(tiny_model, tmp_path):
    before = tiny_model(IDS)
    headed(tiny_model).save(tmp_path / "m")
    model = load_model(tmp_path / "m")
    remove_head(model)
    assert torch.equal(model(IDS), before)


@pytest.mark.parametrize("kind", ["sequence", "tokens", "spans"])
def test_two_ways_an_adapter_brings_its_head(tiny_model, tmp_path, kind):
    tiny_model.save(tmp_path / "base")
    model = headed(load_model(tmp_path / "base"), kind, about={"unit": "word"})
    add_lora(model, LoRAConfig(rank=2, targets=("q_proj",)))
    stir(model)
    save_adapter(model, tmp_path / "a")
    verify_saved(model, tmp_path / "a")
    values = json.loads((tmp_path / "a" / "adapter_config.json").read_text(encoding="utf-8"))
    assert values["modules_to_save"] == [model.head_name]
    assert values["task_type"] == {"sequence": "SEQ_CLS", "tokens": "TOKEN_CLS", "spans": "QUESTION_ANS"}[kind]
    names = set(load_file(tmp_path / "a" / "adapter_model.safetensors"))
    assert (f"base_model.model.{model.head_name}.bias" in names) == (kind != "sequence")

    again = load_model(tmp_path / "base")
    load_adapter(again, tmp_path / "a")
    assert torch.equal(again(IDS), model(IDS)) and head_config(again) == head_config(model)
    expected = model(IDS)
    merge_lora(model)
    torch.testing.assert_close(model(IDS), expected)
    save_model(model, tmp_path / "merged")
    assert torch.equal(load_model(tmp_path / "merged")(IDS), model(IDS))
    unmerge_lora(model)
    assert torch.equal(model(IDS), expected)


def test_property_lora_learns_the_head_and_the_adapter_alone(tiny_model):
    model = headed(tiny_model, "tokens")
    add_lora(model, LoRAConfig(rank=2, targets=("all-linear",)[0]))
    learning = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert all(".adapters." in name or ".biases." in name for name in learning)
    assert {"score.adapters.default", "score.biases.default"} <= learning
    assert not hasattr(model.score.base, "lora_A")
    assert "adapter 'default'" in trainable_parameters(model)


def test_property_freezing_leaves_the_head(tiny_model):
    model = headed(tiny_model)
    freeze(model, all_but="head")
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == ["score.weight"]
    assert "head" in trainable_parameters(model)


def test_property_the_head_is_never_quantised(tiny_model, tmp_path):
    model = headed(tiny_model)
    exact = model.score.weight.detach().clone()
    save_model(model, tmp_path / "m")
    quantize(model, bits=8)
    assert torch.equal(model.score.weight, exact)
    assert torch.equal(load_model(tmp_path / "m", bits=8).score.weight, exact)
    save_model(model, tmp_path / "int8")
    assert torch.equal(load_model(tmp_path / "int8")(IDS), model(IDS))


def test_property_full_attention_sees_what_is_behind_and_no_padding():
    mask = bidirectional_mask(torch.tensor([2, 3]), 3)
    assert mask.flatten(1).tolist() == [[True, True, False], [True, True, True]]
    q = torch.randn(1, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    alone = naive_attention(q[:, :, :2], q[:, :, :2], q[:, :, :2], torch.ones(2, 2, dtype=torch.bool))
    torch.testing.assert_close(naive_attention(q, q, q, mask[:1])[:, :, :2], alone)


def test_refusal_of_configurations():
    with pytest.raises(ValueError, match="kind is 'text', one of sequence, tokens, spans"):
        HeadConfig(LABELS, "text")
    for kind, pooling in (("sequence", "first"), ("tokens", "mean")):
        with pytest.raises(ValueError, match="texts .sequence. are scored by one of last, mean"):
            HeadConfig(LABELS, kind, pooling=pooling)
    for labels in ((), ("a", "a")):
        with pytest.raises(ValueError, match="give at least one name, and no name twice"):
            HeadConfig(labels)
    with pytest.raises(ValueError, match="id2label key is 'a'; it must be a number"):
        HeadConfig.from_dict({"architectures": ["LlamaForTokenClassification"], "id2label": {"a": "b"}})
    assert HeadConfig.from_dict({"architectures": ["LlamaForCausalLM"]}) is None
    assert HeadConfig.from_dict({"architectures": ["LlamaForSequenceClassification"]}).labels == ("LABEL_0", "LABEL_1")


def test_refusal_of_models_that_take_no_head(tiny_model, tiny_tokenizer):
    windowed = PretrainedLlama(preset("test", sliding_window=8))
    with pytest.raises(ValueError, match="sliding window of 8 positions"):
        headed(windowed, attention="full")
    with pytest.raises(ValueError, match="no head to remove"):
        remove_head(tiny_model)
    lora = copy.deepcopy(tiny_model)
    add_lora(lora, LoRAConfig(rank=2))
    with pytest.raises(ValueError, match="add the head first, then LoRA"):
        headed(lora)
    with pytest.raises(ValueError, match="has a head for 差, 好, mixed already"):
        headed(headed(tiny_model))
    with pytest.raises(ValueError, match="so it writes no text"):
        tiny_model.generate("The", max_new_tokens=1)
    with pytest.raises(ValueError, match="modules_to_save names 'lm_head', and this model has none: its head is score"):
        add_lora(tiny_model, LoRAConfig(rank=2, modules_to_save=("lm_head",)))


def test_refusal_a_head_whose_predecessor_is_in_no_file(tiny_tokenizer, tmp_path):
    headed(untied(tiny_tokenizer)).save(tmp_path / "m")
    with pytest.raises(ValueError, match="loaded with this head, and its files hold no other"):
        remove_head(load_model(tmp_path / "m"))


def test_refusal_an_adapter_with_another_head_leaves_the_model_as_it_was(tiny_model, tmp_path):
    tiny_model.save(tmp_path / "base")
    model = headed(load_model(tmp_path / "base"))
    add_lora(model, LoRAConfig(rank=2, targets=("q_proj",)))
    save_adapter(model, tmp_path / "a")
    other = load_model(tmp_path / "base")
    add_head(other, HeadConfig(("x", "y", "z")))
    with pytest.raises(ValueError, match="learned with a head of kind sequence for 差, 好, mixed, the model has one"):
        load_adapter(other, tmp_path / "a")
    path = tmp_path / "a" / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        head = {"head": file.metadata()["head"]}
    tensors = {name: tensor for name, tensor in load_file(path).items() if "score" not in name}
    for metadata, sentence in ((head, "lacks score.weight"), ({}, "modules_to_save names 'score', and this model has")):
        save_file(tensors, path, metadata)
        plain = load_model(tmp_path / "base")
        with pytest.raises(ValueError, match=sentence):
            load_adapter(plain, tmp_path / "a")
        assert head_of(plain) is None and torch.equal(plain(IDS), tiny_model(IDS))


def test_refusal_a_saved_head_with_other_labels(tiny_model, tmp_path):
    model = headed(tiny_model)
    save_model(model, tmp_path / "m")
    model.score.config = replace(model.score.config, labels=("好", "差", "mixed"))
    with pytest.raises(RuntimeError, match="does not hold the model in memory: its head is"):
        verify_saved(model, tmp_path / "m")
