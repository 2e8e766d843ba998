"""Learning the merges of byte-pair encoding: count the pairs of neighbours, merge the most frequent, repeat.

    words        5 × l o w    2 × l o w e r    6 × n e w
    pairs        l o: 7    o w: 7    e w: 6    n e: 6    ...
    first merge  l o, since it comes before o w; then lo w, with 7 too

Counting anew after each merge takes (merges × text) steps. Here only the pairs beside a merge are counted again, all
places of one merge at once: the text is one array of symbols, chained by position, and each symbol knows its places.
Chinese needs this more than English, for its «words» are whole clauses and nearly all different.

Words may as well consist of the ids of an older vocabulary: then the merges that follow its own are learned
(bpe_extend.py).

Try: let `_every_other` return its argument; tests/test_bpe.py then merges the a's of "aaa" twice.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import chain

import numpy as np

_NOTHING = -1           # between words, and where a symbol was merged away: belongs to no pair


def learn_merges(words: Mapping[bytes | tuple[int, ...], int], number: int, *, first: int = 256,
                 may_merge: Callable[[int, int], bool] | None = None) -> list[tuple[int, int]]:
    """The first `number` merges for words that occur so often: pairs of symbols, those of the words or first + i for
    merge i.

    first      above every symbol of the words, which bytes are below 256
    may_merge  asked once for each pair whose turn comes; one that may not is passed over

    Of pairs equally frequent the smaller is merged first, so that the same text always gives the same merges. Fewer
    come back where no pair occurs twice any more. Needs about 40 bytes of memory for each symbol of different words.
    """
    text = _Chain(words)
    counts = Counter(text.pairs())
    queue = [(-count, *pair) for pair, count in counts.items()]
    heapq.heapify(queue)
    merges = []
    while queue and len(merges) < number:
        count, left, right = heapq.heappop(queue)
        pair = (left, right)
        if counts[pair] != -count:              # merges beside it have used some up since it was queued
            heapq.heappush(queue, (-counts[pair], left, right))
            continue
        if -count < 2:
            break
        if may_merge is not None and not may_merge(left, right):
            continue                            # no longer queued: a pair only ever grows when its younger half is made
        gone, new = text.merge(left, right, first + len(merges))
        for pair, some in gone:
            counts[pair] -= some
        for pair, some in new:
            counts[pair] += some
        for pair in {pair for pair, _ in new}:
            heapq.heappush(queue, (-counts[pair], *pair))
        merges.append((left, right))
    return merges


_Counts = list[tuple[tuple[int, int], int]]     # pairs and how often they occur; a pair may stand there twice


class _Chain:
    """All different words, one after the other, as a linked list of symbols in arrays."""

    def __init__(self, words: Mapping[bytes | tuple[int, ...], int]) -> None:
        lengths = np.fromiter(map(len, words), np.int64, len(words))
        data = np.fromiter(chain.from_iterable(words), np.int64, lengths.sum())
        occurrences = np.fromiter(words.values(), np.int64, len(words))
        size = len(data) + len(words) + 1       # nothing before, between and after the words
        self.positions = np.arange(len(data)) + np.repeat(np.arange(1, len(words) + 1), lengths)
        self.symbols = np.full(size, _NOTHING, np.int64)
        self.symbols[self.positions] = data
        self.weight = np.zeros(size, np.int64)  # how often the word at this position occurs
        self.weight[self.positions] = np.repeat(occurrences, lengths)
        self.before = np.arange(size) - 1
        self.after = np.arange(size) + 1
        order = np.argsort(data, kind="stable")
        present, starts = np.unique(data[order], return_index=True)
        self.places = dict(zip(present.tolist(), np.split(self.positions[order], starts)[1:], strict=True))

    def pairs(self) -> dict[tuple[int, int], int]:
        """How often each pair occurs."""
        a, b = self.symbols[self.positions], self.symbols[self.after[self.positions]]
        inside = b != _NOTHING
        keys, which = np.unique(a[inside] << 32 | b[inside], return_inverse=True)
        totals = np.bincount(which, self.weight[self.positions[inside]], len(keys)).astype(np.int64)
        return {(key >> 32, key & 0xFFFFFFFF): total
                for key, total in zip(keys.tolist(), totals.tolist(), strict=True)}

    def merge(self, left: int, right: int, new: int) -> tuple[_Counts, _Counts]:
        """Write `new` for every `left` `right`; the pairs that this ends, and those that it makes."""
        at = self._find(left, right)
        partner = self.after[at]
        previous = self.before[at]                                          # in "abab" the second's is a partner:
        previous = previous[np.append(True, previous[1:] != partner[:-1])]  # each place counts once
        beside = self._count(previous)
        gone = [((left, right), int(self.weight[at].sum()))]
        gone += [((symbol, left), count) for symbol, count in beside]
        gone += [((right, symbol), count) for symbol, count in self._count(self.after[partner])]
        self.symbols[at], self.symbols[partner] = new, _NOTHING
        self.after[at] = self.after[partner]
        self.before[self.after[at]] = at
        self.places[new] = at
        made = [((symbol, new), count) for symbol, count in beside]
        return gone, made + [((new, symbol), count) for symbol, count in self._count(self.after[at])]

    def _count(self, places: np.ndarray) -> list[tuple[int, int]]:
        """The symbols at these places, and how often each occurs."""
        symbols = self.symbols[places]
        places, symbols = places[symbols != _NOTHING], symbols[symbols != _NOTHING]
        totals = np.bincount(symbols, self.weight[places]).astype(np.int64)
        found = np.flatnonzero(totals)
        return list(zip(found.tolist(), totals[found].tolist(), strict=True))

    def _find(self, left: int, right: int) -> np.ndarray:
        """Where the pair stands, searched from its rarer half; of overlapping ones (a a in "aaa") the first."""
        for symbol in {left, right}:
            places = self.places[symbol]
            self.places[symbol] = places[self.symbols[places] == symbol]
        if len(self.places[left]) <= len(self.places[right]):
            at = self.places[left]
            at = at[self.symbols[self.after[at]] == right]
        else:
            at = self.before[self.places[right]]
            at = at[self.symbols[at] == left]
        return self._every_other(at) if left == right else at

    def _every_other(self, at: np.ndarray) -> np.ndarray:
        """Of runs of positions that follow each other, the first, third, fifth ..."""
        index = np.arange(len(at))
        begins = np.ones(len(at), bool)
        begins[1:] = self.after[at[:-1]] != at[1:]
        return at[(index - np.maximum.accumulate(np.where(begins, index, 0))) % 2 == 0]
