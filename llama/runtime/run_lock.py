"""One run at a time for each output: OUTPUT.training/lock is held from when a name is chosen until the process ends.

(Of a job of generate.py it is OUTPUT.job/lock.) The system lets go of it when its holder dies, by whatever death, so no
lock is ever left behind that blocks a run; the file says who holds it, for the sentence that refuses a second run.

Try: leave the lock out of `unique_path`; tests/test_run_lock.py (test_property_names_are_taken_when_they_are_chosen)
fails: two runs side by side would write one result.
"""

import atexit
import contextlib
import json
import os
import socket
from pathlib import Path
from typing import BinaryIO

_held: dict[Path, BinaryIO] = {}


def take(output: Path, kind: str = "training") -> None:
    """Hold `output` for this process, by a file in OUTPUT.KIND; nothing where it holds it already.

    Raises ValueError, naming the process and its machine, where another run holds it.
    """
    folder = _folder(output, kind)
    while folder not in _held:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            file = open(folder / "lock", "a+b")
        except FileNotFoundError:                                   # whoever had it has left, the folder with it
            continue
        if not _lock(file):
            file.seek(0)
            holder = _read(file.read())
            file.close()
            raise ValueError(f"{output} is being written by another run ({holder}); wait for it, stop it, or give "
                             "another --output")
        if _is_there(file, folder / "lock"):
            file.truncate(0)
            file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())
            file.flush()
            _held[folder] = file
        else:
            file.close()                                            # of a run that ended between the two


def release(output: Path, kind: str = "training") -> None:
    """Let go of it; a folder in which nothing else lies goes with it."""
    _release(_folder(output, kind))


def _folder(output: Path, kind: str) -> Path:
    return Path(os.path.abspath(f"{output}.{kind}"))


def _release(folder: Path) -> None:
    if (file := _held.pop(folder, None)) is not None:
        if os.name == "nt":
            file.close()                                            # what is open cannot be deleted there
        with contextlib.suppress(OSError):
            (folder / "lock").unlink()
            folder.rmdir()                                          # not empty: an OSError, and it stays
        file.close()


@atexit.register
def _release_all() -> None:
    for folder in list(_held):
        _release(folder)


def _lock(file: BinaryIO) -> bool:
    """Whether this process got it. A byte far behind the text on Windows, where locked bytes cannot be read."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(1 << 20)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_there(file: BinaryIO, path: Path) -> bool:
    """Whether the file that is open is still the one of this name."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except OSError:
        return False


def _read(content: bytes) -> str:
    try:
        holder = json.loads(content)
        return f"process {int(holder['pid'])} on {str(holder['host'])!r:.80}"
    except (ValueError, KeyError, TypeError):
        return "which has only begun"
