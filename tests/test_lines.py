import json

import pytest

from llama.datasets.lines import json_records, lines_as_they_come, numbered_lines, text_field
from llama.datasets.reading import Reading


def _file(tmp_path, content, name="f.jsonl"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_worked_example_lines_have_numbers_and_lose_mark_and_ends(tmp_path):
    path = _file(tmp_path, b"\xef\xbb\xbfone\r\n\ntwo \r\nthree")
    assert list(numbered_lines(path)) == [(1, "one"), (2, ""), (3, "two "), (4, "three")]


def test_property_only_a_line_feed_ends_a_line(tmp_path):
    text = "a\u2028b\x0bc\x85d\re"
    assert list(numbered_lines(_file(tmp_path, text + "\nf"))) == [(1, text), (2, "f")]


def test_two_ways_a_stream_that_comes_in_pieces_holds_the_lines_of_the_file(tmp_path):
    class Pieces:
        def __init__(self, content, size):
            self.pieces = [content[i : i + size] for i in range(0, len(content), size)]

        def read1(self, size):
            return self.pieces.pop(0) if self.pieces else b""

    for content in ("\ufeff一\r\n\n二 \nthree", "a\nb\n", "x"):
        expected = list(numbered_lines(_file(tmp_path, content)))
        for size in (1, 2, 5, 99):
            some = list(lines_as_they_come(Pieces(content.encode(), size), Reading(), "stdin"))
            assert [line for each in some for line in each] == expected
    assert some == [[(1, "x")]]
    with pytest.raises(ValueError, match="stdin: utf-16 ends lines with several bytes"):
        next(lines_as_they_come(Pieces(b"a", 1), Reading("utf-16"), "stdin"))


def test_two_ways_a_list_and_one_a_line_give_the_same_records(tmp_path):
    lines = _file(tmp_path, '\n{"a": 1}\n\n{"a": [2, "]"]}\n', "l.jsonl")
    items = _file(tmp_path, '\ufeff\n[{"a":\n1},\n\n{"a": [2, "]"]}  \n]\n', "l.json")
    assert list(json_records(lines)) == [(f"{lines}:2", {"a": 1}), (f"{lines}:4", {"a": [2, "]"]})]
    assert list(json_records(items)) == [(f"{items}:2", {"a": 1}), (f"{items}:5", {"a": [2, "]"]})]


def test_two_ways_objects_over_several_lines_are_those_of_one_a_line(tmp_path):
    """As json.dumps(…, indent=1) prints them, one alone or one after the other."""
    records = [{"a": 1}, {"a": {"b": [2, "}"]}}, {"a": 3}]
    lines = _file(tmp_path, "\n".join(map(json.dumps, records)), "l.jsonl")
    pretty = _file(tmp_path, "\n".join(json.dumps(record, indent=1) for record in records), "l.json")
    assert [record for _, record in json_records(pretty)] == [record for _, record in json_records(lines)] == records
    assert [place.rpartition(":")[2] for place, _ in json_records(pretty)] == ["1", "4", "12"]
    assert list(json_records(_file(tmp_path, json.dumps(records[1], indent=1)))) == [
        (str(tmp_path / "f.jsonl:1"), records[1])]


@pytest.mark.parametrize(("content", "words"), [
    (b"", "f.jsonl: the file is empty"),
    (b'{"a": \n{"a": 1}\n', "f.jsonl:1: this is not JSON"),
    (b'{\n"a": 1\n}\n{\n"a" 2\n}\n', "f.jsonl:5: this is not JSON: Expecting ':' delimiter at column 5"),
    (b"\xef\xbb\xbf", "f.jsonl: the file holds nothing but blank lines"),
    (b" \n\n", "f.jsonl: the file holds nothing but blank lines"),
    (b'{"a": 1}\n{"a": "\xff"}', "f.jsonl:2: byte 8 of this line is not UTF-8; save it as UTF-8 text"),
    (b'{"a": 1}\n{"a": \n', "f.jsonl:2: this is not JSON: Expecting value at column 7"),
    (b'{"a": 1}\n\n"text"', "f.jsonl:3: this is a JSON str; an object, {…}, is expected"),
    (b"[" * 100_000, "f.jsonl:1: this JSON cannot be read: it is nested too deeply"),
    (b'{"a": ' + b"1" * 5000 + b"}", "f.jsonl:1: this JSON cannot be read: it is nested too deeply, or holds a number"),
    (b"[ ]", "f.jsonl: the list holds no records"),
    (b'[{"a": 1},\n{"a": 2}\n{"a": 3}]', "f.jsonl:3: the list of records should end here or go on after a comma"),
    (b'[{"a": 1},\n{"a": 2}\n', "f.jsonl:2: the list of records should end here .* cut off"),
    (b'[{"a": 1},\n{"a": 2}]\n[]', "f.jsonl:2: the list of records should end here"),
    (b'[{"a": 1},\n{"a": \n', "f.jsonl:2: this is not JSON: Expecting value at column 7"),
    (b'[{"a": 1},\n3]', "f.jsonl:2: this is a JSON int"),
])
def test_refusal_names_file_and_line(tmp_path, content, words):
    with pytest.raises(ValueError, match=words):
        list(json_records(_file(tmp_path, content)))


def test_refusal_of_a_missing_file_and_of_a_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.txt: there is no such file; check the name"):
        list(numbered_lines(tmp_path / "nowhere.txt"))
    with pytest.raises(ValueError, match="this is a folder; name the files in it"):
        list(numbered_lines(tmp_path))


def test_refusal_of_fields_that_hold_no_text():
    assert text_field({"text": "你好"}, "text", "f:3") == "你好"
    with pytest.raises(ValueError, match="f:3: the field 'text' is missing; the record has txt, id"):
        text_field({"txt": "", "id": 1}, "text", "f:3")
    with pytest.raises(ValueError, match="f:3: the field 'text' is None; it must be a text"):
        text_field({"text": None}, "text", "f:3")
    with pytest.raises(ValueError, match=r"f:3: the field 'text' holds half a character, '\\ud83d'"):
        text_field({"text": "a\ud83d"}, "text", "f:3")
