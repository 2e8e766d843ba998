"""python -m tokenizer.train and python -m tokenizer.extend, as one calls them."""

import json

import pytest
from test_bpe import TEXTS

from tokenizer import extend, load_tokenizer, train

CHINESE = "我们去北京，北京的天气很好，今天去。\n\n" * 4


@pytest.fixture
def text(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("".join(TEXTS), encoding="utf-8")
    (tmp_path / "zh.txt").write_text(CHINESE, encoding="utf-8")
    return tmp_path


def run(door, monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["door", *arguments])
    door.main()
    return capsys.readouterr()


@pytest.mark.parametrize("kind", ["bpe", "spm-bpe", "spm-unigram"])
def test_two_ways_what_is_learned_is_what_is_written(text, kind, monkeypatch, capsys):
    out = run(train, monkeypatch, capsys, "--kind", kind, "--vocab-size", "330", "a.txt", "--output", "t", "--json",
              "--corpus", "zh.txt")
    said = json.loads(out.out)
    tokenizer = load_tokenizer(text / "t")
    assert said["vocab_size"] == tokenizer.vocab_size and said["output"] == "t"
    assert said["corpora"]["zh.txt"]["tokens"] == sum(len(tokenizer.encode(part)) for part in CHINESE.split("\n\n"))
    assert "tokens/character" in out.err
    with pytest.raises(ValueError, match="t exists already; give --overwrite"):
        run(train, monkeypatch, capsys, "--vocab-size", "330", "a.txt", "--output", "t")


@pytest.mark.parametrize("kind", ["bpe", "spm-bpe"])
def test_property_a_grown_vocabulary_keeps_ascii_and_says_what_it_did(text, kind, monkeypatch, capsys):
    run(train, monkeypatch, capsys, "--kind", kind, "--vocab-size", "330", "a.txt", "--output", "t")
    added, more = ("zh.txt", ["--add", "9"]) if kind == "bpe" else ("zh", [])
    if kind != "bpe":
        run(train, monkeypatch, capsys, "--kind", kind, "--vocab-size", "290", "zh.txt", "--output", "zh")
    (text / "old.txt").write_text("天气 the cat", encoding="utf-8")
    out = run(extend, monkeypatch, capsys, "t", added, *more, "--keep", "old.txt", "--output", "g", "--json",
              "--corpus", "zh.txt")
    said, base, grown = json.loads(out.out), load_tokenizer(text / "t"), load_tokenizer(text / "g")
    assert said["size"] == [base.vocab_size, grown.vocab_size] and said["dead"] == 0 < said["added"]
    assert "old.txt" in said["kept"]
    assert all(base.encode(line) == grown.encode(line) for line in ("天气 the cat", "It's 1"))
    before, after = said["corpora"]["zh.txt"]
    assert after["tokens"] < before["tokens"] and "tokens/character" in out.err


def test_refusal_of_what_does_not_go_together(text, monkeypatch, capsys):
    run(train, monkeypatch, capsys, "--vocab-size", "330", "a.txt", "--output", "t")
    run(train, monkeypatch, capsys, "--kind", "spm-bpe", "--vocab-size", "330", "a.txt", "--output", "s")
    for words, arguments in (("--add is missing", ["t", "zh.txt"]),
                             ("s is no text: BASE is byte-level BPE", ["t", "zh.txt", "s", "--add", "9"]),
                             ("--like-chinese-llama keeps nothing", ["s", "s", "--like-chinese-llama", "--keep",
                                                                     "ascii"]),
                             ("--like-chinese-llama joins SentencePiece", ["t", "zh.txt", "--like-chinese-llama"]),
                             ("--add is for byte-level BPE", ["s", "s", "--add", "9"]),
                             ("t is byte-level BPE, whose merges mean nothing", ["s", "t"]),
                             ("--like-chinese-llama keeps nothing", ["s", "s", "--like-chinese-llama", "--keep",
                                                                     "zh.txt"]),
                             ("nothing is added: the vocabulary has all pieces", ["s", "s", "--like-chinese-llama"]),
                             ("--keep nothing stands alone", ["t", "zh.txt", "--add", "9", "--keep", "nothing",
                                                              "ascii"])):
        with pytest.raises(ValueError, match=words):
            run(extend, monkeypatch, capsys, *arguments, "--output", "g")
    with pytest.raises(ValueError, match="--split is for byte-level BPE"):
        run(train, monkeypatch, capsys, "--kind", "spm-bpe", "--vocab-size", "330", "a.txt", "--output", "x", "--split",
            "gpt2")
    with pytest.raises(ValueError, match="--coverage is for SentencePiece"):
        run(train, monkeypatch, capsys, "--vocab-size", "330", "a.txt", "--output", "x", "--coverage", "0.9")
