r"""Byte-level BPE grown for another language: further merges behind the old ones, learned on text of it.

    SmolLM2       中国  ->  \xe4\xb8 \xad \xe5\x9b \xbd
    new merges    \xe4\xb8 \xad    \xe5\x9b \xbd    中 国
    grown         中国

The text is spelled by the old vocabulary first, and pairs of its ids are counted and merged as they are in learning
anew (bpe_train.py). So each new merge comes after all old ones: where it does not apply, a text is cut as ever. Old
text is kept by refusing pairs: nothing of ASCII letters alone is made, and no pair that stands in a text to keep.

What BPE makes once, in whatever word, it makes of the same bytes alone: no merge crossed their borders there, so none
inside them saw what lies beyond. A new piece is dead nonetheless where it is a part of a character, and all characters
with it are pieces. `witness` finds a text for each, or proves that there is none.

Try: let `_Growth.may_merge` allow all; tests/test_bpe_extend.py (test_property_kept_text_has_the_ids_it_had) fails.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import pairwise, product

from tokenizer.base import utf8
from tokenizer.bpe import BPETokenizer, unicode_to_bytes
from tokenizer.bpe_train import learn_merges


def extend_bpe(base: BPETokenizer, texts: Iterable[str], number: int, *, keep_ascii: bool = True,
               keep: Iterable[str] = ()) -> BPETokenizer:
    """`base` with up to `number` pieces more, learned on `texts`; fewer where no pair occurs twice any more.

    keep_ascii  leave everything in ASCII as it is
    keep        texts whose ids must stay

    A new piece starts where a character starts, and is whole characters, or the start of one on the way to it; it ends
    elsewhere only where an old piece does. Dead pieces are not kept. Raises ValueError where nothing is learned.
    """
    growth = _Growth(base, keep_ascii=keep_ascii, keep=keep)
    spelled: Counter[tuple[int, ...]] = Counter()
    for word, count in _count(base, texts).items():
        spelled[tuple(base.spelling(word.encode()))] += count
    merges = learn_merges(spelled, number, first=base.vocab_size, may_merge=growth.may_merge)
    if not merges:
        raise ValueError("these texts teach no piece that the vocabulary lacks; give more of them, or keep less")
    grown = base.with_merges(merges)
    while useless := set(dead_pieces(grown)) - {id for pair in merges for id in pair}:
        merges = _without(merges, useless, base.vocab_size)         # but for what others are made of
        grown = base.with_merges(merges)
    return grown


def dead_pieces(tokenizer: BPETokenizer) -> list[int]:
    """The added pieces that no text is cut into."""
    return [id for id in range(tokenizer.first_new_id, tokenizer.vocab_size) if not witness(tokenizer, id)]


def witness(tokenizer: BPETokenizer, id: int) -> str:
    """A text in whose ids this one occurs; "" where there is none.

    Of whole characters, the piece itself. Of parts, it is completed by every way in which UTF-8 goes on.
    """
    data = tokenizer.token_bytes(id)
    return next((text for text in _completed(data) if id in tokenizer.encode(text)), "")


def _completed(data: bytes) -> Iterator[str]:
    """The texts of as few characters as can be that hold these bytes."""
    head = next((i for i, byte in enumerate(data) if byte & 0xC0 != 0x80), len(data))   # of a character begun before
    tail = next((i for i in range(len(data) - 1, -1, -1) if data[i] & 0xC0 != 0x80), len(data))
    missing = max(0, _length(data[tail]) - (len(data) - tail)) if tail < len(data) else 0
    starts = [b""] if not head else [bytes(start) for count in range(1, 4 - head + 1) for start in product(
        range(0xC2, 0xF5), *[range(0x80, 0xC0)] * (count - 1)) if _length(start[0]) == count + head]
    ends = [b""] if not missing else map(bytes, product(range(0x80, 0xC0), repeat=missing))
    for start, end in product(starts, ends):
        try:
            yield (start + data + end).decode()
        except UnicodeDecodeError:                                  # surrogates, and what is longer than need be
            continue


def _length(byte: int) -> int:
    """Of a character in UTF-8, by its first byte."""
    return 1 if byte < 0x80 else 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4


class _Growth:
    """Which pairs may become pieces, as learning goes on: it asks in the order in which merges get their ids."""

    def __init__(self, base: BPETokenizer, *, keep_ascii: bool, keep: Iterable[str]) -> None:
        self.bytes = [base.token_bytes(id) for id in range(base.vocab_size)]
        self.known = {*self.bytes, *map(unicode_to_bytes, base.special_ids)}
        self.keep_ascii = keep_ascii
        self.kept = {pair for word in _count(base, keep) for pair in pairwise(base.spelling(word.encode()))}

    def may_merge(self, left: int, right: int) -> bool:
        data = self.bytes[left] + self.bytes[right]
        if data in self.known or (left, right) in self.kept or self.keep_ascii and data.isascii() or \
                _goes_on(self.bytes[left]) or _begins_a_character(self.bytes[right]):
            return False
        self.bytes.append(data)
        self.known.add(data)
        return True


def _goes_on(data: bytes) -> bool:
    """Whether these bytes begin inside a character."""
    return data[:1] >= b"\x80" and data[0] & 0xC0 == 0x80


def _begins_a_character(data: bytes) -> bool:
    """Whether these bytes are the start of one character, and not all of it."""
    return len(data) < _length(data[0]) if data and data[0] >= 0xC0 else False


def _count(base: BPETokenizer, texts: Iterable[str]) -> Counter[str]:
    words: Counter[str] = Counter()
    for text in texts:
        utf8(text)
        words.update(base.words(text))
    return words


def _without(merges: list[tuple[int, int]], gone: set[int], first: int) -> list[tuple[int, int]]:
    """The merges but for those that make these ids, with the ids of the others moved up."""
    kept = [i for i in range(len(merges)) if first + i not in gone]
    moved = {first + old: first + new for new, old in enumerate(kept)}
    return [(moved.get(merges[i][0], merges[i][0]), moved.get(merges[i][1], merges[i][1])) for i in kept]
