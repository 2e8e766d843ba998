"""Writing that can only copy: which ids may come next, so that what is written stays a piece of a text.

    text      无 锡 的 小 驼 来 了            none  «无»
    written                                 may go on with
    (nothing)                               any id that spells what begins at 无, 锡, 的 …, or the word for none
    无                                      锡; or the end: that was the word for none
    无 锡                                   的; a new line and another piece of what follows; or the end

Bytes are compared, not ids: a text has one spelling in ids, its pieces have others. So whatever a vocabulary joins or
splits, a piece of the text can be written, and nothing else. A state knows all places that what was written may have
been copied from; an id is allowed if it spells what follows at one of them.

Try: forget `_is_border`; tests/test_constrained_decoding.py (test_property_no_word_is_cut) fails.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from llama.decoding.prefix_cache import PrefixCache
from tokenizer.base import Tokenizer

LONGEST = 24                                                        # bytes of an id that is looked for; few are longer
BETWEEN = set("\n,;:!?，。；：！？、（）()《》“”")                   # signs that no name goes across

Place = tuple[int, int]                                             # begin, end, in bytes


class Vocabulary:
    """Which id spells some bytes. Control tokens spell nothing: what a text says is always text."""

    def __init__(self, tokenizer: Tokenizer):
        special = set(tokenizer.special_ids.values())
        self.ids = {spelled: i for i in range(tokenizer.vocab_size)
                    if i not in special and 0 < len(spelled := tokenizer.token_bytes(i)) <= LONGEST}
        self.longest = max(map(len, self.ids))

    def steps(self, text: bytes, at: int, end: int, *, blank: bool = False) -> Iterator[tuple[int, int]]:
        """(id, where it leads): ids that spell what follows `at`, up to `end`; with `blank`, a blank before it."""
        if blank and (i := self.ids.get(b" ")) is not None:
            yield i, at
        for to in range(at + 1, min(at + self.longest, end) + 1):
            if (i := self.ids.get(text[at:to])) is not None:
                yield i, to
            if blank and (i := self.ids.get(b" " + text[at:to])) is not None:
                yield i, to

    def spells(self, text: bytes) -> bool:
        """Whether each of the bytes has an id, so that no beginning is a dead end."""
        return all(text[i : i + 1] in self.ids for i in range(len(text)))


class State(NamedTuple):
    """What was written so far.

    done    pieces that are complete, as places in the text
    copies  where the piece under way may have been copied from
    blank   the piece under way has not begun; its first id may bring a blank with it
    """

    done: tuple[Place, ...] = ()
    copies: frozenset[Place] = frozenset()
    blank: bool = False
    ended: bool = False


class SpanGrammar:
    """One piece of a text, or several, from left to right, a line each.

    closing  the id that ends what is written
    none     what may be written instead, for «there is none»; "" for nothing
    longest  ids: from there on a piece ends as soon as it can
    several  whether more than one may be written: names, that begin with a letter and go across no BETWEEN
    """

    def __init__(self, text: str, vocabulary: Vocabulary, *, closing: int, none: str = "", several: bool = False,
                 longest: int = 128):
        self.text, self.vocabulary, self.closing, self.several = text, vocabulary, closing, several
        self.bytes, self.most = text.encode() + none.encode(), 4 * longest
        self.length = len(text.encode())                            # from there on, the word for none
        self.newline = vocabulary.ids.get(b"\n")
        self.begins, self.borders, self.walls = [], set(), [self.length] * self.length
        self.characters = {}                                        # byte -> character
        wall, at = self.length, self.length
        for i in reversed(range(len(text))):
            size = len(text[i].encode())
            at -= size
            self.characters[at] = i
            if (several and text[i] in BETWEEN) or not vocabulary.spells(text[i].encode()):
                wall = at
                self.borders.add(at)
            self.walls[at : at + size] = [wall] * size
            if _is_border(text, i + 1):
                self.borders.add(at + size)
            if _is_border(text, i) and wall > at and (text[i].isalnum() if several else not text[i].isspace()):
                self.begins.append(at)
        self.begins.reverse()
        self.characters[self.length] = len(text)
        self.start = self._begin((), 0)

    def options(self, state: State) -> dict[int, State]:
        """The ids that may come, and what has been written then."""
        found: dict[int, set[Place]] = defaultdict(set)
        complete = min((place for place in state.copies if self._is_complete(place)), default=None)
        if complete is None or complete[1] - complete[0] < self.most:
            for begin, at in state.copies:
                end = len(self.bytes) if begin == self.length else self.walls[begin]
                for i, to in self.vocabulary.steps(self.bytes, at, end, blank=state.blank):
                    found[i].add((begin, to))
        after = {i: State(state.done, frozenset(places)) for i, places in found.items()}
        if complete is not None:
            done = (*state.done, complete) if complete[0] < self.length else state.done
            after[self.closing] = State(done, ended=True)
            if self.several and complete[0] < self.length and self.newline is not None:
                if (following := self._begin(done, complete[1])).copies:
                    after[self.newline] = following
        return after

    def found(self, state: State) -> list[tuple[int, int]]:
        """The pieces as characters of the text, (begin, end)."""
        return [(self.characters[begin], self.characters[end]) for begin, end in state.done]

    def _begin(self, done: tuple[Place, ...], behind: int) -> State:
        places = [(begin, begin) for begin in self.begins if begin >= behind]
        if not done and len(self.bytes) > self.length:
            places.append((self.length, self.length))
        return State(done, frozenset(places), blank=True)

    def _is_complete(self, place: Place) -> bool:
        begin, end = place
        return end == len(self.bytes) if begin == self.length else begin < end and end in self.borders


class SegmentationGrammar:
    """The whole of a text without blanks, with blanks wherever one may be: `found` are its words."""

    def __init__(self, text: str, vocabulary: Vocabulary, *, closing: int):
        self.text, self.bytes, self.vocabulary, self.closing = text, text.encode(), vocabulary, closing
        self.borders, at = {0: 0}, 0
        for i, character in enumerate(text):
            at += len(character.encode())
            self.borders[at] = i + 1
            if not vocabulary.spells(character.encode()):
                raise ValueError(f"the vocabulary has no bytes for «{character}», so it cannot copy this text")
        self.start = State(copies=frozenset({(0, 0)}), blank=False)

    def options(self, state: State) -> dict[int, State]:
        [(begin, at)] = state.copies                                # the word under way
        if at == len(self.bytes):
            return {self.closing: State((*state.done, (begin, at)), ended=True)}
        after = {i: State(state.done, frozenset({(begin, to)}))
                 for i, to in self.vocabulary.steps(self.bytes, at, len(self.bytes))}
        if begin < at and at in self.borders:
            done = (*state.done, (begin, at))
            for to in range(at, min(at + self.vocabulary.longest, len(self.bytes)) + 1):
                if (i := self.vocabulary.ids.get(b" " + self.bytes[at:to])) is not None:
                    after[i] = State(done, frozenset({(at, to)}))
        return after

    def found(self, state: State) -> list[tuple[int, int]]:
        return [(self.borders[begin], self.borders[end]) for begin, end in state.done]


class Written(NamedTuple):
    """Pieces as characters of their text, and the log-probability of what was written among all that was allowed."""

    found: list[tuple[int, int]]
    score: float


@torch.inference_mode()
def constrained_greedy_decode(reader: PrefixCache, prompt: Sequence[int], grammar: Any) -> Written:
    """What the model likes best, id by id, among what a grammar (Pieces, Spaced) allows. It always comes to an end."""
    ids, state, score = list(prompt), grammar.start, 0.0
    while not state.ended:
        options = grammar.options(state)
        allowed = sorted(options)
        best = 0
        if len(allowed) > 1:                                        # of a single one, nothing has to be asked
            logs = reader.read(ids)[-1, allowed].float().log_softmax(-1)
            best = int(logs.argmax())
            score += logs[best].item()
        ids.append(allowed[best])
        state = options[allowed[best]]
    return Written(grammar.found(state), score)


def _is_border(text: str, i: int) -> bool:
    """Whether a piece may begin or end before character i: not within a word, where blanks separate words."""
    return not (0 < i < len(text) and _in_word(text[i - 1]) and _in_word(text[i]))


def _in_word(sign: str) -> bool:
    return sign.isalnum() and unicodedata.east_asian_width(sign) not in "WF"
