import unicodedata

import pytest

from tokenizer import bpe, load_tokenizer
from tokenizer.offsets import encode_with_offsets


@pytest.fixture
def letters():
    """A tokenizer of bytes alone: a Chinese character is spelt by three ids."""
    return bpe.train(["text"], 259)


class Composing:
    """A vocabulary that puts what it reads into the form NFC, as Qwen 2's does."""

    def __init__(self, below):
        self.below, self.token_bytes = below, below.token_bytes

    def encode_continuation(self, text):
        return self.below.encode_continuation(unicodedata.normalize("NFC", text))


def test_worked_example_parts_of_a_character_have_all_of_it(letters):
    ids, offsets = encode_with_offsets(letters, "a我 é")
    assert offsets == [(0, 1), (1, 2), (1, 2), (1, 2), (2, 3), (3, 4), (3, 4)] and letters.decode(ids) == "a我 é"


def test_worked_example_a_token_of_several_characters():
    tokenizer = bpe.train(["北京北京北京 the the"] * 9, 270)
    ids, offsets = encode_with_offsets(tokenizer, "北京 the")
    assert [tokenizer.decode([i]) for i in ids] == ["北京", " the"] and offsets == [(0, 2), (2, 6)]


def test_worked_example_a_changed_word_is_one_piece(letters):
    text = "ab e\u0301我 c"                                         # the accent is composed to é, another text
    ids, offsets = encode_with_offsets(Composing(letters), text)
    assert letters.decode(ids) == unicodedata.normalize("NFC", text)
    assert offsets == [(0, 1), (1, 2), *[(2, 6)] * 6, (6, 7), (7, 8)]


@pytest.mark.parametrize("text", ["", " ", "你好，世界！ the dog  sleeps\n", "👩‍👩‍👧 12345 naïve", "\u3000全角　空格"])
def test_property_offsets_cover_the_text_in_its_order(tiny_tokenizer, text):
    ids, offsets = encode_with_offsets(tiny_tokenizer, text)
    assert ids == tiny_tokenizer.encode_continuation(text) and len(ids) == len(offsets)
    assert {i for begin, end in offsets for i in range(begin, end)} == set(range(len(text)))
    assert all(a[0] <= b[0] and a[1] <= b[1] and b[0] <= a[1] for a, b in zip(offsets, offsets[1:], strict=False))


def test_property_pieces_of_a_sentencepiece_vocabulary(tmp_path):
    import sentencepiece

    text = "Hello hello world. 今天天气很好 hello. " * 30
    (tmp_path / "t.txt").write_text(text, encoding="utf-8")
    sentencepiece.SentencePieceTrainer.train(input=str(tmp_path / "t.txt"), model_prefix=str(tmp_path / "tokenizer"),
                                             vocab_size=290, model_type="bpe", byte_fallback=True, minloglevel=2,
                                             normalization_rule_name="identity", remove_extra_whitespaces=False)
    tokenizer = load_tokenizer(tmp_path / "tokenizer.model")
    for sentence in ("Hello 今天 world", "龘 hello", "天气"):
        ids, offsets = encode_with_offsets(tokenizer, sentence)
        for token, (begin, end) in zip(ids, offsets, strict=True):
            assert tokenizer.token_bytes(token) in sentence[begin:end].encode()
        assert {i for begin, end in offsets for i in range(begin, end)} == set(range(len(sentence)))
