"""Nothing half written is ever seen under a name, and nothing hidden is left behind."""

import errno
import functools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from weights.formats.atomic_write import atomic_file, atomic_files, atomic_folder, final, scratch_folder, sweep

HOME = Path(__file__).resolve().parent.parent


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("stopped", [1, 2, 3, 4])
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(errno.EACCES, "Permission denied")])
def test_property_whatever_stops_a_replacement_one_of_the_two_folders_is_there(
        tmp_path, monkeypatch, stopped, before, failure):
    """Stopped before or after each of the calls that put the new folder on the disk and in place."""
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
    assert content(tmp_path / "model") == {"weights": b"old" if stopped - before < 3 else b"new"}
    assert os.listdir(tmp_path) == ["model"]


def test_property_of_several_files_the_last_is_there_with_all_that_belongs_to_it(tmp_path, monkeypatch):
    def once(*names):
        monkeypatch.setattr(os, "replace", stopped)
        usual(*names)

    def stopped(*names):
        raise KeyboardInterrupt

    usual = os.replace
    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(KeyboardInterrupt), atomic_files(tmp_path / "new", "a.gguf") as partial:
        for name in ("a.gguf", "a.gguf.certificate.json", "tokenizer.bin"):
            (partial / name).touch()
    assert os.listdir(tmp_path / "new") == ["a.gguf.certificate.json"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_refusal_of_a_full_disk_names_what_was_to_be_written(tmp_path, code):
    failure = OSError(code, os.strerror(code))                      # as write() raises it: without a name
    with pytest.raises(RuntimeError, match=f"/new/model.gguf cannot be written: {os.strerror(code)}; nothing"):
        with atomic_files(tmp_path / "new", "model.gguf") as partial, atomic_file(partial / "model.gguf"):
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
    assert final(Path("models/.new.0a1b2c3d.aside")) == Path("models/new")


# ---- killed writers --------------------------------------------------------------------------------------------------

WRITERS = {
    "file": "with atomic_file(folder / 'x') as file: file.write(b'half'); die()",
    "folder": "with atomic_folder(folder / 'x') as new: (new / 'y').write_bytes(b'half'); die()",
    "files": "with atomic_files(folder, 'x') as new: (new / 'x').write_bytes(b'half'); die()",
    "scratch": "with scratch_folder(folder, 'x') as new: (new / 'y').write_bytes(b'half'); die()",
    "between the renames": "atomic_write.os.rename = lambda a, b, rename=os.rename: (rename(a, b), die())\n"
                           "with atomic_folder(folder / 'x') as new: (new / 'y').write_bytes(b'new')",
}
posix = pytest.mark.skipif(os.name != "posix", reason="killed as POSIX kills, and locked as it locks")


def killed(writer, folder):
    program = ("import os, signal, sys; from pathlib import Path; from weights.formats import atomic_write\n"
               "from weights.formats.atomic_write import *\n"
               f"folder, die = Path(sys.argv[1]), lambda: os.kill(os.getpid(), {int(signal.SIGTERM)})\n{writer}")
    done = subprocess.run([sys.executable, "-c", program, str(folder)], env={**os.environ, "PYTHONPATH": str(HOME)})
    assert done.returncode == -signal.SIGTERM


@posix
@pytest.mark.parametrize("kind", WRITERS)
def test_property_what_a_killed_writer_left_is_swept_by_the_next(kind, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "y").write_bytes(b"old")
    others = [".y.0a1b2c3d.partial", ".x.partial", "x.0a1b2c3d.partial"]
    for other in others:
        (tmp_path / other).mkdir()
    killed(WRITERS[kind], tmp_path)
    assert len(os.listdir(tmp_path)) > len(others) or kind == "between the renames"
    sweep(tmp_path, "" if kind == "files" else "x")
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "x"])
    assert content(tmp_path / "x") == {"y": b"old"}                 # put back, where it had been put aside
    with atomic_folder(tmp_path / "x") as partial:
        (partial / "y").write_bytes(b"new")
    assert content(tmp_path / "x") == {"y": b"new"} and sorted(os.listdir(tmp_path)) == sorted([*others, "x"])


@posix
def test_property_what_a_living_writer_writes_is_not_swept(tmp_path):
    with atomic_folder(tmp_path / "x") as one, atomic_file(tmp_path / "y") as two, scratch_folder(tmp_path) as three:
        (one / "a").write_bytes(b"1")
        two.write(b"2")
        sweep(tmp_path, alone=True)
        assert three.is_dir()
        with atomic_folder(tmp_path / "x") as again, atomic_file(tmp_path / "y") as once_more:
            (again / "b").write_bytes(b"3")
            once_more.write(b"4")
    assert content(tmp_path / "x") == {"a": b"1"} and (tmp_path / "y").read_bytes() == b"2"
    assert sorted(os.listdir(tmp_path)) == ["x", "y"]


@posix
def test_property_links_are_not_followed_in_sweeping(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / ".x.0a1b2c3d.partial").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    sweep(tmp_path, alone=True)
    assert (tmp_path / "elsewhere").is_dir()


@posix
@pytest.mark.parametrize("alone", [True, False])
def test_property_where_nothing_can_be_locked_only_the_owner_of_the_folder_sweeps(alone, tmp_path, monkeypatch):
    (tmp_path / ".x.0a1b2c3d.partial").mkdir()
    monkeypatch.setattr("fcntl.flock", lambda *given: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks")))
    sweep(tmp_path, alone=alone)
    assert os.listdir(tmp_path) == ([] if alone else [".x.0a1b2c3d.partial"])
    with atomic_file(tmp_path / "x") as file:
        file.write(b"1")
    assert (tmp_path / "x").read_bytes() == b"1"
