"""The SentencePiece model file, read and written by hand, against the library that made it."""

import io
import struct

import pytest
import sentencepiece

from tokenizer.spm_model import BPE, PieceModel, build_model, read_model, without_space_first, write_model

TEXTS = ["Hello world, hello again; the world is round and wide.\n", "你好，世界！今天天气很好，你好吗？\n"] * 4


def trained(**settings):
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(TEXTS), model_writer=file, minloglevel=2,
                                             **settings)
    return file.getvalue()


@pytest.fixture(scope="module")
def llama():
    return trained(model_type="bpe", vocab_size=340, byte_fallback=True, normalization_rule_name="identity",
                   remove_extra_whitespaces=False, user_defined_symbols=["<think>"], pad_id=3)


def test_worked_example_of_the_bytes_of_a_piece():
    model = PieceModel(["low", "<s>"], [-1.0, 0.0], [1, 3], b"\x12\x02\x18\x02")
    file = bytes.fromhex("0a0a 0a036c6f77 15000080bf" "0a0c 0a033c733e 1500000000 1803" "12021802")
    assert write_model(model) == file and read_model(file) == model
    assert (model.kind, model.space_first, model.byte_fallback) == (BPE, True, False)


def test_two_ways_agree_the_library_and_what_is_read(llama):
    library, model = sentencepiece.SentencePieceProcessor(model_proto=llama), read_model(llama)
    ids = range(library.vocab_size())
    assert model.pieces == [library.id_to_piece(id) for id in ids]
    assert model.scores == [library.get_score(id) for id in ids]
    asked = {2: library.is_unknown, 3: library.is_control, 5: library.is_unused, 6: library.is_byte}
    assert all(asked[type](id) for id, type in enumerate(model.types) if type in asked)
    assert model.types[library.piece_to_id("<think>")] == 4
    assert [model.id_of(role) for role in ("unk_id", "bos_id", "eos_id", "pad_id")] == [0, 1, 2, 3]
    assert (model.kind, model.space_first, model.byte_fallback, model.normalizes) == (2, True, True, "")


@pytest.mark.parametrize("settings", [{"model_type": "unigram", "vocab_size": 35}, {"model_type": "char"},
                                      {"model_type": "bpe", "vocab_size": 60, "treat_whitespace_as_suffix": True}])
def test_two_ways_agree_read_and_written_is_the_same_file(llama, settings):
    for file in (llama, trained(**settings)):
        assert write_model(read_model(file)) == file


def test_two_ways_agree_a_model_built_of_pieces_is_accepted_by_the_library(llama):
    model = read_model(llama)
    names = {"unk_id": "<unk>", "bos_id": "<s>", "eos_id": "</s>", "pad_id": "<pad>"}
    built = build_model(model.pieces, model.scores, model.types, names=names)
    one, two = (sentencepiece.SentencePieceProcessor(model_proto=file) for file in (llama, write_model(built)))
    for text in [*TEXTS, "x <think> 🦓 \x00", ""]:
        assert one.encode(text) == two.encode(text)
    assert (two.bos_id(), two.eos_id(), two.pad_id(), two.unk_id()) == (1, 2, 3, 0)


def test_worked_example_the_space_before_the_first_word_is_turned_off(llama):
    assert not read_model(without_space_first(llama)).space_first
    assert read_model(write_model(build_model(["a"], [0.0], [1], names={}, space_first=False))).space_first is False


def test_worked_example_what_a_model_does_to_text_is_named():
    assert read_model(trained(model_type="char")).normalizes == "normalises text (nmt_nfkc)"
    identity = trained(model_type="char", normalization_rule_name="identity")
    assert read_model(identity).normalizes == "removes spaces that follow each other"


@pytest.mark.parametrize("damage", [b"", b"\x12\x00", b"\n", b"\nxyz", b"\n\x03\n\x01\xff", b"\n\x02\x15\x00",
                                    b"\xff" * 12, b"\n\x05\x0a\x01a\x15" + struct.pack("<f", 1)[:1]])
def test_refusal_of_damaged_models(damage):
    with pytest.raises(ValueError, match="no SentencePiece model, or not all of one"):
        read_model(damage)


def test_refusal_of_fields_of_another_kind(llama):
    """A number where a message or a text belongs, as one turned bit makes it."""
    for more in (b"\x10\x05", b"\x18\x05", b"\x12\x03\xf0\x02\x01", b"\x1a\x02\x08\x01"):
        with pytest.raises(ValueError, match="no SentencePiece model, or not all of one"):
            read_model(llama + more)
    score_as_text = b"\x0a\x08\x0a\x03low\x12\x01x"
    with pytest.raises(ValueError, match="no SentencePiece model, or not all of one"):
        read_model(score_as_text)
