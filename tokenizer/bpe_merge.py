"""Merging neighbours, the best pair first: the loop of byte-pair encoding, whatever a symbol is and a pair is worth.

    ranks    lo 1    we 0    low 2
    lower    l o w e r  ->  l o we r  ->  lo we r

bpe.py merges ids by the order in which pairs were learned, spm_pure.py merges strings by the score of what they make.
Both keep what they found out about a word: texts repeat their words, and that is what makes MBs a second.

Try: leave out the test of `symbols[i]` and `symbols[j]`; tests/test_bpe.py
(test_two_ways_agree_heap_and_search_anew) fails, for pairs are merged whose halves have gone.
"""

import heapq
from collections.abc import Callable
from typing import TypeVar

Symbol = TypeVar("Symbol", int, str)


def merge(symbols: list[Symbol], rank: Callable[[Symbol, Symbol], float | None],
          join: Callable[[Symbol, Symbol], Symbol]) -> list[Symbol]:
    """Merge the pair of neighbours of lowest rank, the leftmost first among equals, until none has a rank.

    rank   what a pair of symbols is worth, None for one that does not merge; asked once for each pair that arises
    join   the symbol that a pair becomes

    O(n log n) for n symbols. They are a linked list by position, so that a merge moves nothing; pairs wait in a heap
    and are looked at again when they come up, for a neighbour may have been merged away meanwhile. Searching for the
    best pair anew after each merge is as fast for words, but quadratic: a megabyte of spaces would take a day.
    """
    symbols, end = symbols.copy(), len(symbols)
    after = list(range(1, end + 1))
    before = list(range(-1, end - 1))
    heap = []
    for i in range(end - 1):
        if (worth := rank(symbols[i], symbols[i + 1])) is not None:
            heap.append((worth, i, symbols[i], symbols[i + 1]))
    heapq.heapify(heap)
    while heap:
        _, i, left, right = heapq.heappop(heap)
        j = after[i]
        if j == end or symbols[i] != left or symbols[j] != right:
            continue
        symbols[i], symbols[j] = join(left, right), None
        after[i] = after[j]
        if after[i] < end:
            before[after[i]] = i
            if (worth := rank(symbols[i], symbols[after[i]])) is not None:
                heapq.heappush(heap, (worth, i, symbols[i], symbols[after[i]]))
        if (previous := before[i]) >= 0 and (worth := rank(symbols[previous], symbols[i])) is not None:
            heapq.heappush(heap, (worth, previous, symbols[previous], symbols[i]))
    return [symbol for symbol in symbols if symbol is not None]


class WordCache(dict):
    """word -> its ids: a cache before `encode`."""

    MOST = 1 << 18
    LONGEST = 64            # characters; longer ones hardly return

    def __init__(self, encode: Callable[[str], list[int]]) -> None:
        super().__init__()
        self._encode = encode

    def __missing__(self, word: str) -> list[int]:
        ids = self._encode(word)
        if len(word) <= self.LONGEST:
            if len(self) >= self.MOST:
                self.clear()
            self[word] = ids
        return ids
