"""llama2.c's tokenizer.bin, byte for byte."""

import struct

import pytest

from tokenizer import bpe, load_tokenizer, tokenizer_file
from tokenizer.llama2c_vocabulary import from_tokenizer_bin, tokenizer_bin
from tokenizer.spm_model import build_model
from tokenizer.spm_pure import PlainPieceTokenizer

PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "▁a", "b"]
SCORES = [0.0] * 259 + [-2.0, -3.0, -1.0, -4.0]


@pytest.fixture
def tokenizer():
    return PlainPieceTokenizer(build_model(PIECES, SCORES, [2, 3, 3] + [6] * 256 + [1] * 4, names={}))


def entry(score, content):
    return struct.pack("<fi", score, len(content)) + content


def test_worked_example_a_file_byte_for_byte(tokenizer):
    name, file = tokenizer_file(tokenizer, "llama2.c")
    assert name == "tokenizer.bin"
    assert file.startswith(struct.pack("<i", 6) + entry(0, b"<unk>") + entry(0, b"\n<s>\n") + entry(0, b"\n</s>\n")
                           + entry(0, b"<0x00>"))
    assert file.endswith(entry(-2, b" ") + entry(-3, b"a") + entry(-1, b" a") + entry(-4, b"b"))


def test_two_ways_agree_read_and_written(tokenizer):
    file = tokenizer_bin(tokenizer.vocabulary())
    again = load_tokenizer({"tokenizer.bin": file})
    assert tokenizer_bin(again.vocabulary()) == file and again.vocabulary() == tokenizer.vocabulary()
    assert again.encode("ab 骆", bos=True) == [1, 261, 262, 259, *(3 + byte for byte in "骆".encode())]
    assert (again.bos_id, again.eos_ids) == (1, (2,)) and again.decode(again.encode(" a\n b")) == " a\n b"
    assert load_tokenizer(again.files()).encode("ab 骆") == again.encode("ab 骆")        # through the library


def test_refusal_of_damaged_files(tokenizer):
    file = tokenizer_bin(tokenizer.vocabulary())
    for damaged in (b"", file[:-1], file[:101], file + b"\0"):
        with pytest.raises(ValueError, match="no tokenizer.bin of llama2.c, or not all of one"):
            from_tokenizer_bin(damaged)
    with pytest.raises(ValueError, match=r"piece 3 of the tokenizer.bin is \['<0x01>'\], where .* expects '<0x00>'"):
        from_tokenizer_bin(file[:4] + file[4:].replace(entry(0, b"<0x00>"), b"", 1))
    with pytest.raises(ValueError, match="piece 260 of the tokenizer.bin is not UTF-8"):
        from_tokenizer_bin(file.replace(entry(-3, b"a"), entry(-3, b"\xff")))


def test_refusal_of_vocabularies_that_llama2c_cannot_read(tokenizer):
    vocabulary = tokenizer.vocabulary()
    for changed, words in (({"types": [1] * len(PIECES)}, "expects <unk>, <s>, </s> and the 256 bytes"),
                           ({"types": vocabulary["types"][:-1] + [4]}, r"this vocabulary has 'b' \(id 262\)"),
                           ({"add_space_prefix": False}, "with a space before it; this vocabulary does not")):
        with pytest.raises(ValueError, match=words):
            tokenizer_bin(vocabulary | changed)
    with pytest.raises(ValueError, match="this one is of kind 'gpt2'"):
        tokenizer_file(bpe.train(["a b"], 300), "llama2.c")
    with pytest.raises(ValueError, match="a byte-level vocabulary, which a SentencePiece model cannot hold"):
        tokenizer_file(bpe.train(["a b"], 300), "SentencePiece")
    with pytest.raises(ValueError, match="no form of a vocabulary is called 'gguf'"):
        tokenizer_file(tokenizer, "gguf")
