"""Text turned into ids once, and mapped into memory ever after, so that a corpus may be larger than the memory.

    {"format": "llama tokens, version 1", "dtype": "uint16", …}      one line of JSON, filled up with spaces
    ids, 2 or 4 bytes each, the least significant byte first         from a multiple of 64 bytes on, to the end

`head -1 FILE` shows what a file holds. Its tokenizer is part of that: ids mean nothing without it.

Try: cut the last byte off a token file; tests/test_token_file.py shows the sentence that refuses it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llama.datasets.language_modeling import check_blocks
from tokenizer.base import Tokenizer
from tokenizer.checked_json import TEXT, check_fields, listed, one_of, record, whole
from weights.formats.atomic_write import atomic_file

FORMAT = "llama tokens, version 1"
_COUNT = whole(0, 2**53)
_SOURCE = record({"file": TEXT, "size": _COUNT, "time": whole(-(2**63), 2**63 - 1), "sha256": TEXT})
_FIELDS = {"dtype": one_of("uint16", "uint32"), "tokens": _COUNT, "documents": _COUNT, "bytes": _COUNT,
           "tokenizer": TEXT, "how": TEXT, "sources": listed(_SOURCE)}
_DIGITS = 20                                                        # room for each count in the header


class TokenFile(Sequence):
    """The ids of a token file, in memory only where they are looked at: `file[i:j]` is a numpy array.

    header  what was written: dtype, tokens, bytes (of text), documents, tokenizer, sources, how

    Blocks are cut as for LanguageModelingDataset. Raises ValueError for a file that is none of ours, is damaged, or
    was written with another tokenizer than the one given.
    """

    def __init__(self, path: str | Path, *, block_size: int, overlap: int = 0, tokenizer: Tokenizer | None = None):
        check_blocks(block_size, overlap)
        self.path, self.block_size, self.overlap = Path(path), block_size, overlap
        self.header, start = _read_header(self.path)
        if tokenizer is not None and (given := tokenizer_sha256(tokenizer)) != self.header["tokenizer"]:
            raise ValueError(f"{path}: these are ids of another tokenizer (sha256 {self.header['tokenizer'][:12]}…, "
                             f"the one given has {given[:12]}…); delete the file and tokenise the text again")
        dtype = np.dtype(self.header["dtype"]).newbyteorder("<")
        expected, found = start + self.header["tokens"] * dtype.itemsize, self.path.stat().st_size
        if found != expected:
            raise ValueError(f"{path}: the file has {found:,} bytes, its first line says {expected:,}; "
                             "delete it and tokenise the text again")
        self._ids = np.memmap(self.path, dtype=dtype, mode="r", offset=start)

    def __len__(self) -> int:
        return len(self._ids)

    def __getitem__(self, where: Any) -> Any:
        return self._ids[where]


def write_tokens(path: str | Path, documents: Iterable[str], tokenizer: Tokenizer, *,
                 sources: Sequence[str | Path] = (), how: str = "",
                 progress: Callable[[int], None] | None = None) -> None:
    """Encode documents into one token file, each closed by the tokenizer's end-of-text id; whole or not at all.

    sources   the files that the documents came from; size, time and sha256 are noted for `is_current`
    how       whatever else decided the ids, in words: how documents were separated, which part was held out
    progress  called with the number of documents done
    """
    path = Path(path)
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 2**16 else "<u4")
    header = {"format": FORMAT, "dtype": dtype.name, "tokens": 0, "documents": 0, "bytes": 0,
              "tokenizer": tokenizer_sha256(tokenizer), "how": how, "sources": [_describe(file) for file in sources]}
    room = -(-(len(json.dumps(header)) + 3 * _DIGITS) // 64) * 64   # counts are known only at the end
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(bytes(room))
        for text in documents:
            ids = document_ids(text, tokenizer)
            file.write(np.asarray(ids, dtype).tobytes())
            header["tokens"] += len(ids)
            header["documents"] += 1
            header["bytes"] += len(text.encode())
            if progress:
                progress(header["documents"])
        if not header["documents"]:
            raise ValueError(f"{path}: there is no document to write; give text")
        file.seek(0)
        file.write(json.dumps(header).encode().ljust(room - 1) + b"\n")


def is_current(path: str | Path, tokenizer: Tokenizer, *, sources: Sequence[str | Path], how: str = "") -> bool:
    """Whether `write_tokens` would write the same again, so that it need not.

    A source of the same size and time is taken as the same; if only its time differs, its sha256 decides.
    """
    try:
        header = TokenFile(path, block_size=1, tokenizer=tokenizer).header
    except (ValueError, FileNotFoundError):
        return False
    noted = header["sources"]
    return (header["how"] == how and len(noted) == len(sources)
            and all(_unchanged(Path(file), note) for file, note in zip(sources, noted, strict=True)))


def document_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """A document as ids: the beginning-of-text id if the tokenizer's files ask for one, text, the end-of-text id."""
    return tokenizer.encode(text, bos=tokenizer.adds_bos, eos=True)


def tokenizer_sha256(tokenizer: Tokenizer) -> str:
    """One name for everything that a tokenizer's files say."""
    digest = hashlib.sha256()
    for name, content in sorted(tokenizer.files().items()):
        digest.update(f"{name} {len(content)} ".encode() + content)
    return digest.hexdigest()


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header, and where the ids begin."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such token file; write it first (write_tokens)")
    with open(path, "rb") as file:
        line = file.readline(2**24)
    try:
        header = json.loads(line)
    except (ValueError, RecursionError):                            # UnicodeDecodeError is a ValueError too
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT or not header.keys() >= _FIELDS.keys():
        raise ValueError(f"{path}: this is no token file; its first line does not say '{FORMAT}'")
    check_fields(header, _FIELDS, str(path))
    return header, len(line)


def _describe(file: str | Path) -> dict[str, Any]:
    path, status, digest = Path(file), os.stat(file), hashlib.sha256()
    with open(path, "rb") as content:
        while piece := content.read(2**20):
            digest.update(piece)
    return {"file": path.name, "size": status.st_size, "time": status.st_mtime_ns, "sha256": digest.hexdigest()}


def _unchanged(path: Path, note: dict[str, Any]) -> bool:
    if not path.exists() or path.stat().st_size != note["size"]:
        return False
    return path.stat().st_mtime_ns == note["time"] or _describe(path)["sha256"] == note["sha256"]
