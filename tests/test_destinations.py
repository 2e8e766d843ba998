import argparse
import os
from pathlib import Path

import pytest
from test_ranges import DOORS, parser_of

from llama.runtime import destinations
from llama.runtime.destinations import check_name, file_or_folder_to_write, file_to_write, folder_to_write
from weights.formats import atomic_write

HOME = Path(__file__).resolve().parent.parent
WRITES = {"output", "plot", "predictions", "destination", "write_int8"}         # what flags that write are called


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "run.training").touch()
    if hasattr(os, "mkfifo"):
        os.mkfifo("pipe")
    try:
        os.symlink("nowhere", "dangling")
    except OSError:
        pytest.skip("no links on this system")


BAD = [("", "the name is empty"), ("  ", "the name is empty"), (".", "runs in"), ("..", "runs in"), ("/", "runs in"),
       ("folder/..", "runs in"), ("x\udcff", "is no UTF-8"), ("a\0b", "no name may hold"), ("n" * 240, "too long"),
       ("n" * 230, "too long"), ("驼" * 80, "too long"), ("n" * 300 + "/x", "too long"),
       ("d/" * 3000 + "x", "too long"),
       ("dangling", "is a link to nowhere, which is not there"), ("dangling/x", "is a link to nowhere"),
       ("file/x", "is a file, so nothing can lie in it"), ("file/x/y", "is a file, so nothing can lie in it")]
GOOD = ["new", "new/", "a/b/c", "n" * 200, "驼", "with spaces", "folder"]


@pytest.mark.parametrize("text, words", BAD, ids=[ascii(text)[:20] for text, _ in BAD])
@pytest.mark.parametrize("kind", [folder_to_write, file_to_write, file_or_folder_to_write], ids=lambda k: k.__name__)
def test_refusal_names_that_cannot_be_written(kind, text, words):
    with pytest.raises(argparse.ArgumentTypeError, match=words) as refused:
        kind(text)
    assert "\n" not in str(refused.value)


def test_refusal_of_a_file_for_a_folder_and_the_other_way_round():
    for kind, text, words in [(folder_to_write, "file", "is a file, and a folder"),
                              (folder_to_write, "run", "run.training is a file"),
                              (file_to_write, "folder", "folder is a folder; give the name of a file"),
                              (file_to_write, "new/", "is a folder"),
                              (file_to_write, "pipe", "is no ordinary file")]:
        if text != "pipe" or os.path.exists("pipe"):
            with pytest.raises(argparse.ArgumentTypeError, match=words):
                kind(text)


@pytest.mark.parametrize("text", GOOD)
def test_property_other_names_are_given_back_and_nothing_is_made(text, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    assert folder_to_write(text) == text
    if text not in ("folder", "new/"):
        assert file_to_write(text) == text
    assert sorted(tmp_path.rglob("*")) == before


def test_refusal_where_nobody_may_write(monkeypatch):
    monkeypatch.setattr(destinations.os, "access", lambda path, mode: False)        # as root, one may everywhere
    with pytest.raises(ValueError, match="x: nothing may be written into .*; give another name"):
        check_name("x")


def test_two_ways_the_longest_name_is_as_long_as_those_that_are_made():
    assert len(destinations.LONGEST.format("x")) >= len(atomic_write._sibling(Path("."), "x_epoch1000000").name)


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_property_every_flag_that_writes_looks_at_the_name(door, monkeypatch):
    for action in parser_of(door, monkeypatch)._actions:
        if action.dest in WRITES:
            assert action.type in (folder_to_write, file_to_write, file_or_folder_to_write), action.option_strings


@pytest.mark.parametrize("command", [
    ["train.py", "--data", "gone.txt", "--output"], ["finetune.py", "--data", "gone.jsonl", "--output"],
    ["-m", "llama.merge", "--adapter", "gone", "--output"], ["-m", "weights.convert", "gone"],
    ["-m", "llama.quantize", "--bits", "8", "--model", "gone", "--output"],
    ["-m", "llama.clean", "gone.txt", "--output"],
    ["-m", "llama.evaluate", "--data", "gone.txt", "--predictions"], ["-m", "llama.benchmark", "--plot"],
], ids=lambda command: command[-2])
def test_refusal_at_a_door_is_one_sentence_and_code_2(program, command, tmp_path):
    done = program(*command, "n" * 240, cwd=tmp_path, code=2)
    assert "too long a name" in done.stderr and done.stderr.count("\n") == 1, done.stderr
