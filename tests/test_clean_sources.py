"""Texts come out of files of any size, in order, each with its place; what is damaged is put right, or refused."""

import bz2
import gzip
import json
import lzma
import os
import tracemalloc

import pytest

from llama.clean.sources import MANY_LINES, Texts, decoded

PAGE = """<page><title>{}</title><ns>0</ns><revision><text>{}</text></revision></page>"""


def _file(folder, name, content):
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def _read(*files, **options):
    """(text, line, other fields) of all that is in the files."""
    return [(text.text, text.place.rpartition(":")[2], text.others) for text in Texts(*files, **options)]


@pytest.mark.parametrize("name, content, options, texts", [
    ("a.txt", "\n甲\n乙\r\n\n \n丙\n", {}, [("甲\n乙", "2", {}), ("丙", "6", {})]),
    ("a.txt", "甲\n乙\n\n丙", {"documents": "line"}, [("甲", "1", {}), ("乙", "2", {}), ("丙", "4", {})]),
    ("a.txt", "江/nr 泽民/nr\n到/v\n\n[北京/ns 大学/n]nt", {}, [("江泽民\n到", "1", {}), ("北京大学", "4", {})]),
    ("a.txt", "江/nr 泽民/nr\n", {"keep_tags": True}, [("江/nr 泽民/nr", "1", {})]),
    ("a.txt", "TCP/IP 协议\nand/or\n", {}, [("TCP/IP 协议\nand/or", "1", {})]),
    ("a.txt", "19980101-01-001-001/m 甲/n\n\n19980101-01-001-002/m 乙/n\n19980101-01-002-001/m 丙/n\n", {},
     [("甲\n乙", "1", {}), ("丙", "4", {})]),
    ("a.jsonl", '{"text": "甲", "label": 1}\n\n{"text": ""}\n', {}, [("甲", "1", {"label": 1}), ("", "3", {})]),
    ("a.json", '[{"content": "甲"},\n{"content": "乙"}]', {"name": "content"}, [("甲", "1", {}), ("乙", "2", {})]),
    ("a.csv", 'label,text\n1,"甲\n\n乙"\n2,丙\n', {}, [("甲\n\n乙", "2", {"label": "1"}), ("丙", "5", {"label": "2"})]),
    ("a.tsv", "x\t甲\ny\t乙\n", {"name": "2"}, [("甲", "1", {"1": "x"}), ("乙", "2", {"1": "y"})]),
    ("a.xml", "<mediawiki>\n" + PAGE.format("题", "'''甲'''") + "</mediawiki>", {}, [("题\n甲", "2", {"title": "题"})]),
], ids=lambda value: value if isinstance(value, str) and value.startswith("a.") else "")
@pytest.mark.parametrize("packing", ["", ".gz", ".xz", ".bz2"])
def test_worked_examples_of_files(tmp_path, name, content, options, texts, packing):
    pack = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".bz2": bz2.compress}[packing]
    assert _read(_file(tmp_path, name + packing, pack(content.encode())), **options) == texts
    if name == "a.xml":                                             # as the parts of a dump are called
        assert _read(_file(tmp_path, f"{name}-p1p187712{packing}", pack(content.encode())), **options) == texts


def test_property_files_come_in_their_order_and_how_far_they_are_read_is_known(tmp_path):
    paths = [_file(tmp_path, f"{name}.txt{end}", pack("".join(f"{name}{i}\n\n" for i in range(3000)).encode()))
             for name, end, pack in (("b", "", bytes), ("a", ".gz", gzip.compress), ("c", "", bytes))]
    texts = Texts(*paths)
    found, positions = [], []
    for text in texts:
        found.append(text.text)
        positions.append(texts.position)
    assert found == [f"{name}{i}" for name in "bac" for i in range(3000)]
    assert positions == sorted(positions) and 0 < positions[0] < positions[-1] == texts.position == texts.size
    assert texts.size == sum(path.stat().st_size for path in paths)


@pytest.mark.parametrize("name, unit", [
    ("a.txt", "今天天气好。" * 50 + "\n\n"), ("a.jsonl", json.dumps({"text": "今天天气好。" * 50}) + "\n"),
    ("a.csv", '"' + "今天天气好。" * 50 + '",1\n'), ("a.tsv", "今天天气好。" * 50 + "\t1\n"),
    ("a.xml", PAGE.format("题", "今天天气好。" * 50)), ("tagged.txt", "今天/t 天气/n 好/a 。/w " * 50 + "\n\n")])
def test_property_no_file_is_held_whole(tmp_path, name, unit):
    head, end = {"csv": ("text,label\n", ""), "tsv": ("text\tlabel\n", ""), "xml": ("<mediawiki>", "</mediawiki>")}.get(
        name[-3:], ("", ""))
    path = _file(tmp_path, name, head + unit * (600_000 // len(unit.encode())) + end)
    tracemalloc.start()
    count = sum(1 for _ in Texts(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 600_000 // len(unit.encode()) and peak < 400_000


def test_property_what_is_left_out_and_repaired_is_counted_and_not_kept(tmp_path):
    path = _file(tmp_path, "a.jsonl", b'{"text": "a"}\n' + b'{"text": 5}\n' * 3000 + b'{"text": "\xff b"}\n' * 3000)
    tracemalloc.start()
    texts = Texts(path, skip_bad=True, repair=True)
    assert [text.text for text in texts] == ["a"] + [" b"] * 3000
    assert tracemalloc.get_traced_memory()[1] < 250_000
    tracemalloc.stop()
    left_out, repaired = texts.steps["wrong (--skip-bad)"], texts.steps[
        "lines read without bytes that were wrong"]
    assert left_out.dropped == repaired.changed == 3000 and len(left_out.examples) == len(repaired.examples) == 3
    assert "a.jsonl:2: the field 'text' is 5" in left_out.examples[0] and "a.jsonl:3002 " in repaired.examples[0]


# ---- encodings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line, text, encoding, lost", [
    ("今天天气好".encode("gb18030"), "今天天气好", "gb18030", 0),
    ("漢語，國學。".encode("gb18030"), "漢語，國學。", "gb18030", 0),
    ("IBM 公司 announced it".encode("gb18030"), "IBM 公司 announced it", "gb18030", 0),
    ("中国".encode("gb18030") + b"\xff", "中国", "gb18030", 1),
    ("今天天气好".encode()[:-1], "今天天气", "utf-8", 2),               # cut off within a character
    (b"".join(("今天天气好，我们去公园玩".encode()[:7], "今天天气好，我们去公园玩".encode()[8:])),
     "今天气好，我们去公园玩", "utf-8", 2),
    (b"na\xefve caf\xe9", "nave caf", "utf-8", 2),
    (b"ok \xff\xfe", "ok ", "utf-8", 2),
])
def test_worked_examples_of_lines_in_a_wrong_encoding(line, text, encoding, lost):
    assert decoded(line) == (text, encoding, lost)


def test_worked_example_utf_8_among_lines_of_gb18030():
    assert decoded("天气好".encode(), "gb18030") == ("天气好", "utf-8", 0)       # nine bytes, which no pairs make
    assert decoded("天气".encode("gb18030") + b"\xff", "gb18030") == ("天气", "gb18030", 1)


def test_two_ways_a_repaired_file_is_read_as_by_its_encoding(tmp_path):
    lines = ["人民日报发表新年讲话。", "同胞们、朋友们", "ABC 公司", "plain", "１９９８年元旦"]
    path = _file(tmp_path, "a.txt", "\n\n".join(lines).encode("gb18030"))
    texts = Texts(path, repair=True)
    assert [text.text for text in texts] == [text.text for text in Texts(path, encoding="gb18030")] == lines
    assert texts.steps["lines read as GB18030"].changed == 4
    short = ["图片：", "怎么抓也抓不住", "连通", "在四月二日，会议开始了。"]       # «图片» in GB18030 is «ͼƬ» in UTF-8
    mostly_gb, mostly_utf8 = ["今天天气好", "中国"], ["Ελλάς", "день", "新年"]
    path = _file(tmp_path, "b.txt", "\n\n".join([*short, *lines, ""]).encode("gb18030")
                 + "\n\n".join([*mostly_gb, "今天天气"]).encode() + "好".encode()[:2])
    assert [text.text for text in Texts(path, repair=True)] == [*short, *lines, *mostly_gb, "今天天气"]
    path = _file(tmp_path, "c.txt", "\n\n".join([*mostly_utf8, ""]).encode() + lines[0].encode("gb18030"))
    assert [text.text for text in Texts(path, repair=True)] == [*mostly_utf8, lines[0]]
    path = _file(tmp_path, "a.json", '[{"text": "人民日报"},\n {"text":\n "同胞们"}]'.encode("gb18030"))
    assert [text[0] for text in _read(path, repair=True)] == ["人民日报", "同胞们"]


def test_property_halves_of_characters_are_let_be_by_repair_alone(tmp_path):
    path = _file(tmp_path, "a.jsonl", '{"text": "甲\\ud800乙"}\n')
    with pytest.raises(ValueError, match="a.jsonl:1: the field 'text' holds half a character"):
        _read(path)
    assert _read(path, repair=True)[0][0] == "甲\ud800乙"


# ---- what is refused, and what is said -------------------------------------------------------------------------------


def test_refusal_of_a_folder_and_of_a_column_that_is_not_there(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(ValueError, match="folder: this is a folder; name the files in it"):
        Texts(tmp_path / "folder")
    with pytest.raises(ValueError, match="a.csv:1: the first line names 甲, 乙, and not '9'; .* of 1 to 2"):
        _read(_file(tmp_path, "a.csv", "甲,乙\n1,2\n"), name="9")


@pytest.mark.parametrize("name, content, words", [
    ("a.txt", "甲\n".encode() + "乙乙".encode("gb18030"),
     "a.txt:2: byte 1 .*«乙乙», give --encoding gb18030, or --repair"),
    ("a.jsonl", '{"text": "a"}\n{"txt": "b"}', "a.jsonl:2: the field 'text' is missing; the record has txt"),
    ("a.csv", "甲,乙\n1,2\n", "a.csv:1: the first line names 甲, 乙, and not 'text'; say with --field .* of 1 to 2"),
    ("a.tsv", "text\tx\n甲\n", "a.tsv:2: this row has 1 columns, and the first has 2 .text, x.; mend it"),
    ("a.xml", "<mediawiki><page>", "a.xml:1: this is no XML, or cut short"),
    ("a.txt", "江/nr\n" * 25 + "没有标记\n", "a.txt:26: '没有标记' is no word with its part of speech"),
    ("a.txt", b"", "a.txt: the file is empty"), ("a.txt", b"\x00\x01\x02", "a.txt: the file holds zero bytes"),
    ("a.jsonl", b"PAR1", "a.jsonl: this is a Parquet file"), ("a.jsonl", "\n \n", "a.jsonl: the file holds nothing"),
    ("a.txt.gz", gzip.compress(b"a\n" * 9000)[:-9], "a.txt.gz: the packed file is damaged or cut short"),
    ("a.parquet", "x", "a.parquet: texts are read from .txt, .jsonl"), ("a", "x", "a: texts are read from"),
])  # fmt: skip
def test_refusal_names_file_and_line_and_skip_bad_goes_on(tmp_path, name, content, words):
    path, fine = _file(tmp_path, name, content), _file(tmp_path, "fine.txt", "好")
    with pytest.raises(ValueError, match=words):
        _read(path, fine, skip_bad=False)
    if name.startswith("a.") and "parquet" not in name:
        assert _read(path, fine, skip_bad=True)[-1][0] == "好"


def test_refusal_before_anything_is_read(tmp_path):
    """Of files, as soon as they are named."""
    fine, again = _file(tmp_path, "fine.txt", "好"), tmp_path / "again.txt"
    again.hardlink_to(fine)
    (tmp_path / "folder.txt").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.txt")
        with pytest.raises(ValueError, match="pipe.txt is no ordinary file"):
            Texts(tmp_path / "pipe.txt")
    for files, error, words in (([], ValueError, "no files given"), ([fine, fine], ValueError, "is named twice; "),
                                ([fine, again], ValueError, "named twice, also as .*fine.txt"),
                                ([fine, tmp_path / "gone.txt"], FileNotFoundError, "gone.txt: there is no such file"),
                                ([fine, tmp_path / "folder.txt"], ValueError, "this is a folder; name the files in")):
        with pytest.raises(error, match=words):
            Texts(*files)


def test_worked_example_what_was_concluded_is_said(tmp_path):
    tagged = _file(tmp_path, "tagged.txt", "江/nr\n\n泽民/nr\n")
    long = _file(tmp_path, "long.txt", "行\n" * (MANY_LINES + 1))
    texts = Texts(tagged, long)
    list(texts)
    assert [remark.partition(".txt: ")[2] for remark in texts.remarks] == [
        "lines of words with their parts of speech, word/tag, are read as plain text",
        "no blank line divides its 1,001 lines, so they are one text; --documents line takes each for one"]
    texts = Texts(_file(tmp_path, "a.csv", "label,review\n1,好\n"), name="2")
    assert [text.text for text in texts] == ["review", "好"]
    assert len(texts.remarks) == 1 and texts.remarks[0].endswith("if that is its header, say --field 'review'")
