import bz2
import gzip
import lzma

import pytest

from llama.datasets import text_files
from llama.datasets.instructions import InstructionDataset
from llama.datasets.language_modeling import LanguageModelingDataset
from llama.datasets.lines import numbered_lines
from llama.datasets.reading import Reading
from llama.datasets.records import RecordDataset
from llama.datasets.text_files import NO_TEXT, checked_encoding

TEXT = "今天天气很好。\n\nThe dog sleeps.\n"


def _file(tmp_path, content, name="a.txt"):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def _lines(path, encoding=""):
    return [line for _, line in numbered_lines(path, Reading(encoding, skip_bad=False))]


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, bz2.compress])
def test_two_ways_packed_and_plain_hold_the_same(tmp_path, pack):
    """Also under a name that says nothing of it, and with a byte order mark inside."""
    plain = _lines(_file(tmp_path, TEXT.encode()))
    for name in ("b.txt.gz", "b.txt.xz", "b"):
        assert _lines(_file(tmp_path, pack(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode()), name)) == plain
    for kind, name, content in (
            (LanguageModelingDataset, "a.txt", TEXT), (LanguageModelingDataset, "a.jsonl", '{"text": "a"}'),
            (RecordDataset, "a.csv", "text,label\na,b\n"), (RecordDataset, "a.tsv", "a\tb\nc\td\n"),
            (InstructionDataset, "b.jsonl", '{"instruction": "a", "output": "b"}'),
            (InstructionDataset, "b.csv", "instruction,output\na,b\n")):
        packed, there = _file(tmp_path, pack(content.encode()), f"{name}.xz"), _file(tmp_path, content.encode(), name)
        both = [[{**example, "place": ""} for example in kind(path)] for path in (packed, there)]
        assert both[0] == both[1]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_refusal_what_unpacks_to_out_of_all_proportion(tmp_path, pack, monkeypatch):
    """One endless line, or lines without end; what is small may be as packed as it likes."""
    for unit in (b"a", b"\n", b'{"text": "a"}\n'):
        packed = _file(tmp_path, pack(unit * 400_000))
        assert _lines(packed)
        monkeypatch.setattr(text_files, "_ALWAYS", 9999)
        with pytest.raises(ValueError, match="a.txt: the packed file holds more than 200 times its size, as no text"):
            _lines(packed)
        monkeypatch.undo()


@pytest.mark.parametrize("encoding", ["gb18030", "GBK", "utf-16", "utf-16-le", "utf-32", "UTF8", "utf-8-sig"])
def test_two_ways_another_encoding_says_the_same_once_it_is_named(tmp_path, encoding):
    assert _lines(_file(tmp_path, TEXT.encode(encoding)), encoding) == TEXT.split("\n")[:-1]


def test_worked_example_a_mark_says_more_than_a_flag(tmp_path, caplog):
    assert _lines(_file(tmp_path, TEXT.encode("utf-8-sig")), "gb18030") == TEXT.split("\n")[:-1]
    assert "its byte order mark says UTF-8, and not gb18030; it is read as UTF-8" in caplog.text


@pytest.mark.parametrize(("magic", "named"), NO_TEXT.items())
def test_refusal_calls_what_is_no_text_by_its_name(tmp_path, magic, named):
    for name, content in (("a.jsonl", magic + bytes(99)), ("a.jsonl.gz", gzip.compress(magic + bytes(99)))):
        with pytest.raises(ValueError, match=f"{name}: this is {named[0]}, no text; {named[1][:20]}"):
            _lines(_file(tmp_path, content, name))


@pytest.mark.parametrize(("content", "encoding", "words"), [
    (TEXT.encode("utf-16"), "", "a.txt: this is UTF-16 text; save it as UTF-8, or give --encoding utf-16"),
    (TEXT.encode("utf-32"), "gbk", "a.txt: this is UTF-32 text; save it as UTF-8, or give --encoding utf-32"),
    ("abc".encode("utf-16-le"), "", "a.txt: the file holds zero bytes, so it is no text, or UTF-16 without its mark"),
    (TEXT.encode("gbk"), "", "a.txt:1: byte 1 of this line is not UTF-8; save it as UTF-8 text, or, if it says "
     "«今天天气很好。», give --encoding gb18030"),
    (b"a\xff\xff", "", "a.txt:1: byte 2 of this line is not UTF-8; save it as UTF-8 text, or name its encoding"),
    (b"a\n\xff\xff", "gb18030", "a.txt:2: byte 1 of this line is not GB18030"),
    (b"abc", "utf-16", "a.txt: this is no utf-16"),
    (gzip.compress(TEXT.encode() * 99)[:-20], "", "a.txt: the packed file is damaged or cut short"),
    (lzma.compress(TEXT.encode() * 99)[:-20], "", "a.txt: the packed file is damaged or cut short"),
    (bz2.compress(TEXT.encode() * 99)[:-20], "", "a.txt: the packed file is damaged or cut short"),
    (gzip.compress(TEXT.encode())[:12] + b"\xff" * 30, "", "a.txt: the packed file is damaged or cut short"),
    (bz2.compress(TEXT.encode())[:12] + b"\xff" * 30, "", "a.txt: the packed file is damaged"),
    (gzip.compress(b""), "", "a.txt: the file is empty"),
    (gzip.compress(bytes(257) + b"ustar" + bytes(99)), "", "a.txt: this is a tar archive, no text; unpack it"),
])
def test_refusal_names_file_line_and_remedy(tmp_path, content, encoding, words):
    with pytest.raises(ValueError, match=words):
        _lines(_file(tmp_path, content), encoding)


def test_property_only_flags_that_are_there_are_named(tmp_path):
    for content in (TEXT.encode("utf-16"), TEXT.encode("gbk"), bytes(9)):
        with pytest.raises(ValueError, match="UTF-8") as refused:
            list(numbered_lines(_file(tmp_path, content)))
        assert "--" not in str(refused.value)


def test_refusal_of_encodings_that_are_none():
    assert checked_encoding("") == checked_encoding("UTF-8") == "utf-8" and checked_encoding("gbk") == "gbk"
    for name in ("klingon", "base64", "rot13"):
        with pytest.raises(ValueError, match=f"the encoding '{name}' is not known; Chinese files are utf-8, gb18030"):
            checked_encoding(name)
