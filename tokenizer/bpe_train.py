"""Learning the merges of byte-pair encoding: count the pairs of neighbours, merge the most frequent, repeat.

    words        5 × l o w    2 × l o w e r    6 × n e w
    pairs        l o: 7    o w: 7    e w: 6    n e: 6    ...
    first merge  l o, since it comes before o w; then lo w, with 7 too

Counting anew after each merge takes (merges × text) steps. Here only the pairs beside a merge are counted again, all
places of one merge at once: the text is one array of symbols, chained by position, and each symbol knows its places.
Chinese needs this more than English, for its «words» are whole clauses and nearly all different.

Try: let `_every_other` return its argument; tests/test_bpe.py then merges the a's of "aaa" twice.
"""

import heapq
from collections import Counter

import numpy as np

_NOTHING = -1           # between words, and where a symbol was merged away: belongs to no pair


def learn_merges(words: dict[bytes, int], number: int) -> list[tuple[int, int]]:
    """The first `number` merges for words that occur so often: pairs of symbols, a byte or 256 + i for merge i.

    Of pairs equally frequent the smaller is merged first, so that the same text always gives the same merges. Fewer
    come back where no pair occurs twice any more. Needs about 40 bytes of memory for each byte of different words.
    """
    chain = _Chain(words)
    counts = Counter(chain.count(chain.positions))
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
        gone, new = chain.merge(left, right, 256 + len(merges))
        counts.subtract(gone)
        counts.update(new)
        for pair in new:                        # a pair only ever grows in the step that makes its younger half
            heapq.heappush(queue, (-counts[pair], *pair))
        merges.append((left, right))
    return merges


class _Chain:
    """All different words, one after the other, as a linked list of symbols in arrays."""

    def __init__(self, words: dict[bytes, int]) -> None:
        data = np.frombuffer(b"".join(words), np.uint8)
        lengths = np.fromiter(map(len, words), np.int64, len(words))
        occurrences = np.fromiter(words.values(), np.int64, len(words))
        size = len(data) + len(words) + 1       # nothing before, between and after the words
        self.positions = np.arange(len(data)) + np.repeat(np.arange(1, len(words) + 1), lengths)
        self.symbols = np.full(size, _NOTHING, np.int64)
        self.symbols[self.positions] = data
        self.weight = np.zeros(size, np.int64)  # how often the word at this position occurs
        self.weight[self.positions] = np.repeat(occurrences, lengths)
        self.before = np.arange(size) - 1
        self.after = np.arange(size) + 1
        self.places = {int(byte): self.positions[data == byte] for byte in np.unique(data)}

    def count(self, left: np.ndarray) -> dict[tuple[int, int], int]:
        """How often each pair occurs, among those whose left halves stand at these positions."""
        a, b = self.symbols[left], self.symbols[self.after[left]]
        pairs = (a != _NOTHING) & (b != _NOTHING)
        keys, which = np.unique(a[pairs] << 32 | b[pairs], return_inverse=True)
        totals = np.bincount(which, self.weight[left[pairs]], len(keys)).astype(np.int64)
        return {(key >> 32, key & 0xFFFFFFFF): total
                for key, total in zip(keys.tolist(), totals.tolist(), strict=True)}

    def merge(self, left: int, right: int, new: int) -> tuple[dict, dict]:
        """Write `new` for every `left` `right`; the counts of the pairs that this ends, and of those that it makes."""
        at = self._find(left, right)
        partner = self.after[at]
        previous = self.before[at]                                          # in "abab" the second's is a partner:
        previous = previous[np.append(True, previous[1:] != partner[:-1])]  # each place counts once
        gone = self.count(np.concatenate([previous, at, partner]))
        self.symbols[at], self.symbols[partner] = new, _NOTHING
        self.after[at] = self.after[partner]
        self.before[self.after[at]] = at
        self.places[new] = at
        return gone, self.count(np.concatenate([previous, at]))

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
