"""SentencePiece models: the space before the first word, bytes, control pieces, and writing a model file."""

import io
import json
import random

import pytest
import sentencepiece

from tokenizer import from_vocabulary, load_tokenizer
from tokenizer.spm import SentencePieceTokenizer
from tokenizer.spm_model import build_model, write_model

TEXTS = ["Hello world, hello again; the world is round and wide.\n", "你好，世界！今天天气很好，你好吗？\n",
         "def add(a, b):\n    return a + b\n"] * 4
OTHERS = ["Hello world", " Hello", "  two  spaces ", "\n\nx", "你好，朋友 🦓", "tab\tand\x00null", "", " ",
          "<s></s><unk>", "▁"]


@pytest.fixture(scope="module")
def model() -> bytes:
    """Llama's settings, small: BPE, byte fallback, text unchanged but for the space before its first word."""
    content = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=content, model_type="bpe", vocab_size=360, byte_fallback=True,
        character_coverage=1.0, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, allow_whitespace_only_pieces=True, minloglevel=2)
    return content.getvalue()


@pytest.fixture(scope="module")
def tokenizer(model):
    return SentencePieceTokenizer(model)


def gguf(model: bytes) -> dict:
    """The vocabulary that a GGUF file would hold for this model."""
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    ids = range(library.vocab_size())
    types = [2 if library.is_unknown(id) else 3 if library.is_control(id) else 6 if library.is_byte(id) else 1
             for id in ids]
    return {"model": "llama", "pre": None, "tokens": [library.id_to_piece(id) for id in ids], "types": types,
            "scores": [library.get_score(id) for id in ids], "merges": None, "bos_id": 1, "eos_ids": [2],
            "pad_id": None, "unk_id": 0, "add_bos": True, "add_space_prefix": True, "chat_template": None}


def test_worked_example_a_vocabulary_by_hand():
    pieces = ["<unk>", "<s>", "</s>", "▁", "l", "o", "w", "lo", "▁lo", "low"]
    scores = [0, 0, 0, -9, -9, -9, -9, -1, -2, -3]                 # lo first, then ▁lo, so that low is never reached
    tokenizer = SentencePieceTokenizer(write_model(build_model(pieces, scores, [2, 3, 3] + [1] * 7,
                                                  names={"bos_id": "<s>", "eos_id": "</s>"})))
    assert tokenizer.encode("low lo", bos=True, eos=True) == [1, 8, 6, 8, 2]
    assert tokenizer.encode_continuation("low") == [9]
    assert tokenizer.decode([1, 8, 6, 8, 2]) == "<s>low lo</s>"
    assert tokenizer.decode([1, 8, 6, 8, 2], skip_special=True) == "low lo"
    assert tokenizer.encode("x") == [3, 0]                          # no bytes in this one: unknown


def test_property_the_beginning_is_expected_unless_the_files_say_otherwise(model, tokenizer):
    assert tokenizer.adds_bos and (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (1, (2,), None)
    assert not load_tokenizer({"tokenizer.model": model, "tokenizer_config.json": b'{"add_bos_token": false}'}).adds_bos


def test_two_ways_agree_the_library_and_this_class(model, tokenizer):
    library = sentencepiece.SentencePieceProcessor(model_proto=model)
    for text in TEXTS + OTHERS:
        assert tokenizer.encode(text) == library.encode(text)
        if "<" not in text:
            assert tokenizer.decode(tokenizer.encode(text)) == library.decode(library.encode(text))


def test_property_decoding_gives_the_text_back(tokenizer):
    for text in TEXTS + OTHERS[:-1]:                                # ▁ itself comes back as the space that it means
        ids = tokenizer.encode(text)
        stream = tokenizer.stream(skip_special=False)
        assert "".join(map(stream.push, ids)) + stream.flush() == tokenizer.decode(ids) == text


def test_property_a_text_in_two_parts_is_the_text(tokenizer):
    """The second part must not begin with a space of its own."""
    for text in TEXTS:
        cut = random.Random(text).randrange(len(text))
        ids = tokenizer.encode(text[:cut]) + tokenizer.encode_continuation(text[cut:])
        assert tokenizer.decode(ids) == (text if cut else " " + text)[not cut:]


def test_property_special_pieces_in_text_are_text(tokenizer):
    assert not {0, 1, 2} & set(tokenizer.encode("<s></s><unk>"))
    assert tokenizer.encode("<s>Hello</s>Hello", allow_special=True) == [
        1, *tokenizer.encode("Hello"), 2, *tokenizer.encode("Hello")]
    assert tokenizer.decode([1, *tokenizer.encode("Hello"), 2, 1, *tokenizer.encode("again")]) == "<s>Hello</s><s>again"


def test_property_a_character_in_bytes_streams_whole(tokenizer):
    ids = tokenizer.encode("🦓")
    stream = tokenizer.stream()
    assert len(ids) == 5 and [stream.push(id) for id in ids] == ["", "", "", "", "🦓"]
    assert tokenizer.token_bytes(ids[1]) == b"\xf0" and tokenizer.piece(ids[1]) == "\\xf0"


def test_two_ways_agree_a_model_and_the_same_written_from_its_pieces(model, tokenizer):
    vocabulary = gguf(model)
    rewritten = from_vocabulary(vocabulary)
    for text in TEXTS + OTHERS:
        assert rewritten.encode(text) == tokenizer.encode(text)
        assert rewritten.encode_continuation(text) == tokenizer.encode_continuation(text)
    for attribute in ("bos_id", "eos_ids", "pad_id", "adds_bos", "special_ids", "vocab_size"):
        assert getattr(rewritten, attribute) == getattr(tokenizer, attribute), attribute
    without = from_vocabulary(vocabulary | {"add_space_prefix": False})
    assert without.encode("Hello") == tokenizer.encode_continuation("Hello")
    assert without.decode(without.encode(" Hello")) == " Hello"


def test_two_ways_agree_saved_and_loaded_with_added_tokens(model, tmp_path):
    size = SentencePieceTokenizer(model).vocab_size
    config = {"added_tokens_decoder": {str(size): {"content": "<|im_start|>", "special": True},
                                       str(size + 1): {"content": "<think>", "special": False},
                                       "1": {"content": "<s>", "special": True}}, "pad_token": "[PAD]"}
    tokenizer = load_tokenizer({"tokenizer.model": model, "tokenizer_config.json": json.dumps(config).encode(),
                                "added_tokens.json": json.dumps({"[PAD]": size + 2}).encode()})
    assert tokenizer.vocab_size == size + 3
    assert tokenizer.encode("<|im_start|>", allow_special=True) == [size]
    assert size not in tokenizer.encode("<|im_start|>") and size + 1 in tokenizer.encode("a<think>b")
    assert tokenizer.decode(tokenizer.encode("a<think>b")) == "a<think>b"
    assert tokenizer.special_ids["[PAD]"] == tokenizer.pad_id == size + 2
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path).files() == tokenizer.files()
    assert load_tokenizer(tmp_path).special_ids == tokenizer.special_ids


def test_refusal_of_damaged_models(model):
    for content in (b"", b"\n", b"\nxyz", model[:-3], model[:len(model) // 2]):
        with pytest.raises(ValueError, match="no SentencePiece model, or not all of one"):
            SentencePieceTokenizer(content)


def test_refusal_of_a_gguf_without_scores(model):
    with pytest.raises(ValueError, match="has no scores"):
        from_vocabulary(gguf(model) | {"scores": None})
