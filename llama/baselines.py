"""Yardsticks for a language model: what simple methods of old need for the same held-out text, in bits per byte.

A model's bits per byte is the length of a file that it could compress the text to; so a general compressor, and a model
that counts, are fair rivals, provided that they too know the training text. A network that has learned nothing beyond
frequent strings does not beat them.

    xz        repeats of the training text and within the held-out text
    n-gram    how often each character followed the four before it, smoothed by Kneser and Ney's method

Try: give `ngram_bits_per_byte` order=2 and order=8 on a text of yours; tests/test_baselines.py
(test_property_probabilities_sum_to_one) holds for every order, the number of bits has its lowest point between.
"""


import numpy as np


def xz_bits_per_byte(train: bytes, heldout: bytes) -> float:
    """Bits that `xz -9e` spends per byte of `heldout`, on it alone or after `train`, whichever is less.

    After `train`: xz of both together less xz of `train`. The window reaches over all of it.
    """
    alone = _xz_size(heldout)
    after = _xz_size(train + heldout) - _xz_size(train)
    return 8 * min(alone, after) / len(heldout)


def ngram_bits_per_byte(train: str, heldout: str, *, order: int = 5) -> float:
    """Bits per byte of `heldout` under an n-gram model of characters counted in `train` (`ngram_probabilities`)."""
    bits = -np.log2(ngram_probabilities(train, heldout, order=order)).sum()
    return float(bits) / len(heldout.encode())


def ngram_probabilities(train: str, heldout: str, *, order: int = 5) -> np.ndarray:
    """p(character | the order - 1 characters before it) for each character of `heldout`, read as going on from `train`.

    Interpolated modified Kneser-Ney (Chen and Goodman, «An Empirical Study of Smoothing Techniques for Language
    Modeling», TR-10-98, section 3, eqs. 24-26): with h the characters before w, h' the same without the first,

        p(w | h) = (c(h w) - D(c(h w))) / c(h) + γ(h) p(w | h')             γ(h) = sum of the D(c(h v)) over v, / c(h)

    c counts occurrences at the highest order, and below it the different characters that occur before h w: «Francisco»
    is frequent, but after one word alone. Below order 1 stands the uniform distribution over the characters of `train`
    and an escape; a character not in `train` costs the escape and 8 bits for each of its bytes in UTF-8. So this is
    the length of a code that a receiver who has `train` can decode.

    Nothing is looked up in tables of strings: position by position, each n-gram is numbered among the different ones
    of its length, from the number of its first n - 1 characters and its last. Costs some 100 bytes a character.

    ->  (characters of heldout,) float64

    Raises ValueError if `train` is shorter than `order`.
    """
    if len(train) < order:
        raise ValueError(f"the training text has {len(train)} characters; an n-gram of order {order} needs as many")
    text = np.frombuffer((train + heldout).encode("utf-32-le"), np.uint32)
    known, ids = np.unique(text[: len(train)], return_inverse=True)
    escape = len(known)
    found = np.minimum(np.searchsorted(known, text[len(train) :]), escape - 1)
    unseen = known[found] != text[len(train) :]
    chars = np.concatenate([ids, np.where(unseen, escape, found)])  # (positions,)
    ...
