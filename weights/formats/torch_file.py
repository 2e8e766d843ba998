"""What torch.save writes and torch.load reads, as plain data: nothing in it can run code, and nothing in it balloons.

`torch.load(weights_only=True, mmap=True)` reads it: a tensor that is not used costs no memory. `torch.save` wants all
tensors at once; `spooled` gives it some that lie on the disk.

Try: in `load_torch_file`, load with weights_only=False; tests/test_checkpoint.py
(test_refusal_a_file_that_would_run_code) fails, and a file from elsewhere would make a folder on your disk, or worse.
"""

import errno
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from weights.formats.atomic_write import atomic_file


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
    _refuse_compressed(path, what)
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
    for name, tensor in _tensors(content):
        if tensor.device.type != "cpu" or tensor.layout != torch.strided or tensor.nbytes > path.stat().st_size:
            raise ValueError(f"{path}: {name!r:.80} has {tensor.numel():,} numbers, more than the file holds; fetch or "
                             "copy it again")
    return content


def _refuse_compressed(path: Path, what: str) -> None:
    """torch.save compresses nothing, and of a few packed bytes gigabytes could come."""
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist())
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error, UnicodeDecodeError):
        raise ValueError(f"{path}: this is no {what}, or a damaged one") from None
    if packed or unpacked > path.stat().st_size:
        raise ValueError(f"{path}: its content is compressed, which torch.save never does; save it again with torch")


def _tensors(content: dict[str, Any], depth: int = 3) -> Iterator[tuple[str, Tensor]]:
    """Those in it, and in the dictionaries in it."""
    for name, value in content.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, dict) and depth:
            yield from _tensors(value, depth - 1)


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
