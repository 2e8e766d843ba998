"""llama2.c's tokenizer.bin: the pieces of a SentencePiece model with their scores, and nothing else.

    1b 00 00 00                 the length of the longest piece in bytes
    00 00 00 00  05 00 00 00  3c 75 6e 6b 3e        score, length and bytes of a piece: <unk>
    …

The file does not say what its pieces are; llama2.c's program does: 0 is unknown, 1 and 2 begin and end a text (and
stand between line ends), 3 to 258 are the bytes, spaces are written as spaces.

Try: leave ▁ as it is when writing; tests/test_llama2c_vocabulary.py
(test_worked_example_a_file_byte_for_byte) fails.
"""

import struct

from tokenizer.base import Settings
from tokenizer.spm_model import BYTE, CONTROL, NORMAL, UNKNOWN, build_model
from tokenizer.spm_pure import PlainPieceTokenizer

_FIRST = ("<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)))
_TYPES_OF_FIRST = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
_BETWEEN_LINE_ENDS = (1, 2)


def from_tokenizer_bin(data: bytes, settings: Settings | None = None) -> PlainPieceTokenizer:
    """The tokenizer of a tokenizer.bin, which does not say how long its vocabulary is: it ends where the file ends.

    Raises ValueError for a file that breaks off, and for pieces other than llama2.c expects.
    """
    entries = _entries(data)
    if entries is None:
        raise ValueError(f"this is no tokenizer.bin of llama2.c, or not all of one ({len(data):,} bytes); fetch or "
                         "copy it again")
    pieces, scores = [], []
    for id, (score, content) in enumerate(entries):
        try:
            piece = content.decode().replace(" ", "▁")
        except UnicodeDecodeError:
            raise ValueError(f"piece {id} of the tokenizer.bin is not UTF-8: {content!r}") from None
        pieces.append(piece.strip("\n") if id in _BETWEEN_LINE_ENDS else piece)
        scores.append(score)
    wrong = next((id for id, piece in enumerate(_FIRST) if pieces[id:id + 1] != [piece]), None)
    if wrong is not None:
        raise ValueError(f"piece {wrong} of the tokenizer.bin is {pieces[wrong:wrong + 1]}, where llama2.c expects "
                         f"{_FIRST[wrong]!r}")
    types = _TYPES_OF_FIRST + [NORMAL] * (len(pieces) - len(_FIRST))
    names = {"unk_id": "<unk>", "bos_id": "<s>", "eos_id": "</s>"}
    return PlainPieceTokenizer(build_model(pieces, scores, types, names=names), settings)


def tokenizer_bin(vocabulary: dict) -> bytes:
    """The tokenizer.bin of a vocabulary of kind "llama"; what from_tokenizer_bin read comes out as the same bytes.

    Raises ValueError for another kind, and for pieces that llama2.c would take for something else.
    """
    if vocabulary["model"] != "llama":
        raise ValueError(f"llama2.c reads SentencePiece vocabularies alone, and this one is of kind "
                         f"{vocabulary['model']!r} (byte-level BPE)")
    tokens, types = vocabulary["tokens"], vocabulary["types"]
    if types[:len(_FIRST)] != _TYPES_OF_FIRST or tuple(tokens[3:len(_FIRST)]) != _FIRST[3:]:
        raise ValueError("llama2.c expects <unk>, <s>, </s> and the 256 bytes as the first pieces, and this vocabulary "
                         f"begins with {tokens[:4]}")
    other = next((id for id in range(len(_FIRST), len(tokens)) if types[id] != NORMAL), None)
    if other is not None:
        raise ValueError(f"llama2.c knows no control or added tokens but <s> and </s>, and this vocabulary has "
                         f"{tokens[other]!r} (id {other})")
    if not vocabulary["add_space_prefix"]:
        raise ValueError("llama2.c spells the first word of a text with a space before it; this vocabulary does not")
    contents = [token.replace("▁", " ").encode() for token in tokens]
    for id in _BETWEEN_LINE_ENDS:
        contents[id] = b"\n" + contents[id] + b"\n"
    return struct.pack("<i", max(map(len, contents))) + b"".join(
        struct.pack("<fi", score, len(content)) + content
        for score, content in zip(vocabulary["scores"], contents, strict=True))


def is_tokenizer_bin(data: bytes) -> bool:
    return _entries(data) is not None


def _entries(data: bytes) -> list[tuple[float, bytes]] | None:
    """(score, bytes) of each piece; None for bytes that are no such file from end to end."""
    longest = struct.unpack_from("<i", data)[0] if len(data) >= 4 else 0
    entries, at = [], 4
    while at + 8 <= len(data):
        score, length = struct.unpack_from("<fi", data, at)
        if not 0 <= length <= longest or at + 8 + length > len(data):
            return None
        entries.append((score, data[at + 8:at + 8 + length]))
        at += 8 + length
    return entries if entries and at == len(data) else None
