"""The fuzzer itself: valid files are read, and a reader that hangs, balloons, dies or stumbles is found out."""

import os
import random

import pytest

from tests.fuzz.mutate import mutant

if not hasattr(os, "fork"):
    pytest.skip("a mutant is read in a process of its own, which needs fork", allow_module_level=True)

from tests.fuzz.__main__ import read_apart
from tests.fuzz.readers import Reader, readers


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def every_reader(place):
    return readers(place)


def test_property_every_valid_file_is_read(every_reader, place):
    for reader in every_reader:
        assert read_apart(reader, (reader.folder / reader.file).read_bytes(), place) == "read", reader.name


def test_property_most_mutants_differ_and_come_again(every_reader):
    for reader in every_reader:
        valid = (reader.folder / reader.file).read_bytes()
        made = [mutant(valid, reader.kind, random.Random(str(i))) for i in range(20)]
        assert len(set(made) - {valid}) >= 10, reader.name
        assert made[7] == mutant(valid, reader.kind, random.Random("7"))


def stumble(folder):
    return {}["key"]


def implicit(folder):
    return int("x")


def hang(folder):
    while True:
        pass


def balloon(folder):
    return len(bytearray(250 << 20))


def die(folder):
    os._exit(3)


@pytest.mark.parametrize("read, words", [
    (stumble, "fault: KeyError"), (implicit, "fault: ValueError: invalid literal"), (hang, "fault: no end within"),
    (balloon, "fault: 2"), (die, "fault: the process died"),
    (lambda folder: open(folder / "missing", "rb"), "refused")])
def test_property_a_bad_reader_is_found_out(tmp_path, read, words, monkeypatch):
    monkeypatch.setattr("tests.fuzz.__main__.SECONDS", 1)
    (tmp_path / "valid").mkdir()
    (tmp_path / "valid" / "file").write_bytes(b"x")
    assert read_apart(Reader("bad", tmp_path / "valid", "file", "bytes", read), b"y", tmp_path).startswith(words)
