import json
import os
import subprocess
import sys
import tracemalloc
import weakref
from pathlib import Path

import pytest
import torch
from test_gguf import BF16, F16, METADATA, Q4_1, Q8_0, Array, K, llama_tensors, pack

from tokenizer import chat, load_tokenizer
from weights import convert as module
from weights import gguf, huggingface
from weights.convert import convert

CHATML = chat.FORMATS["chatml"].template


@pytest.fixture
def packed(tmp_path):
    """A GGUF of a tiny Llama in Q8_0, with ChatML's template."""
    path = tmp_path / "packed"                                     # no .gguf: content decides, not the name
    path.write_bytes(pack(METADATA | {"tokenizer.chat_template": CHATML}, llama_tensors(kind=Q8_0, tied=True)))
    return path


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


# ---- from a GGUF


def test_worked_example_a_gguf_becomes_a_folder(packed, tmp_path, capsys):
    folder = convert(packed, tmp_path / "deep" / "model")
    assert sorted(contents(folder)) == ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
                                        "tokenizer_config.json"]
    config = huggingface.read_config(folder)
    assert config["dtype"] == config["torch_dtype"] == "float32"
    assert config["rope_parameters"] == {"rope_type": "default", "rope_theta": 500_000.0}
    assert (config["rope_theta"], config["bos_token_id"], config["eos_token_id"]) == (500_000.0, 1, [2, 0])
    said = capsys.readouterr().err
    assert "tensors in Q8_0 (15), F32 (5); rows of q_proj and k_proj reordered" in said
    assert "20 tensors" in said and "float32" in said and "head tied to the embedding" in said
    assert "chat format: chatml" in said


def test_two_ways_converted_tensors_are_those_of_the_file(packed, tmp_path):
    folder = convert(packed, tmp_path / "model")
    file = dict(gguf.read_tensors(gguf.open_gguf(packed)))
    written = dict(huggingface.read_tensors(folder))
    assert file.keys() == written.keys()
    assert all(torch.equal(file[name], written[name]) for name in file)


def test_two_ways_the_tokenizer_of_the_folder_reads_as_the_files(packed, tmp_path):
    tokenizer = load_tokenizer(convert(packed, tmp_path / "model"))
    assert tokenizer.encode("abc") == [6, 5]                        # «ab» is the one merge of the file
    assert (tokenizer.bos_id, set(tokenizer.eos_ids), tokenizer.pad_id) == (1, {2, 0}, 2)
    assert tokenizer.chat_format == "chatml"


def test_worked_example_a_sentencepiece_vocabulary_becomes_a_model_file(tmp_path):
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a"]
    metadata = {key: value for key, value in METADATA.items() if not key.startswith("tokenizer.")} | {
        "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": Array(8, pieces),
        "tokenizer.ggml.scores": Array(6, [0.0] * 259 + [-2.0, -3.0, -4.0, -1.0]),
        "tokenizer.ggml.token_type": Array(5, [2, 3, 3] + [6] * 256 + [1] * 4),
        "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
    }  # fmt: skip
    (tmp_path / "file").write_bytes(pack(metadata, llama_tensors(V=len(pieces))))
    folder = convert(tmp_path / "file", tmp_path / "model")
    tokenizer = load_tokenizer(folder)
    assert (folder / "tokenizer.model").exists() and tokenizer.eos_ids == (2,)
    assert tokenizer.encode("ab骆", bos=True) == [1, 262, 261, *(3 + byte for byte in "骆".encode())]


@pytest.mark.parametrize("kind, stored", [(F16, torch.float16), (BF16, torch.bfloat16), (Q4_1, torch.float32)],
                         ids=["F16", "BF16", "Q4_1"])
def test_property_without_dtype_numbers_stay_as_stored(tmp_path, kind, stored):
    (tmp_path / "file").write_bytes(pack(METADATA, llama_tensors(kind=kind)))
    folder = convert(tmp_path / "file", tmp_path / "model")
    dtypes = {name: dtype for name, _, dtype in huggingface.tensor_ledger(folder)}
    assert dtypes["layers.0.mlp.up_proj.weight"] == dtypes["lm_head.weight"] == stored
    assert dtypes["norm.weight"] == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_two_ways_dtype_casts_every_tensor(packed, tmp_path, dtype):
    written = dict(huggingface.read_tensors(convert(packed, tmp_path / "model", dtype=dtype)))
    whole = dict(gguf.read_tensors(gguf.open_gguf(packed)))
    assert all(torch.equal(whole[name].to(dtype), written[name]) for name in whole)
    assert huggingface.read_config(tmp_path / "model")["dtype"] == str(dtype).removeprefix("torch.")


def test_refusal_of_numbers_beyond_float16(tmp_path):
    tensors = llama_tensors()
    shape, kind, raw = tensors["blk.0.ffn_up.weight"]
    tensors["blk.0.ffn_up.weight"] = shape, kind, torch.tensor([1e6]).numpy().tobytes() + raw[4:]
    (tmp_path / "file").write_bytes(pack(METADATA, tensors))
    with pytest.raises(ValueError, match="layers.0.mlp.up_proj.weight holds 1e[+]06, beyond float16's 65504"):
        convert(tmp_path / "file", tmp_path / "model", dtype=torch.float16)
    assert not (tmp_path / "model").exists()


# ---- from a folder


def test_two_ways_a_folder_in_shards_becomes_one_file(packed, tmp_path):
    first = convert(packed, tmp_path / "first")
    tensors = dict(huggingface.read_tensors(first))
    ledger = huggingface.tensor_ledger(first)
    files = {name: raw for name, raw in contents(first).items() if name.startswith(("token", "generation"))}
    huggingface.write_folder(tmp_path / "sharded", huggingface.read_config(first), ledger, tensors.items(),
                             files=files | {"README.md": b"not copied", "LICENSE": b"kept"}, max_shard_size=20_000)
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    second = contents(convert(tmp_path / "sharded", tmp_path / "second"))
    assert second.pop("LICENSE") == b"kept"
    second_tensors = dict(huggingface.read_tensors(tmp_path / "second"))
    assert all(torch.equal(tensors[name], second_tensors[name]) for name in tensors)
    del second["model.safetensors"]
    assert second == {name: raw for name, raw in contents(first).items() if name != "model.safetensors"}


def plain_folder(path, config=None, tensors=None, files=None):
    """A Hugging Face folder written with other tools' habits: yesterday's keys, names and files as given."""
    shapes = dict(module._llama_shapes(SMALL, path, head=True))
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()} if tensors is None else tensors
    ledger = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
    huggingface.write_folder(path, {}, ledger, tensors.items(), files=files)
    (path / "config.json").write_text(json.dumps(SMALL if config is None else config))
    return path


SMALL = {"model_type": "llama", "vocab_size": 9, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
         "num_attention_heads": 2, "rope_theta": 10_000.0}


def test_property_unknown_fields_and_templates_are_kept_with_a_remark(tmp_path, capsys):
    files = {"tokenizer_config.json": b'{"chat_template": "{{ odd }}", "x": 1}', "tokenizer.json": b"{}"}
    source = plain_folder(tmp_path / "source", SMALL | {"mood": "good"}, files=files)
    folder = convert(source, tmp_path / "model")
    assert huggingface.read_config(folder)["mood"] == "good"
    assert {name: contents(folder)[name] for name in files} == files
    assert "the chat template is kept, but is none of ours (chatml, alpaca, llama-2" in capsys.readouterr().err


def test_worked_example_chat_format_replaces_the_template(packed, tmp_path):
    files = {"tokenizer_config.json": b'{"x": 1}', "chat_template.jinja": b"{{ odd }}"}
    source = plain_folder(tmp_path / "source", files=files)
    written = contents(convert(source, tmp_path / "model", chat_format="llama-3"))
    template = chat.FORMATS["llama-3"].template
    assert json.loads(written["tokenizer_config.json"]) == {"x": 1, "chat_template": template}
    assert "chat_template.jinja" not in written
    written = contents(convert(packed, tmp_path / "other", chat_format="llama-3"))
    assert json.loads(written["tokenizer_config.json"])["chat_template"] == template
    with pytest.raises(ValueError, match="--chat-format vicuna is not known; known are chatml, alpaca"):
        convert(packed, tmp_path / "third", chat_format="vicuna")


def test_property_a_stored_copy_of_a_tied_head_is_dropped(tmp_path):
    source = plain_folder(tmp_path / "source", SMALL | {"tie_word_embeddings": True})
    assert "lm_head.weight" in dict(huggingface.read_tensors(source))
    assert "lm_head.weight" not in dict(huggingface.read_tensors(convert(source, tmp_path / "model")))


def test_property_heads_of_tasks_come_along(tmp_path):
    shapes = dict(module._llama_shapes(SMALL, tmp_path, head=False))
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()} | {"score.weight": torch.ones(3, 8)}
    source = plain_folder(tmp_path / "source", tensors=tensors)
    assert dict(huggingface.read_tensors(convert(source, tmp_path / "model")))["score.weight"].sum() == 24


def test_property_a_config_without_theta_gets_the_first_llamas_and_a_line_that_says_so(tmp_path, capsys):
    config = {key: value for key, value in SMALL.items() if key != "rope_theta"}
    folder = convert(plain_folder(tmp_path / "source", config), tmp_path / "model")
    assert huggingface.read_config(folder)["rope_parameters"]["rope_theta"] == 10_000.0
    assert "names no rope_theta: 10,000 is written" in capsys.readouterr().err


@pytest.mark.parametrize("change, words", [
    ({"model_type": "gpt2"}, "model_type is 'gpt2'; only 'llama' is read"),
    ({"quantization_config": {"bits": 4}}, "the tensors are quantised"),
    ({"num_hidden_layers": 2}, "lacks the tensor layers.1.input_layernorm.weight"),
    ({"num_hidden_layers": 10**12}, "lacks the tensor layers.1.input_layernorm.weight"),
    ({"num_key_value_heads": 1}, r"k_proj.weight has shape \[8, 8\], but its config asks for \[4, 8\]"),
    ({"hidden_size": "wide"}, "hidden_size is 'wide' in the config"),
    ({"num_attention_heads": None}, "num_attention_heads is None in the config"),
    ({"head_dim": "x"}, "head_dim is 'x' in the config"),
    ({"rope_scaling": 3}, "rope_parameters and rope_scaling must be objects"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")  # fmt: skip
def test_refusal_of_a_folder_that_is_no_llama(tmp_path, change, words):
    source = plain_folder(tmp_path / "source", SMALL | change)
    with pytest.raises(ValueError, match=words):
        convert(source, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_refusal_of_tensors_that_have_no_place(tmp_path):
    tensors = {name: torch.zeros(shape) for name, shape in module._llama_shapes(SMALL, tmp_path, head=True)}
    source = plain_folder(tmp_path / "source", tensors=tensors | {"layers.0.self_attn.q_proj.bias": torch.zeros(8)})
    with pytest.raises(ValueError, match="holds layers.0.self_attn.q_proj.bias, which has no place in a Llama"):
        convert(source, tmp_path / "model")


# ---- whole, or not at all; one tensor at a time


@pytest.mark.parametrize("length", [100, 5_000, -1], ids=["header", "tensors", "last byte"])
def test_refusal_of_a_source_cut_short_leaves_nothing(packed, tmp_path, length):
    packed.write_bytes(packed.read_bytes()[:length])
    with pytest.raises(ValueError, match="packed: .*cut short"):
        convert(packed, tmp_path / "model")
    assert list(tmp_path.iterdir()) == [packed]


def test_refusal_of_destinations(packed, tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing does not exist; SOURCE is a .gguf file or a folder"):
        convert(tmp_path / "nothing", tmp_path / "model")
    folder = convert(packed, tmp_path / "model")
    with pytest.raises(ValueError, match="model exists; give another name, or --overwrite"):
        convert(packed, folder)
    with pytest.raises(ValueError, match="lies in .*, which would be replaced"):
        convert(folder, folder, overwrite=True)
    with pytest.raises(ValueError, match="lies in .*, which would be replaced"):
        convert(packed, tmp_path, overwrite=True)
    convert(packed, folder, overwrite=True)


def test_property_one_tensor_at_a_time(tmp_path, monkeypatch):
    """At most the one being written and the one it was cast from are alive, and numpy held little more than that."""
    layers, width = 12, 128
    metadata = METADATA | {
        "llama.block_count": layers, "llama.embedding_length": width, "llama.feed_forward_length": 2048,
        "llama.attention.key_length": K, "llama.attention.value_length": K}  # fmt: skip
    (tmp_path / "file").write_bytes(pack(metadata, llama_tensors(kind=Q8_0, D=width, F=2048, L=layers)))
    alive, most = set(), 0

    def counted(file, read=gguf.read_tensors):
        nonlocal most
        for name, tensor in read(file):
            alive.add(name)
            most = max(most, len(alive))
            weakref.finalize(tensor, alive.discard, name)
            pair = name, tensor
            del tensor
            yield pair
            del pair

    monkeypatch.setattr(module.gguf, "read_tensors", counted)
    tracemalloc.start()
    convert(tmp_path / "file", tmp_path / "model")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most <= 2
    largest, total = 4 * width * 2048, (tmp_path / "model" / "model.safetensors").stat().st_size
    assert total > 30 * largest and peak < 3 * largest, (peak, largest)


# ---- the command


def test_worked_example_of_the_command(packed, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["convert", str(packed), str(tmp_path / "model"), "--dtype", "bfloat16"])
    module.main()
    printed = capsys.readouterr()
    assert printed.out == f"{tmp_path / 'model'}\n" and "parameters in bfloat16" in printed.err


def test_refusal_by_the_command_is_one_sentence_and_exit_code_2(packed, tmp_path):
    packed.write_bytes(packed.read_bytes()[:-1])
    done = subprocess.run([sys.executable, "-m", "weights.convert", packed, tmp_path / "model"], capture_output=True,
                          text=True, env=os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1) and "cut short" in done.stderr
