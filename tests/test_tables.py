import pytest

from llama.datasets.records import RecordDataset


def _file(tmp_path, content, name="a.csv"):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", newline="")
    return path


def _fields(path, **options):
    return [{name: value for name, value in example.items() if name != "place"}
            for example in RecordDataset(path, **options)]


GOOD = [{"text": "a, b", "label": "+"}, {"text": "c\nd", "label": "-"}, {"text": "e", "label": "-"}]


@pytest.mark.parametrize("content", [
    'text,label\n"a, b",+\n"c\nd",-\ne,-\n', '\ufeffText,LABEL\r\n"a, b",+\r\n"c\nd",-\r\n\r\ne,-\r\n',
    ' label , text ,id\n+,"a, b",1\n-,"c\nd",2\n-,e,3\n', 'text\tlabel\na, b\t+\n"c\nd"\t-\ne\t-\n',
    'Label;Text\n+;a, b\n-;"c\nd"\n-;e\n',
])
def test_two_ways_every_table_holds_the_same(tmp_path, content):
    assert _fields(_file(tmp_path, content)) == GOOD


def test_worked_example_a_header_in_other_letters(tmp_path):
    """It is no sample with a class of its own, also where --columns says what the columns are."""
    for content, columns in (("Text,Label\na,1\nb,0\n", None), ("label,review\n1,a\n0,b\n", ("label", "text")),
                             ("Text\tStars\na\t1\nb\t0\n", ("text", "label"))):
        assert _fields(_file(tmp_path, content), columns=columns) == [{"text": "a", "label": "1"},
                                                                      {"text": "b", "label": "0"}]


def test_refusal_to_guess_whether_the_first_line_is_a_header(tmp_path):
    for content in ("stars,review\n1,a\n1,b\n0,c\n0,d\n", "stars,review\n1,a\n2,b\n"):
        path = _file(tmp_path, content)
        with pytest.raises(ValueError, match="a.csv:1: the label 'stars' stands in the first line alone, .*yes"):
            _fields(path, columns=("label", "text"))
        assert len(_fields(path, columns=("label", "text"), header=True)) == content.count("\n") - 1
        assert len(_fields(path, columns=("label", "text"), header=False)) == content.count("\n")
    assert len(_fields(_file(tmp_path, "x,a\ny,b\nz,c\n"), columns=("label", "text"))) == 3  # all are alone


def test_worked_example_cells_may_be_as_long_as_a_novel(tmp_path):
    assert _fields(_file(tmp_path, f"text,label\n{'a' * 200_000},b\n"))[0]["text"] == "a" * 200_000


def test_refusal_of_a_header_that_names_a_field_twice(tmp_path):
    for header in ("text,Text,label", "label,text,label"):
        with pytest.raises(ValueError, match="a.csv:1: the header names '(text|label)' twice; rename one of these"):
            _fields(_file(tmp_path, f"{header}\na,b,c\n"))
    assert len(_fields(_file(tmp_path, "note,note,text,label\na,b,c,d\n"))) == 1
