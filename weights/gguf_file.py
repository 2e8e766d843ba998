"""The container of llama.cpp: header, metadata, and tensors in six number formats. What a Llama in it means: gguf.py.

    "GGUF" · version · number of tensors · number of metadata pairs                         little-endian throughout
    pairs     key · type · value                                  strings and arrays carry their length in front
    tensors   name · number of axes · sizes, fastest axis first · number format · offset
    padding to `general.alignment`, then the tensors' bytes at their offsets

A file from anywhere may lie about its sizes, so every length is compared with the bytes that are left before anything
of that size is made.

Try: in `_nibbles`, let the halves of a byte follow each other; tests/test_gguf.py (test_worked_example_of_each_format)
fails. Nothing else would: shapes, means and spreads stay right, and the model writes noise.
"""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

# ---- number formats --------------------------------------------------------------------------------------------------


def _f32(blocks: np.ndarray) -> Tensor:
    """4 bytes: one float32."""
    return torch.from_numpy(blocks.view("<f4").astype(np.float32))


def _f16(blocks: np.ndarray) -> Tensor:
    """2 bytes: one float16, kept as it is."""
    return torch.from_numpy(blocks.view("<f2").astype(np.float16))


def _bf16(blocks: np.ndarray) -> Tensor:
    """2 bytes: one bfloat16, the upper half of a float32, kept as it is."""
    return torch.from_numpy(blocks.view("<i2").astype(np.int16)).view(torch.bfloat16)


def _q8_0(blocks: np.ndarray) -> Tensor:
    """34 bytes for 32 numbers: a scale d (float16) and 32 q (int8); x = d q."""
    fields = blocks.view([("d", "<f2"), ("q", "i1", 32)])
    x = fields["q"].astype(np.float32)
    x *= fields["d"].astype(np.float32)[..., None]
    return torch.from_numpy(x)


def _q4_0(blocks: np.ndarray) -> Tensor:
    """18 bytes for 32 numbers: a scale d (float16) and 32 q of 4 bits (see `_nibbles`); x = d (q - 8)."""
    fields = blocks.view([("d", "<f2"), ("q", "u1", 16)])
    x = _nibbles(fields["q"])
    x -= 8
    x *= fields["d"].astype(np.float32)[..., None]
    return torch.from_numpy(x)


def _q4_1(blocks: np.ndarray) -> Tensor:
    """20 bytes for 32 numbers: a scale d and a minimum m (float16), 32 q of 4 bits (see `_nibbles`); x = d q + m."""
    fields = blocks.view([("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)])
    x = _nibbles(fields["q"])
    x *= fields["d"].astype(np.float32)[..., None]
    x += fields["m"].astype(np.float32)[..., None]
    return torch.from_numpy(x)


def _nibbles(packed: np.ndarray) -> np.ndarray:
    """16 bytes -> 32 numbers from 0 to 15, float32: the lower halves of all bytes come first, then the upper halves."""
    x = np.empty((*packed.shape[:-1], 32), np.float32)
    x[..., :16] = packed & 15
    x[..., 16:] = packed >> 4
    return x


class Format(NamedTuple):
    name: str
    numbers: int                        # in a block
    bytes: int                          # of a block
    dtype: torch.dtype
    read: Callable[[np.ndarray], Tensor]


FORMATS = {
    0: Format("F32", 1, 4, torch.float32, _f32),
    1: Format("F16", 1, 2, torch.float16, _f16),
    2: Format("Q4_0", 32, 18, torch.float32, _q4_0),
    3: Format("Q4_1", 32, 20, torch.float32, _q4_1),
    8: Format("Q8_0", 32, 34, torch.float32, _q8_0),
    30: Format("BF16", 1, 2, torch.bfloat16, _bf16),
}
OTHER_FORMATS = {
    6: "Q5_0", 7: "Q5_1", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K",
    16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4",
}  # fmt: skip


# ---- the file --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorInfo:
    shape: tuple[int, ...]              # slowest axis first, as torch has it
    format: Format
    offset: int                         # bytes from the start of the file

    @property
    def size(self) -> int:
        """In bytes, in the file."""
        return prod(self.shape) // self.format.numbers * self.format.bytes


@dataclass(frozen=True)
class GGUF:
    path: Path
    metadata: dict[str, Any]            # str, int, float, bool; arrays of strings as lists, of numbers as numpy arrays
    tensors: dict[str, TensorInfo]      # by their names in the file


def open_gguf(path: str | Path) -> GGUF:
    """Read everything but the tensors' numbers.

    Raises FileNotFoundError, or ValueError with the file's name for what is no GGUF of version 2 or 3, is cut short,
    contradicts itself, or holds a number format that is not read here.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is no file")
    with open(path, "rb") as file:
        reader = _Reader(file, path)
        if reader.take(4) != b"GGUF":
            raise ValueError(f"{path}: no GGUF file (it does not begin with the letters GGUF)")
        version = reader.number("I")
        if version not in (2, 3):
            reason = "big-endian" if version in (2 << 24, 3 << 24) else f"version {version}"
            raise ValueError(f"{path}: a {reason} GGUF; read here are little-endian ones of version 2 and 3")
        tensor_count, pair_count = reader.number("Q"), reader.number("Q")
        metadata = _read_metadata(reader, pair_count)
        return GGUF(path, metadata, _read_tensor_infos(reader, tensor_count, metadata))


class _Reader:
    """Values from the front of a file; never takes, nor makes room for, more bytes than the file has left."""

    def __init__(self, file: BinaryIO, path: Path):
        self.file, self.path = file, path
        self.size = path.stat().st_size
        self.position = 0

    def take(self, count: int) -> bytes:
        self.reserve(count, 1)
        self.position += count
        return self.file.read(count)

    def reserve(self, count: int, size: int) -> None:
        """Raise ValueError unless `count` things of at least `size` bytes can still come."""
        if count * size > self.size - self.position:
            raise ValueError(f"{self.path}: cut short or damaged at byte {self.position:,} of {self.size:,}; "
                             "fetch or copy it again")

    def number(self, code: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code)))[0]

    def string(self) -> str:
        start, text = self.position, self.take(self.number("Q"))
        try:
            return text.decode()
        except UnicodeDecodeError:
            raise ValueError(f"{self.path}: the text at byte {start:,} is not UTF-8; fetch or copy it again") from None

    def value(self, kind: int) -> Any:
        if kind == _STRING:
            return self.string()
        if kind == _ARRAY:
            return self.array(self.number("I"), self.number("Q"))
        if kind not in _NUMBERS:
            raise ValueError(f"{self.path}: metadata of type {kind} before byte {self.position:,}; known are 0 to 12")
        return self.number(_NUMBERS[kind])

    def array(self, kind: int, count: int) -> list[str] | np.ndarray:
        if kind == _STRING:
            self.reserve(count, 8)                                  # the length that each string has in front
            return [self.string() for _ in range(count)]
        if kind not in _NUMBERS:
            raise ValueError(f"{self.path}: an array of type {kind} before byte {self.position:,}; "
                             "arrays hold numbers or strings here")
        code = "<" + _NUMBERS[kind]
        return np.frombuffer(self.take(count * struct.calcsize(code)), np.dtype(code))


_STRING, _ARRAY = 8, 9
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def _read_metadata(reader: _Reader, count: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    reader.reserve(count, 13)                                       # length of the key, type, one byte of value
    for _ in range(count):
        key = reader.string()
        if key in metadata:
            raise ValueError(f"{reader.path}: metadata {key} comes twice; fetch or copy it again")
        metadata[key] = reader.value(reader.number("I"))
    return metadata


def _read_tensor_infos(reader: _Reader, count: int, metadata: dict[str, Any]) -> dict[str, TensorInfo]:
    reader.reserve(count, 24)                                       # length of the name, axes, format, offset
    found = {}
    for _ in range(count):
        name = reader.string()
        axes = reader.number("I")
        if axes > 4:
            raise ValueError(f"{reader.path}: {name} has {axes} axes; GGUF knows up to 4")
        shape = tuple(reader.number("Q") for _ in range(axes))[::-1]
        kind, offset = reader.number("I"), reader.number("Q")
        if kind not in FORMATS:
            stored = OTHER_FORMATS.get(kind, f"number format {kind}")
            known = ", ".join(known.name for known in FORMATS.values())
            raise ValueError(f"{reader.path}: {stored} is not read yet; take a file in one of {known}")
        if name in found:
            raise ValueError(f"{reader.path}: tensor {name} comes twice; fetch or copy it again")
        found[name] = TensorInfo(shape, FORMATS[kind], offset)
    return _placed(reader, found, metadata)


def _placed(reader: _Reader, found: dict[str, TensorInfo], metadata: dict[str, Any]) -> dict[str, TensorInfo]:
    """The same with offsets from the start of the file, after looking whether all of it can be true."""
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"{reader.path}: general.alignment is {alignment!r}; it must be a whole number of at least 1")
    start = -(-reader.position // alignment) * alignment
    placed, total = {}, 0
    for name, info in found.items():
        info = TensorInfo(info.shape, info.format, start + info.offset)
        if not info.shape or 0 in info.shape:
            raise ValueError(f"{reader.path}: {name} has an empty axis; fetch or copy it again")
        if info.shape[-1] % info.format.numbers:
            raise ValueError(f"{reader.path}: {name} has rows of {info.shape[-1]}, "
                             f"but {info.format.name} packs {info.format.numbers} numbers into a block")
        if info.offset + info.size > reader.size:
            raise ValueError(f"{reader.path}: {name} ends at byte {info.offset + info.size:,}, but the file has "
                             f"{reader.size:,}; it was cut short: fetch or copy it again")
        total += info.size
        placed[name] = info
    if total > reader.size:                     # tensors that share bytes would make a small file a huge model
        raise ValueError(f"{reader.path}: its tensors overlap; fetch or copy it again")
    return placed


def unpack(gguf: GGUF, name: str) -> Tensor:
    """The numbers of one tensor, mapped from the file for the time of this call, so that the memory is free again."""
    info = gguf.tensors[name]
    mapped = np.memmap(gguf.path, np.uint8, "r", info.offset, (info.size // info.format.bytes, info.format.bytes))
    return info.format.read(np.asarray(mapped)).reshape(info.shape)


REQUIRED: Any = object()


def get(gguf: GGUF, key: str, kind: type, default: Any = REQUIRED) -> Any:
    value = gguf.metadata.get(key, default)
    if value is REQUIRED:
        raise ValueError(f"{gguf.path}: the metadata lacks {key}; a Llama cannot be read without")
    if key in gguf.metadata and type(value) is not kind:
        raise ValueError(f"{gguf.path}: {key} is a {type(value).__name__}, but should be a {kind.__name__}")
    return value


def size(gguf: GGUF, key: str, default: Any = REQUIRED) -> int:
    value = get(gguf, key, int, default)
    if value < 1:
        raise ValueError(f"{gguf.path}: {key} is {value}; it must be at least 1")
    return value


def shortest(value: float) -> float:
    """The decimal a person wrote: 1e-05, not the 9.999999747378752e-06 that it became as a float32."""
    return float(str(np.float32(value)))
