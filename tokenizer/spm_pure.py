"""SentencePiece's byte-pair encoding in plain Python (Kudo and Richardson, arXiv:1808.06226), id for id as the library.

Unlike byte-level BPE (bpe.py) it starts from characters, knows no words, and merges by the score of what a merge makes:

    pieces   ▁ l o w -9    lo -1    ▁lo -2    low -3
    low      ▁low  ->  ▁ l o w  ->  ▁ lo w  ->  ▁lo w          (not low, whose score is lower than that of ▁lo)

What is then no piece is written as bytes, or as <unk> where a vocabulary has none.

It serves vocabularies that come without a model file: those in GGUF, in llama2.c's tokenizer.bin, and in a
tokenizer.json. Models that do more to a text than writing its spaces as ▁ need the library (spm.py).

Try: let `_chunks` cut everywhere; tests/test_spm_pure.py (test_two_ways_agree_with_the_library) fails.
"""

import operator
from collections.abc import Iterable, Iterator

from tokenizer.added_tokens import AddedToken, Finder
from tokenizer.base import Settings
from tokenizer.bpe_merge import WordCache, merge
from tokenizer.spm import PieceTokenizer
from tokenizer.spm_model import BPE, BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, PieceModel, build_model


class PlainPieceTokenizer(PieceTokenizer):
    """A SentencePiece model of kind BPE that leaves text as it is but for spaces, as Llama's do.

    Raises ValueError for a model of another kind.
    """

    def __init__(self, model: PieceModel, settings: Settings | None = None, *, apart: bool = False,
                 flags: Iterable[dict] = ()) -> None:
        if model.kind != BPE or model.normalizes:
            raise ValueError("this SentencePiece model "
                             + (model.normalizes or "is not of kind BPE") + ", which only the library does")
        super().__init__(model, settings, apart=apart, flags=flags)
        model = self._model                                 # in which control tokens are what the settings call so
        mergeable = [(piece, score) for piece, score, type in zip(model.pieces, model.scores, model.types, strict=True)
                     if type in (NORMAL, USER_DEFINED, UNUSED)]
        self._scores = dict(mergeable)
        self._neighbours = {pair for piece, _ in mergeable for pair in zip(piece, piece[1:], strict=False)}
        self._whole = Finder(AddedToken(piece, id) for id, (piece, type) in enumerate(
            zip(model.pieces, model.types, strict=True)) if type == USER_DEFINED and not apart)
        self._unused = {piece for piece, type in zip(model.pieces, model.types, strict=True) if type == UNUSED}
        self._ids = {piece: id for id, (piece, type) in enumerate(zip(model.pieces, model.types, strict=True))
                     if type not in (CONTROL, UNKNOWN)}     # of which text spells none, also where one is a single sign
        bytes_of_text = [f"<0x{byte:02X}>" for byte in range(256)] if model.byte_fallback else []
        if missing := next((piece for piece in bytes_of_text if piece not in self._ids), ""):
            raise ValueError(f"this vocabulary spells what no piece holds by bytes, and has no piece {missing}; fetch "
                             "or copy it again")
        self._bytes = [self._ids[piece] for piece in bytes_of_text] or None
        self._unknown = model.types.index(UNKNOWN) if UNKNOWN in model.types else None
        self._words = WordCache(self._encode_chunk)

    def encode_words(self, text: str, *, starts: bool) -> list[int]:
        ids = []
        for part in self._whole.split(self._spelt(text, starts=starts)):
            if isinstance(part, AddedToken):
                ids.append(part.id)
            else:
                for chunk in self._chunks(part):
                    ids += self._words[chunk]
        if self._bytes is None:                             # several unknown characters in a row are one <unk>
            ids = [id for before, id in zip([None, *ids], ids, strict=False) if not before == id == self._unknown]
        return ids

    def _spelt(self, text: str, *, starts: bool) -> str:
        """The text with its spaces as ▁, so that user-defined pieces with a space in them are never found."""
        return ("▁" if starts and self._model.space_first else "") + text.replace(" ", "▁")

    def _chunks(self, text: str) -> Iterator[str]:
        """The text in parts that no merge can cross: wherever two characters follow each other in no piece at all.

        Exact, and what makes this fast: the parts are short and come again, so that their ids are kept.
        """
        if self._unused:                                    # how such a piece is cut depends on the text around it
            yield text
            return
        known, start = self._neighbours, 0
        for i, pair in enumerate(zip(text, text[1:], strict=False), 1):
            if pair not in known:
                yield text[start:i]
                start = i
        if start < len(text):
            yield text[start:]

    def merged(self, text: str) -> list[str]:
        """What merging leaves of text with ▁ for its spaces: pieces, and characters that are none."""
        return self._merge(text, {})

    def _merge(self, text: str, cuts: dict[str, tuple[str, str]]) -> list[str]:
        return merge(list(text), lambda left, right: self._rank(left, right, cuts), operator.add)

    def _encode_chunk(self, text: str) -> list[int]:
        cuts: dict[str, tuple[str, str]] = {}
        return [id for piece in self._merge(text, cuts) for id in self._ids_of(piece, cuts)]

    def _rank(self, left: str, right: str, cuts: dict[str, tuple[str, str]]) -> float | None:
        score = self._scores.get(left + right)
        if left + right in self._unused:
            cuts[left + right] = left, right
        return None if score is None else -score

    def _ids_of(self, piece: str, cuts: dict[str, tuple[str, str]]) -> list[int]:
        """Ids of what merging left: a piece, the halves of one that is only a step on the way, or bytes."""
        if piece in self._unused and piece in cuts:
            left, right = cuts[piece]
            return self._ids_of(left, cuts) + self._ids_of(right, cuts)
        if piece in self._ids:
            return [self._ids[piece]]
        if self._bytes is not None:
            return [self._bytes[byte] for byte in piece.encode()]
        return [] if self._unknown is None else [self._unknown]


# Vocabularies without a model file


def from_vocabulary(vocabulary: dict) -> PlainPieceTokenizer:
    """The tokenizer of a GGUF file, from its vocabulary as weights/formats/gguf.py gives it (kind "llama").

    Raises ValueError for a vocabulary without scores, which order the merges.
    """
    if vocabulary["scores"] is None:
        raise ValueError("the GGUF file's vocabulary is of kind llama but has no scores (tokenizer.ggml.scores)")
    tokens, types = vocabulary["tokens"], vocabulary["types"]
    if vocabulary["unk_id"] is not None and types.count(UNKNOWN) != 1:
        # A model file has exactly one such piece; some GGUF files (Phi 3's) call many so, but not the one that is.
        types = [CONTROL if type == UNKNOWN else type for type in types]
        types[vocabulary["unk_id"]] = UNKNOWN
    missing = {f"<0x{byte:02X}>" for byte in range(256)} - {
        token for token, type in zip(tokens, types, strict=True) if type == BYTE}
    if BYTE in types and missing:
        raise ValueError(f"the vocabulary has pieces for single bytes, but not for {min(missing)}; it is damaged")
    names = {role: tokens[vocabulary[role]] for role in ("unk_id", "bos_id", "pad_id") if vocabulary[role] is not None}
    if vocabulary["eos_ids"]:
        names["eos_id"] = tokens[vocabulary["eos_ids"][0]]
    model = build_model(tokens, vocabulary["scores"], types, names=names,
                        space_first=vocabulary["add_space_prefix"] is not False)
    return PlainPieceTokenizer(model, Settings.of_vocabulary(vocabulary), apart=True)
