from itertools import product

import numpy as np
import pytest

from llama.datasets.tags import is_legal, tag_set, transitions
from llama.tasks.viterbi import viterbi_decode

SCHEMES = [(tag_set(["PER", "LOC"], "BIO"), "BIO"), (tag_set(["PER"], "BMES"), "BMES"),
           (tag_set([""], "BMES", outside=False), "BMES")]


@pytest.mark.parametrize("tags, scheme", SCHEMES)
def test_two_ways_equals_trying_all_rows(tags, scheme):
    rng = np.random.default_rng(0)
    for n in (1, 1, 2, 3, 3, 4):
        for _ in range(8):
            scores = rng.normal(size=(n, len(tags))).astype(np.float32)
            legal = [row for row in product(range(len(tags)), repeat=n) if is_legal([tags[i] for i in row], scheme)]
            best = max(legal, key=lambda row: scores[range(n), row].astype(np.float64).sum())
            assert viterbi_decode(scores, *transitions(tags, scheme)) == list(best)


def test_worked_example_a_row_is_mended_where_it_costs_least():
    tags = ["O", "B-PER", "I-PER"]                                  # best by itself: O I-PER, which is not legal
    rules = transitions(tags, "BIO")
    assert viterbi_decode(np.array([[0.0, -1.0, -9.0], [-3.0, -9.0, 0.0]]), *rules) == [1, 2]
    assert viterbi_decode(np.array([[0.0, -4.0, -9.0], [-3.0, -9.0, 0.0]]), *rules) == [0, 0]
    assert viterbi_decode(np.zeros((3, 3)), *rules) == [0, 0, 0]          # of equal ones the first


@pytest.mark.parametrize("tags, scheme", SCHEMES)
def test_property_rows_of_any_length_are_legal(tags, scheme):
    rng = np.random.default_rng(1)
    for n in (1, 2, 50, 300):
        row = viterbi_decode(rng.normal(size=(n, len(tags))), *transitions(tags, scheme))
        assert len(row) == n and is_legal([tags[i] for i in row], scheme)


def test_property_a_constant_a_token_changes_nothing():
    rng, rules = np.random.default_rng(2), transitions(SCHEMES[0][0], "BIO")
    scores = rng.normal(size=(20, 5))
    assert viterbi_decode(scores, *rules) == viterbi_decode(scores + rng.normal(size=(20, 1)), *rules)


def test_refusal_tags_of_which_no_row_is_legal():
    with pytest.raises(ValueError, match="no row of 1 tags keeps the rules"):
        viterbi_decode(np.zeros((1, 2)), *transitions(["B-PER", "E-PER"], "BMES"))
