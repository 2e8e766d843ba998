"""Which characters of a text each of its ids stands for.

    text      我 爱 北京                      a byte-level vocabulary may split a character, and join two
    ids       <E6 88> <91>  爱  北京
    offsets   (0, 1)  (0, 1)  (1, 2)  (2, 4)

An id that spells a part of a character has the whole character: spans of ids are so always spans of characters.

Try: round the begin of such an id up to the next character; tests/test_offsets.py
(test_worked_example_parts_of_a_character_have_all_of_it) fails.
"""

import re
from collections.abc import Iterator

from tokenizer.base import Tokenizer

Offsets = list[tuple[int, int]]                                     # first character and the one behind the last

_WORD = re.compile(r"\s*\S+|\s+")


def encode_with_offsets(tokenizer: Tokenizer, text: str) -> tuple[list[int], Offsets]:
    """The ids of a text that goes on from other text (see `encode_continuation`), and for each its characters.

    Where a vocabulary changes what it reads (NFC, bytes that it lacks), a text is encoded word by word, and each id of
    a changed word has all of the word.
    """
    ids = tokenizer.encode_continuation(text)
    if _spelled(tokenizer, ids) == text.encode():
        return ids, list(_by_bytes(tokenizer, ids, text, 0))
    ids, offsets = [], []
    for word in _WORD.finditer(text):
        some = tokenizer.encode_continuation(word[0])
        if _spelled(tokenizer, some) == word[0].encode():
            offsets += _by_bytes(tokenizer, some, word[0], word.start())
        else:
            offsets += [word.span()] * len(some)
        ids += some
    return ids, offsets


def _spelled(tokenizer: Tokenizer, ids: list[int]) -> bytes:
    return b"".join(map(tokenizer.token_bytes, ids))


def _by_bytes(tokenizer: Tokenizer, ids: list[int], text: str, start: int) -> Iterator[tuple[int, int]]:
    owner = [start + i for i, character in enumerate(text) for _ in character.encode()]    # of each byte
    begin = 0
    for token in ids:
        end = begin + len(tokenizer.token_bytes(token))
        yield owner[begin], owner[end - 1] + 1
        begin = end
