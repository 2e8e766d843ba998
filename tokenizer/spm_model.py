r"""The SentencePiece model file (sentencepiece_model.proto of google/sentencepiece), without its library.

A protocol buffer is a row of fields, each a number that says which field and what kind of value, then the value:

    0a 0c           field 1, twelve bytes: a piece, itself such a row
       0a 03 6c 6f 77        field 1, three bytes: "low"
       15 00 00 80 bf        field 2, four bytes: -1.0, its score
       18 01                 field 3, a number: its type
    12 …            field 2: how it was trained        1a …    field 3: how text is normalised

Pieces are taken apart; all else is kept as the bytes that it is, so that what is read and written is the same file.

Try: write the score with ">f"; tests/test_spm_model.py (test_worked_example_of_the_bytes_of_a_piece) fails.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

# Types of pieces, here as in GGUF.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
BPE = 2                                                     # a kind of model; 1 is Unigram

_ROLES = {"unk_id": (45, "<unk>"), "bos_id": (46, "<s>"), "eos_id": (47, "</s>"), "pad_id": (48, "<pad>")}
_KINDS = {2: {3: int, 24: int, 35: int, **{field: bytes for field, _ in _ROLES.values()}},     # of the fields read
          3: {1: bytes, 2: bytes, 3: int, 4: int, 5: int}}
_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5


@dataclass(frozen=True)
class PieceModel:
    """The content of a SentencePiece model.

    scores  the pair that makes the piece of highest score is merged first
    types   the numbers above
    rest    the fields after the pieces: how the model was trained and how it normalises
    """

    pieces: list[str]
    scores: list[float]
    types: list[int]
    rest: bytes

    @cached_property
    def _trainer(self) -> dict[int, int | bytes]:
        return _last_of(self.rest, 2)

    @cached_property
    def _normalizer(self) -> dict[int, int | bytes]:
        return _last_of(self.rest, 3)

    @property
    def kind(self) -> int:
        return self._trainer.get(3, 1)

    @property
    def space_first(self) -> bool:
        """Whether the first word of a text is spelt with a space before it."""
        return bool(self._normalizer.get(3, 1))

    @property
    def byte_fallback(self) -> bool:
        return bool(self._trainer.get(35, 0))

    @property
    def normalizes(self) -> str:
        """What is done to text besides writing spaces as ▁; "" for nothing, as in Llama's models."""
        if self._normalizer.get(2):
            return f"normalises text ({self._normalizer.get(1, b'').decode(errors='replace')})"
        if self._normalizer.get(4, 1):
            return "removes spaces that follow each other"
        if not self._normalizer.get(5, 1):
            return "does not write spaces as ▁"
        return "writes ▁ behind its words" if self._trainer.get(24) else ""

    def id_of(self, role: str) -> int | None:
        """The id of unk_id, bos_id, eos_id or pad_id, which a file names by its piece."""
        field, default = _ROLES[role]
        piece = self._trainer.get(field, default.encode()).decode(errors="replace")
        ids = [id for id, (other, type) in enumerate(zip(self.pieces, self.types, strict=True))
               if other == piece and (type == UNKNOWN) == (role == "unk_id")]
        return ids[0] if ids else None


def read_model(data: bytes) -> PieceModel:
    """Take a model file apart. Raises ValueError for bytes that are none, or not all of one."""
    pieces, scores, types, rest = [], [], [], b""
    try:
        for field, value, start, end in _fields(data):
            if field != 1:
                rest += data[start:end]
                continue
            entry = {number: content for number, content, _, _ in _fields(value)}
            pieces.append(entry[1].decode())
            scores.append(entry.get(2, 0.0))
            types.append(entry.get(3, NORMAL))
        right = all(isinstance(score, float) for score in scores) and all(isinstance(type, int) for type in types)
        for message, kinds in _KINDS.items():
            found = _last_of(rest, message)
            right = right and all(isinstance(found.get(number, kind()), kind) for number, kind in kinds.items())
        if not right:
            raise ValueError("a field of another kind")
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error):
        raise ValueError(f"this is no SentencePiece model, or not all of one (it breaks off after {len(pieces):,} "
                         "pieces); fetch or copy it again") from None
    if not pieces:
        raise ValueError("this is no SentencePiece model, or not all of one: it has no pieces")
    return PieceModel(pieces, scores, types, rest)


def write_model(model: PieceModel) -> bytes:
    """The file of a model; what `read_model` read comes out as the same bytes."""
    return b"".join(_message(1, _text(1, piece) + _float(2, score) + (_integer(3, type) if type != NORMAL else b""))
                    for piece, score, type in zip(model.pieces, model.scores, model.types, strict=True)) + model.rest


def build_model(pieces: list[str], scores: list[float], types: list[int], *, names: dict[str, str],
                space_first: bool = True) -> PieceModel:
    """A model of kind BPE from pieces that came without one.

    names   which pieces are unk_id, bos_id, eos_id, pad_id
    """
    trainer = _integer(3, BPE) + _integer(35, BYTE in types)
    trainer += b"".join(_text(field, names[role]) for role, (field, _) in _ROLES.items() if role in names)
    normalizer = _text(1, "identity") + _integer(3, space_first) + _integer(4, 0) + _integer(5, 1)
    return PieceModel(list(pieces), list(scores), list(types), _message(2, trainer) + _message(3, normalizer))


def without_space_first(data: bytes) -> bytes:
    """A model file as it would be with add_dummy_prefix off: of two messages in one field, the later values win."""
    return data + _message(3, _integer(3, 0))


# Reading fields


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes, int, int]]:
    """(number, value, where it begins, where it ends) of each field."""
    at = 0
    while at < len(data):
        start = at
        key, at = _read_varint(data, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _read_varint(data, at)
        elif kind == _FOUR_BYTES:
            value, at = struct.unpack_from("<f", data, at)[0], at + 4
        elif kind == _EIGHT_BYTES:
            value, at = struct.unpack_from("<d", data, at)[0], at + 8
        elif kind == _BYTES:
            length, at = _read_varint(data, at)
            value, at = data[at:at + length], at + length
        else:
            raise ValueError(f"no kind of value: {kind}")
        if at > len(data):
            raise ValueError("breaks off")
        yield key >> 3, value, start, at


def _last_of(data: bytes, wanted: int) -> dict[int, int | bytes]:
    """The fields of message number `wanted`: all messages of that number in one, the later values winning."""
    return {field: value for number, message, _, _ in _fields(data) if number == wanted
            for field, value, _, _ in _fields(message)}


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
        if shift > 63:
            raise ValueError("no number")


# Writing fields


def _varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3 | _VARINT) + _varint(value)


def _message(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | _BYTES) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _message(field, value.encode())


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | _FOUR_BYTES) + struct.pack("<f", value)
