"""SentencePiece BPE in plain Python, against the library."""

import io
import random

import pytest
import sentencepiece

from tokenizer import from_vocabulary, load_tokenizer, tokenizer_file
from tokenizer.added_tokens import AddedToken, Finder
from tokenizer.spm import SentencePieceTokenizer
from tokenizer.spm_model import build_model, read_model, write_model
from tokenizer.spm_pure import PlainPieceTokenizer

TEXTS = ["Hello world, hello again; the world is round and wide.\n", "你好，世界！今天天气很好，你好吗？\n",
         "def add(a, b):\n    return a + b\n", "aaaa aaa aa ababab   bab  1999 2024\n"] * 4
LLAMA = {"byte_fallback": True, "split_digits": True, "allow_whitespace_only_pieces": True}
SETTINGS = {
    "as Llama's": LLAMA,
    "without bytes": {},
    "user-defined symbols": LLAMA | {"user_defined_symbols": ["<think>", "  ", "lo▁w", "好，世"]},
    "no space first": LLAMA | {"add_dummy_prefix": False},
    "pieces across spaces": LLAMA | {"split_by_whitespace": False},
}


def trained(**settings):
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(**({
        "sentence_iterator": iter(TEXTS), "model_writer": file, "model_type": "bpe", "minloglevel": 2,
        "vocab_size": 390 if settings.get("byte_fallback") else 130, "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False, "character_coverage": 0.98} | settings))
    return file.getvalue()


@pytest.fixture(scope="module", params=SETTINGS)
def model(request):
    return trained(**SETTINGS[request.param])


def odd_text(seed):
    draw = random.Random(seed)
    atoms = ["hello", "world", "ab", "a", " ", "  ", "\n", "\t", "你好", "，世界", "🦓", "e\u0301", "▁", "<think>",
             "<s>", "<0x41>", "lo w", "1", "99", "مرحبا", "\x00", "\u3000", "é", "return", "(a,", "<unk>", "魑魅"]
    return "".join(draw.choices(atoms, k=draw.randint(0, 25)))


def test_worked_example_the_piece_of_highest_score_goes_first():
    pieces = ["<unk>", "<s>", "</s>", "▁", "l", "o", "w", "lo", "▁lo", "low"]
    scores = [0, 0, 0, -9, -9, -9, -9, -1, -2, -3]
    plain = PlainPieceTokenizer(build_model(pieces, scores, [2, 3, 3] + [1] * 7, names={}))
    assert plain.encode("low lo") == [8, 6, 8]
    assert plain.encode_continuation("low") == [9]
    assert plain.encode("xy lo") == [3, 0, 8]                       # no bytes in this one: one <unk> for all of xy


def test_two_ways_agree_with_the_library(model):
    library, plain = SentencePieceTokenizer(model), PlainPieceTokenizer(read_model(model))
    for text in TEXTS + [odd_text(seed) for seed in range(400)]:
        assert plain.encode(text) == library.encode(text), ascii(text)
        assert plain.encode_continuation(text) == library.encode_continuation(text), ascii(text)
        assert plain.decode(plain.encode(text)) == library.decode(library.encode(text))
    for attribute in ("bos_id", "eos_ids", "pad_id", "adds_bos", "special_ids", "vocab_size", "spells_space_first"):
        assert getattr(plain, attribute) == getattr(library, attribute), attribute


def test_two_ways_agree_with_the_library_on_pieces_that_are_steps_only(model):
    """Unused pieces take part in merging, and are cut again where they are left."""
    read = read_model(model)
    draw = random.Random(0)
    types = [5 if type == 1 and len(piece) > 1 and draw.random() < 0.3 else type
             for piece, type in zip(read.pieces, read.types, strict=True)]
    changed = type(read)(read.pieces, read.scores, types, read.rest)
    library, plain = SentencePieceTokenizer(write_model(changed)), PlainPieceTokenizer(changed)
    for text in TEXTS + [odd_text(seed) for seed in range(150)]:
        assert plain.encode(text) == library.encode(text), ascii(text)


def test_property_decoding_gives_the_text_back():
    plain = PlainPieceTokenizer(read_model(trained(**LLAMA)))
    draw = random.Random(1)
    for _ in range(200):
        codes = [draw.randrange(*draw.choice([(0, 128), (0x80, 0x2000), (0x3000, 0xD7FF), (0x10000, 0x20000)]))
                 for _ in range(draw.randint(0, 30))]
        text = "".join(map(chr, codes))
        assert plain.decode(plain.encode(text)) == text


def test_property_long_texts_take_no_longer_a_letter_than_short_ones():
    plain = PlainPieceTokenizer(read_model(trained(**LLAMA)))
    for text in ("a" * 20_000, " " * 20_000, "ab" * 10_000):
        assert plain.decode(plain.encode(text)) == text


def test_two_ways_agree_vocabulary_of_a_model_and_the_tokenizer_built_of_it(model):
    library = SentencePieceTokenizer(model)
    plain = from_vocabulary(library.vocabulary())
    assert type(plain) is PlainPieceTokenizer and plain.vocabulary() == library.vocabulary()
    for seed in range(60):
        parts = Finder(AddedToken(piece, 0) for piece in plain._always).split(odd_text(seed))
        for text in (part for part in parts if isinstance(part, str)):   # behind user-defined pieces: see below
            assert plain.encode(text) == library.encode(text)
    again = load_tokenizer(plain.files())
    assert type(again) is SentencePieceTokenizer and again.vocabulary() == library.vocabulary()
    assert tokenizer_file(library, "SentencePiece") == ("tokenizer.model", model)


def test_worked_example_text_starts_anew_behind_a_user_defined_piece_of_a_gguf_file():
    """As llama.cpp has it; within a SentencePiece model such a piece is one like others."""
    library = SentencePieceTokenizer(trained(**LLAMA, user_defined_symbols=["<t>"]))
    plain = from_vocabulary(library.vocabulary())
    hello, mark = plain.encode("hello"), plain._always["<t>"]
    assert plain.encode("<t>hello") == [mark, *hello] and plain.encode("hello<t>hello") == [*hello, mark, *hello]
    assert plain.decode(plain.encode("hello<t>hello <t> a")) == "hello<t>hello <t> a"
    assert library.encode("hello<t>hello") != [*hello, mark, *hello]


def test_worked_example_of_several_unknown_pieces_one_is_kept():
    """Phi 3's GGUF files call dozens of pieces unknown, but not the one that is."""
    vocabulary = SentencePieceTokenizer(trained(**LLAMA)).vocabulary()
    types = [3, *vocabulary["types"][1:300], 2, 2, *vocabulary["types"][302:]]
    tokenizer = from_vocabulary(vocabulary | {"types": types})
    assert tokenizer.vocabulary()["types"] == [2, *types[1:300], 3, 3, *types[302:]]
    assert load_tokenizer(tokenizer.files()).vocabulary() == tokenizer.vocabulary()


def test_refusal_of_models_that_need_the_library():
    for settings, words in (({"normalization_rule_name": "nmt_nfkc"}, r"normalises text \(nmt_nfkc\), which only"),
                            ({"remove_extra_whitespaces": True}, "removes spaces that follow each other"),
                            ({"model_type": "unigram", "vocab_size": 55}, "is not of kind BPE")):
        file = trained(**settings)
        with pytest.raises(ValueError, match=words):
            PlainPieceTokenizer(read_model(file))
        with pytest.raises(ValueError, match="cannot say that this SentencePiece model"):
            load_tokenizer({"tokenizer.model": file}).vocabulary()


def test_refusal_of_vocabularies_that_are_not_whole():
    vocabulary = SentencePieceTokenizer(trained(**LLAMA)).vocabulary()
    with pytest.raises(ValueError, match="has no scores"):
        from_vocabulary(vocabulary | {"scores": None})
    with pytest.raises(ValueError, match="not for <0x41>; it is damaged"):
        from_vocabulary(vocabulary | {"tokens": [token.replace("<0x41>", "x") for token in vocabulary["tokens"]]})
    model = read_model(trained(**LLAMA))
    byte = model.pieces.index("<0x05>")
    model.types[byte] = 3                                           # a control token, which no text spells
    with pytest.raises(ValueError, match="and has no piece <0x05>; fetch or copy it again"):
        PlainPieceTokenizer(model)
