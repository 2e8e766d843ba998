"""Where tensors lie: files, shards, and indexes that say otherwise; what counts is that everything is there once."""

import json
import logging
import struct

import pytest
import torch
from safetensors.torch import save_file
from test_huggingface import some_tensors, write

from weights.formats.tensor_files import read_tensors, stored_tensors, tensor_ledger

A, B = {"model.a.weight": torch.ones(2), "model.b.weight": torch.zeros(3)}, {"model.norm.weight": torch.full((4,), 2.0)}


def shards(folder, placed, *contents, bins=False):
    """Files one, two … with these contents, and an index that places names as told."""
    folder.mkdir(exist_ok=True)
    for name, content in zip(("one", "two"), contents, strict=False):
        if bins:
            torch.save(content, folder / f"{name}.bin")
        else:
            save_file(content, folder / f"{name}.safetensors")
    ending = "bin" if bins else "safetensors"
    placed = {name: f"{file}.{ending}" for name, file in placed.items()}
    whole = "pytorch_model.bin" if bins else "model.safetensors"
    (folder / f"{whole}.index.json").write_text(json.dumps({"weight_map": placed}), encoding="utf-8")
    return folder


def values(folder):
    return {name: tensor.tolist() for name, tensor in read_tensors(folder)}


WHOLE = {"a.weight": [1.0, 1.0], "b.weight": [0.0] * 3, "norm.weight": [2.0] * 4}


def test_property_tables_that_follow_from_the_config_are_left_out(tmp_path):
    write(tmp_path / "model", {"norm.weight": torch.ones(2), "layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)})
    assert [name for name, _ in read_tensors(tmp_path / "model")] == ["norm.weight"]


@pytest.mark.parametrize("bins", [False, True])
def test_property_what_the_shards_hold_counts(tmp_path, bins):
    """Whether the index names the right shard for a tensor, the wrong one, or a tied head that nobody stored."""
    for number, names in enumerate(("one one two", "two one one", "two two one two")):
        placed = dict(zip([*A, *B, "lm_head.weight"], names.split(), strict=False))
        folder = shards(tmp_path / str(number), placed, A, B, bins=bins)
        assert values(folder) == WHOLE
        assert [(name, shape) for name, shape, _ in tensor_ledger(folder)] == [
            ("a.weight", (2,)), ("b.weight", (3,)), ("norm.weight", (4,))]


def test_property_a_tensor_in_two_shards_is_that_of_the_index(tmp_path, caplog):
    placed = dict.fromkeys(A, "one") | dict.fromkeys(B, "two")
    assert values(shards(tmp_path / "same", placed, A | B, B)) == WHOLE
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert values(shards(tmp_path / "other", placed, A | {"model.norm.weight": torch.zeros(4)}, B)) == WHOLE
    assert "model.norm.weight lies in two shards, in two versions; that of two.safetensors is taken" in caplog.text


def test_two_ways_bin_files_equal_safetensors(tmp_path):
    tensors = {f"model.{name}": tensor for name, tensor in some_tensors().items()}
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    read = dict(read_tensors(tmp_path))
    assert {f"model.{name}" for name in read} == tensors.keys()
    assert all(torch.equal(read[name], tensors[f"model.{name}"]) for name in read)
    save_file({"model.a": torch.ones(1)}, tmp_path / "model.safetensors")           # where both are, the safe one
    assert list(stored_tensors(tmp_path)) == ["a"]


def test_refusal_of_bin_files_that_hold_more_than_tensors(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    torch.save({"model.a": torch.ones(1), "step": 5}, path)
    with pytest.raises(ValueError, match=r"pytorch_model.bin: 'step' is a int and no tensor; save the model's"):
        tensor_ledger(tmp_path)
    path.write_bytes(b"\x80\x04c__main__\nrun\n.")
    with pytest.raises(ValueError, match="pytorch_model.bin: this is a bare pickle"):
        tensor_ledger(tmp_path)


@pytest.mark.parametrize("damage", [
    lambda content: b"", lambda content: content[:5], lambda content: content[:-1], lambda content: content + b"0",
    lambda content: b"\xff" * 8 + content[8:], lambda content: content[:8] + b"x" + content[9:],
    lambda content: b"not tensors at all",
], ids=["empty", "no header", "cut short", "too long", "huge header", "bad JSON", "text"])  # fmt: skip
def test_refusal_of_a_damaged_tensor_file(tmp_path, damage):
    write(tmp_path / "model", some_tensors())
    path = tmp_path / "model" / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    for read in (tensor_ledger, lambda folder: list(read_tensors(folder))):
        with pytest.raises(ValueError, match=r"model\.safetensors: damaged or cut short .*fetch or copy it again"):
            read(tmp_path / "model")


def test_refusal_of_shards_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds neither model.safetensors, nor model.safetensors.index"):
        tensor_ledger(tmp_path)
    folder = tmp_path / "model"

    def refused(words, placed):
        shards(folder, placed, A, B)
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            tensor_ledger(folder)

    refused("two.safetensors lacks model.c.weight, which model.safetensors.index.json says it holds, and so do",
            {"model.a.weight": "one", "model.c.weight": "two"})
    refused("a shard is called '../secret.safetensors', which is no file", {"model.a.weight": "../secret"})
    refused("three.safetensors is missing, but model.safetensors.index.json names it", {"model.a.weight": "three"})
    refused("has no weight_map", {})
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"model.a.weight": 5}}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"weight_map\['model.a.weight'\] is 5; it must be a text"):
        tensor_ledger(folder)


def test_refusal_of_number_formats_that_are_not_read(tmp_path):
    header = json.dumps({"model.a": {"dtype": "U32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + b"0000")
    with pytest.raises(ValueError, match="model.a is stored as U32; known are F64"):
        tensor_ledger(tmp_path)
