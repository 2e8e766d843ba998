"""Files cut short and with a bit turned, at a place in each part that they have.

Parts of a zip archive, as torch.save writes: of each entry its header and its content, then the directory and its end;
of a .safetensors file: the length, the header, each tensor; of any other file its beginning, middle and end.
"""

import json
import struct
import zipfile
from pathlib import Path
from random import Random
from typing import NamedTuple


class Part(NamedTuple):
    name: str
    start: int
    end: int


def parts(path: Path) -> list[Part]:
    """All of a file, part by part; none of one that is empty."""
    size = path.stat().st_size
    if path.suffix == ".pt":
        found = _of_zip(path, size)
    elif path.suffix == ".safetensors":
        found = _of_safetensors(path, size)
    else:
        found = [Part(name, size * third // 3, size * (third + 1) // 3)
                 for third, name in enumerate(("beginning", "middle", "end"))]
    return [part for part in found if part.end > part.start]


def _of_zip(path: Path, size: int) -> list[Part]:
    found, end = [], 0
    with zipfile.ZipFile(path) as archive:
        for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
            with open(path, "rb") as file:
                file.seek(entry.header_offset + 26)
                name, extra = struct.unpack("<HH", file.read(4))
            before, start = end, entry.header_offset + 30 + name + extra
            end = start + entry.compress_size
            inside = entry.filename.partition("/")[2]
            found += [Part(f"header of {inside}", before, start), Part(inside, start, end)]
        directory = archive.start_dir
    return [*found, Part("between", end, directory), Part("directory", directory, size - 22),
            Part("end", size - 22, size)]


def _of_safetensors(path: Path, size: int) -> list[Part]:
    with open(path, "rb") as file:
        start = 8 + struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(start - 8))
    return [Part("length", 0, 8), Part("header", 8, start), *(
        Part(name, *(start + offset for offset in entry["data_offsets"]))
        for name, entry in header.items() if name != "__metadata__")]


def cut(path: Path, part: Part, draw: Random) -> str:
    """Leave the file as it is up to a place in this part. Says where."""
    place = draw.randrange(part.start, part.end)
    path.write_bytes(path.read_bytes()[:place])
    return f"cut at byte {place}"


def flip(path: Path, part: Part, draw: Random) -> str:
    """Turn one bit in this part. Says which."""
    content, place, bit = bytearray(path.read_bytes()), draw.randrange(part.start, part.end), draw.randrange(8)
    content[place] ^= 1 << bit
    path.write_bytes(content)
    return f"bit {bit} of byte {place} turned"
