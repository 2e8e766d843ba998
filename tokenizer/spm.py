"""SentencePiece models (tokenizer.model of Llama 1, Llama 2 and their kin), through the library that made them.

Three habits of these vocabularies matter to everything downstream:

    a space is written ▁ and belongs to the word after it, and the first word of a text gets one too: «Hello» is ▁Hello.
    Decoding takes that one away again; text that goes on where other text stopped must not get it.
    a character that no piece holds is written as its UTF-8 bytes, pieces <0x00> to <0xFF>.
    beginning and end are control pieces that text can never produce.

The same without the library, for vocabularies that come without a model file, and to read how it works: spm_pure.py.

Try: let `encode_words` ignore `starts`; tests/test_spm.py (test_property_a_text_in_two_parts_is_the_text) then finds a
space inside a word written in two parts.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import sentencepiece

from tokenizer.added_tokens import AddedToken
from tokenizer.base import Settings, Tokenizer, check_ids, is_control, write_json
from tokenizer.spm_model import (
    BPE,
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    PieceModel,
    read_model,
    without_space_first,
    write_model,
)

_SCORE_OF_ADDED = -1000.0           # what llama.cpp's converter gives tokens that the model file does not have


class PieceTokenizer(Tokenizer):
    """What a vocabulary of SentencePiece's kind means, and the tokens that the folder it lies in adds to it.

    A subclass knows how to encode: through the library (below), or without it (spm_pure.py).
    """

    huggingface_class = "LlamaTokenizer"

    def __init__(self, model: PieceModel, settings: Settings | None = None, *, apart: bool = False,
                 flags: Iterable[dict] = ()) -> None:
        """
        apart  user-defined pieces are added tokens, behind which text starts anew; within a SentencePiece model they
               are pieces like others that are never cut
        flags  see Tokenizer
        """
        settings = settings or Settings()
        self._model, self._apart = model, apart
        self.spells_space_first = model.space_first
        spellings = [_spelling(piece, type) for piece, type in zip(model.pieces, model.types, strict=True)]
        called = settings.called_special
        special = {piece: id for id, (piece, type) in enumerate(zip(model.pieces, model.types, strict=True))
                   if type in (CONTROL, UNKNOWN)
                   or type in (NORMAL, USER_DEFINED) and (piece in called or is_control({"content": piece}))}
        check_ids(settings.added, len(spellings))
        self._added = {token["content"]: id for id, token in settings.added.items() if id >= len(spellings)}
        spellings += [b""] * (max(self._added.values(), default=-1) + 1 - len(spellings))
        for text, id in self._added.items():
            spellings[id] = text.encode()
        always = {text: id for text, id in self._added.items() if not is_control(settings.added[id])}
        special |= {text: id for text, id in self._added.items() if text not in always}
        if apart:
            always |= {piece: id for id, (piece, type) in enumerate(zip(model.pieces, model.types, strict=True))
                       if type == USER_DEFINED and piece not in special}
        super().__init__(spellings, special=special, always=always, flags=flags, settings=replace(
            settings,
            bos=model.id_of("bos_id") if settings.bos is None else settings.bos,
            eos=settings.eos or [id for id in [model.id_of("eos_id")] if id is not None],
            pad=model.id_of("pad_id") if settings.pad is None else settings.pad,
            adds_bos=settings.adds_bos is not False,        # Llama's habit, where the files do not say
        ))
        # What is a control token by what the files say is one in the model, too: text never spells it.
        self._model = replace(model, types=[CONTROL if id in self._controls and type in (NORMAL, USER_DEFINED) else type
                                            for id, type in enumerate(model.types)])

    def starts_after(self, token: AddedToken) -> bool:
        return self.restarts and (self._apart or token.id in self._controls)

    def spelling(self, data: bytes) -> list[int]:
        return self.encode_words(data.decode(), starts=False)

    @property
    def pieces(self) -> list[str]:
        """The model's pieces as it writes them, with ▁ for a space."""
        return self._model.pieces

    @property
    def adds_tokens(self) -> bool:
        """Whether there are tokens that model_file() does not hold."""
        return bool(self._added)

    @property
    def ordinary_added(self) -> list[str]:
        """Of these, the texts that are no control tokens."""
        return [text for text in self._added if text in self._always]

    def model_file(self) -> bytes:
        """The content of tokenizer.model, without the tokens that the folder adds."""
        return write_model(self._model)

    def vocabulary_files(self) -> dict[str, bytes]:
        added = {"added_tokens.json": write_json(self._added)} if self._added else {}
        return {"tokenizer.model": self.model_file()} | added

    def vocabulary(self) -> dict[str, Any]:
        """The vocabulary as GGUF files hold it, kind "llama"; the inverse of tokenizer.from_vocabulary.

        Raises ValueError for models that do more than such a file can say.
        """
        if self._model.kind != BPE or self._model.normalizes:
            raise ValueError("a GGUF vocabulary of kind llama cannot say that this SentencePiece model "
                             + (self._model.normalizes or "is not of kind BPE"))
        tokens, types, scores = list(self._model.pieces), list(self._model.types), list(self._model.scores)
        added = {id: text for text, id in self._added.items()}
        for id in range(len(tokens), self.vocab_size):
            tokens.append(added.get(id, f"[PAD{id}]"))
            types.append(UNUSED if id not in added else USER_DEFINED if added[id] in self._always else CONTROL)
            scores.append(_SCORE_OF_ADDED)
        return {"model": "llama", "pre": "default", "tokens": tokens, "types": types, "scores": scores, "merges": None,
                "add_space_prefix": self._model.space_first, "unk_id": self._model.id_of("unk_id"),
                **self._roles()}


class SentencePieceTokenizer(PieceTokenizer):
    """A SentencePiece model of any kind. Raises ValueError for bytes that are no such model."""

    def __init__(self, file: bytes, settings: Settings | None = None) -> None:
        self._file, model = file, read_model(file)
        super().__init__(model, settings)
        if self._model.types != model.types:
            file = write_model(self._model)
        self._starting, self._continuing = _load(file), _load(without_space_first(file))
        self.spells_space_first = self._starting.encode("a") != self._continuing.encode("a")

    def encode_words(self, text: str, *, starts: bool) -> list[int]:
        return (self._starting if starts else self._continuing).encode(text)

    def model_file(self) -> bytes:
        return self._file


def _load(file: bytes) -> sentencepiece.SentencePieceProcessor:
    library = sentencepiece.SentencePieceProcessor()
    try:
        library.LoadFromSerializedProto(file)
    except RuntimeError as error:
        raise ValueError(f"this is no SentencePiece model, or not all of one: {str(error)[:100]}") from None
    return library


def _spelling(piece: str, type: int) -> bytes:
    if type == BYTE:
        if not re.fullmatch(r"<0x[0-9A-Fa-f]{2}>", piece):
            raise ValueError(f"the piece {piece!r:.40} is called a byte, and is none such as <0x0A>; fetch it again")
        return bytes([int(piece[1:-1], 16)])
    if type in (NORMAL, USER_DEFINED, UNUSED):
        return piece.replace("▁", " ").encode()
    return piece.encode()
