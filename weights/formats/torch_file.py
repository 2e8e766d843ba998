"""What torch.save writes and torch.load reads, as plain data: nothing in it can run code, and nothing in it balloons.

`torch.load(weights_only=True, mmap=True)` reads it: a tensor that is not used costs no memory. `torch.save` wants all
tensors at once; `spooled` gives it some that lie on the disk.

Try: in `load_torch_file`, load with weights_only=False; tests/test_checkpoint.py
(test_refusal_a_file_that_would_run_code) fails, and a file from elsewhere would make a folder on your disk, or worse.
"""

import errno
import os
import struct
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from weights.formats.atomic_write import atomic_file
from weights.formats.plain_pickle import strange_call

_END_64, _LOCATOR, _END = 56, 20, 22                                # bytes of the three records that end an archive

_PICKLE = b"\x80"                                                   # its first byte; today a zip is around it


def save_torch_file(path: Path, content: dict[str, Any]) -> None:
    """torch.save that replaces `path` only when every byte is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        torch_save(content, file)


def torch_save(content: dict[str, Any], file: BinaryIO) -> None:
    """torch.save that fails as the file did, say of a full disk, and not in words about its own insides."""
    failures = []

    class Witness:
        def write(self, numbers: memoryview) -> int:
            try:
                return file.write(numbers)
            except OSError as error:
                failures.append(error)
                raise

        def flush(self) -> None:
            file.flush()

    try:
        torch.save(content, Witness())
    except (RuntimeError, OSError):
        if not failures:
            raise
    if failures:
        raise failures[0]


def load_torch_file(path: Path, what: str) -> dict[str, Any]:
    """What `save_torch_file` wrote, read as plain data: a file from elsewhere cannot run code here."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file")
    _refuse_strange(path, what)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except MemoryError:
        raise
    except Exception as error:                                      # damaged pickles make torch fail in any way at all
        if isinstance(error, OSError) and error.errno != errno.EINVAL:              # that is what is cut short; others
            raise                                                                   # say themselves what is the matter
        raise ValueError(f"{path}: this is no {what}, or a damaged one") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: this is no {what}: it holds a {type(content).__name__}")
    _refuse_balloons(path, content)
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in content.items()}   # numbers


def _refuse_strange(path: Path, what: str) -> None:
    """torch.save compresses nothing and calls little, and of a few bytes that do otherwise gigabytes could come."""
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            pickled = [entry for entry in entries if entry.orig_filename.lower().endswith("data.pkl")]
            if not _ends_with_its_directory(file) or len(pickled) != 1:
                raise ValueError
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) \
                    or sum(entry.file_size for entry in entries) > path.stat().st_size:
                called = "compressed"
            else:
                called = strange_call(archive.read(pickled[0]))
    except (zipfile.BadZipFile, RuntimeError, ValueError, IndexError, KeyError, TypeError, EOFError, struct.error):
        with open(path, "rb") as file:
            if file.read(1) == _PICKLE:
                raise ValueError(f"{path}: this is a bare pickle, as torch wrote it before 1.6, or not of torch at "
                                 "all; read and save it again with a newer torch, or as .safetensors") from None
        raise ValueError(f"{path}: this is no {what}, or a damaged one") from None
    if called == "compressed":
        raise ValueError(f"{path}: its content is compressed, which torch.save never does; save it again with torch")
    if called:
        raise ValueError(f"{path}: its content calls {called!r}, which tensors and plain values need not; save those "
                         "alone")


def _ends_with_its_directory(file: BinaryIO) -> bool:
    """Whether the list of entries lies right before the archive's end and nothing behind that.

    Otherwise Python would take the last list and torch another one, whose entries nobody has looked at.
    """
    length = file.seek(0, os.SEEK_END)
    file.seek(-min(length, _END_64 + _LOCATOR + _END), os.SEEK_END)
    end = file.read().rjust(_END_64 + _LOCATOR + _END, b"\0")
    large, (locator, last) = end[:_END_64], (end[_END_64:-_END], end[-_END:])
    if not last.startswith(b"PK\5\6") or last[-2:] != b"\0\0":
        return False
    size, start = struct.unpack_from("<II", last, 12)
    place = length - _END
    if locator.startswith(b"PK\6\7"):
        place -= _LOCATOR + _END_64
        size, start = struct.unpack_from("<QQ", large, 40)
        if not large.startswith(b"PK\6\6") or struct.unpack_from("<Q", locator, 8)[0] != place:
            return False
    return start + size == place


def _refuse_balloons(path: Path, content: dict[str, Any]) -> None:
    """Refuse tensors of more numbers than the file, and lists that hold one another so often that nobody could print
    them: what is walked through costs a byte of the file each.
    """
    most = path.stat().st_size
    waiting: list[tuple[Any, Any]] = [("", content)]
    for _ in range(most):
        if not waiting:
            return
        name, value = waiting.pop()
        if isinstance(value, Tensor):
            if value.device.type != "cpu" or value.layout != torch.strided or value.nbytes > most:
                raise ValueError(f"{path}: {name!r:.80} has {value.numel():,} numbers, more than the file holds; fetch "
                                 "or copy it again")
        elif isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list | tuple):
            waiting += [(name, each) for each in value]
    raise ValueError(f"{path}: its lists hold one another, and unfold to more than the file holds; save it again")


def spooled(file: BinaryIO, numbers: memoryview, dtype: torch.dtype) -> Tensor:
    """The numbers as a tensor that lies in `file`, which must stay: for torch.save, which wants all tensors at once.

    Mapped with a storage of its own, since torch.save stores storages whole, and none for two dtypes.
    """
    file.write(bytes(-file.tell() % 64))                            # so that numbers of any dtype lie where they may
    start = file.tell()
    file.write(numbers)
    file.flush()
    mapped = np.memmap(file.name, np.uint8, mode="c", offset=start, shape=numbers.nbytes)
    return torch.from_numpy(mapped).view(dtype)
