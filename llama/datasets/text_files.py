"""Files as bytes of text, whatever they are packed by, and what is no text called by its name.

    .gz .xz .bz2            unpacked while they are read; the content says it, not the name
    UTF-8                   with a byte order mark or without
    anything else           by the encoding that is asked for; it is never guessed, for a wrong one reads as other words

Try: leave gzip out of PACKED; tests/test_text_files.py (test_two_ways_packed_and_plain_hold_the_same) fails.
"""

import bz2
import codecs
import gzip
import io
import logging
import lzma
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

log = logging.getLogger(__name__)

UTF8 = "utf-8"
MARK = codecs.BOM_UTF8
PACKED = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\0": lzma.open, b"BZh": bz2.open}
PACKINGS = (".gz", ".xz", ".bz2")
_WIDE = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF32_BE: "UTF-32",            # before UTF-16, which begins alike
         codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
_LINES = "write its records as lines of JSON (pandas: to_json(…, orient='records', lines=True))"
_UNPACK = "unpack it"
NO_TEXT = {                                                         # first bytes -> what it is, and what to do
    b"PAR1": ("a Parquet file", _LINES), b"ARROW1": ("an Arrow file", _LINES),
    b"\xff\xff\xff\xff": ("an Arrow stream", _LINES), b"\x89HDF": ("an HDF5 file", _LINES),
    b"SQLite format 3": ("an SQLite database", _LINES), b"\xd0\xcf\x11\xe0": ("an old Excel or Word file", _LINES),
    b"PK\x03\x04": ("a zip archive, or an Excel or Word file", "unpack it, or save the table as .csv"),
    b"\x28\xb5\x2f\xfd": ("packed by zstd", _UNPACK), b"7z\xbc\xaf": ("a 7z archive", _UNPACK),
    b"Rar!": ("a rar archive", _UNPACK), b"%PDF": ("a PDF", "save its text as .txt"),
    **dict.fromkeys((b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"), ("a pickle, which is a program", _LINES)),
}
_HEAD = 4096                                                        # bytes that are looked at
_MOST = 200                                                         # times its packed size: text gives some 10
_ALWAYS = 64 << 20                                                  # bytes that any packed file may hold
_TAR = 257                                                          # where a tar archive says so


def ending(path: Path) -> str:
    """The ending that tells what a file holds, in small letters: of a.jsonl.gz it is .jsonl."""
    return (path.with_suffix("") if path.suffix.lower() in PACKINGS else path).suffix.lower()


def checked_encoding(name: str) -> str:
    """The codec's own name; "" is UTF-8. Raises ValueError for what is no encoding of text."""
    try:
        "".encode(name or UTF8)
        return codecs.lookup(name or UTF8).name.removesuffix("-sig")
    except LookupError:
        raise ValueError(f"the encoding '{name}' is not known; Chinese files are utf-8, gb18030 (all of GBK and "
                         "GB2312), big5 or utf-16") from None


class _Unpacked(io.RawIOBase):
    """What a packed file holds, as long as that is not out of all proportion: 400 kB can unpack to many gigabytes."""

    def __init__(self, path: Path, content: IO[bytes]):
        self.path, self.content = path, content
        self.left = max(_ALWAYS, _MOST * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        count = self.content.readinto(buffer)
        self.left -= count
        if self.left < 0:
            raise ValueError(f"{self.path}: the packed file holds more than {_MOST} times its size, as no text does; "
                             "unpack it, if it is what you expect")
        return count

    def close(self) -> None:
        self.content.close()
        super().close()


@contextmanager
def opened(path: Path, encoding: str = UTF8, *, flag: bool = False,
           watch: Callable[[Callable[[], int]], None] | None = None) -> Iterator[tuple[IO[bytes], str]]:
    """(its bytes, their encoding), unpacked, without a byte order mark; lines of them end with a line feed.

    flag   whether there is an --encoding for a remedy to name
    watch  is given a function that says how many bytes of the file, as it is packed, have been read

    Raises FileNotFoundError for a missing file, ValueError for a folder, an empty file, what is no text, and a packed
    file that is damaged or out of all proportion.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file; check the name, or the folder it is looked for in")
    if path.is_dir():
        raise ValueError(f"{path}: this is a folder; name the files in it")
    with open(path, "rb") as file:
        if watch:
            watch(lambda: path.stat().st_size if file.closed else file.tell())
        unpack = next((unpack for magic, unpack in PACKED.items() if file.peek(8).startswith(magic)), None)
        with io.BufferedReader(_Unpacked(path, unpack(file)), 1 << 16) if unpack else file as content:
            try:
                yield _as_text(path, content, encoding, flag=flag)
            except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
                raise ValueError(f"{path}: the packed file is damaged or cut short ({str(error).rstrip('.')}); copy it "
                                 "again") from None
            except OSError as error:
                if error.errno is not None or not unpack:
                    raise
                raise ValueError(f"{path}: the packed file is damaged ({error}); copy it again") from None  # bz2's


def _as_text(path: Path, content: IO[bytes], encoding: str, *, flag: bool) -> tuple[IO[bytes], str]:
    head = content.peek(_HEAD)[:_HEAD]
    if not head:
        raise ValueError(f"{path}: the file is empty; give one that holds data")
    what, remedy = next((named for magic, named in NO_TEXT.items() if head.startswith(magic)), ("", ""))
    if what or head[_TAR : _TAR + 5] == b"ustar":
        raise ValueError(f"{path}: this is {what or 'a tar archive'}, no text; {remedy or _UNPACK}")
    if head.startswith(MARK):
        if encoding != UTF8:
            log.warning("%s: its byte order mark says UTF-8, and not %s; it is read as UTF-8", path, encoding)
        content.read(len(MARK))
        return content, UTF8
    wide = next((name for mark, name in _WIDE.items() if head.startswith(mark)), "")
    if not wide and b"\0" in head and "\n".encode(encoding) == b"\n":
        raise ValueError(f"{path}: the file holds zero bytes, so it is no text, or UTF-16 without its mark; save it as "
                         f"UTF-8 text{', or give --encoding utf-16-le' * flag}")
    if wide and not encoding.startswith(wide.lower()):
        named = f", or give --encoding {wide.lower()}" * flag
        raise ValueError(f"{path}: this is {wide} text; save it as UTF-8{named}")
    if "\n".encode(encoding) == b"\n":
        return content, encoding
    try:                                                            # a line feed of several bytes: all of it at once
        return io.BytesIO(content.read().decode(encoding).removeprefix("\ufeff").encode()), UTF8
    except UnicodeError as error:
        raise ValueError(f"{path}: this is no {encoding}: {error}; name the encoding that it has") from None
