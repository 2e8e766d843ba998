"""Files and folders that are there whole or not at all: written under a hidden name beside, renamed when complete.

Whoever looks meanwhile finds the older one. A failure, a full disk and Ctrl-C leave nothing behind.

Try: in `_put_in_place`, catch OSError alone; tests/test_atomic_write.py
(test_property_whatever_stops_a_replacement_one_of_the_two_folders_is_there) fails: Ctrl-C would cost a model.
"""

import errno
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

FULL_OR_BROKEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that gets its name when it is complete and on the disk, and is gone after any failure.

    Raises RuntimeError if the disk is full or broken.
    """
    partial = _sibling(path)
    with _failures_of(path):
        try:
            with open(partial, "xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
            _sync(path.parent)                                     # makes the renaming outlast a power cut
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to fill that gets its name when it is complete, and is gone after any failure, Ctrl-C among them.

    An older folder of that name disappears only once the new one is complete. What may be replaced is the caller's
    question (see huggingface.refuse_existing). Raises RuntimeError if the disk is full or broken.
    """
    folder = Path(os.path.abspath(folder))
    partial = _sibling(folder)
    with _failures_of(folder):
        partial.mkdir(parents=True)
        try:
            yield partial
            _put_in_place(partial, folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def atomic_files(folder: str | Path) -> Iterator[Path]:
    """A hidden folder to fill beside files that belong together; each is moved into `folder` when all are complete.

    They replace older ones of their names, one after the other: a certificate knows its files by their sha256, so it
    never vouches for one of another conversion. Raises RuntimeError if the disk is full or broken.
    """
    folder = Path(os.path.abspath(folder))
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / _hidden("")
    with _failures_of(folder):
        partial.mkdir()
        try:
            yield partial
            for path in sorted(partial.iterdir()):
                os.replace(path, folder / path.name)
            _sync(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(partial: Path, folder: Path) -> None:
    aside = _sibling(folder)
    try:
        if folder.exists():
            os.rename(folder, aside)
        os.rename(partial, folder)
        _sync(folder.parent)
    except BaseException:                                          # Ctrl-C may come between the two renames
        if aside.exists() and not folder.exists():
            os.rename(aside, folder)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Put the folder's list of names on the disk; Windows cannot, and need not."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


# ---- names -----------------------------------------------------------------------------------------------------------


def _sibling(path: Path) -> Path:
    """An unused hidden name beside `path`, on the same disk, so that a rename is all it takes to put it in place."""
    return path.with_name(_hidden(path.name))


def _hidden(name: str) -> str:
    return f".{name}.{uuid.uuid4().hex[:8]}.partial"


def final(path: Path) -> Path:
    """The path as it will be once it is whole: `models/.new.0a1b2c3d.partial/x` is to be `models/new/x`."""
    parts = list(path.parts)
    for i, part in enumerate(parts):
        while hidden := re.fullmatch(r"\.(.*)\.[0-9a-f]{8}\.partial", part):
            part = hidden[1]
        parts[i] = part
    return Path(*parts)


@contextmanager
def _failures_of(path: Path) -> Iterator[None]:
    """Failures of the system name what was to be written, and not what it was called until then."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, str | Path):
            error.filename = str(final(Path(error.filename)))
        elif error.errno in FULL_OR_BROKEN:
            raise RuntimeError(f"{final(path)} cannot be written: {error.strerror}; nothing of it was kept") from None
        raise
