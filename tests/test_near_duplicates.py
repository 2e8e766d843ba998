"""Texts that are nearly the same as one before are found; others are not."""

import random

import pytest

from llama.clean.near_duplicates import NearDuplicates
from llama.datasets.split import shingles

CHARACTERS = [chr(code) for code in range(0x4E00, 0x5200)]


def _text(draw: random.Random, length: int = 400) -> str:
    return "".join(draw.choices(CHARACTERS, k=length))


def _changed(text: str, places: list[int], draw: random.Random) -> str:
    signs = list(text)
    for place in places:
        signs[place] = draw.choice(CHARACTERS)
    return "".join(signs)


def test_property_one_character_in_a_hundred_is_found():
    draw, near = random.Random(0), NearDuplicates(0.8)
    texts = [_text(draw) for _ in range(50)]
    assert not any(near.seen(text) for text in texts)
    assert all(near.seen(_changed(text, [50, 150, 250, 350], draw)) for text in texts)
    assert not any(near.seen(_changed(text, list(range(0, 400, 8)), draw)) for text in texts)    # one in eight


def test_two_ways_equal_signs_estimate_the_jaccard_similarity():
    draw, near = random.Random(1), NearDuplicates()
    for share in (0.1, 0.4, 0.8):
        text = _text(draw, 2000)
        other = text[: int(2000 * share)] + _text(draw, 2000 - int(2000 * share))
        a, b = set(shingles(text)), set(shingles(other))
        assert (near.signs(text) == near.signs(other)).mean() == pytest.approx(len(a & b) / len(a | b), abs=0.12)


@pytest.mark.parametrize("similar", [0.0, -1.0, 1.5, float("nan")])
def test_refusal_of_a_share_that_is_none(similar):
    with pytest.raises(ValueError, match="it is a share above 0"):
        NearDuplicates(similar)
