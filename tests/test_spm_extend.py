"""SentencePiece grown by the pieces of other models: scores by which all of them are made, and old text as it was."""

import random
from pathlib import Path

import pytest
from test_spm import TEXTS

from tokenizer import load_tokenizer
from tokenizer.spm import SentencePieceTokenizer
from tokenizer.spm_extend import append_pieces, dead_pieces, extend_pieces
from tokenizer.spm_model import build_model, read_model, write_model
from tokenizer.spm_train import train_spm

CHINESE_LLAMA = Path(__file__).parent / "fixtures" / "chinese-llama"
CHINESE = ["今天天气很好，我们今天去公园。公园里的人很多，天气很好。", "我们去北京，北京的天气12月很好，low 今天。"] * 4


def by_hand(*pieces, scores=()):
    """A model of these pieces behind <unk> <s> </s>; without scores, the first is the best."""
    names = ["<unk>", "<s>", "</s>", *pieces]
    scores = [0.0] * 3 + list(scores or (-float(i) for i in range(len(pieces))))
    return build_model(names, scores, [2, 3, 3] + [1] * len(pieces), names={"bos_id": "<s>", "eos_id": "</s>"})


def tokenizer_of(model):
    return SentencePieceTokenizer(write_model(model))


@pytest.fixture(scope="module")
def base():
    return train_spm(TEXTS, 340)


@pytest.fixture(scope="module", params=["spm-bpe", "spm-unigram"])
def chinese(request):
    return read_model(train_spm(CHINESE, 330, kind=request.param).model_file())


def test_worked_example_of_scores_by_hand():
    """人民共和国 is dead where all new pieces have the score 0: 民共 is made first, and nothing holds its halves."""
    base = tokenizer_of(by_hand("人民", "low"))
    added = [by_hand("民共", "人民共和国", "共和", "low")]
    like = append_pieces(base, added)
    assert like.pieces[5:] == ["民共", "人民共和国", "共和"] and like._model.scores[5:] == [0.0, 0.0, 0.0]
    assert dead_pieces(like) == [6] and like.first_new_id == 5
    grown = extend_pieces(base, added)
    assert grown.pieces[5:] == ["民共", "人民共和国", "共和", "人民共和"] and not dead_pieces(grown)
    assert grown._model.scores[5:] == [-2.0, -3.0, -4.0, -5.0]      # below both old ones
    assert grown.spelling("人民共和国".encode()) == [6] and like.spelling("人民".encode()) == [3]


def test_two_ways_appended_pieces_are_the_same_file_as_by_protocol_buffers():
    """tests/fixtures/chinese-llama/make.py made it."""
    base, chinese, merged = ((CHINESE_LLAMA / f"{name}.model").read_bytes() for name in ("base", "chinese", "merged"))
    grown = append_pieces(SentencePieceTokenizer(base), [read_model(chinese)])
    assert grown.model_file() == merged and grown.vocab_size == 360 > grown.first_new_id == 340


def test_worked_example_no_step_is_made_of_ascii():
    base = tokenizer_of(by_hand("x"))
    grown = extend_pieces(base, [by_hand("12月")])
    assert grown.pieces[4:] == ["12月", "2月"]
    assert extend_pieces(base, [by_hand("12月")], keep_ascii=False).pieces[4:] == ["12月", "2月"]


def test_property_no_added_piece_is_dead_and_old_text_keeps_its_ids(base, chinese):
    grown = extend_pieces(base, [chinese])
    assert grown.pieces[: base.vocab_size] == base.pieces and not dead_pieces(grown)
    assert set(grown.pieces) >= {piece for piece, type in zip(chinese.pieces, chinese.types, strict=True)
                                 if type == 1 and not piece.replace("▁", " ").isascii()}
    draw = random.Random(0)
    for _ in range(50):
        text = "".join(draw.choices("Helo wrd, agin  12\n\tdef", k=30))
        assert grown.encode(text) == base.encode(text)
    for text in CHINESE:
        assert len(grown.encode(text)) < len(base.encode(text)) and grown.decode(grown.encode(text)) == text


def test_property_pieces_of_kept_text_are_left_out(base, chinese):
    kept = ["天气很好", "公园 low"]
    grown = extend_pieces(base, [chinese], keep=kept)
    assert any(extend_pieces(base, [chinese]).encode(text) != base.encode(text) for text in kept)
    assert all(grown.encode(text) == base.encode(text) for text in kept)
    assert not dead_pieces(grown) and len(grown.encode("北京")) < len(base.encode("北京"))


def test_two_ways_saved_equals_loaded(base, chinese, tmp_path):
    grown = extend_pieces(base, [chinese])
    grown.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.files() == grown.files() and again.first_new_id == base.vocab_size
    assert [again.encode(text) for text in CHINESE] == [grown.encode(text) for text in CHINESE]


def test_property_control_tokens_that_a_folder_adds_keep_their_ids(base, chinese, tmp_path):
    base.save(tmp_path)
    (tmp_path / "added_tokens.json").write_text(f'{{"<|im_end|>": {base.vocab_size}}}', encoding="utf-8")
    folder = load_tokenizer(tmp_path)
    grown = extend_pieces(folder, [chinese])
    assert grown.special_ids["<|im_end|>"] == base.vocab_size == folder.first_new_id - 1
    assert grown.encode("Hello<|im_end|>", allow_special=True) == folder.encode("Hello<|im_end|>", allow_special=True)
    (tmp_path / "added_tokens.json").write_text(f'{{"think": {base.vocab_size}}}', encoding="utf-8")
    with pytest.raises(ValueError, match="the folder adds 'think' to its SentencePiece model"):
        extend_pieces(load_tokenizer(tmp_path), [chinese])


def test_refusal_of_what_does_not_grow(base, chinese):
    with pytest.raises(ValueError, match="of kind Unigram, which weighs whole sentences"):
        extend_pieces(train_spm(TEXTS, 340, kind="spm-unigram"), [chinese])
    with pytest.raises(ValueError, match="nothing is added"):
        extend_pieces(base, [read_model(base.model_file())])
