"""No word leaves the machine: the hub is a server on loopback (tests/hub_server.py)."""

import hashlib
import json
import shutil
import sys

import pytest
import torch
from hub_server import COMMIT, at_home

from llama.checkpoint import save_model
from llama.commands.flags import ModelFlags, adapter_folder, base_of
from llama.pretrained import get_model
from llama.runtime import room
from weights import convert, download, fetch
from weights.formats.atomic_write import alone

WEIGHTS = bytes(range(256)) * 40                                    # 10,240 bytes
FILES = {"config.json": b'{"a": 1}', "tokenizer.json": b"{}", "model.safetensors": WEIGHTS, "LICENSE": b"Apache",
         "modeling_own.py": b"import os", "LICENSE.py": b"import os", "pytorch_model.bin": b"pickle",
         "onnx/model.onnx": b"o", ".gitattributes": b"", "../evil.safetensors": b"e", "/evil.tiktoken": b"e"}
KEPT = ["LICENSE", "config.json", "fetched.json", "model.safetensors", "tokenizer.json"]


@pytest.fixture
def server(monkeypatch, tmp_path):
    """A hub, and a home in tmp_path / "home" for what comes from it."""
    (tmp_path / "home").mkdir()
    for module in (download, fetch, sys.modules["weights.formats.paths"]):
        monkeypatch.setattr(module, "home", lambda: tmp_path / "home")
    monkeypatch.setattr(download, "BLOCK", 1000)
    with at_home(monkeypatch, tmp_path, FILES, large=["model.safetensors"]) as server:
        yield server


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def nothing_left(home):
    """Whether nothing of a download has stayed but folders."""
    return [path for path in home.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("hub, revision", [("hf", "main"), ("ms", "master")])
def test_worked_example_of_a_model(server, tmp_path, capsys, hub, revision):
    folder = download.fetch(f"{hub}:ORG/NAME")
    assert folder == tmp_path / "home" / "weights" / "NAME"
    found = content(folder)
    record = json.loads(found.pop("fetched.json"))
    assert sorted([*found, "fetched.json"]) == KEPT and all(found[name] == FILES[name] for name in found)
    assert (record["repository"], record["revision"], record["commit"]) == (f"{hub}:ORG/NAME", revision, COMMIT)
    assert record["files"]["model.safetensors"] == {"size": 10_240, "sha256": hashlib.sha256(WEIGHTS).hexdigest()}
    said = capsys.readouterr().err
    assert f"{hub}:ORG/NAME: 4 files, 0.0 MB, of commit {COMMIT[:12]}, to " in said and "licence: " in said
    assert not (tmp_path / "home" / "weights" / ".cache" / "hub" / f"{hub}--ORG--NAME").exists()
    assert [path for path in tmp_path.rglob("*evil*")] == [] and "py" not in "".join(server.fetched())


def test_worked_example_of_the_base_below_an_adapter(server, tmp_path, capsys):
    """PEFT writes down what it was called on the hub; it is taken if it has been fetched, and not fetched unasked."""
    (tmp_path / "adapter").mkdir()
    config = tmp_path / "adapter" / "adapter_config.json"
    config.write_text('{"base_model_name_or_path": "ORG/NAME"}', encoding="utf-8")
    flags = ModelFlags(adapter=str(tmp_path / "adapter"))
    assert base_of(flags) == ModelFlags.model and server.asked == []
    assert "own base, ORG/NAME, is not here: smollm2-135m-instruct is tried; give --model" in capsys.readouterr().err
    download.fetch("hf:ORG/NAME")
    assert base_of(flags) == "hf:ORG/NAME"


def test_worked_example_of_an_adapter(server, tmp_path):
    server.files = {"adapter_config.json": b"{}", "adapter_model.bin": b"pickle", "adapter_model.safetensors": b"t",
                    "tokenizer.json": b"{}", "README.md": b""}
    folder = adapter_folder("hf:ORG/NAME")
    assert folder == tmp_path / "home" / "adapters" / "NAME"
    assert sorted(content(folder)) == ["adapter_config.json", "adapter_model.safetensors", "fetched.json",
                                       "tokenizer.json"]
    with pytest.raises(ValueError, match="hf:ORG/NAME is an adapter; give it to --adapter, and the model below it to"):
        get_model("hf:ORG/NAME")


@pytest.mark.parametrize("names, kept", [
    (["config.json", "model.safetensors", "pytorch_model.bin"], ["config.json", "model.safetensors"]),
    (["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
      "model.safetensors.index.json", "consolidated.safetensors", "pytorch_model-00001-of-00001.bin",
      "pytorch_model.bin.index.json"],
     ["config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
      "model.safetensors.index.json"]),
    (["config.json", "pytorch_model.bin", "tokenizer.model", "training_args.bin", "optimizer.pt"],
     ["config.json", "pytorch_model.bin", "tokenizer.model"]),
    (["config.json", "model.safetensors", "chat_template.jinja", "qwen.tiktoken", "USE_POLICY.md", "LICENSE-MODEL",
      "vocab.json", "merges.txt", "README.md", "tokenization_own.py", "original/tokenizer.model", "a\\b.tiktoken"],
     ["LICENSE-MODEL", "USE_POLICY.md", "chat_template.jinja", "config.json", "merges.txt", "model.safetensors",
      "qwen.tiktoken", "vocab.json"]),
    (["model.safetensors"], []), (["config.json", "model.safetensors.index.json"], []),
])  # fmt: skip
def test_worked_example_of_what_is_wanted(names, kept):
    assert download.wanted(names)[0] == kept


def test_property_a_second_call_asks_nothing(server, capsys):
    folder = download.fetch("hf:ORG/NAME")
    (folder / "config.json").write_bytes(b"edited by its owner")
    server.asked.clear()
    capsys.readouterr()
    for address in ("hf:ORG/NAME", "hf:ORG/NAME@main", f"hf:ORG/NAME@{COMMIT[:8]}", f"hf:ORG/NAME@{COMMIT}"):
        assert download.fetch(address) == folder
        assert f"{address} is here already: " in capsys.readouterr().err
    assert server.asked == [] and (folder / "config.json").read_bytes() == b"edited by its owner"
    download.fetch("hf:ORG/NAME", force=True)
    assert content(folder)["config.json"] == FILES["config.json"]


@pytest.mark.parametrize("ranges", [True, False])
def test_two_ways_in_pieces_and_at_once(server, ranges):
    server.cut, server.ranges = {"model.safetensors": 3000}, ranges
    if ranges:
        assert content(download.fetch("hf:ORG/NAME"))["model.safetensors"] == WEIGHTS
        asked = [headers.get("Range") for kind, method, _, headers in server.asked if kind == "cdn"]
        assert asked == [None, "bytes=3000-", "bytes=6000-", "bytes=9000-"] and server.waited == []
    else:                                                           # each begins anew, and none comes further
        with pytest.raises(RuntimeError, match="came to 3,000 of 10,240 bytes, and no connection brings more; look at"):
            download.fetch("hf:ORG/NAME")
        assert server.waited == [1, 2, 4, 8]
        server.cut = {}
        assert content(download.fetch("hf:ORG/NAME"))["model.safetensors"] == WEIGHTS


def test_property_a_later_call_goes_on_from_what_has_come(server, tmp_path, monkeypatch):
    whole = download._blocks

    def interrupted(response):
        for number, block in enumerate(whole(response)):
            if number == 2:
                raise KeyboardInterrupt
            yield block

    with monkeypatch.context() as patch:
        patch.setattr(download, "_blocks", interrupted)
        with pytest.raises(KeyboardInterrupt):
            download.fetch("hf:ORG/NAME")
    assert not (tmp_path / "home" / "weights" / "NAME").exists()
    server.asked.clear()
    assert content(download.fetch("hf:ORG/NAME"))["model.safetensors"] == WEIGHTS
    assert [headers.get("Range") for kind, *_, headers in server.asked if kind == "cdn"] == ["bytes=2000-"]
    assert set(server.fetched("hub")) == {"model.safetensors"}      # the small ones had come


def test_property_parts_of_another_commit_are_not_gone_on_from(server, tmp_path):
    parts = tmp_path / "home" / "weights" / ".cache" / "hub" / "hf--ORG--NAME"
    parts.mkdir(parents=True)
    (parts / f"model.safetensors.{'0' * 64}").write_bytes(b"of yesterday")
    assert content(download.fetch("hf:ORG/NAME"))["model.safetensors"] == WEIGHTS


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_refusal_of_a_wrong_sum(server, tmp_path, name):
    """sha256 of what lies with the CDN, git's name of what lies with the hub."""
    server.sent = {name: bytes(len(FILES[name]))}
    with pytest.raises(ValueError, match=f"{name} has come with the sum [0-9a-f]+, not [0-9a-f]+ as .* promised, and"):
        download.fetch("hf:ORG/NAME")
    assert not list(tmp_path.rglob(f"{name}*")) and not (tmp_path / "home" / "weights" / "NAME").exists()
    server.sent = {}
    assert content(download.fetch("hf:ORG/NAME"))[name] == FILES[name]


def test_refusal_of_more_than_was_promised(server, tmp_path):
    server.sent = {"model.safetensors": WEIGHTS * 100}
    with pytest.raises(ValueError, match="model.safetensors is longer than the 10,240 bytes that .* promised, and was"):
        download.fetch("hf:ORG/NAME")
    assert not list(tmp_path.rglob("model.safetensors*"))


def test_refusal_without_room(server, tmp_path, monkeypatch):
    monkeypatch.setattr(room, "free_disk", lambda _: 10_000)
    with pytest.raises(ValueError, match="ORG/NAME needs 0.0 MB on the disk of .*, and 0.0 MB are free; make room"):
        download.fetch("hf:ORG/NAME")
    assert server.fetched() == [] and nothing_left(tmp_path / "home")


def test_refusal_to_replace_what_is_something_else(server, tmp_path):
    folder = tmp_path / "home" / "weights" / "NAME"
    folder.mkdir(parents=True)
    (folder / "mine").write_bytes(b"")
    for force in (False, True):
        with pytest.raises(ValueError, match="NAME is there and holds nothing that was fetched from a hub; rename it"):
            download.fetch("hf:ORG/NAME", force=force)
    shutil.rmtree(folder)
    download.fetch("hf:ORG/NAME")
    for force in (False, True):
        with pytest.raises(ValueError, match="NAME is there and holds hf:ORG/NAME, something else; rename it, and"):
            download.fetch("ms:ORG/NAME", force=force)
    record = json.loads((folder / "fetched.json").read_text(encoding="utf-8"))
    (folder / "fetched.json").write_text(json.dumps(record | {"revision": "old", "commit": "f" * 40}), encoding="utf-8")
    with pytest.raises(ValueError, match="holds ORG/NAME at old .* python -m weights.fetch --force hf:ORG/NAME@main$"):
        download.fetch("hf:ORG/NAME")


@pytest.mark.parametrize("files, words", [
    ({"a.Q4_K_M.gguf": b"", "a.Q8_0.gguf": b""}, "ORG/NAME holds GGUF files, of which one is a model; get one from "
                                                 "https://huggingface.co/ORG/NAME .*: a.Q4_K_M.gguf, a.Q8_0.gguf"),
    ({"README.md": b""}, "ORG/NAME holds neither a model .* nor an adapter")])
def test_refusal_of_what_is_no_model(server, files, words):
    server.files = files
    with pytest.raises(ValueError, match=words):
        download.fetch("hf:ORG/NAME")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no locks of folders")
def test_refusal_while_another_process_fetches_the_same(server, tmp_path):
    parts = tmp_path / "home" / "weights" / ".cache" / "hub" / "hf--ORG--NAME"
    parts.mkdir(parents=True)
    with alone(parts), pytest.raises(ValueError, match="hf--ORG--NAME is being written by another process; wait for"):
        download.fetch("hf:ORG/NAME")


def test_two_ways_a_model_from_a_hub_and_from_its_folder(server, tiny_model, tmp_path, monkeypatch, capsys):
    """Through every door: the library, the command that fetches, the command that converts."""
    save_model(tiny_model, tmp_path / "here")
    server.files, server.large = content(tmp_path / "here"), {"model.safetensors"}
    tokens = torch.arange(10)[None]
    assert torch.equal(get_model("hf:ORG/NAME")(tokens), tiny_model(tokens))
    monkeypatch.setattr(sys, "argv", ["fetch", "hf:ORG/NAME"])
    fetch.main()
    assert capsys.readouterr().out.strip().endswith("NAME")
    monkeypatch.setattr(sys, "argv", ["convert", "hf:ORG/NAME", str(tmp_path / "x.gguf")])
    convert.main()
    assert (tmp_path / "x.gguf").read_bytes()[:4] == b"GGUF"
    assert torch.equal(get_model("NAME")(tokens), tiny_model(tokens))           # by its name, from now on
