"""The container of llama.cpp, in and out: header, metadata, and tensors. What a Llama in it means: gguf.py.

    "GGUF" · version · number of tensors · number of metadata pairs                         little-endian throughout
    pairs     key · type · value                                  strings and arrays carry their length in front
    tensors   name · number of axes · sizes, fastest axis first · number format · offset
    padding to `general.alignment`, then the tensors' bytes at their offsets

Large models come in parts, NAME-00001-of-00003.gguf and so on: each is such a file with some of the tensors, and the
first has the metadata of all.

A file from anywhere may lie about its sizes, so every length is compared with the bytes that are left before anything
of that size is made.

Try: in `write_file`, write the sizes slowest axis first; tests/test_gguf_file.py (test_worked_example_bytes_of_a_file)
fails, and llama.cpp would find every matrix transposed.
"""

import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from weights.formats.atomic_write import atomic_file
from weights.formats.gguf_blocks import FORMATS, OTHER_FORMATS, Format

# ---- reading ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TensorInfo:
    shape: tuple[int, ...]              # slowest axis first, as torch has it
    format: Format
    offset: int                         # bytes from the start of the file
    path: Path                          # of the file, which may be one of several parts

    @property
    def size(self) -> int:
        """In bytes, in the file."""
        return _size(self.shape, self.format)


@dataclass(frozen=True)
class GGUF:
    path: Path                          # that of the first of several parts
    metadata: dict[str, Any]            # str, int, float, bool; arrays of strings as lists, of numbers as numpy arrays
    tensors: dict[str, TensorInfo]      # by their names in the file
    paths: tuple[Path, ...]             # of all parts


def open_gguf(path: str | Path) -> GGUF:
    """Read everything but the tensors' numbers; any of several parts stands for all, which lie beside it.

    Raises FileNotFoundError for a part that is missing, too, and ValueError with the file's name for what is no GGUF of
    version 2 or 3, is cut short, contradicts itself, or holds a number format that is not read here.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is no file")
    found = _open_file(path)
    count = get(found, "split.count", int, 1)
    return found if count <= 1 else _together([_part(part, number, count) for number, part in _parts(path, count)])


def model_in(folder: Path) -> Path | None:
    """The GGUF file in a folder, or the first of its parts, if there is one; ValueError where there are several."""
    models = sorted({_PART.sub(r"\1-00001-of-\3.gguf", path.name) for path in folder.glob("*.gguf")})
    if len(models) > 1:
        raise ValueError(f"{folder} holds {len(models)} models; give one of them, such as {folder / models[0]}")
    return folder / models[0] if models else None


def without_part(stem: str) -> str:
    """The name of a file without its ending, and without the number that a part has."""
    return _PART.sub(r"\1", stem + ".gguf").removesuffix(".gguf")


_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")


def _parts(path: Path, count: int) -> Iterator[tuple[int, Path]]:
    """All parts beside one of them, numbered from 1. Nothing but their names says that they belong together."""
    named = _PART.fullmatch(path.name)
    if not named or int(named[3]) != count:
        raise ValueError(f"{path}: one of {count} parts (split.count), which are found by their names: it must be "
                         f"named like {without_part(path.stem)}-00001-of-{count:05d}.gguf")
    for number in range(1, count + 1):
        part = path.with_name(f"{named[1]}-{number:05d}-of-{named[3]}.gguf")
        if not part.is_file():
            raise FileNotFoundError(f"{part} is missing, and {path.name} is but one of {count} parts; fetch or copy "
                                    "it into the same folder")
        yield number, part


def _part(path: Path, number: int, count: int) -> GGUF:
    part = _open_file(path)
    said = get(part, "split.no", int, -1) + 1, get(part, "split.count", int, 1)
    if said != (number, count):
        raise ValueError(f"{path}: is part {said[0]} of {said[1]} by its content (split.no, split.count), and part "
                         f"{number} of {count} by its name; fetch or copy it again")
    return part


def _together(parts: list[GGUF]) -> GGUF:
    tensors: dict[str, TensorInfo] = {}
    for part in parts:
        if twice := sorted(tensors.keys() & part.tensors.keys()):
            raise ValueError(f"{part.path}: tensor {twice[0]} is in another part, too; fetch or copy them again")
        tensors |= part.tensors
    first = parts[0]
    if (total := get(first, "split.tensors.count", int, len(tensors))) != len(tensors):
        raise ValueError(f"{first.path}: its {len(parts)} parts hold {len(tensors)} tensors, and should hold {total} "
                         "(split.tensors.count); fetch or copy them again")
    return replace(first, tensors=tensors, paths=tuple(part.path for part in parts))


def _open_file(path: Path) -> GGUF:
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
        return GGUF(path, metadata, _read_tensor_infos(reader, tensor_count, metadata), (path,))


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
        found[name] = TensorInfo(shape, FORMATS[kind], offset, reader.path)
    return _placed(reader, found, metadata)


def _placed(reader: _Reader, found: dict[str, TensorInfo], metadata: dict[str, Any]) -> dict[str, TensorInfo]:
    """The same with offsets from the start of the file, after looking whether all of it can be true."""
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 1:
        raise ValueError(f"{reader.path}: general.alignment is {alignment!r}; it must be a whole number of at least 1")
    start = -(-reader.position // alignment) * alignment
    placed, total = {}, 0
    for name, info in found.items():
        info = replace(info, offset=start + info.offset)
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


def blocks(gguf: GGUF, name: str) -> np.ndarray:
    """The bytes of one tensor, uint8 (…, blocks in a row, bytes of a block), mapped from the file, not yet read."""
    info = gguf.tensors[name]
    shape = (*info.shape[:-1], info.shape[-1] // info.format.numbers, info.format.bytes)
    return np.asarray(np.memmap(info.path, np.uint8, "r", info.offset, shape))


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


# ---- writing ---------------------------------------------------------------------------------------------------------

ALIGNMENT = 32                          # what files have that do not say


def write_file(path: str | Path, metadata: dict[str, Any], tensors: list[tuple[str, tuple[int, ...], Format]],
               content: Iterable[Iterable[np.ndarray]]) -> None:
    """Write a whole file or nothing: for each tensor its name, shape and format, and its blocks in pieces.

    Values of `metadata` are str, bool, int (written as uint32), float (float32), lists of str, and numpy arrays.
    """
    ends, infos = 0, b""
    for name, shape, format in tensors:
        infos += _string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], format.code, ends)
        ends += -(-_size(shape, format) // ALIGNMENT) * ALIGNMENT
    pairs = b"".join(_string(key) + _typed(value) for key, value in metadata.items())
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + pairs + infos
    with atomic_file(Path(path)) as file:
        file.write(head + bytes(-len(head) % ALIGNMENT))
        for (name, shape, format), pieces in zip(tensors, content, strict=True):
            written = 0
            for piece in pieces:
                written += file.write(memoryview(piece).cast("B"))
            assert written == _size(shape, format), (name, written)
            file.write(bytes(-written % ALIGNMENT))


def _size(shape: tuple[int, ...], format: Format) -> int:
    return prod(shape) // format.numbers * format.bytes


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _typed(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, list):
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + b"".join(map(_string, value))
    kinds = {np.dtype("<" + code): kind for kind, code in _NUMBERS.items()}
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", _ARRAY, kinds[value.dtype], len(value)) + value.tobytes()
    kind = 7 if isinstance(value, bool) else 4 if isinstance(value, int) else 6
    return struct.pack("<I" + _NUMBERS[kind], kind, value)
