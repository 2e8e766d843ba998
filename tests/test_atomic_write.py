"""Nothing half written is ever seen under a name, and nothing hidden is left behind."""

import errno
import functools
import os
from pathlib import Path

import pytest

from weights.formats.atomic_write import atomic_file, atomic_files, atomic_folder, final


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("stopped", [1, 2, 3])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.EACCES, "Permission denied")])
def test_property_whatever_stops_a_replacement_one_of_the_two_folders_is_there(
        tmp_path, monkeypatch, stopped, before, failure):
    """Stopped before or after each of the calls that put the new folder in place."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"old")
    made = []

    def stopping(call, *arguments):
        made.append(call)
        if len(made) == stopped and before:
            raise failure
        result = call(*arguments)
        if len(made) == stopped:
            raise failure
        return result

    with pytest.raises(type(failure)):
        with atomic_folder(tmp_path / "model") as partial:
            (partial / "weights").write_bytes(b"new")
            for name in ("rename", "fsync"):
                monkeypatch.setattr(os, name, functools.partial(stopping, getattr(os, name)))
    assert content(tmp_path / "model") == {"weights": b"old" if stopped - before < 2 else b"new"}
    assert os.listdir(tmp_path) == ["model"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_refusal_of_a_full_disk_names_what_was_to_be_written(tmp_path, code):
    failure = OSError(code, os.strerror(code))                      # as write() raises it: without a name
    with pytest.raises(RuntimeError, match=f"/new/model.gguf cannot be written: {os.strerror(code)}; nothing"):
        with atomic_files(tmp_path / "new") as partial, atomic_file(partial / "model.gguf"):
            raise failure
    with pytest.raises(RuntimeError, match="/folder/config.json cannot be written"):
        with atomic_folder(tmp_path / "folder") as outer, atomic_folder(outer) as inner, \
                atomic_file(inner / "config.json"):
            raise failure
    with pytest.raises(RuntimeError, match="/folder cannot be written"):
        with atomic_folder(tmp_path / "folder"):
            raise failure
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match="/file/folder'"), atomic_folder(tmp_path / "file" / "folder"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["file", "new"] and os.listdir(tmp_path / "new") == []


def test_property_failures_of_other_kinds_pass_unchanged(tmp_path):
    with pytest.raises(BrokenPipeError), atomic_folder(tmp_path / "folder"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
    with pytest.raises(FileNotFoundError, match="source.bin"), atomic_file(tmp_path / "file"):
        open(tmp_path / "source.bin", "rb")
    assert os.listdir(tmp_path) == []


def test_worked_example_hidden_names_and_what_they_become():
    assert final(Path("models/.new.0a1b2c3d.partial/x.pt")) == Path("models/new/x.pt")
    assert final(Path("models/..new.0a1b2c3d.partial.4e5f6071.partial")) == Path("models/new")
    assert final(Path("/models/..0a1b2c3d.partial/x.gguf")) == Path("/models/x.gguf")
    assert final(Path("../.cache/a.partial")) == Path("../.cache/a.partial")
