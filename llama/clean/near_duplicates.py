"""Texts that are nearly the same as one that came before, found without comparing all with all.

Two texts are alike as much as their shingles are (llama/datasets/split.py): J = |A ∩ B| / |A ∪ B|. Of h random orders
of all shingles, the share in which the same one comes first of A and of B estimates J (MinHash: Broder 1997, «On the
resemblance and containment of documents», eq. 3; its error is √(J (1 - J) / h)). The h signs of a text are cut into b
bands of r: a text is looked at beside another if a band of theirs is equal, which happens with probability
1 - (1 - J^r)^b, a step near (1/b)^(1/r) (Leskovec, Rajaraman, Ullman, «Mining of Massive Datasets», section 3.4.2).

What is kept of each text are its signs, h · 4 bytes, and a number for each band: about 2 kB, so that a million texts
take 2 GB. Where all pairs are to be found, none by chance, llama/datasets/split.py finds them.

Try: take one band of all signs; tests/test_near_duplicates.py (test_property_one_character_in_a_hundred_is_found)
fails: only what is the same is found.
"""

import hashlib

import numpy as np

from llama.datasets.split import shingles

SIGNS = 128                                                         # h


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
        self._factors, self._offsets = draw.integers(0, 1 << 64, (2, SIGNS), dtype=np.uint64)
        self._kept: list[np.ndarray] = []
        self._bands: dict[bytes, list[int]] = {}

    def signs(self, text: str) -> np.ndarray:
        """(h,) uint32: of each order the first of the text's shingles."""
        pieces = np.fromiter((int.from_bytes(hashlib.blake2b(piece.encode("utf-8", "surrogatepass"),
                                                             digest_size=4).digest(), "little")
                              for piece in shingles(text)), dtype=np.uint64)
        orders = pieces[:, None] * self._factors + self._offsets   # (shingles, h) modulo 2^64; the upper half is mixed
        return (orders.min(0) >> np.uint64(32)).astype(np.uint32)

    def seen(self, text: str) -> bool:
        signs = self.signs(text)
        bands = [hashlib.blake2b(bytes([number]) + band.tobytes(), digest_size=8).digest()
                 for number, band in enumerate(signs.reshape(-1, self.rows))]
        near = {i for band in bands for i in self._bands.get(band, ())}
        if any((self._kept[i] == signs).mean() >= self.similar for i in near):
            return True
        for band in bands:
            self._bands.setdefault(band, []).append(len(self._kept))
        self._kept.append(signs)
        return False
