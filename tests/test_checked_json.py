"""What a stranger's JSON may say: read, or refused with the place, the field, the value and what it must be."""

import re

import pytest

from tokenizer.checked_json import (
    ANYTHING,
    FLAG,
    NULL,
    TEXT,
    check_fields,
    check_value,
    either,
    listed,
    mapped,
    number,
    one_of,
    read_object,
    read_value,
    record,
    whole,
)

FIELDS = {"size": whole(1, 9), "rate": number(above=0), "ids": either(whole(), listed(whole())), "on": FLAG,
          "kind": one_of("a", 1), "names": mapped(TEXT), "token": record({"id": whole()}, {"special": FLAG})}


def test_worked_example_what_fits_is_left_as_it_is():
    values = {"size": 9, "rate": 1, "ids": [0, 5], "on": False, "kind": "a", "names": {"x": "y"}, "unknown": object(),
              "token": {"id": 0, "special": None, "more": 1.5}}
    check_fields(values, FIELDS, "a.json")
    check_fields(dict.fromkeys(FIELDS), FIELDS, "a.json")           # NULL says the same as nothing
    assert check_value([1, None], listed(either(whole(), NULL)), "a.json") == [1, None]
    assert check_value("x", ANYTHING, "a.json") == "x"


@pytest.mark.parametrize("values, words", [
    ({"size": 0}, "a.json: size is 0; it must be a whole number from 1 to 9"),
    ({"size": True}, "size is True; it must be a whole number"),
    ({"size": 2.0}, "size is 2.0"),
    ({"rate": 0}, "rate is 0; it must be a number above 0"),
    ({"rate": float("nan")}, "rate is nan"),
    ({"rate": 10**400}, "rate is 1000"),
    ({"rate": True}, "rate is True"),
    ({"ids": -1}, "ids is -1; it must be a whole number from 0 to 2,147,483,647 or a list, each a whole number"),
    ({"ids": [0, "1"]}, "ids[1] is '1'; it must be a whole number from 0 to 2,147,483,647"),
    ({"on": 0}, "on is 0; it must be true or false"),
    ({"kind": True}, "kind is True; it must be one of 'a', 1"),
    ({"names": []}, "names is []; it must be an object, each value a text"),
    ({"names": {"x": 5}}, "names['x'] is 5; it must be a text"),
    ({"token": {}}, "token is {}; it must be an object with id"),
    ({"token": {"id": None}}, "token.id is None; it must be a whole number"),
    ({"token": {"id": 1, "special": "no"}}, "token.special is 'no'; it must be true or false"),
])
def test_refusal_what_is_of_another_type_or_out_of_range(values, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        check_fields(values, FIELDS, "a.json")


def test_refusal_of_the_content_of_a_whole_file():
    with pytest.raises(ValueError, match="a.json: the content is 5; it must be a list, each a text"):
        check_value(5, listed(TEXT), "a.json")
    with pytest.raises(ValueError, match="a.json: key is '١'; it must be a number"):      # a digit, but none of ours
        check_value({"١": "x"}, mapped(TEXT, lambda key: key.isascii() and key.isdecimal(), "a number"), "a.json")


def test_worked_example_bytes_to_values():
    assert read_object(b'\xef\xbb\xbf{"a": "\\ud83d\\ude00"}', "a.json") == {"a": "😀"}
    assert read_value("[1, null]", "a.json") == [1, None]


@pytest.mark.parametrize("content, words", [
    (b'{"a": 1,\n oops}', "a.json, line 2: not JSON (Expecting property name"),
    (b"", "a.json, line 1: not JSON"),
    (b'{"a": "\xff"}', "a.json: not JSON in UTF-8 (byte 8)"),
    (b"[" * 100_000, "a.json: not JSON that can be read: nested too deeply"),
    (b'{"a": ' + b"1" * 5000 + b"}", "a.json: not JSON that can be read"),
    (b'{"a": "\\ud83d"}', "a.json: a text in it holds half a character, U+D83D"),
    (b'{"\\uDE00": 1}', "half a character, U+DE00"),
    (b"[1]", "a.json: holds a JSON list, but must hold an object"),
])
def test_refusal_of_what_is_no_json_object(content, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        read_object(content, "a.json")
