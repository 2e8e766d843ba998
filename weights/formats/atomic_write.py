"""Files and folders that are there whole or not at all: written under a hidden name beside, renamed when complete.

Whoever looks meanwhile finds the older one. A failure, a full disk and Ctrl-C leave nothing behind; what a writer left
that was killed is swept by the next one of the same name. The system says which writers live: each holds a lock on what
it writes, and no death leaves a lock behind.

Try: in `_put_in_place`, catch OSError alone; tests/test_atomic_write.py
(test_property_whatever_stops_a_replacement_one_of_the_two_folders_is_there) fails: Ctrl-C would cost a model.
"""

import contextlib
import errno
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

FULL_OR_BROKEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
HIDDEN = re.compile(r"\.(.*)\.[0-9a-f]{8}\.(partial|aside)", re.DOTALL)
NO_LOCK = -1                                                       # where the system or the disk knows no such locks


class WriteError(RuntimeError):
    """The disk is full or broken; nothing was lost by that."""


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file to write that gets its name when it is complete and on the disk, and is gone after any failure.

    Raises WriteError if the disk is full or broken.
    """
    with _failures_of(path), _hidden(path.parent, path.name, lambda new: open(new, "xb").close()) as partial:
        with open(partial, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        _sync(path.parent)                                         # makes the renaming outlast a power cut


@contextmanager
def atomic_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to fill that gets its name when it is complete, and is gone after any failure, Ctrl-C among them.

    An older folder of that name disappears only once the new one is complete. What may be replaced is the caller's
    question (see huggingface.refuse_existing). Raises WriteError if the disk is full or broken.
    """
    folder = Path(os.path.abspath(folder))
    with _failures_of(folder), _hidden(folder.parent, folder.name, lambda new: new.mkdir(parents=True)) as partial:
        yield partial
        _put_in_place(partial, folder)


@contextmanager
def atomic_files(folder: str | Path, last: str) -> Iterator[Path]:
    """A hidden folder to fill beside files that belong together; each is moved into `folder` when all are complete.

    They replace older ones of their names, one after the other: a certificate knows its files by their sha256, so it
    never vouches for one of another conversion. The one called `last` comes last: it is there with all that belongs to
    it. Raises WriteError if the disk is full or broken.
    """
    folder = Path(os.path.abspath(folder))
    folder.mkdir(parents=True, exist_ok=True)
    with _failures_of(folder), scratch_folder(folder) as partial:
        yield partial
        for path in sorted(partial.iterdir(), key=lambda path: (path.name == last, path.name)):
            _sync(path)
            os.replace(path, folder / path.name)
        _sync(folder)


@contextmanager
def scratch_folder(parent: Path, name: str = "") -> Iterator[Path]:
    """A hidden folder in `parent` for as long as something called `name` is being made there."""
    with _hidden(parent, name, Path.mkdir) as folder:
        yield folder


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """No other process is in this folder for as long as the body runs. Raises ValueError where one is."""
    if (lock := _hold(folder)) is None:
        raise ValueError(f"{folder} is being written by another process; wait for it, or stop it")
    try:
        yield
    finally:
        _let_go(lock)


def _put_in_place(partial: Path, folder: Path) -> None:
    for path in partial.rglob("*"):
        _sync(path)
    aside = _sibling(folder.parent, folder.name, "aside")
    lock = _hold(folder)                                           # or whoever sweeps meanwhile would put it back
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
        _delete(aside)
        _let_go(lock)


def _sync(path: Path) -> None:
    """Put a file, or a folder's list of names, on the disk; of folders Windows cannot, and need not."""
    posix = os.name == "posix"
    if posix or path.is_file():
        handle = os.open(path, os.O_RDONLY if posix else os.O_RDWR)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def sync(path: Path) -> None:
    """Put a file that others have written on the disk. Raises WriteError if that is full or broken."""
    with _failures_of(path):
        _sync(path)


# ---- what killed writers leave ---------------------------------------------------------------------------------------


def sweep(folder: Path, name: str | None = None, *, alone: bool = False) -> None:
    """Delete what killed writers left in `folder`, of one name or of any; an older folder put aside is put back.

    alone  nobody else writes there, so that also what cannot be locked may go
    """
    with contextlib.suppress(OSError):                             # there is no such folder, or it is not to be read
        for path in sorted(folder.iterdir()):
            if (hidden := HIDDEN.fullmatch(path.name)) and name in (None, hidden[1]):
                with contextlib.suppress(OSError):
                    _sweep(path, folder / hidden[1], alone=alone)


def _sweep(path: Path, whole: Path, *, alone: bool) -> None:
    lock = _hold(path)
    if lock is None or lock == NO_LOCK and not alone:
        return
    if path.suffix == ".aside" and not os.path.lexists(whole):     # killed between the two renames
        os.rename(path, whole)
    else:
        _delete(path)
    _let_go(lock)


@contextmanager
def _hidden(folder: Path, name: str, make: Callable[[Path], None]) -> Iterator[Path]:
    """A hidden name for `name` in `folder`, made and held for the body; what has it then is deleted."""
    sweep(folder, name)
    partial, lock = _sibling(folder, name), None
    try:
        make(partial)
        while (lock := _hold(partial)) is None:                    # swept at its birth, before it was held
            partial = _sibling(folder, name)
            make(partial)
        yield partial
    finally:
        _delete(partial)
        _let_go(lock)


def _hold(path: Path) -> int | None:
    """Lock a file or folder until this process lets go or dies; None if another has it, or nothing is there."""
    if os.name != "posix":
        return NO_LOCK
    import fcntl

    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), os.lstat(path)):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(handle)
        return NO_LOCK
    os.close(handle)
    return None


def _let_go(lock: int | None) -> None:
    if lock not in (None, NO_LOCK):
        os.close(lock)


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


# ---- names -----------------------------------------------------------------------------------------------------------


def _sibling(folder: Path, name: str, kind: str = "partial") -> Path:
    """An unused hidden name beside `name`, on the same disk, so that a rename is all it takes to put it in place."""
    return folder / f".{name}.{uuid.uuid4().hex[:8]}.{kind}"


def final(path: Path) -> Path:
    """The path as it will be once it is whole: `models/.new.0a1b2c3d.partial/x` is to be `models/new/x`."""
    parts = list(path.parts)
    for i, part in enumerate(parts):
        while hidden := HIDDEN.fullmatch(part):
            part = hidden[1]
        parts[i] = part
    return Path(*parts)


@contextmanager
def _failures_of(path: Path) -> Iterator[None]:
    """Failures of the system name what was to be written, and not what it was called until then."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL_OR_BROKEN and (error.filename is None or HIDDEN.search(str(error.filename))):
            raise WriteError(f"{final(path)} cannot be written: {error.strerror}; nothing of it was kept") from None
        if isinstance(error.filename, str | Path):
            error.filename = str(final(Path(error.filename)))
        raise
