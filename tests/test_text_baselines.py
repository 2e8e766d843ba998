import lzma
import random
from collections import Counter, defaultdict

import numpy as np
import pytest

from llama.benchmark.text_baselines import ngram_bits_per_byte, ngram_probabilities, xz_bits_per_byte

NEWS = "".join(random.Random(0).choices(["the ", "dog ", "sleeps", ". ", "A ", "fox", " runs", "你好", "，", "世界"],
                                        [1 / rank for rank in range(1, 11)], k=600))


def test_worked_example_bigrams_by_hand():
    """Train «aaab»: pairs ^a, aa twice, ab. Before a stand ^ and a, before b stands a: 2 and 1 of 3; discounts 1/2.

    p(a) = (2 - 1/2 + 1 · 1/3) / 3 = 11/18    p(b) = 5/18    p(escape) = 2/18         (uniform: a, b, escape)
    p(b | a) = (1 - 1/2 + 1 · 5/18) / 3 = 7/27, where 3 counts pairs;   after b nothing was seen: p(· | b) = p(·)
    """
    p = ngram_probabilities("aaab", "abé", order=2)
    np.testing.assert_allclose(p, [11 / 18, 7 / 27, 2 / 18 / 256**2], rtol=1e-12)
    bits = -np.log2(11 / 18 * 7 / 27 * 2 / 18) + 16
    assert ngram_bits_per_byte("aaab", "abé", order=2) == pytest.approx(bits / 4)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("history", ["", "the d", "qq", "你好q", "sleeps. A fo"])
def test_property_probabilities_sum_to_one(order, history):
    known = [ngram_probabilities(NEWS, history + character, order=order)[-1] for character in sorted(set(NEWS))]
    escape = ngram_probabilities(NEWS, history + "q", order=order)[-1] * 256
    assert sum(known) + escape == pytest.approx(1, abs=1e-12) and min(*known, escape) > 0


@pytest.mark.parametrize("order", [1, 2, 5])
def test_two_ways_numbers_and_tables_of_strings_agree(order):
    heldout = "the fox sleeps. 你是世界， é A dog"
    ours = ngram_probabilities(NEWS, heldout, order=order)
    np.testing.assert_allclose(ours, [_by_tables(NEWS, heldout, i, order) for i in range(len(heldout))], rtol=1e-9)


def _by_tables(train, heldout, i, order):
    """The paper's equations, written with dictionaries; «^» stands for what precedes the text."""
    padded = "^" * (order - 1) + train
    ends = range(order - 1, len(padded))
    kinds = {n: Counter(padded[end - n + 1 : end + 1] for end in ends) for n in range(1, order + 1)}
    text, end = padded + heldout, len(padded) + i
    p = 1 / (len(set(train)) + 1)
    for n in range(1, order + 1):
        counts = kinds[n] if n == order else Counter(kind[1:] for kind in kinds[n + 1])
        n1, n2, n3, n4 = (list(counts.values()).count(k) for k in (1, 2, 3, 4))
        discount = {0: 0, 1: 0.5, 2: 0.5, 3: 0.5}
        if n1 and n2 and n3 and n4:
            y = n1 / (n1 + 2 * n2)
            exact = {0: 0, 1: 1 - 2 * y * n2 / n1, 2: 2 - 3 * y * n3 / n2, 3: 3 - 4 * y * n4 / n3}
            discount = exact if min(list(exact.values())[1:]) > 0 else discount
        total, freed = defaultdict(int), defaultdict(float)
        for kind, count in counts.items():
            total[kind[:-1]] += count
            freed[kind[:-1]] += discount[min(count, 3)]
        h, count = text[end - n + 1 : end], counts[text[end - n + 1 : end + 1]]
        if total[h]:
            p = (count - discount[min(count, 3)] + freed[h] * p) / total[h]
    return p if text[end] in train else p / 256 ** len(text[end].encode())


def test_property_longer_memory_helps_on_text_with_structure():
    train, heldout = NEWS[:2000], NEWS[2000:]
    bits = [ngram_bits_per_byte(train, heldout, order=order) for order in (1, 2, 4)]
    assert bits[0] > bits[1] > bits[2]


def test_two_ways_xz_is_the_command_line_tool():
    """What `cat train heldout | xz -9e | wc -c` less `xz -9e < train | wc -c` gives."""
    noise = random.Random(1).randbytes(3000)
    train, heldout = noise, noise[:500]
    size = [len(lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)) for data in (train + heldout, train)]
    assert xz_bits_per_byte(train, heldout) == 8 * (size[0] - size[1]) / 500 < 1


def test_property_xz_takes_the_better_of_alone_and_after_train():
    train, heldout = random.Random(1).randbytes(3000), b"a" * 5000
    alone = len(lzma.compress(heldout, preset=9 | lzma.PRESET_EXTREME))
    assert xz_bits_per_byte(train, heldout) <= 8 * alone / 5000


def test_refusal_of_nothing_to_compare():
    for measure, empty, full in ((xz_bits_per_byte, b"", b"a"), (ngram_bits_per_byte, "", "a")):
        with pytest.raises(ValueError, match="a yardstick needs some of each"):
            measure(full, empty)
        with pytest.raises(ValueError, match="a yardstick needs some of each"):
            measure(empty, full)
    with pytest.raises(ValueError, match="order is 0"):
        ngram_bits_per_byte("a", "a", order=0)
