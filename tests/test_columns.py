import pytest

from llama.datasets.columns import ColumnDataset, laid_out
from llama.datasets.tags import spans_of

BIO = "江 B-PER\n泽 I-PER\n民 I-PER\n在 O\n京 B-LOC\n\nIn\tO\nNew\tB-LOC\nYork\tI-LOC\n\t\n"
PAPER = ("江/nr  泽民/nr  在/p  [北京/ns  大学/n]nt  讲话/n\n\n１/２/m  [中央/n  [广播/vn  电台/n]nt  （/w]nz\n"
         "[/w  欧阳/nr  修/nr  万万/nr  毛/nr  磊/nr\n")


def _file(tmp_path, content, name="a.conll"):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8", newline="")
    return path


def _found(example):
    return [(example["text"][begin:end], kind) for begin, end, kind in spans_of(example["tags"])]


def test_worked_example_columns(tmp_path):
    path = _file(tmp_path, BIO)
    dataset = ColumnDataset(path)
    assert list(dataset) == [
        {"tokens": list("江泽民在京"), "tags": ["B-PER", "I-PER", "I-PER", "O", "B-LOC"], "text": "江泽民在京",
         "starts": [0, 1, 2, 3, 4], "place": f"{path}:1"},
        {"tokens": ["In", "New", "York"], "tags": ["O", "B-LOC", "I-LOC"], "text": "In New York",
         "starts": [0, 3, 7], "place": f"{path}:7"}]
    assert dataset.types == ["LOC", "PER"]
    bmes = ColumnDataset(path, scheme="BMES")
    assert [example["tags"] for example in bmes] == [["B-PER", "M-PER", "E-PER", "O", "S-LOC"], ["O", "B-LOC", "E-LOC"]]


def test_two_ways_schemes_separators_and_further_columns_hold_the_same(tmp_path, caplog):
    tags = [example["tags"] for example in ColumnDataset(_file(tmp_path, BIO))]
    rows = [("江", "B-PER"), ("泽", "M-PER"), ("民", "E-PER"), ("在", "O"), ("京", "S-LOC"), (),
            ("In", "O"), ("New", "B-LOC"), ("York", "E-LOC")]
    for name, separator in (("a.bmes", " "), ("b.bmes", "/"), ("c.csv", ","), ("d", "\t")):
        path = _file(tmp_path, "\n".join(separator.join(row) for row in rows), name)
        assert [example["tags"] for example in ColumnDataset(path, separator=separator)] == tags
    lines = [" NN I-NP ".join(row) for row in rows]
    conll = _file(tmp_path, "-DOCSTART- -X- O O\r\n\r\n" + "\r\n".join(lines), "e.txt")
    dataset = ColumnDataset(conll)
    assert [example["tags"] for example in dataset] == tags
    assert {example["document"] for example in dataset} == {f"{conll}:1"} and not caplog.records


def test_worked_example_only_blanks_and_tabs_separate(tmp_path):
    """A token may be an ideographic space, or the separator itself."""
    assert ColumnDataset(_file(tmp_path, "\u3000 O\na\xa0b O"))[0]["tokens"] == ["\u3000", "a\xa0b"]
    assert ColumnDataset(_file(tmp_path, ",,O\n1,5,B-N"), separator=",")[0]["tokens"] == [",", "1,5"]


def test_worked_example_a_token_may_hold_a_blank_where_tabs_separate(tmp_path):
    dataset = ColumnDataset(_file(tmp_path, "New York\tNNP\tB-LOC\nis\tVBZ\tO\t\n"))
    assert dataset[0]["tokens"] == ["New York", "is"] and dataset[0]["tags"] == ["B-LOC", "O"]
    assert dataset[0]["text"] == "New York is"


def test_worked_example_documents_begin_in_every_form(tmp_path):
    for separator, mark in ((" ", "-DOCSTART- -X- O O"), ("\t", "-DOCSTART-\tO"), (",", "-DOCSTART-"),
                            (None, "-DOCSTART-")):
        cell = separator or " "
        path = _file(tmp_path, f"{mark}\n\na{cell}O\n{mark}\n\nb{cell}B-X\n")
        assert [(example["tokens"], example["document"]) for example in ColumnDataset(path, separator=separator)] == [
            (["a"], f"{path}:1"), (["b"], f"{path}:4")]


@pytest.mark.parametrize("tags", [
    "I-PER I-PER O I-LOC B-LOC O", "B-PER I-PER O B-LOC B-LOC O",                       # IOB1, BIO
    "B-PER E-PER O S-LOC S-LOC O", "B-PER L-PER O U-LOC U-LOC O"])                      # BIOES and BMES, BILOU
def test_two_ways_every_scheme_marks_the_same(tmp_path, tags):
    path = _file(tmp_path, "".join(f"{token} {tag}\n" for token, tag in zip("abcdef", tags.split(), strict=True)))
    assert ColumnDataset(path)[0]["tags"] == ["B-PER", "I-PER", "O", "B-LOC", "B-LOC", "O"]


def test_worked_example_broken_tags_are_counted(tmp_path, caplog):
    dataset = ColumnDataset(_file(tmp_path, "a O\nb I-X\n\nc B-X\nd I-X\n\ne B-Y\nf I-X\n"))
    assert [example["tags"] for example in dataset] == [["O", "B-X"], ["B-X", "I-X"], ["B-Y", "B-X"]]
    assert "the tags of 2 of 3 sentences break the rules" in caplog.text


def test_worked_example_blanks_stand_where_one_writes_them():
    tokens = ["I", "love", "北", "京", "2008", "，", "OK", "?"]
    text, starts = laid_out(tokens)
    assert text == "I love北京2008，OK ?"
    assert [text[start:].startswith(token) for token, start in zip(tokens, starts, strict=True)] == [True] * 8


def test_worked_example_tagged_words(tmp_path):
    path = _file(tmp_path, PAPER, "199801.txt")
    dataset = ColumnDataset(path)
    texts = [example["text"] for example in dataset]
    assert texts == ["江泽民在北京大学讲话", "１/２中央广播电台（", "[欧阳修万万毛磊"]
    assert [_found(example) for example in dataset] == [
        [("江泽民", "PER"), ("北京大学", "ORG")], [("广播电台", "ORG")],
        [("欧阳修", "PER"), ("万万", "PER"), ("毛磊", "PER")]]
    assert [(example["document"], example["place"]) for example in dataset] == [
        (f"{path}:1", f"{path}:1"), (f"{path}:3", f"{path}:3"), (f"{path}:3", f"{path}:4")]
    words = ColumnDataset(path, spans="words", scheme="BMES")
    assert "".join(words[0]["tags"]) == "SBESBEBEBE" and [text for text, _ in _found(words[1])] == [
        "１/２", "中央", "广播", "电台", "（"]


def test_worked_example_names_of_one_person_are_one_span(tmp_path):
    """Two names side by side stay two; rare characters are described in brackets; a place is no name."""
    line = ("杜/nr 中武/nr 孙/nr 传刚/nr 、/w 诸葛/nr 仓麟/nr 和/c 韩/nr 钟（昆音）/nr "
            "马克思/nr 恩格斯/nr 江/nr 上海/ns 胡/nr")
    assert [text for text, kind in _found(ColumnDataset(_file(tmp_path, line))[0]) if kind == "PER"] == [
        "杜中武", "孙传刚", "诸葛仓麟", "韩钟（昆音）", "马克思", "恩格斯", "江", "胡"]


def test_worked_example_numbered_paragraphs_tell_their_article(tmp_path):
    path = _file(tmp_path, "19980101-01-001-001/m 甲/n\n19980101-01-001-002/m 乙/n\n"
                           "19980101-01-002-001/m 丙/n\n")
    assert [(example["text"], example["document"]) for example in ColumnDataset(path)] == [
        ("甲", f"{path}:1"), ("乙", f"{path}:1"), ("丙", f"{path}:3")]
    assert "document" not in ColumnDataset(_file(tmp_path, "甲/n\n乙/n\n"))[0]


@pytest.mark.parametrize(("content", "words"), [
    ("a O\nb\n", "a.conll:2: 'b' is no token with a tag; write both, or say what separates them"),
    ('{"tokens": ["a"], "ner_tags": ["O"]}\n', "a.conll: this is JSON; tagged words are read from lines of a"),
    ("a O\nb PER\n", "a.conll:2: 'PER' is no tag; tags are O, and one of"),
    ("a O\nNew York B-LOC\n", "a.conll:2: 'New York B-LOC' has 3 columns, and 2 are expected; if a token holds"),
    ("\n\t\n", "a.conll: the file holds no tokens"),
    ("甲/n\n乙 丙/n\n", "a.conll:2: '乙' is no word with its part of speech; write word/tag"),
    ("甲/n\n[乙/n 丙/n\n", "a.conll:2: a bracket is opened before '乙' and not closed in this line"),
    ("甲/n\n乙/n 丙/n]nt\n", r"a.conll:2: '丙/n\]nt' closes a bracket that was not opened"),
])
def test_refusal_names_file_and_line(tmp_path, content, words):
    with pytest.raises(ValueError, match=words):
        ColumnDataset(_file(tmp_path, content))


def test_refusal_of_settings(tmp_path):
    path = _file(tmp_path, BIO)
    with pytest.raises(ValueError, match="no files given"):
        ColumnDataset()
    with pytest.raises(ValueError, match="scheme is 'IOB', one of BIO, BMES"):
        ColumnDataset(path, scheme="IOB")
    with pytest.raises(ValueError, match="the separator is empty"):
        ColumnDataset(path, separator="")
    with pytest.raises(ValueError, match="a.conll:1: '江 B-PER' is no token with a tag"):
        ColumnDataset(path, separator="\t")
