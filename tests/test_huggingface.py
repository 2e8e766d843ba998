import json
import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from weights.formats.huggingface import (
    for_all_readers,
    memory_name,
    read_config,
    stored_name,
    write_folder,
    write_safetensors,
)
from weights.formats.tensor_files import read_tensors, tensor_ledger

CONFIG = {"model_type": "llama", "rope_theta": 500_000.0}


def some_tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "embed_tokens.weight": torch.randn(7, 4, generator=generator),
        "layers.0.mlp.up_proj.weight": torch.randn(5, 4, generator=generator).bfloat16(),
        "layers.0.self_attn.q_proj.weight": torch.randn(4, 4, generator=generator).half().T,     # not contiguous
        "norm.weight": torch.ones(4, dtype=torch.float64),
        "score.bias": torch.tensor([True, False, True]),
        "counter": torch.tensor(3),                                                              # no axes
    }


def ledger_of(tensors):
    return [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]


def write(folder, tensors, **more):
    write_folder(folder, CONFIG, ledger_of(tensors), iter(tensors.items()), **more)


def same(left, right):
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left)


# ---- writing


def test_worked_example_bytes_of_a_file(tmp_path):
    path = tmp_path / "two.safetensors"
    tensors = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[3]], dtype=torch.int16)}
    write_safetensors(path, ledger_of(tensors), tensors.items())
    header = (b'{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},'
              b'"b":{"dtype":"I16","shape":[1,1],"data_offsets":[8,10]}}')
    header += b" " * (-len(header) % 8)
    assert path.read_bytes() == struct.pack("<Q", len(header)) + header + struct.pack("<ffh", 1.0, 2.0, 3)


def test_two_ways_our_writer_and_the_library_agree(tmp_path):
    tensors = some_tensors()
    write_safetensors(tmp_path / "ours", ledger_of(tensors), tensors.items(), metadata={"made by": "a test"})
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs")
    assert same(load_file(tmp_path / "ours"), load_file(tmp_path / "theirs"))
    with safe_open(tmp_path / "ours", framework="pt") as file:
        assert file.metadata() == {"format": "pt", "made by": "a test"}


@pytest.mark.parametrize("max_shard_size", [5_000_000_000, 120, 1], ids=["one file", "shards", "a shard a tensor"])
def test_two_ways_a_written_folder_reads_the_same(tmp_path, max_shard_size):
    tensors = some_tensors()
    write(tmp_path / "model", tensors, max_shard_size=max_shard_size, files={"tokenizer.model": b"pieces"})
    assert same(dict(read_tensors(tmp_path / "model")), tensors)
    assert sorted(tensor_ledger(tmp_path / "model")) == sorted(ledger_of(tensors))
    names = [name for name, _, _ in tensor_ledger(tmp_path / "model")]
    assert [name for name, _ in read_tensors(tmp_path / "model")] == names
    assert (tmp_path / "model" / "tokenizer.model").read_bytes() == b"pieces"


def test_worked_example_shards_and_their_index(tmp_path):
    tensors = {f"layers.{n}.weight": torch.zeros(25) for n in range(5)}                          # 100 bytes each
    write(tmp_path / "model", tensors, max_shard_size=250)
    index = json.loads((tmp_path / "model" / "model.safetensors.index.json").read_text(encoding="utf-8"))
    assert index["metadata"] == {"total_size": 500}
    assert [index["weight_map"][f"model.layers.{n}.weight"] for n in range(5)] == [
        f"model-0000{k}-of-00003.safetensors" for k in (1, 1, 2, 2, 3)]
    assert not (tmp_path / "model" / "model.safetensors").exists()


def test_worked_example_heads_have_no_prefix():
    names = {"embed_tokens.weight": "model.embed_tokens.weight", "norm.weight": "model.norm.weight",
             "lm_head.weight": "lm_head.weight", "score.weight": "score.weight", "classifier.bias": "classifier.bias"}
    for ours, stored in names.items():
        assert stored_name(ours) == stored and memory_name(stored) == ours


def test_worked_example_config_says_the_dtype_of_most_numbers(tmp_path):
    write(tmp_path / "model", {"norm.weight": torch.ones(4), "layers.0.weight": torch.zeros(5).bfloat16()})
    config = read_config(tmp_path / "model")
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"


def test_worked_example_rotary_fields_for_both_generations():
    plain = {"rope_theta": 5e5, "rope_scaling": None, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
    assert for_all_readers({"rope_theta": 5e5}) == plain
    assert for_all_readers({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}) == plain
    assert for_all_readers({})["rope_theta"] == 10_000.0
    old = for_all_readers({"rope_theta": 1e4, "rope_scaling": {"type": "linear", "factor": 2.0}})
    new = for_all_readers({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}})
    assert old == new
    assert old["rope_parameters"]["rope_type"] == old["rope_scaling"]["type"] == "linear"
    assert for_all_readers(old) == old


def test_property_a_failed_write_leaves_nothing(tmp_path):
    def interrupted():
        yield "norm.weight", torch.ones(2)
        raise KeyboardInterrupt

    ledger = [("norm.weight", (2,), torch.float32), ("lm_head.weight", (2,), torch.float32)]
    with pytest.raises(KeyboardInterrupt):
        write_folder(tmp_path / "model", CONFIG, ledger, interrupted())
    with pytest.raises(KeyboardInterrupt):
        write_safetensors(tmp_path / "file", ledger, interrupted())
    assert list(tmp_path.iterdir()) == []


def test_property_overwriting_keeps_the_old_folder_until_the_new_one_is_whole(tmp_path):
    old, new = {"norm.weight": torch.zeros(3)}, {"norm.weight": torch.ones(3)}
    write(tmp_path / "model", old, files={"extra": b""})

    def broken():
        assert same(dict(read_tensors(tmp_path / "model")), old)
        raise ValueError("the source is bad")
        yield

    with pytest.raises(ValueError, match="the source is bad"):
        write_folder(tmp_path / "model", CONFIG, ledger_of(new), broken(), overwrite=True)
    assert same(dict(read_tensors(tmp_path / "model")), old)
    write(tmp_path / "model", new, overwrite=True)
    assert same(dict(read_tensors(tmp_path / "model")), new)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert not (tmp_path / "model" / "extra").exists()


def test_refusal_to_write_over_what_is_there(tmp_path):
    tensors = {"norm.weight": torch.ones(1)}
    write(tmp_path / "model", tensors)
    with pytest.raises(ValueError, match="model exists; give another name, or --overwrite"):
        write(tmp_path / "model", tensors)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(ValueError, match="photos holds no config.json, so it is no model folder"):
        write(tmp_path / "photos", tensors, overwrite=True)
    with pytest.raises(ValueError, match="is a file or a link"):
        write(tmp_path / "photos" / "cat.jpg", tensors, overwrite=True)


def test_refusal_tensors_that_differ_from_the_ledger(tmp_path):
    a, b = ("a", torch.zeros(2)), ("b", torch.zeros(2))
    ledger = ledger_of(dict([a, b]))
    wrong = {r"expected a \[2\] float32, got b \[2\] float32": [b, a],
             r"expected b \[2\] float32, got b \[2, 1\] float32": [a, ("b", torch.zeros(2, 1))],
             r"expected b \[2\] float32, got b \[2\] float16": [a, ("b", torch.zeros(2).half())],
             r"the tensors end before b \[2\] float32": [a]}
    for words, tensors in wrong.items():
        with pytest.raises(ValueError, match=words):
            write_safetensors(tmp_path / "file", ledger, tensors)
    with pytest.raises(ValueError, match="model.c comes after the ledger's last tensor"):
        write_folder(tmp_path / "model", CONFIG, ledger, [a, b, ("c", torch.zeros(1))])
    with pytest.raises(ValueError, match="a comes twice"):
        write_safetensors(tmp_path / "file", ledger_of({"a": a[1]}) * 2, [a, a])
    assert list(tmp_path.iterdir()) == []


# ---- reading


@pytest.mark.parametrize("content, words", [
    (b"{\n  oops", r"config.json, line 2: not JSON"),
    (b'{"\xff"', r"config.json: not JSON"),
    (b'{"a": ' + b"1" * 5000, r"config.json: not JSON"),
    (b"[" * 100_000, r"config.json: not JSON"),
    (b"[1]", r"config.json: holds a JSON list, but must hold an object"),
    (b"", r"config.json, line 1: not JSON"),
    (b'{"rope_parameters": 1e-320}', r"config.json: rope_parameters is "),
    (b'{"architectures": 1}', r"config.json: architectures is "),
    (b'{"tie_word_embeddings": "yes"}', r"config.json: tie_word_embeddings is "),
    (b'{"hidden_size": "64"}', r"config.json: hidden_size is "),
], ids=["syntax", "not text", "long number", "too deep", "a list", "empty", "no record", "no list", "no flag",
        "text"])  # fmt: skip
def test_refusal_of_a_bad_config(tmp_path, content, words):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_config(tmp_path)


def test_refusal_of_folders_without_their_config(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        read_config(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="config.json does not exist"):
        read_config(tmp_path)
