import pytest

from llama.datasets.columns import ColumnDataset
from llama.datasets.language_modeling import LanguageModelingDataset
from llama.datasets.lines import json_records, numbered_lines
from llama.datasets.reading import Reading
from llama.datasets.records import RecordDataset
from llama.datasets.squad import SquadDataset


def _file(tmp_path, content, name):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_refusal_what_is_wrong_is_refused_unless_it_is_skipped(tmp_path, caplog):
    with pytest.raises(ValueError, match=r"^f:1: no .--skip-bad goes on without it.$"):
        Reading(skip_bad=False).wrong("f:1: no")
    with pytest.raises(ValueError, match=r"^f:1: no$"):             # where no flag is there to be named
        Reading().wrong("f:1: no")
    reading = Reading(skip_bad=True)
    assert list(reading.each(int, [("1",), ("a",), ("2",), ("b",), ("c",), ("d",)])) == [1, 2]
    reading.tell(tmp_path)
    assert f"{tmp_path}: 4 left out by --skip-bad, the first: invalid literal" in caplog.text
    assert caplog.text.count("invalid literal") == 3
    caplog.clear()
    reading.tell(tmp_path)
    assert not caplog.records


def test_worked_example_a_subclass_reads_what_cannot_be_decoded(tmp_path):
    class Latin(Reading):
        def undecodable(self, line, what):
            self.note(what.partition(": byte ")[0], what)
            return line.decode("latin-1")

    path, reading = _file(tmp_path, b"a\ncaf\xe9\n", "a.txt"), Latin()
    assert list(numbered_lines(path, reading)) == [(1, "a"), (2, "café")] and list(reading.notes) == [f"{path}:2"]
    assert reading.position() == path.stat().st_size


@pytest.mark.parametrize(("kind", "name", "content", "bad", "places"), [
    (LanguageModelingDataset, "a.txt", b"one\n\ntw\xff\n\nthree\n", "a.txt:3: byte 3", ["1", "5"]),
    (LanguageModelingDataset, "a.jsonl", '{"text": "a"}\n{"text": 5}\n{"text": \n{"text": "b"}\n',
     "a.jsonl:2: .* a.jsonl:3:", ["1", "4"]),
    (RecordDataset, "a.jsonl", '{"text": "a", "label": "b"}\n3\n{"text": "a"}\n{"text": "c", "label": 1}\n',
     "a.jsonl:2: .* a.jsonl:3: the field 'label' is missing", ["1", "4"]),
    (RecordDataset, "a.json", '[{"text": "a", "label": "b"},\n3,\n{"text": "c", "label": 1}]', "a.json:2:", ["1", "3"]),
    (RecordDataset, "a.csv", 'text,label\na,b\n"x"y,b\nc,d,e\nf,g\n', "a.csv:3: .* a.csv:4:", ["2", "5"]),
    (RecordDataset, "a.tsv", "text\tlabel\na\tb\nc\nd\t\ne\tf\n", "a.tsv:3: .* a.tsv:4:", ["2", "5"]),
    (ColumnDataset, "a.conll", "a O\n\nb O\nc PER\n\nd B-X\n", "a.conll:4: 'PER' is no tag", ["1", "6"]),
    (ColumnDataset, "a.txt", "甲/n\n乙 丙/n\n丁/n\n", "a.txt:2: '乙' is no word", ["1", "3"]),
    (SquadDataset, "a.jsonl", '{"id": 1, "context": "a", "question": "?", "answers": {"text": ["a"]}}\n'
     '{"id": 2, "context": "a", "question": "?", "answers": {"text": ["b"], "answer_start": [0]}}\n', "a.jsonl:2: none",
     ["1"]),
], ids=lambda value: getattr(value, "__name__", None))
def test_two_ways_each_reader_goes_on_without_what_is_wrong(tmp_path, caplog, kind, name, content, bad, places):
    path = _file(tmp_path, content, name)
    with pytest.raises(ValueError, match=bad.split(" .* ")[0]):
        kind(path)
    assert [example["place"].rpartition(":")[2] for example in kind(path, skip_bad=True)] == places
    for each in bad.split(" .* "):
        assert f"/{each}" in caplog.text


def test_refusal_of_what_cannot_be_gone_on_without(tmp_path):
    """A list that breaks off: what came behind is not known."""
    path = _file(tmp_path, '[{"a": 1},\n{"a": \n', "a.json")
    with pytest.raises(ValueError, match="a.json:2: this is not JSON"):
        list(json_records(path, Reading(skip_bad=True)))
    with pytest.raises(FileNotFoundError):
        list(numbered_lines(tmp_path / "nowhere", Reading(skip_bad=True)))
