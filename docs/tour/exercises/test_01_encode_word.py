import random

from docs.tour.exercises.encode_word import encode_word
from tokenizer.bpe_merge import merge


def test_worked_example_the_pair_learned_first_goes_first():
    merges = [(ord("w"), ord("e")), (ord("l"), ord("o")), (257, ord("w"))]          # w e, l o, lo w
    assert encode_word(b"lower", merges) == [257, 256, ord("r")]                    # lo we r, not low e r
    assert encode_word(b"low", merges) == [258]


def test_worked_example_equal_pairs_are_joined_from_the_left():
    assert encode_word(b"aaa", [(97, 97)]) == [256, 97]


def test_two_ways_equals_the_tokenizer_s():
    draw = random.Random(0)
    merges = [(97, 98), (98, 99), (256, 99), (97, 97), (259, 256)]
    rank = {pair: i for i, pair in enumerate(merges)}
    for _ in range(50):
        word = bytes(draw.choices(b"abc", k=12))
        assert encode_word(word, merges) == merge(list(word), lambda a, b: rank.get((a, b)),
                                                  lambda a, b: 256 + rank[a, b])
