import json
import logging
import math
import os
import signal
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

import llama
from llama.checkpoint import PretrainedLlama, fingerprint, load_model, save_model
from llama.config import preset
from llama.config_json import config_to_dict
from llama.lora import LoRAConfig, add_lora
from llama.pretrained import get_model
from llama.quantization.swap import quantize
from weights.formats.single_file import SINGLE_FILE
from weights.formats.torch_file import load_torch_file, save_torch_file


def _same(a, b):
    ours, theirs = dict(a.named_parameters()), dict(b.named_parameters())
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("name", ["folder", "model.pt"])
@pytest.mark.parametrize("tied", [True, False])
def test_two_ways_saved_and_loaded_are_the_same(tiny_model, tmp_path, name, tied):
    if not tied:
        tokenizer = tiny_model.tokenizer
        tiny_model = PretrainedLlama(preset("test", vocab_size=tokenizer.vocab_size, tie_word_embeddings=False)).eval()
        tiny_model.tokenizer = tokenizer
    tiny_model.save(tmp_path / name)
    again = llama.load_model(tmp_path / name)
    assert _same(tiny_model, again) and again.config == tiny_model.config
    assert (again.lm_head.weight is again.embed_tokens.weight) == tied
    assert again.generate("The dog", max_new_tokens=8, temperature=0.0) == tiny_model.generate(
        "The dog", max_new_tokens=8, temperature=0.0)
    assert again.tokenizer.eos_ids == tiny_model.tokenizer.eos_ids
    assert os.listdir(tmp_path) == [name]                           # nothing temporary stays


def test_worked_example_config_names_dtype_ends_and_both_kinds_of_rope(tiny_model, tmp_path):
    save_model(tiny_model.to(torch.bfloat16), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text(encoding="utf-8"))
    assert config["torch_dtype"] == config["dtype"] == "bfloat16"
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 10_000.0
    assert "model.embed_tokens.weight" in (tmp_path / "m" / "model.safetensors").read_bytes()[:4000].decode("latin-1")
    assert load_model(tmp_path / "m").dtype == torch.bfloat16
    assert load_model(tmp_path / "m", dtype=torch.float32).dtype == torch.float32


def test_property_a_fingerprint_knows_the_base_but_not_its_dtype(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path / "a")
    save_model(tiny_model, tmp_path / "a.pt")
    prints = {fingerprint(tmp_path / "a"), fingerprint(tmp_path / "a.pt")}
    save_model(tiny_model.to(torch.bfloat16), tmp_path / "b")
    assert prints == {fingerprint(tmp_path / "b")}
    tiny_model.layers[1].mlp.up_proj.weight.data[0, 0] += 1
    save_model(tiny_model, tmp_path / "c")
    assert fingerprint(tmp_path / "c") not in prints


def test_worked_example_a_preset_has_random_weights_and_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        model = get_model("tiny-1m", seed=3)
    assert "random" in caplog.text and _same(model, get_model("tiny-1m", seed=3))
    assert not _same(model, get_model("tiny-1m", seed=4))


@pytest.mark.parametrize("name, words", [
    ("llama-3.2-1", "the nearest names are .*llama-3.2-1b"), ("bert", "not a Llama"),
    ("gpt3-smal", "gpt3-small"), ("t5-bas", "t5-base"),
])
def test_refusal_unknown_names(name, words):
    with pytest.raises(ValueError, match=words):
        get_model(name)


def test_refusal_missing_files():
    for name in ("weights/nowhere", "nowhere.pt"):
        with pytest.raises(FileNotFoundError, match="there is no such model"):
            get_model(name)


def test_refusal_tensors_that_do_not_fit_are_listed(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    for changes, words in (({"num_hidden_layers": 1}, "also holds layers.1.input_layernorm.weight.* and 5 more"),
                           ({"num_hidden_layers": 3}, "lacks layers.2.input_layernorm.weight"),
                           ({"intermediate_size": 32}, r"has the shape \(32, 64\), config.json asks for \(32, 32\)")):
        path.write_text(json.dumps(config | changes), encoding="utf-8")
        with pytest.raises(ValueError, match=words):
            load_model(tmp_path / "m")


@pytest.mark.parametrize("content", [b"", b"nonsense", b"GGUF....", None])
def test_refusal_files_that_are_no_models(tiny_model, tmp_path, content):
    path = tmp_path / "m.pt"
    if content is None:
        save_model(tiny_model, path)
        content = path.read_bytes()[:-2000]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=str(path)):
        load_model(path)


@pytest.mark.parametrize("missing", [1, 1000, 5000])
def test_refusal_a_file_cut_short_by_so_many_bytes(tmp_path, missing):
    """Short of its very end the system refuses to map it, which is no other matter to whoever reads the message."""
    path = tmp_path / "x.pt"
    save_torch_file(path, {"numbers": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(ValueError, match="x.pt: this is no model, or a damaged one"):
        load_torch_file(path, "model")


def test_refusal_a_file_that_would_run_code(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"format": Evil()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="evil.pt: its content calls '(posix|nt) mkdir'"):
        load_model(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()


def test_refusal_a_model_with_lora_is_not_saved_as_a_plain_one(tiny_model, tmp_path):
    add_lora(tiny_model, LoRAConfig(rank=2))
    with pytest.raises(ValueError, match="merge its adapter"):
        tiny_model.save(tmp_path / "m")
    assert os.listdir(tmp_path) == []


def test_property_a_killed_write_leaves_the_old_file(tmp_path):
    save_torch_file(tmp_path / "x.pt", {"old": 1})
    script = ("import os, signal; from pathlib import Path; from weights.formats import huggingface, torch_file\n"
              "def killed(*_): os.kill(os.getpid(), signal.SIGKILL)\n"
              "huggingface.os.fsync = killed\n"
              f"torch_file.save_torch_file(Path({str(tmp_path / 'x.pt')!r}), {{'new': 2}})")
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert torch.load(tmp_path / "x.pt") == {"old": 1}


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("form", ["folder", "x.pt", "int8"])
def test_refusal_of_numbers_that_are_not_finite(value, form, tmp_path, tiny_model):
    """torch's attention gives zeros for a row of NaN, so the text would come without that layer, and nobody be told."""
    if form == "int8":
        quantize(tiny_model, bits=8)
        tiny_model.layers[1].self_attn.k_proj.scale[0] = value
    else:
        with torch.no_grad():
            tiny_model.layers[1].self_attn.k_proj.weight[0, 0] = value
    save_model(tiny_model, tmp_path / form)
    with pytest.raises(ValueError, match="layers.1.self_attn.k_proj.weight holds numbers that are not finite"):
        load_model(tmp_path / form)


@pytest.mark.parametrize("value", [2e15, -3e38])
def test_refusal_of_numbers_by_which_queries_would_not_be_finite(value, tmp_path, tiny_model):
    with torch.no_grad():
        tiny_model.layers[1].self_attn.q_proj.weight[0, 0] = value
    save_model(tiny_model, tmp_path / "model")
    with pytest.raises(ValueError, match=r"self_attn.q_proj.weight holds (2e\+15|3e\+38), which nothing learns"):
        load_model(tmp_path / "model")


def test_refusal_of_numbers_that_the_dtype_asked_for_cannot_hold(tmp_path, tiny_model):
    with torch.no_grad():
        tiny_model.layers[1].self_attn.q_proj.weight[0, 0] = -1e6
    save_model(tiny_model, tmp_path / "model")
    load_model(tmp_path / "model", dtype=torch.bfloat16)
    with pytest.raises(ValueError, match=r"q_proj.weight holds 1e\+06, beyond float16's 65504; take --dtype bfloat16"):
        load_model(tmp_path / "model", dtype=torch.float16)


# Files of a few bytes that ask for gigabytes, or for ever


def small_file(tmp_path, model, **changes):
    torch.save({"format": SINGLE_FILE, "config": config_to_dict(model.config), "tensors": dict(model.state_dict()),
                "tokenizer": {}} | changes, tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_refusal_of_a_file_whose_content_is_packed(tmp_path, tiny_model):
    path = small_file(tmp_path, tiny_model)
    with zipfile.ZipFile(path) as stored, zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in stored.namelist():
            packed.writestr(name, stored.read(name))
    with pytest.raises(ValueError, match="packed.pt: its content is compressed, which torch.save never does"):
        load_model(tmp_path / "packed.pt")


def test_refusal_of_a_tensor_larger_than_its_file(tmp_path, tiny_model):
    huge = torch.zeros(1).expand(10**12)                            # one number, a million million times
    path = small_file(tmp_path, tiny_model, tensors=tiny_model.state_dict() | {"huge": huge})
    with pytest.raises(ValueError, match="'huge' has 1,000,000,000,000 numbers, more than the file holds"):
        load_model(path)


@pytest.mark.parametrize("change, words", [
    ({"tensors": {"norm.weight": [1.0]}}, "tensors\\['norm.weight'\\] is \\[1.0\\]; it must be a tensor"),
    ({"tensors": {5: torch.ones(1)}}, "tensors key is 5; it must be a text"),
    ({"tokenizer": {"tokenizer.json": "{}"}}, "it must be bytes"), ({"config": None}, "config is None"),
    ({"config": {"num_hidden_layers": 2_000_000_000}}, "has 2,000,000,000 layers by its config and 21 tensors")])
def test_refusal_of_content_of_another_type(tmp_path, tiny_model, change, words):
    with pytest.raises(ValueError, match=words):
        load_model(small_file(tmp_path, tiny_model, **change))


def test_refusal_of_whole_numbers_that_nothing_explains(tmp_path, tiny_model):
    save_model(tiny_model, tmp_path / "model")
    tensors = load_file(tmp_path / "model" / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].to(torch.int8)
    save_file(tensors, tmp_path / "model" / "model.safetensors")
    with pytest.raises(ValueError, match="up_proj.weight is stored as int8 and config.json does not say how"):
        load_model(tmp_path / "model")
