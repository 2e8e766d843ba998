"""Yardsticks for a language model: what simple methods of old need for the same held-out text, in bits per byte.

A model's bits per byte are the length of the file that it could compress the text to. So a compressor, and a model that
only counts, are fair rivals, provided that they know the training text too: a network that has learned nothing beyond
frequent strings does not beat them.

    xz        finds repetitions, of the training text and within the held-out text
    n-gram    knows how often each character followed the four before it

Try: count in `ngram_probabilities` occurrences at every order (the `if` of `counts` always true): the worked example of
tests/test_text_baselines.py fails, and 5-grams of news text need 4 % more bits.
"""

import lzma

import numpy as np

_XZ = 9 | lzma.PRESET_EXTREME
_XZ_WINDOWS = 2**26, 2**30 + 2**29                                  # bytes: that of xz -9, and the largest there is


def xz_bits_per_byte(train: bytes, heldout: bytes) -> float:
    """Bits that `xz -9e` spends per byte of `heldout`, on it alone or on it after `train`, whichever is less.

    After `train`: the size of both together less that of `train`. The window grows until it holds both.
    """
    _need(train, heldout)
    alone = _xz_size(heldout)
    after = _xz_size(train + heldout) - _xz_size(train)
    return 8 * min(alone, after) / len(heldout)


def ngram_bits_per_byte(train: str, heldout: str, *, order: int = 5) -> float:
    """Bits per byte of `heldout` under a model of characters, `order` at a time, that has counted those of `train`."""
    bits = -np.log2(ngram_probabilities(train, heldout, order=order)).sum()
    return float(bits) / len(heldout.encode())


def ngram_probabilities(train: str, heldout: str, *, order: int = 5) -> np.ndarray:
    """p(w | h), h the order - 1 characters before w, for each character of `heldout`, which goes on where `train` ends.

    Interpolated Kneser-Ney with three discounts (Chen and Goodman, «An Empirical Study of Smoothing Techniques for
    Language Modeling», Harvard TR-10-98, section 3). With h' for h without its first character:

        p(w | h) = (c(h w) - D(c(h w)) + freed(h) p(w | h')) / total(h)

        total(h) = sum of c(h v) over all v,  freed(h) = sum of D(c(h v)) over all v;  p(w | h') alone if total(h) = 0

    c counts occurrences at the highest order; below, the different characters that stand before h w: «Francisco» is
    frequent, but after one word alone, so it is unlikely after a new one. Below order 1 stands the uniform distribution
    over the characters of `train` and an escape: a character not in `train` costs the escape and then 8 bits for every
    byte of its UTF-8. So this is the length of a code that whoever has `train` can decode.

    Every n-gram is numbered among those of its length, from the number of its first n - 1 characters and its last one.
    Then arrays do what tables of strings would: 2 million characters take 2 s and 0.3 GB.

    ->  (characters of heldout,) float64
    """
    _need(train, heldout)
    if order < 1:
        raise ValueError(f"order is {order}; an n-gram has at least 1 character")
    text = np.frombuffer((train + heldout).encode("utf-32-le"), np.uint32)
    alphabet = np.unique(text[: len(train)])
    escape, nothing = len(alphabet), len(alphabet) + 1              # «nothing» stands before the beginning of the text
    chars = np.searchsorted(alphabet, text).clip(max=escape - 1)
    chars[alphabet[chars] != text] = escape
    chars = np.concatenate([np.full(order - 1, nothing), chars])    # (positions,), as all that follows
    begin, end = order - 1, order - 1 + len(train)

    ngrams, kinds = [np.zeros_like(chars)], [np.empty(0)]           # by length: number of the n-gram that ends here,
    for _ in range(order):                                          # and where each kind of train is met first
        keys = _before(ngrams[-1]) * (nothing + 1) + chars
        _, first, number = np.unique(keys, return_index=True, return_inverse=True)
        ngrams.append(number)
        kinds.append(first[(begin <= first) & (first < end)])

    p = np.full(len(heldout), 1 / (escape + 1))
    for n in range(1, order + 1):
        counts = np.bincount(ngrams[n][begin:end] if n == order else ngrams[n][kinds[n + 1]],
                             minlength=ngrams[n].max() + 1)
        discount = _discounts(counts)[counts.clip(max=3)]
        history = _before(ngrams[n - 1])
        numbers = ngrams[n][kinds[n]]
        total = np.bincount(history[kinds[n]], counts[numbers], minlength=history.max() + 1)[history[end:]]
        freed = np.bincount(history[kinds[n]], discount[numbers], minlength=history.max() + 1)[history[end:]]
        kept = (counts - discount)[ngrams[n][end:]]
        p = np.where(total > 0, (kept + freed * p) / total.clip(min=1), p)

    new = text[len(train) :]
    sizes = 1 + (new > 0x7F) + (new > 0x7FF) + (new > 0xFFFF)       # bytes in UTF-8
    return np.where(chars[end:] == escape, p / 256.0**sizes, p)


def _before(numbers: np.ndarray) -> np.ndarray:
    """At each position what stood one position earlier."""
    return np.concatenate([[0], numbers[:-1]])


def _discounts(counts: np.ndarray) -> np.ndarray:
    """D for counts of 0, 1, 2, and 3 or more, from n[k], how many kinds were met k times (section 3 of the same paper).

    D(k) = k - (k + 1) y n[k+1] / n[k]  with  y = n[1] / (n[1] + 2 n[2])

    Texts too small to tell, a few hundred characters, get 1/2 for all.
    """
    n = np.bincount(counts.clip(max=5), minlength=6)
    if n[1:5].all():
        y = n[1] / (n[1] + 2 * n[2])
        discounts = np.array([0.0, *(k - (k + 1) * y * n[k + 1] / n[k] for k in (1, 2, 3))])
        if discounts[1:].min() > 0:                                 # without any, nothing new would be possible
            return discounts
    return np.array([0.0, 0.5, 0.5, 0.5])


def _xz_size(data: bytes) -> int:
    window = min(max(len(data), _XZ_WINDOWS[0]), _XZ_WINDOWS[1])
    return len(lzma.compress(data, filters=[{"id": lzma.FILTER_LZMA2, "preset": _XZ, "dict_size": window}]))


def _need(train: str | bytes, heldout: str | bytes) -> None:
    if not train or not heldout:
        raise ValueError(f"the training text has {len(train)} and the held-out text {len(heldout)} characters; "
                         "a yardstick needs some of each")
