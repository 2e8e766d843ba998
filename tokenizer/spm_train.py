"""Learning a SentencePiece model, by its library, with the settings of Llama's.

    bytes for what no piece holds · digits one by one · spaces kept as they are, and text not normalised

Such a model is read by everything that reads Llama's, and without the library by spm_pure.py (kind BPE).

Try: let `normalization_rule_name` be "nmt_nfkc", the library's default; tests/test_spm_train.py
(test_property_text_comes_back_as_it_was) fails: full-width signs become others.
"""

import io
from collections.abc import Iterable, Iterator, Sequence

import sentencepiece

from tokenizer.base import utf8
from tokenizer.spm import SentencePieceTokenizer

KINDS = {"spm-bpe": "bpe", "spm-unigram": "unigram"}
LONGEST = 4000                                                      # bytes of a sentence; longer lines are cut


def train_spm(texts: Iterable[str], vocab_size: int, *, kind: str = "spm-bpe",
              special: Sequence[str] = (), coverage: float = 0.9995) -> SentencePieceTokenizer:
    """Learn a model: <unk>, <s>, </s>, then `special` as control tokens, 256 bytes, pieces.

    kind      a key of KINDS
    coverage  the part of all characters that get a piece of their own; the others are written as bytes

    It is smaller than `vocab_size` where the texts do not hold so many pieces. Raises ValueError for a size without
    room for the bytes, for texts that teach nothing, and for what `utf8` refuses.
    """
    if vocab_size < (least := 3 + len(special) + 256 + 1):
        raise ValueError(f"a vocabulary of {vocab_size} is too small: 256 bytes and {3 + len(special)} control tokens "
                         f"leave no room for pieces; give at least {least}")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts), model_writer=model, vocab_size=vocab_size, model_type=KINDS[kind],
            byte_fallback=True, character_coverage=coverage, split_digits=True, normalization_rule_name="identity",
            remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, max_sentence_length=2 * LONGEST,
            unk_id=0, bos_id=1, eos_id=2, pad_id=-1, control_symbols=list(special), hard_vocab_limit=False,
            num_threads=1, minloglevel=2)
    except RuntimeError as error:
        reason = (str(error).rpartition("] ")[2].strip() or str(error)).replace("--character_coverage", "--coverage")
        raise ValueError(f"SentencePiece learns no vocabulary of {vocab_size} from these texts ({reason:.200}); give "
                         "another --vocab-size, a lower --coverage, or more text") from None
    return SentencePieceTokenizer(model.getvalue())


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        utf8(text)
        for line in text.split("\n"):
            yield from (line[i : i + LONGEST // 4] for i in range(0, len(line), LONGEST // 4))
