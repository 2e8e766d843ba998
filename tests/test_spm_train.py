"""SentencePiece models learned with Llama's settings."""

import pytest
from test_spm import OTHERS, TEXTS

from tokenizer.spm_model import read_model
from tokenizer.spm_pure import PlainPieceTokenizer
from tokenizer.spm_train import KINDS, train_spm


@pytest.mark.parametrize("kind", KINDS)
def test_property_text_comes_back_as_it_was(kind):
    tokenizer = train_spm(TEXTS, 340, kind=kind, special=["<|im_end|>"])
    texts = [*(text for text in OTHERS if text not in ("▁",)), "１２：ＡＢ　全角", "x" * 9000]
    assert [tokenizer.decode(tokenizer.encode(text)) for text in texts] == texts
    assert tokenizer.vocab_size <= 340 and tokenizer.special_ids["<|im_end|>"] == 3
    assert (tokenizer.bos_id, tokenizer.eos_ids, tokenizer.pad_id) == (1, (2,), None)
    assert tokenizer.encode("<|im_end|>") != [3]


def test_two_ways_a_learned_model_is_read_without_the_library():
    tokenizer = train_spm(TEXTS, 340)
    plain = PlainPieceTokenizer(read_model(tokenizer.model_file()))
    assert [plain.encode(text) for text in OTHERS + TEXTS] == [tokenizer.encode(text) for text in OTHERS + TEXTS]


def test_refusal_of_vocabularies_that_cannot_be_learned():
    with pytest.raises(ValueError, match="259 is too small: 256 bytes and 3 control tokens leave no room"):
        train_spm(TEXTS, 259)
    with pytest.raises(ValueError, match="learns no vocabulary of 340 from these texts"):
        train_spm([""], 340)
    with pytest.raises(ValueError, match=r"U\+D83D at character 1"):
        train_spm(["x\ud83d"], 340)
