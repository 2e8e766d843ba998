"""SentencePiece models (tokenizer.model of Llama 1, Llama 2 and their kin), through the library that made them.

Three habits of these vocabularies matter to everything downstream:

    a space is written ▁ and belongs to the word after it, and the first word of a text gets one too: «Hello» is ▁Hello.
    Decoding takes that one away again; text that goes on where other text stopped must not get it.
    a character that no piece holds is written as its UTF-8 bytes, pieces <0x00> to <0xFF>.
    beginning and end are control pieces that text can never produce.

Try: let `encode_words` ignore `starts`; tests/test_spm.py then finds a space inside a word written in two parts.
"""

import struct
from dataclasses import replace

import sentencepiece

from tokenizer.base import Settings, Tokenizer, is_control, write_json


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model, and the tokens that the folder it lies in adds to it.

    Raises ValueError for bytes that are no such model.
    """

    huggingface_class = "LlamaTokenizer"

    def __init__(self, model: bytes, settings: Settings | None = None) -> None:
        settings = settings or Settings()
        self._model = model
        self._starting = library = _load(model)
        # Two protocol buffers in a row are read as one, the later fields winning. This second one turns off the space
        # before the first word (NormalizerSpec.add_dummy_prefix), which the library cannot be asked for.
        self._continuing = _load(model + _message(3, _integer(3, 0)))
        self.spells_space_first = self._starting.encode("a") != self._continuing.encode("a")
        spellings = [_spelling(library, id) for id in range(library.vocab_size())]
        special = {library.id_to_piece(id): id for id in range(library.vocab_size())
                   if library.is_control(id) or library.is_unknown(id)}
        self._added = {token["content"]: id for id, token in settings.added.items() if id >= len(spellings)}
        spellings += [b""] * (max(self._added.values(), default=-1) + 1 - len(spellings))
        for text, id in self._added.items():
            spellings[id] = text.encode()
        always = {text: id for text, id in self._added.items() if not is_control(settings.added[id])}
        special |= {text: id for text, id in self._added.items() if text not in always}
        super().__init__(spellings, special=special, always=always, settings=replace(
            settings,
            bos=_existing(library.bos_id()) if settings.bos is None else settings.bos,
            eos=settings.eos or [id for id in [_existing(library.eos_id())] if id is not None],
            pad=_existing(library.pad_id()) if settings.pad is None else settings.pad,
            adds_bos=settings.adds_bos is not False,        # Llama's habit, where the files do not say
        ))

    def encode_words(self, text: str, *, starts: bool) -> list[int]:
        return (self._starting if starts else self._continuing).encode(text)

    def vocabulary_files(self) -> dict[str, bytes]:
        added = {"added_tokens.json": write_json(self._added)} if self._added else {}
        return {"tokenizer.model": self._model} | added


def _load(model: bytes) -> sentencepiece.SentencePieceProcessor:
    library = sentencepiece.SentencePieceProcessor()
    try:
        library.LoadFromSerializedProto(model)
    except RuntimeError as error:
        raise ValueError(f"this is no SentencePiece model, or not all of one: {str(error)[:100]}") from None
    return library


def _existing(id: int) -> int | None:
    return id if id >= 0 else None


def _spelling(library: sentencepiece.SentencePieceProcessor, id: int) -> bytes:
    piece = library.id_to_piece(id)
    if library.is_byte(id):
        return bytes([int(piece[1:-1], 16)])            # <0x0A>
    if library.is_control(id) or library.is_unknown(id):
        return piece.encode()
    return piece.replace("▁", " ").encode()


# Writing a model file, for vocabularies that come without one (sentencepiece_model.proto)


def from_vocabulary(vocabulary: dict) -> SentencePieceTokenizer:
    """The tokenizer of a GGUF file, from its vocabulary as weights/gguf.py gives it (kind "llama").

    Raises ValueError for a vocabulary without scores, which order the merges.
    """
    if vocabulary["scores"] is None:
        raise ValueError("the GGUF file's vocabulary is of kind llama but has no scores (tokenizer.ggml.scores)")
    tokens = vocabulary["tokens"]
    names = {role: tokens[vocabulary[role]] for role in ("unk_id", "bos_id", "pad_id") if vocabulary[role] is not None}
    if vocabulary["eos_ids"]:
        names["eos_id"] = tokens[vocabulary["eos_ids"][0]]
    model = model_file(tokens, vocabulary["scores"], vocabulary["types"], names=names,
                       space_first=vocabulary["add_space_prefix"] is not False)
    return SentencePieceTokenizer(model, Settings.of_vocabulary(vocabulary))


def model_file(pieces: list[str], scores: list[float], types: list[int], *, names: dict[str, str],
               space_first: bool = True) -> bytes:
    """A SentencePiece model of kind BPE, as bytes.

    types   1 normal, 2 unknown (exactly one), 3 control, 4 user-defined, 5 unused, 6 byte; as in GGUF
    scores  the pair that makes the piece of highest score is merged first
    names   which pieces are unk_id, bos_id, eos_id, pad_id
    """
    entries = [_message(1, _text(1, piece) + _float(2, score) + _integer(3, kind))
               for piece, score, kind in zip(pieces, scores, types, strict=True)]
    roles = {"unk_id": 45, "bos_id": 46, "eos_id": 47, "pad_id": 48}        # fields unk_piece to pad_piece
    trainer = _integer(3, 2) + _integer(35, 6 in types)                     # model_type: BPE; byte_fallback
    trainer += b"".join(_text(roles[role], piece) for role, piece in names.items())
    normalizer = _text(1, "identity") + _integer(3, space_first) + _integer(4, 0) + _integer(5, 1)
    return b"".join(entries) + _message(2, trainer) + _message(3, normalizer)


def _varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; the eighth says that more follow."""
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


# A field is its number and kind of value (0 varint, 2 length and bytes, 5 four bytes), then the value.

def _integer(field: int, value: int) -> bytes:
    return _varint(field << 3 | 0) + _varint(value)


def _message(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _text(field: int, value: str) -> bytes:
    return _message(field, value.encode())


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)
