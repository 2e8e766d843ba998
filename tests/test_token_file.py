import json
import os
import re

import numpy as np
import pytest

from llama.datasets import token_file
from llama.datasets.token_file import TokenFile, document_ids, is_current, write_tokens
from tokenizer import bpe

DOCUMENTS = ["The dog sleeps.", "今天天气很好。", "x" * 200]


@pytest.fixture
def path(tmp_path, tiny_tokenizer):
    write_tokens(tmp_path / "a.tokens", DOCUMENTS, tiny_tokenizer)
    return tmp_path / "a.tokens"


def test_two_ways_the_file_holds_what_encode_gives(path, tiny_tokenizer):
    ids = [i for text in DOCUMENTS for i in [*tiny_tokenizer.encode(text), tiny_tokenizer.eos_ids[0]]]
    file = TokenFile(path, block_size=8, tokenizer=tiny_tokenizer)
    assert len(file) == len(ids) and file[:].tolist() == ids and file[3:7].tolist() == ids[3:7]
    assert isinstance(file[:], np.memmap) and file[:].dtype == np.uint16


def test_worked_example_the_first_line_says_what_it_is(path):
    line = path.read_bytes().split(b"\n")[0] + b"\n"
    header = json.loads(line)
    assert (header["documents"], header["bytes"]) == (3, 15 + 21 + 200)
    assert len(line) % 64 == 0 and path.stat().st_size == len(line) + 2 * header["tokens"]


def test_property_ids_of_a_large_vocabulary_take_four_bytes(tmp_path, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(tiny_tokenizer, "vocab_size", 2**16)
    write_tokens(tmp_path / "small", DOCUMENTS, tiny_tokenizer)
    monkeypatch.setattr(tiny_tokenizer, "vocab_size", 2**16 + 1)
    write_tokens(tmp_path / "large", DOCUMENTS, tiny_tokenizer)
    small, large = (TokenFile(tmp_path / name, block_size=8) for name in ("small", "large"))
    assert (small[:].dtype, large[:].dtype) == (np.uint16, np.uint32) and small[:].tolist() == large[:].tolist()


def test_property_a_document_begins_as_the_tokenizer_says(tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(tiny_tokenizer, "bos_id", 1)
    plain = document_ids("dog", tiny_tokenizer)
    monkeypatch.setattr(tiny_tokenizer, "adds_bos", True)
    assert document_ids("dog", tiny_tokenizer) == [1, *plain] and plain[-1] == tiny_tokenizer.eos_ids[0]


def test_property_an_interrupted_write_leaves_nothing_new(path, tiny_tokenizer):
    before = path.read_bytes()

    def broken():
        yield "one"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tokens(path, broken(), tiny_tokenizer)
    assert path.read_bytes() == before and os.listdir(path.parent) == [path.name]


def test_property_progress_counts_documents(tmp_path, tiny_tokenizer):
    done = []
    write_tokens(tmp_path / "new" / "a.tokens", iter(DOCUMENTS), tiny_tokenizer, progress=done.append)
    assert done == [1, 2, 3]


def test_property_current_until_text_manner_or_tokenizer_change(tmp_path, tiny_tokenizer):
    source, path = tmp_path / "a.txt", tmp_path / "a.tokens"
    source.write_text("one\n\ntwo", encoding="utf-8")
    given = {"sources": [source], "how": "blank lines"}
    assert not is_current(path, tiny_tokenizer, **given)
    write_tokens(path, ["one", "two"], tiny_tokenizer, **given)
    assert is_current(path, tiny_tokenizer, **given)
    os.utime(source, (1, 1))                                        # touched, not changed
    assert is_current(path, tiny_tokenizer, **given)
    assert not is_current(path, tiny_tokenizer, sources=[source], how="lines")
    assert not is_current(path, tiny_tokenizer, sources=[source, source], how="blank lines")
    assert not is_current(path, bpe.train(DOCUMENTS, 300), **given)
    source.write_text("one\n\nTWO", encoding="utf-8")
    assert not is_current(path, tiny_tokenizer, **given)
    source.unlink()
    assert not is_current(path, tiny_tokenizer, **given)


def test_refusal_of_another_tokenizer(path):
    with pytest.raises(ValueError, match="ids of another tokenizer .* tokenise the text again"):
        TokenFile(path, block_size=8, tokenizer=bpe.train(DOCUMENTS, 300))


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"\0", lambda data: data[:-200]])
def test_refusal_of_a_file_of_another_length(path, change):
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match="the file has .* bytes, its first line says .*; delete it"):
        TokenFile(path, block_size=8)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{}\n", b'{"format": "llama tokens, version 1"}', b"[" * 9999])
def test_refusal_of_what_is_no_token_file(path, content):
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"no token file; its first line does not say '{token_file.FORMAT}'"):
        TokenFile(path, block_size=8)


@pytest.mark.parametrize("field, value, words", [
    ("dtype", "uint96", "dtype is 'uint96'; it must be one of 'uint16', 'uint32'"),
    ("dtype", "<f4", "dtype is '<f4'"), ("tokens", -1, "tokens is -1"), ("tokens", "9", "tokens is '9'"),
    ("tokenizer", 1, "tokenizer is 1"), ("sources", [{"file": 1}], "sources"),
])  # fmt: skip
def test_refusal_of_a_header_of_other_types(path, field, value, words):
    line, _, ids = path.read_bytes().partition(b"\n")
    path.write_bytes(json.dumps(json.loads(line) | {field: value}).encode().ljust(len(line)) + b"\n" + ids)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: {words}"):
        TokenFile(path, block_size=8)


def test_refusal_of_nothing(tmp_path, tiny_tokenizer):
    with pytest.raises(FileNotFoundError, match="there is no such token file"):
        TokenFile(tmp_path / "a.tokens", block_size=8)
    with pytest.raises(ValueError, match="no document to write"):
        write_tokens(tmp_path / "a.tokens", [], tiny_tokenizer)
    assert not list(tmp_path.iterdir())
