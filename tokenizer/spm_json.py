"""A SentencePiece vocabulary that came as tokenizer.json, as Llama 2's and TinyLlama's folders have it.

Such a file was made from a model file, and has pairs where that has scores: each piece of the model cut in two in every
possible way, in the order of the scores. It is merged here in the order of the pairs, as Hugging Face's `tokenizers`
does; the model file beside it, where there is one, is preferred (__init__.py).

Where a space is put before a word differs between generations of these files:

    normalizer Prepend              before every stretch of text: at the beginning, and after each added token but those
                                    that are looked for in normalised text
    normalizer Replace alone        nowhere
    pre_tokenizer Metaspace, always the same after every token, except where the text begins with a space already
    pre_tokenizer Metaspace, first  only at the beginning, except there
    pre_tokenizer Metaspace, never  nowhere

A Metaspace with `split` cuts before every ▁, so that no pair is merged across.

Try: let `starts_after` be true for "first"; tests/test_spm_json.py
(test_worked_example_where_the_first_word_gets_a_space) fails.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from tokenizer.added_tokens import AddedToken
from tokenizer.base import Settings, check_ids, is_control, write_json
from tokenizer.bpe import bos_of, check_spec, refuse_other_modes, steps_of, with_added, with_bos
from tokenizer.spm_model import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED, PieceModel, build_model
from tokenizer.spm_pure import PlainPieceTokenizer

_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
_PREPEND = {"type": "Prepend", "prepend": "▁"}


class JSONPieceTokenizer(PlainPieceTokenizer):
    """A vocabulary of pieces merged by pairs. Raises ValueError where the file asks for what is not done here."""

    huggingface_class = "PreTrainedTokenizerFast"

    def __init__(self, spec: dict, settings: Settings | None = None) -> None:
        settings = settings or Settings()
        check_spec(spec)
        spec = with_added(spec, settings)
        refuse_other_modes(spec)
        self._prefix, self._split = _prefix_of(spec.get("normalizer"), spec.get("pre_tokenizer"))
        self._pairs = _pairs_of(spec["model"])
        bos = bos_of(spec.get("post_processor"))
        model = _model_of(spec, self._pairs, bos=bos, space_first=self._prefix not in ("replace", "never"))
        self.restarts = self._prefix != "first"
        super().__init__(model, replace(with_bos(settings, bos), added={}), apart=True,
                         flags=spec.get("added_tokens") or [])
        self._spec = spec
        self._unused = set()                                # there are none here: ids without a token
        self._pairs = {(left, right): rank for (left, right), rank in self._pairs.items()
                       if left + right in self._scores}     # and no merge makes a control token
        self._neighbours = {(left[-1], right[0]) for left, right in self._pairs}

    def normalize(self, text: str, *, starts: bool) -> str:
        if self._prefix not in ("prepend", "replace"):
            return text
        return ("▁" if starts and self._prefix == "prepend" and text else "") + text.replace(" ", "▁")

    def starts_after(self, token: AddedToken) -> bool:
        """A normaliser works on what lies between the tokens that it does not see, Metaspace on what all leave."""
        return self._prefix == "always" or self._prefix == "prepend" and not token.normalized

    def _spelt(self, text: str, *, starts: bool) -> str:
        if self._prefix in ("prepend", "replace"):                  # `normalize` has done it
            return text
        return super()._spelt(text, starts=starts and text[:1] not in (" ", "▁"))

    def _chunks(self, text: str) -> Iterator[str]:
        for word in re.split("(?=▁)", text) if self._split else [text]:
            yield from super()._chunks(word)

    def _rank(self, left: str, right: str, cuts: dict) -> float | None:
        return self._pairs.get((left, right))

    def vocabulary_files(self) -> dict[str, bytes]:
        return {"tokenizer.json": write_json(self._spec)}

    def model_file(self) -> bytes:
        self._refuse_what_scores_cannot_say()
        return super().model_file()

    def vocabulary(self) -> dict[str, Any]:
        """As GGUF holds it. Raises ValueError where its pairs are not those that scores would merge."""
        self._refuse_what_scores_cannot_say()
        return super().vocabulary()

    def _refuse_what_scores_cannot_say(self) -> None:
        mergeable = {piece for piece, type in zip(self._model.pieces, self._model.types, strict=True) if type == NORMAL}
        # By scores, characters that are no piece merge, too.
        symbols = mergeable | {char for piece in mergeable for char in piece}
        cuts = sum(piece[:i] in symbols and piece[i:] in symbols for piece in mergeable for i in range(1, len(piece)))
        if cuts != len(self._pairs) or not all(_is_group(group) for group in _groups(list(self._pairs))):
            raise ValueError("the merges of this tokenizer.json are not those of a SentencePiece model, so that no "
                             "scores say the same; use the tokenizer.model that it was made from")
        if self._split:
            raise ValueError("this tokenizer.json cuts words apart before it merges, which no SentencePiece model "
                             "does; use the tokenizer.model that it was made from")
        if self._prefix in ("always", "first"):
            raise ValueError("this tokenizer.json puts a space before the first word of a text unless one is there, "
                             "which no SentencePiece model does; use the tokenizer.model that it was made from")


def is_of_pieces(spec: dict) -> bool:
    """Whether a tokenizer.json holds pieces of text rather than of bytes."""
    return isinstance(spec.get("model"), dict) and bool(spec["model"].get("byte_fallback"))


def _model_of(spec: dict, pairs: dict[tuple[str, str], int], *, bos: str | None, space_first: bool) -> PieceModel:
    """The pieces with scores that follow the merges: a piece is worth less the later it is first made."""
    vocab: dict[str, int] = spec["model"]["vocab"]
    added = {token["id"]: token for token in spec.get("added_tokens") or []}
    by_id = {id: piece for piece, id in vocab.items()} | {id: token["content"] for id, token in added.items()}
    order = {left + right: number for number, group in enumerate(_groups(list(pairs))) for left, right in group}
    unknown = spec["model"].get("unk_token")
    check_ids(by_id, len(by_id))
    pieces, types = [], []
    for id in range(max(by_id, default=-1) + 1):
        piece = by_id.get(id, f"[PAD{id}]")
        pieces.append(piece)
        if id in added:
            types.append(CONTROL if is_control(added[id]) else USER_DEFINED)
        else:
            types.append(UNUSED if id not in by_id else BYTE if _is_byte(piece) else NORMAL)
        if piece == unknown:
            types[-1] = UNKNOWN
    missing = {f"<0x{byte:02X}>" for byte in range(256)} - vocab.keys()
    if missing:
        raise ValueError(f"tokenizer.json falls back to bytes, but has no piece {min(missing)}")
    if len(by_id) < len(vocab.keys() | {token["content"] for token in added.values()}):
        raise ValueError("two tokens of tokenizer.json have one id, so it is damaged; fetch it again")
    names = {role: piece for role, piece in (("unk_id", unknown), ("bos_id", bos)) if piece}
    return build_model(pieces, [-float(order.get(piece, len(order))) for piece in pieces], types, names=names,
                       space_first=space_first)


def _groups(pairs: list[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """The pairs in order, parted where no piece is made on both sides: each part had one score in the model."""
    last = {left + right: i for i, (left, right) in enumerate(pairs)}
    groups, end = [], -1
    for i, (left, right) in enumerate(pairs):
        if i > end:
            groups.append([])
        groups[-1].append((left, right))
        end = max(end, last[left + right])
    return groups


def _is_group(pairs: list[tuple[str, str]]) -> bool:
    """Whether these pairs make one piece, or several of one score, which are written the longest halves first."""
    lengths = [(len(left), len(right)) for left, right in pairs]
    return len({left + right for left, right in pairs}) == 1 or lengths == sorted(lengths, reverse=True)


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _pairs_of(model: dict) -> dict[tuple[str, str], int]:
    pairs: dict[tuple[str, str], int] = {}
    for rank, merge in enumerate(model["merges"]):
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if len(parts) != 2 or not {*parts, "".join(parts)} <= model["vocab"].keys():
            raise ValueError(f"merge {rank} of the vocabulary is {merge!r:.80}, which is not two of its tokens that "
                             "make a third")
        pairs.setdefault((parts[0], parts[1]), rank)
    return pairs


def _prefix_of(normalizer: Any, pre_tokenizer: Any) -> tuple[str, bool]:
    """Where a space is put before a word: "prepend", "replace", "always", "first" or "never" (see above); and whether
    words are cut apart before they are merged."""
    match steps_of(normalizer, "normalizers"), steps_of(pre_tokenizer, "pretokenizers"):
        case [first, second], [] if [first, second] == [_PREPEND, _REPLACE]:
            return "prepend", False
        case [only], [] if only == _REPLACE:
            return "replace", False
        case [], [{"type": "Metaspace", "replacement": "▁", **how}]:
            scheme = how.get("prepend_scheme", "always" if how.get("add_prefix_space", True) else "never")
            if scheme in ("always", "first", "never"):
                return scheme, how.get("split") is not False
    raise ValueError(f"tokenizer.json writes spaces in a way not known here: normalizer {normalizer}, pre_tokenizer "
                     f"{pre_tokenizer}")
