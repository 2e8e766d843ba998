"""Mutants of a valid file: bytes turned at random, numbers that lie, and values of another kind where JSON has places.

Try: leave LIARS out; `python -m tests.fuzz` then never meets a count of four billion.
"""

import io
import json
import random
import struct
import zipfile
import zlib
from typing import Any

LIARS = (0, 1, -1, 2**15, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1)
DEEP = "[" * 3000 + "]" * 3000
NASTY: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 0.5, -0.0, 1e308, 1e-320, 10**12, 4 * 10**8, 2**31, 2**63, 10**400, float("nan"),
    float("inf"), "", "a", " ", "\ud800", "\x1b[2J", "../../x", "/etc/passwd", "(.+)+x", "𝔸" * 50, [], {}, [None], [[]],
    [0] * 100, {"": None}, {"type": "Sequence"}, [{"id": 0}], "<s>", "model.layers.0.self_attn.q_proj")


def mutant(content: bytes, kind: str, draw: random.Random) -> bytes:
    """One to four changes of a file of this kind: "json", "lines" of it, "safetensors", "zip", "text", "bytes"."""
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        change = {"json": _json, "lines": _line, "safetensors": _header, "zip": _member}.get(kind, _bytes)
        content = (change if draw.random() < 0.8 else _bytes)(content, draw)
    return content


def _bytes(content: bytes, draw: random.Random) -> bytes:
    data = bytearray(content)
    at = draw.randrange(len(data) + 1)
    length = min(len(data) - at, draw.choice((1, 2, 4, 8, 16, 64, 512)))
    match draw.randrange(8):
        case 0 if length:
            data[at] ^= 1 << draw.randrange(8)
        case 1:
            data[at : at + length] = draw.choice((b"\0", b"\xff", b"\x7f", b"\n", b'"')) * length
        case 2:
            del data[at:]
        case 3:
            del data[at : at + length]
        case 4:
            data[at:at] = data[at : at + length]
        case 5:
            data[at:at] = draw.randbytes(length)
        case 6:
            code = draw.choice("<I <Q >I <i <q".split())
            data[at : at + struct.calcsize(code)] = struct.pack(code, _fitting(draw.choice(LIARS), code))
        case 7:
            other = draw.randrange(len(data) + 1)
            data[at : at + length] = data[other : other + length]
    return bytes(data)


def _fitting(number: int, code: str) -> int:
    size = 8 * struct.calcsize(code)
    number &= 2**size - 1
    return number - 2**size if code[-1].islower() and number >= 2 ** (size - 1) else number


def _json(content: bytes, draw: random.Random) -> bytes:
    """One place in a JSON document becomes something else, goes away, or appears twice."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return _bytes(content, draw)
    places = list(_places(value))
    if not places:
        return _bytes(content, draw)
    holder, key = draw.choice(places)
    match draw.randrange(6):
        case 0 | 1 | 2:
            holder[key] = draw.choice(NASTY)
        case 3:
            del holder[key]
        case 4:
            holder[key] = (lambda holder, key: holder[key])(*draw.choice(places))
        case 5 if isinstance(holder, dict):
            holder[draw.choice(("", "x", "type", "\u2028", str(key) + "2"))] = holder.pop(key)
        case _:
            return json.dumps(value).encode().replace(b"null", DEEP.encode(), 1)
    try:
        return json.dumps(value, ensure_ascii=draw.random() < 0.5).encode(errors="surrogatepass")
    except (ValueError, RecursionError):                            # a circle
        return content


def _places(value: Any, depth: int = 0) -> Any:
    """(what holds it, its key) of every value inside, of long lists and objects some."""
    if depth < 8 and isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        for key in keys[:40] + keys[-5:] if len(keys) > 45 else keys:
            yield value, key
            yield from _places(value[key], depth + 1)


def _line(content: bytes, draw: random.Random) -> bytes:
    lines = content.splitlines(keepends=True) or [b"\n"]
    i = draw.randrange(len(lines))
    if draw.random() < 0.2:
        lines[i] = draw.choice((b"", b"\n", b"\r\n", b"null\n", b"[]\n", b"5\n", lines[i].strip(), lines[i] * 2))
    else:
        lines[i] = _json(lines[i], draw) + b"\n"
    return b"".join(lines)


def _header(content: bytes, draw: random.Random) -> bytes:
    """The JSON header of a safetensors file, its length put right again."""
    length = struct.unpack("<Q", content[:8])[0] if len(content) > 8 else 0
    if not 0 < length <= len(content) - 8:
        return _bytes(content, draw)
    header = _json(content[8 : 8 + length], draw)
    return struct.pack("<Q", len(header)) + header + content[8 + length :]


def _member(content: bytes, draw: random.Random) -> bytes:
    """One member of a zip, its check sums put right again; or the same packed."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, ValueError, OSError, EOFError, RuntimeError):
        members = []
    if not members:
        return _bytes(content, draw)
    chosen = next(i for i, (name, _) in enumerate(members) if name.endswith("data.pkl")) if draw.random() < 0.7 and \
        any(name.endswith("data.pkl") for name, _ in members) else draw.randrange(len(members))
    members[chosen] = members[chosen][0], _bytes(members[chosen][1], draw)
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", draw.choice((zipfile.ZIP_STORED,) * 9 + (zipfile.ZIP_DEFLATED,))) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return made.getvalue()
