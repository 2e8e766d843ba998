"""Texts that are nearly the same as one that came before, found without comparing all with all.

Two texts are alike as much as their shingles are (llama/datasets/split.py): J = |A ∩ B| / |A ∪ B|. Of h random orders
of all shingles, the share in which the same one comes first of A and of B estimates J (MinHash: Broder 1997, «On the
resemblance and containment of documents», eq. 3; its error is √(J (1 - J) / h)). The h signs of a text are cut into b
bands of r: a text is looked at beside another if a band of theirs is equal, which happens with probability
1 - (1 - J^r)^b, a step near (1/b)^(1/r) (Leskovec, Rajaraman, Ullman, «Mining of Massive Datasets», section 3.4.2).

What is kept of each text are its signs, h · 4 bytes, and a number for each band: some 2 kB, so that a million texts
take 2 GB. Where all pairs are to be found, none by chance, llama/datasets/split.py finds them.

Try: take one band of all signs; tests/test_near_duplicates.py (test_property_one_character_in_a_hundred_is_found)
fails: only what is the same is found.
"""

import numpy as np

from llama.datasets.split import SHINGLE, letters_and_digits

SIGNS = 128                                                         # h
AT_ONCE = 1024                                                      # shingles; their orders, 0.5 MB, fit in a cache
_PRIME = np.uint64(0x9E3779B97F4A7C15)                              # 2^64 over the golden ratio, made odd


class NearDuplicates:
    """`seen(text)` says whether a text before this one was alike by `similar` or more, and remembers it if not.

    Raises ValueError for a `similar` that is not above 0 and at most 1.
    """

    def __init__(self, similar: float = 0.8, *, seed: int = 0):
        if not 0 < similar <= 1:
            raise ValueError(f"similar is {similar}; it is a share above 0, up to 1")
        self.similar = similar
        self.rows = max((r for r in range(1, SIGNS + 1) if SIGNS % r == 0 and (r / SIGNS) ** (1 / r) <= similar * 0.9),
                        default=1)
        draw = np.random.default_rng(seed)
        self._factors, self._offsets = draw.integers(0, 1 << 32, (2, SIGNS, 1), dtype=np.uint32)
        self._factors |= np.uint32(1)                               # or two shingles could be one
        self._weights = draw.integers(0, 1 << 64, (SIGNS // self.rows, self.rows), dtype=np.uint64)
        self._kept, self._count = np.empty((64, SIGNS), np.uint32), 0
        self._first: dict[int, int] = {}                            # of a band: the first text that has it
        self._others: dict[int, list[int]] = {}                     # and all behind

    def signs(self, text: str) -> np.ndarray:
        """(h,) uint32: of each order the first of the text's shingles."""
        shingles = _numbers(text)
        least = np.full(SIGNS, np.iinfo(np.uint32).max, np.uint32)
        for begin in range(0, len(shingles), AT_ONCE):
            orders = self._factors * shingles[begin : begin + AT_ONCE] + self._offsets      # (h, AT_ONCE) modulo 2^32
            np.minimum(least, orders.min(1), out=least)
        return least

    def seen(self, text: str) -> bool:
        signs = self.signs(text)
        bands = (signs.reshape(-1, self.rows).astype(np.uint64) * self._weights + _PRIME).sum(1).tolist()
        near = {i for band in bands if band in self._first for i in (self._first[band], *self._others.get(band, ()))}
        if near and (self._kept[sorted(near)] == signs).mean(1).max() >= self.similar:
            return True
        for band in bands:
            if self._first.setdefault(band, self._count) != self._count:
                self._others.setdefault(band, []).append(self._count)
        if self._count == len(self._kept):
            self._kept = np.concatenate([self._kept, np.empty_like(self._kept)])
        self._kept[self._count] = signs
        self._count += 1
        return False


def _numbers(text: str) -> np.ndarray:
    """(shingles,) uint32: a number for each shingle of a text, the same in all texts; each once."""
    codes = np.frombuffer(letters_and_digits(text).encode("utf-32-le", "surrogatepass"), "<u4").astype(np.uint64)
    codes = np.pad(codes, (0, max(0, SHINGLE - len(codes))))
    numbers = np.zeros(len(codes) - SHINGLE + 1, np.uint64)
    for i in range(SHINGLE):
        numbers = (numbers + codes[i : i + len(numbers)]) * _PRIME
    return np.unique(((numbers ^ (numbers >> np.uint64(29))) * _PRIME >> np.uint64(32)).astype(np.uint32))
