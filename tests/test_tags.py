import itertools
import random

import pytest

from llama.datasets.tags import convert, is_legal, spans_of, tag_set, tags_of, transitions


def test_worked_example_one_sentence_in_both_schemes():
    bio = "B-PER I-PER I-PER O B-LOC I-LOC O B-LOC".split()
    bmes = "B-PER M-PER E-PER O B-LOC E-LOC O S-LOC".split()
    spans = [(0, 3, "PER"), (4, 6, "LOC"), (7, 8, "LOC")]
    assert spans_of(bio) == spans_of(bmes) == spans
    assert tags_of(spans, 8) == convert(bmes, "BIO") == bio
    assert tags_of(spans, 8, "BMES") == convert(bio, "BMES") == bmes
    assert spans_of(["B", "E", "S", "B", "M", "E"]) == [(0, 2, ""), (2, 3, ""), (3, 6, "")]
    assert spans_of([]) == []


def test_worked_example_of_broken_sequences():
    """As conlleval reads them: IOB1, a change of type without B, an end without a beginning."""
    assert spans_of("I-A I-A O I-A B-A".split()) == [(0, 2, "A"), (3, 4, "A"), (4, 5, "A")]
    assert spans_of("B-A I-B I-B".split()) == [(0, 1, "A"), (1, 3, "B")]
    assert spans_of("E-A E-A M-A O".split()) == [(0, 1, "A"), (1, 2, "A"), (2, 3, "A")]
    assert spans_of("B-A S-A M-A E-A".split()) == [(0, 1, "A"), (1, 2, "A"), (2, 4, "A")]
    assert spans_of("B-A B-A U-A L-A".split()) == [(0, 1, "A"), (1, 2, "A"), (2, 3, "A"), (3, 4, "A")]


def test_property_spans_come_back_from_either_scheme_and_the_rows_are_legal():
    rng = random.Random(0)
    for _ in range(300):
        length, spans, i = rng.randrange(0, 12), [], 0
        while i < length:
            end = rng.randint(i + 1, length)
            if rng.random() < 0.6:
                spans.append((i, end, rng.choice("AB")))
            i = end
        for scheme in ("BIO", "BMES"):
            row = tags_of(spans, length, scheme)
            assert spans_of(row) == spans and is_legal(row, scheme) and set(row) <= set(tag_set("AB", scheme))


@pytest.mark.parametrize("scheme", ["BIO", "BMES"])
def test_two_ways_a_row_keeps_the_table_if_writing_its_spans_anew_changes_nothing(scheme):
    known = tag_set(["A", "B"], scheme)
    first, follows, last = transitions(known, scheme)
    for ids in itertools.product(range(len(known)), repeat=3):
        row = [known[i] for i in ids]
        by_table = bool(first[ids[0]] and follows[ids[0], ids[1]] and follows[ids[1], ids[2]] and last[ids[2]])
        assert by_table == is_legal(row, scheme) == (convert(row, scheme) == row), row


def test_worked_example_the_words_of_a_text_have_no_outside():
    assert tag_set([""], "BMES", outside=False) == ["B", "M", "E", "S"]
    first, follows, last = transitions(["B", "M", "E", "S"], "BMES")
    assert first.tolist() == [True, False, False, True] and last.tolist() == [False, False, True, True]
    assert follows.tolist() == [[False, True, True, False], [False, True, True, False],
                                [True, False, False, True], [True, False, False, True]]


def test_refusal_of_what_is_no_tag_and_of_spans_that_overlap():
    for tag in ("X-PER", "PER", "B-", "O-PER", ""):
        with pytest.raises(ValueError, match=f"'{tag}' is no tag; tags are O, and one of B, I, M"):
            spans_of(["O", tag])
    with pytest.raises(ValueError, match="the tag 'I-A' is none of the scheme BMES, whose tags begin with B, M, E"):
        transitions(["O", "I-A"], "BMES")
    with pytest.raises(ValueError, match="the tag scheme 'IOB' is not known; there are BIO, BMES"):
        tags_of([], 3, "IOB")
    for spans in ([(0, 2, "A"), (1, 3, "B")], [(2, 2, "A")], [(2, 4, "A")]):
        with pytest.raises(ValueError, match="is empty, overlaps another, or goes past the end"):
            tags_of(spans, 3)
