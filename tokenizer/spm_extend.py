"""A SentencePiece vocabulary grown by the pieces of others: Llama's by those of a Chinese one.

What is merged is decided by score, so a piece that is there may still never be made:

    pieces      A 人民 -3    共和 -4        added, with score 0: 民共, 人民共和国
    人民共和国  人 民共 和 国, since 0 is highest; nothing makes the whole of that: 人民共和国 is dead

So added pieces get scores below all old ones, in the order of their own model: a text is first cut as ever, then pieces
join. Where a piece still cannot be made of what is left of it, the steps that lead there are added, too. `dead_pieces`
proves it: what is made in any text is also made of the piece alone, for no merge crossed its borders there.

`append_pieces` is what Chinese-LLaMA-Alpaca does, to have the same file: pieces that are missing, in their order, with
score 0 (its README and arXiv:2304.08177, section 3.1).

Try: give added pieces the score 0 in `_arranged`; tests/test_spm_extend.py
(test_property_no_added_piece_is_dead_and_old_text_keeps_its_ids) fails.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from tokenizer import spm_pure
from tokenizer.spm import PieceTokenizer, SentencePieceTokenizer
from tokenizer.spm_model import BPE, NORMAL, UNUSED, USER_DEFINED, PieceModel, read_model, write_model

_LAST = -1e8            # Llama's runs of spaces are at -1e9, where float32 tells no neighbours apart


def append_pieces(base: PieceTokenizer, added: Sequence[PieceModel]) -> SentencePieceTokenizer:
    """`base` with every piece that it lacks behind its own, as normal pieces of score 0.

    Raises ValueError where it lacks none.
    """
    model = _model_of(base)
    if not (new := _missing(model, added, normal=False)):
        raise ValueError("nothing is added: the vocabulary has all pieces of the others")
    return _tokenizer(base, _with(model, new, [0.0] * len(new)))


def extend_pieces(base: PieceTokenizer, added: Sequence[PieceModel], *, keep_ascii: bool = True,
                  keep: Iterable[str] = ()) -> SentencePieceTokenizer:
    """`base` with the normal pieces of other models that it lacks, none of them dead, and steps that lead to some.

    keep_ascii  without pieces of ASCII alone, so that text in ASCII keeps its ids
    keep        texts whose ids must stay; pieces that would be made in them are left out

    Raises ValueError for a base that is not of kind BPE, and where nothing is added.
    """
    model, keep = _model_of(base), list(keep)
    if model.kind != BPE:
        raise ValueError("the vocabulary to grow is a SentencePiece model of kind Unigram, which weighs whole "
                         "sentences: with more pieces it cuts old text otherwise; give one of kind BPE, as Llama's")
    new = [piece for piece in _missing(model, added, normal=True)
           if not (keep_ascii and piece.replace("▁", " ").isascii())]
    before = [base.encode(text) for text in keep]
    while new:
        arranged = _arranged(model, new)
        grown = _tokenizer(base, arranged)
        after = [grown.encode(text) for text in keep]
        if after == before:
            return grown
        made = {grown.pieces[id] for ids in after for id in ids if id >= base.vocab_size}
        steps = made - set(new)
        unwanted = {piece for piece in new if piece in made or any(step in piece for step in steps)}
        new = [piece for piece in new if piece not in (unwanted or {new[-1]})]
    raise ValueError("nothing is added: the vocabulary has these pieces, or texts to keep are made of them")


def dead_pieces(tokenizer: PieceTokenizer) -> list[int]:
    """The added pieces that no text is cut into."""
    return [id for id in range(tokenizer.first_new_id, tokenizer.vocab_size)
            if tokenizer.spelling(tokenizer.token_bytes(id)) != [id]]


def _model_of(base: PieceTokenizer) -> PieceModel:
    """The model, with the control tokens that its folder adds: their ids must stay before new pieces."""
    if not base.adds_tokens:
        return read_model(base.model_file())
    if ordinary := base.ordinary_added:
        raise ValueError(f"the folder adds {ordinary[0]!r} to its SentencePiece model, which no piece of a model can "
                         "stand for; grow the model file alone")
    return read_model(spm_pure.from_vocabulary(base.vocabulary()).model_file())


def _missing(model: PieceModel, added: Sequence[PieceModel], *, normal: bool) -> list[str]:
    """The pieces that `model` lacks, in their order; only `normal` ones, or all, the best first or as they stand."""
    there, found = set(model.pieces), {}
    for other in added:
        rows = zip(other.pieces, other.scores, other.types, strict=True)
        if normal:
            rows = sorted((row for row in rows if row[2] in (NORMAL, USER_DEFINED)), key=lambda row: -row[1])
        found |= dict.fromkeys(piece for piece, _, _ in rows if piece not in there)
    return list(found)


def _with(model: PieceModel, pieces: list[str], scores: list[float]) -> PieceModel:
    return replace(model, pieces=[*model.pieces, *pieces], scores=[*model.scores, *scores],
                   types=[*model.types, *[NORMAL] * len(pieces)])


def _tokenizer(base: PieceTokenizer, model: PieceModel) -> SentencePieceTokenizer:
    return SentencePieceTokenizer(write_model(model), replace(base.settings_of_larger(), added={}))


def _arranged(model: PieceModel, pieces: list[str]) -> PieceModel:
    """The model with these pieces, and steps that lead to those that would be dead, all below its own scores."""
    lowest = min((score for piece, score, type in zip(model.pieces, model.scores, model.types, strict=True)
                  if len(piece) > 1 and score > _LAST and type in (NORMAL, USER_DEFINED, UNUSED)), default=0.0)
    while True:
        grown = _with(model, pieces, [lowest - 1 - i for i in range(len(pieces))])
        makes = spm_pure.PlainPieceTokenizer(grown)
        steps = {}
        for piece in pieces:
            left = makes.merged(piece)
            if len(left) > 1:
                steps |= dict.fromkeys(_steps(left))
        if not steps:
            return grown
        pieces = [*pieces, *(step for step in steps if step not in grown.pieces)]


def _steps(parts: list[str]) -> list[str]:
    """What joins on the way from these parts to the whole: from the first that is more than ASCII to the end, then
    back to the beginning, so that no step can be made in ASCII."""
    middle = next((i for i, part in enumerate(parts) if not part.replace("▁", " ").isascii()), 0)
    joined = ["".join(parts[middle:end]) for end in range(middle + 2, len(parts) + 1)]
    joined += ["".join(parts[begin:]) for begin in range(middle - 1, -1, -1)]
    return joined[:-1]
