"""Where added tokens stand in a text, by the rules of Hugging Face's `tokenizers`.

    normalized    looked for in text as the vocabulary's normaliser leaves it, and not as it was written
    lstrip        takes the white space before it along;  rstrip, that behind it
    single_word   is none inside a word: <x> is not found in a<x>

The longest is found where one begins with another. Most files set none of these.

Try: let a token with rstrip leave the space behind it; tests/test_added_tokens.py (test_worked_example_the_flags)
fails, and a model of the family of Phi 3 reads one token more after every role.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tokenizer.pretokenize import WHITE_SPACE

_OF_WORDS = frozenset(("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "Pc"))
_CIRCLED = re.compile("[\u24b6-\u24e9\U0001f130-\U0001f149\U0001f150-\U0001f169\U0001f170-\U0001f189]")     # letters
_SPACES = frozenset(map(chr, WHITE_SPACE)) | {"\r", "\n"}


class AddedToken(NamedTuple):
    content: str
    id: int
    lstrip: bool = False
    rstrip: bool = False
    single_word: bool = False
    normalized: bool = False


class Finder:
    """Cuts text at these tokens."""

    def __init__(self, tokens: Iterable[AddedToken]) -> None:
        self._tokens = {token.content: token for token in tokens}
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._regex = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")

    def find(self, text: str) -> Iterator[tuple[int, int, AddedToken]]:
        """(begin, end, token) of each, in order; spaces that it takes along are part of it."""
        last = 0
        for match in self._regex.finditer(text):
            begin, end, token = *match.span(), self._tokens[match[0]]
            if begin < last or token.single_word and _in_word(text, begin, end):
                continue
            begin, last = with_spaces(text, begin, end, token, last)
            yield begin, last, token

    def split(self, text: str) -> Iterator[str | AddedToken]:
        """The text in pieces: tokens, and what stands between them, where there is any."""
        last = 0
        for begin, end, token in self.find(text):
            if begin > last:
                yield text[last:begin]
            yield token
            last = end
        if last < len(text):
            yield text[last:]


def with_spaces(text: str, begin: int, end: int, token: AddedToken, last: int) -> tuple[int, int]:
    """Where a token that stands at `begin` begins and ends with the spaces that it takes along, from `last` on."""
    while token.lstrip and begin > last and text[begin - 1] in _SPACES:
        begin -= 1
    while token.rstrip and end < len(text) and text[end] in _SPACES:
        end += 1
    return begin, end


def _in_word(text: str, begin: int, end: int) -> bool:
    return begin > 0 and _is_of_a_word(text[begin - 1]) or end < len(text) and _is_of_a_word(text[end])


def _is_of_a_word(char: str) -> bool:
    """Unicode's \\w (UTS 18), which has marks and joiners, and of numbers only digits; Python's has neither."""
    return unicodedata.category(char) in _OF_WORDS or char in "\u200c\u200d" or _CIRCLED.match(char) is not None
