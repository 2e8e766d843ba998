"""Byte-level BPE grown by further merges: old text as it was, nothing dead."""

import json
import random

import pytest
from test_bpe import OTHERS, TEXTS, gguf

from tokenizer import bpe, load_tokenizer
from tokenizer.bpe_extend import dead_pieces, extend_bpe, witness
from tokenizer.pretokenize import RULES

ENGLISH = ["The cat sat on the mat, and the other cat sat on the other mat.\n",
           "Low, lower, lowest; new, newer, newest. It's 12345 in 2024, isn't it?\n"] * 3
CHINESE = ["今天天气很好，我们今天去公园。公园里的人很多，天气很好。\n",
           "我们去北京，北京的天气很好，lower 今天。\n"] * 3


@pytest.fixture(scope="module", params=RULES)
def base(request):
    return bpe.train(ENGLISH, 300, split=request.param)


def test_worked_example_of_growing_by_hand():
    """ab is a piece; cd occurs most beside it, then the two join; and a merge of ASCII is no new one."""
    base = bpe.from_vocabulary(gguf(["a b"]))
    grown = extend_bpe(base, ["abéé", "abéé", "éé x"], 9)
    assert [grown.piece(id) for id in range(257, grown.vocab_size)] == ["é", "éé", "abéé"]
    assert grown.encode("abéé") == [259] and grown.encode("abé") == [256, 257] and grown.first_new_id == 257
    assert extend_bpe(base, ["abc", "abc"], 9, keep_ascii=False).encode("abc") == [257]


def test_property_old_ids_stay_and_new_pieces_follow(base):
    grown = extend_bpe(base, CHINESE, 40)
    assert grown.first_new_id == base.vocab_size < grown.vocab_size <= base.vocab_size + 40
    assert all(grown.token_bytes(id) == base.token_bytes(id) for id in range(base.vocab_size))
    assert grown.special_ids == base.special_ids and grown.eos_ids == base.eos_ids
    assert all(grown.encode(text) == base.encode(text) for text in ENGLISH)
    assert all(len(grown.encode(text)) < len(base.encode(text)) for text in CHINESE)
    assert all(grown.decode(grown.encode(text)) == text for text in OTHERS if base.decode(base.encode(text)) == text)


def test_property_kept_text_has_the_ids_it_had(base):
    kept = ["天气 lower 北京", "公园里的"]
    free, bound = extend_bpe(base, CHINESE, 40), extend_bpe(base, CHINESE, 40, keep=kept)
    assert any(free.encode(text) != base.encode(text) for text in kept)
    assert all(bound.encode(text) == base.encode(text) for text in kept)
    assert bound.encode("今天") != base.encode("今天")


def test_property_of_random_texts_no_piece_is_dead_and_all_begin_with_a_character():
    for seed in range(20):
        draw = random.Random(seed)
        texts = ["".join(draw.choices("天地人abé🦓 ", k=40)) for _ in range(6)]
        grown = extend_bpe(bpe.train(ENGLISH, 290), texts, 60)
        assert not dead_pieces(grown)
        for id in range(grown.first_new_id, grown.vocab_size):
            assert id in grown.encode(witness(grown, id))
            assert grown.token_bytes(id)[0] & 0xC0 != 0x80 and not grown.token_bytes(id).isascii()


def test_worked_example_a_part_all_of_whose_characters_are_pieces_is_dead():
    """U+0080 to U+00BF are all the characters that begin with \\xc2: with 64 pieces, the byte is never left alone."""
    characters = [chr(code) for code in range(0x80, 0xC0)]
    spelt = [bpe.bytes_to_unicode(char.encode()) for char in characters]
    some = bpe.from_vocabulary(gguf([" ".join(each) for each in spelt[:-1]]))
    every = bpe.from_vocabulary(gguf([" ".join(each) for each in spelt]))
    assert witness(some, 0xC2) == "¿" and witness(every, 0xC2) == ""


def test_two_ways_saved_equals_loaded_and_grown_twice(base, tmp_path):
    grown = extend_bpe(base, CHINESE, 20)
    grown.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.files() == grown.files() and again.first_new_id == base.vocab_size
    assert json.loads((tmp_path / "tokenizer_config.json").read_text(encoding="utf-8"))["first_new_id"] == 300
    twice = extend_bpe(again, TEXTS, 20)
    assert twice.first_new_id == again.vocab_size
    assert [twice.encode(text) for text in ENGLISH] == [base.encode(text) for text in ENGLISH]


def test_refusal_of_texts_that_teach_nothing(base):
    with pytest.raises(ValueError, match="teach no piece that the vocabulary lacks"):
        extend_bpe(base, ENGLISH, 10)
    with pytest.raises(ValueError, match=r"U\+D83D at character 1"):
        extend_bpe(base, ["x\ud83d"], 10)
