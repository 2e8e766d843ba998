"""Where added tokens are found in a text, and what they take along."""

import pytest

from tokenizer.added_tokens import AddedToken, Finder


def split(text, *tokens):
    return [part.content if isinstance(part, AddedToken) else [part] for part in Finder(tokens).split(text)]


@pytest.mark.parametrize("flags, text, expected", [
    ({}, "a <x> b", [["a "], "<x>", [" b"]]),
    ({"rstrip": True}, "a <x> \n\u3000b", [["a "], "<x>", ["b"]]),
    ({"lstrip": True}, "a \t<x> b", [["a"], "<x>", [" b"]]),
    ({"lstrip": True, "rstrip": True}, " <x> ", ["<x>"]),
    ({"single_word": True}, "a<x> <x>_ <x>。<x>", [["a<x> <x>_ "], "<x>", ["。"], "<x>"]),
    ({"single_word": True}, "e\u0301<x> <x>\u200d <x>Ⓐ ²<x>", [["e\u0301<x> <x>\u200d <x>Ⓐ ²"], "<x>"])])
def test_worked_example_the_flags(flags, text, expected):
    assert split(text, AddedToken("<x>", 0, **flags)) == expected


def test_worked_example_the_longest_and_the_first():
    a, b = AddedToken("<x", 0), AddedToken("<x>", 1)
    assert split("<x><x", a, b) == ["<x>", "<x"]
    assert split("", a) == [] and split("text", a) == [["text"]] and split("text") == [["text"]]


def test_property_spaces_go_to_the_first_of_two_that_would_take_them():
    right, left = AddedToken("<r>", 0, rstrip=True), AddedToken("<l>", 1, lstrip=True)
    assert [(begin, end) for begin, end, _ in Finder([right, left]).find("<r>  <l>")] == [(0, 5), (5, 8)]
