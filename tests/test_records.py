import json
import logging

import pytest

from llama.datasets.records import RecordDataset


def _file(tmp_path, content, name):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", newline="")
    return path


def _fields(dataset):
    return [{name: value for name, value in example.items() if name != "place"} for example in dataset]


GOOD = [{"text": "很好", "label": "正面", "date": "2024-05-01"}, {"text": 'so "bad", really', "label": "负面"}]


def test_two_ways_every_format_holds_the_same(tmp_path):
    for name, content in {
        "a.jsonl": '{"text": "很好", "label": "正面", "date": "2024年5月1日", "id": 7}\n'
                   '{"label": "负面", "text": "so \\"bad\\", really"}',
        "a.json": json.dumps(GOOD),
        "a.csv": 'label,text,date\r\n正面,很好,2024/5/1\r\n\r\n负面,"so ""bad"", really",\r\n',
        "a.tsv": '\ufefftext\tdate\tlabel\n很好\t2024-05-01 12:30\t正面\nso "bad", really\t\t负面\n',
    }.items():
        dataset = RecordDataset(_file(tmp_path, content, name))
        assert _fields(dataset) == GOOD, name
        assert dataset.labels == ["正面", "负面"] and len(dataset) == 2


def test_worked_example_a_row_over_several_lines_has_the_number_of_its_first(tmp_path):
    path = _file(tmp_path, 'text,label\n"one\ntwo",a\n\nthree,b\n', "a.csv")
    assert list(RecordDataset(path)) == [{"text": "one\ntwo", "label": "a", "place": f"{path}:2"},
                                         {"text": "three", "label": "b", "place": f"{path}:5"}]


def test_worked_example_tables_without_a_header(tmp_path, caplog):
    """The three forms in which public data of these kinds stands."""
    caplog.set_level(logging.INFO)
    classes = _file(tmp_path, 'to category\t"走出去"之论\t经济学\nto category\t芹菜"九二0"\t农学\n', "a.tsv")
    assert _fields(RecordDataset(classes)) == [{"text": '"走出去"之论', "label": "经济学"},
                                               {"text": '芹菜"九二0"', "label": "农学"}]
    assert f"{classes} has no header; its columns are read as -, text, label" in caplog.text
    pairs = _file(tmp_path, "Hi.\t嗨。\nHi.\t你好。\n", "pairs.txt")
    assert _fields(RecordDataset(pairs, fields=("source", "target"))) == [
        {"source": "Hi.", "target": "嗨。"}, {"source": "Hi.", "target": "你好。"}]
    swapped = RecordDataset(pairs, fields=("source", "target"), columns=("target", "source"))
    assert swapped[0]["source"] == "嗨。"
    named = _file(tmp_path, "review,stars\n很好,5\n", "b.csv")
    assert _fields(RecordDataset(named, columns=("text", "label"), header=True)) == [{"text": "很好", "label": "5"}]
    assert _fields(RecordDataset(named, fields=["text"], columns=("text", "-")))[0] == {"text": "review"}


def test_worked_example_labels_are_texts_and_may_be_several_or_none(tmp_path):
    path = _file(tmp_path, '{"text": "a", "label": 1}\n{"text": "b", "label": true}', "a.jsonl")
    assert [example["label"] for example in RecordDataset(path)] == ["1", "true"]
    pandas = _file(tmp_path, "text,label,date\na,True,\nb,False,\nc,1.5,\n", "a.csv")
    json_lines = _file(tmp_path, '{"text": "a", "label": true}\n{"text": "b", "label": false, "date": null}\n'
                                 '{"text": "c", "label": 1.5}', "d.jsonl")
    assert _fields(RecordDataset(pandas)) == _fields(RecordDataset(json_lines))         # the same data twice
    assert RecordDataset(pandas).labels == ["1.5", "false", "true"]
    huge = _file(tmp_path, f'{{"text": "a", "label": {10**400}}}', "huge.jsonl")
    assert RecordDataset(huge).labels == [str(10**400)]
    gaps = _file(tmp_path, "text,label,date\na,1.0,\nb,-0.0,\nc,10.0,\n", "e.csv")       # pandas: a column with gaps
    numbers = _file(tmp_path, '{"text": "a", "label": 1}\n{"text": "b", "label": -0.0}\n{"text": "c", "label": 10.0}',
                    "f.jsonl")
    assert [each["label"] for each in RecordDataset(gaps)] == [each["label"] for each in RecordDataset(numbers)]
    assert RecordDataset(numbers).labels == ["-0", "1", "10"]
    several = RecordDataset(_file(tmp_path, '{"text": "a", "labels": ["x", 2, "x"]}\n{"text": "b", "labels": []}\n'
                                            '{"text": "c", "labels": "y | x"}', "b.jsonl"), fields=("text", "labels"))
    assert [example["labels"] for example in several] == [["x", "2"], [], ["y", "x"]]
    assert several.labels == ["2", "x", "y"]
    table = _file(tmp_path, "text\tlabels\na\tx|y\nb\t\n", "c.tsv")
    assert [example["labels"] for example in RecordDataset(table, fields=("text", "labels"))] == [["x", "y"], []]


def test_property_a_part_is_of_the_same_kind(tmp_path):
    dataset = RecordDataset(_file(tmp_path, json.dumps(GOOD), "a.json"))
    part = dataset.part([1])
    assert part.labels == ["负面"] and list(part) == [dataset[1]] and len(dataset) == 2


@pytest.mark.parametrize(("name", "content", "words"), [
    ("a.jsonl", '{"text": "a", "label": "b"}\n{"text": "a"}', "a.jsonl:2: the field 'label' is missing; .* has text"),
    ("a.jsonl", '{"text": " ", "label": "b"}', "a.jsonl:1: the field 'text' is empty; fill it in, or remove"),
    ("a.jsonl", '{"text": "a", "label": [1]}', "a.jsonl:1: the field 'label' is .1.; it must be a text"),
    ("a.jsonl", '{"text": "a", "label": NaN}', "a.jsonl:1: the field 'label' is nan; it must be a text"),
    ("a.jsonl", '{"text": "a", "label": "b", "labels": 3}', "a.jsonl:1: the field 'labels' is 3; it must be a list"),
    ("a.jsonl", '{"text": "a", "label": "b", "labels": "x||y"}', "a.jsonl:1: one of the labels is empty"),
    ("a.jsonl", '{"text": "a", "label": "b", "date": "1.5.24"}', "a.jsonl:1: the date is '1.5.24'; write year, month"),
    ("a.jsonl", '{"text": "a", "label": "b", "date": "2024-02-30"}', "a.jsonl:1: the date is '2024-02-30'"),
    ("a.tsv", "text\tlabel\na\tb\n\na\n", "a.tsv:4: this line has 1 columns, and 2 are expected"),
    ("a.tsv", "a\tb\tc\nd\te\tf", "a.tsv:1: the first line has 3 columns and is no header; write one with"),
    ("a.tsv", "text\tlabel\n", "a.tsv: the file holds no records"),
    ("a.csv", 'text,label\na,b\n"x"y,b\n', "a.csv:3: this is no row of comma-separated fields"),
    ("a.csv", 'text,label\n"a,b\nc,d\n', "a.csv:2: this is no row of comma-separated fields: unexpected end of data"),
    ("a.xlsx", "text", "a.xlsx: records are read from .jsonl, .json, .csv"),
])
def test_refusal_names_file_and_line(tmp_path, name, content, words):
    with pytest.raises(ValueError, match=words):
        RecordDataset(_file(tmp_path, content, name))


def test_refusal_of_settings_that_contradict_each_other(tmp_path):
    path = _file(tmp_path, "review,stars\na,b\n", "a.csv")
    with pytest.raises(ValueError, match="no files given"):
        RecordDataset()
    with pytest.raises(ValueError, match="fields are body; a record has some of text, label"):
        RecordDataset(path, fields=["body"])
    with pytest.raises(ValueError, match="columns are text, stars, fields text, label; .* look at stars"):
        RecordDataset(path, columns=("text", "stars"))
    with pytest.raises(ValueError, match="columns are text, -, fields text, label; .* look at label"):
        RecordDataset(path, columns=("text", "-"))
    with pytest.raises(ValueError, match="half.csv:1: the header names source, label, and not target; rename"):
        RecordDataset(_file(tmp_path, "source,label\na,b", "half.csv"), fields=("source", "target"))
    with pytest.raises(ValueError, match="a.csv:1: the header names review, stars, and not label, text; rename"):
        RecordDataset(path, header=True)
