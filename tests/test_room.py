import errno
import math
import sys
from types import SimpleNamespace

import pytest
import torch

from llama import merge, quantize
from llama.checkpoint import save_model
from llama.runtime import room
from llama.runtime.room import OutOfMemory, asked_for, check_disk, free_disk, free_memory, memory_for, size
from weights import convert, fetch
from weights.convert import Form, written_bytes
from weights.formats.sources import open_source

CPU = torch.device("cpu")


@pytest.mark.parametrize("error, asked", [
    (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has …"), 20 * 2**20),
    (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried to allocate "
                  "4096 bytes. Error code 12 (Cannot allocate memory)"), 4096),
    (RuntimeError("unable to mmap 51000 bytes from file <m>: Cannot allocate memory (12)"), 51000),
    (MemoryError(), 0), (OSError(errno.ENOMEM, "Cannot allocate memory"), 0),
])
def test_worked_example_what_was_being_done_and_what_was_asked_for(error, asked):
    assert asked_for(error) == asked
    more = f", where {size(asked)} more were asked for" if asked else ""
    with pytest.raises(OutOfMemory) as told, memory_for("reading", lambda: "read less"):
        raise error
    assert str(told.value) == f"out of memory while reading{more}: read less"


def test_worked_example_torch_s_own_words():
    with pytest.raises(OutOfMemory, match="while asking, where 4,611,686,018.43 GB more were asked for: ask less"), \
            memory_for("asking", lambda: "ask less"):
        torch.empty(2**60)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("out of memory"),
                                   OSError(28, "full"), OutOfMemory("out of memory while inside: x")])
def test_property_other_failures_pass_as_they_are(error):
    with pytest.raises(type(error)) as passed, memory_for("x", lambda: "y"):
        raise error
    assert passed.value is error


def test_property_too_little_memory_for_advice():
    with pytest.raises(OutOfMemory, match="while loading: take a smaller model"), \
            memory_for("loading", lambda: torch.empty(2**60)):
        raise MemoryError


def test_property_free_memory_is_the_least_that_anything_leaves(monkeypatch, tmp_path):
    assert 0 < free_memory(CPU) < 1e15 or sys.platform != "linux"
    for name, part in (("_of_the_machine", 3e9), ("_of_the_container", 2e9), ("_of_the_process", 4e9)):
        monkeypatch.setattr(room, name, lambda part=part: part)
    assert free_memory(CPU) == 2e9 and free_memory(torch.device("meta")) == math.inf
    monkeypatch.undo()
    for name, text in (("max", "1000000\n"), ("current", "400000\n"), ("stat", "anon 1\ninactive_file 50000\n")):
        (tmp_path / f"memory.{name}").write_text(text, encoding="utf-8")
    monkeypatch.setattr(room, "_text", lambda path, text=room._text: "" if path == "/proc/self/cgroup" else text(path))
    assert room._of_the_container(str(tmp_path)) == 650_000
    (tmp_path / "memory.max").write_text("max\n", encoding="utf-8")
    assert room._of_the_container(str(tmp_path)) == math.inf


def test_worked_example_what_a_limit_of_the_process_leaves(monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (10 * resource.getpagesize(), 0))
    monkeypatch.setattr(room, "_text", lambda path: "4 3 2")
    assert room._of_the_process() == 6 * resource.getpagesize()


def test_refusal_of_a_disk_without_room(tmp_path, monkeypatch):
    check_disk(tmp_path / "a" / "b", 1, "x", "y")
    assert free_disk(tmp_path / "a" / "b") > 0
    monkeypatch.setattr(room.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1_230_000_000))
    with pytest.raises(ValueError, match="the model needs 3.20 GB on the disk of a/b, and 1.23 GB are free; make room"):
        check_disk("a/b", 3.2e9, "the model", "make room")


def test_refusal_commands_that_write_models_look_at_the_disk_before_they_load(tiny_model, tmp_path, monkeypatch):
    save_model(tiny_model, tmp_path / "m")
    monkeypatch.setattr(room.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    monkeypatch.setattr("llama.pretrained.load_model", None)
    monkeypatch.setattr("weights.convert._passing", None)
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    model, output = str(tmp_path / "m"), str(tmp_path / "x")
    for door, command in ((merge, ["--adapter", model, "--model", model, "--output", output]),
                          (quantize, ["--bits", "4", "--model", model, "--output", output]),
                          (convert, [model, output]), (convert, [model, output, "--to", "meta"]),
                          (convert, [model, f"{output}.gguf", "--quantization", "Q8_0"])):
        monkeypatch.setattr(sys, "argv", ["door", *command])
        with pytest.raises(ValueError, match=r"needs 0\.\d MB on the disk of .*x(.gguf)?, and 0.0 MB are free; "):
            door.main()
    monkeypatch.setattr(fetch, "home", lambda: tmp_path)
    with pytest.raises(ValueError, match="three-kingdoms needs 5.4 MB on the disk of .*, and 0.0 MB are free"):
        fetch.fetch("three-kingdoms")
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("form", [Form("hf"), Form("pt"), Form("meta"), Form("llama2c"), Form("gguf"),
                                  *(Form("gguf", quantization=name) for name in ("Q8_0", "Q4_K_M"))],
                         ids=lambda form: form.kind + form.quantization)
def test_two_ways_what_a_conversion_writes(form, tiny_model, tmp_path):
    save_model(tiny_model, tmp_path / "m")
    foretold = written_bytes(form, open_source(tmp_path / "m").ledger)
    folder = tmp_path / "out"
    folder.mkdir()
    made = convert.convert(tmp_path / "m", folder / ("x" if form.kind in ("hf", "meta") else "x.bin"), to=form.kind,
                           quantization=form.quantization)
    found = max(path.stat().st_size for path in [made, *made.rglob("*")] if path.is_file())
    twice = 2 if form.kind in ("pt", "meta") else 1                 # spooled, and copied
    assert 0.8 * foretold < twice * found < 1.4 * foretold + 60_000     # beside tensors stand names and vocabularies
