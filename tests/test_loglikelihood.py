"""Scores of continuations against one pass over each whole text."""

import pytest
import torch
from torch.testing import assert_close

from llama.checkpoint import PretrainedLlama
from llama.config import RopeScaling, preset
from llama.decoding.loglikelihood import loglikelihood

PREFIX, ANSWERS = list(range(20, 60)), [[5], [6, 7, 8], [9, 10], [5, 5, 5, 5, 5, 5]]


def make(tokenizer, **changes):
    torch.manual_seed(0)
    return PretrainedLlama(preset("test", vocab_size=tokenizer.vocab_size + 8, initializer_range=0.3, **changes)).eval()


def whole(model, tokenizer, answer):
    """The same from the whole text at once."""
    with torch.no_grad():
        logits = model(torch.tensor([PREFIX + answer]))[0, :, : tokenizer.vocab_size]
    return logits.log_softmax(-1)[len(PREFIX) - 1 : -1].gather(-1, torch.tensor(answer)[:, None]).squeeze(-1)


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 12}], ids=["plain", "window"])
@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_two_ways_scores_equal_those_of_whole_texts(tiny_tokenizer, monkeypatch, changes, batch_size):
    monkeypatch.setattr("llama.decoding.loglikelihood.PIECE", 4)
    model = make(tiny_tokenizer, **changes)
    scores = loglikelihood(model, PREFIX, ANSWERS, tokenizer=tiny_tokenizer, batch_size=batch_size, prefill_chunk=16)
    for answer, ours in zip(ANSWERS, scores, strict=True):
        assert_close(ours, whole(model, tiny_tokenizer, answer), rtol=1e-5, atol=1e-5)


def test_property_the_prefix_runs_once(tiny_tokenizer, monkeypatch):
    model, ran = make(tiny_tokenizer), []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden",
                        lambda tokens, **options: (ran.append(tokens.numel()), hidden(tokens, **options))[1])
    loglikelihood(model, PREFIX, ANSWERS * 3, tokenizer=tiny_tokenizer, batch_size=4)
    assert ran == [len(PREFIX)] + 3 * [4 * 5]
    ran.clear()
    loglikelihood(model, PREFIX, [[5], [6]], tokenizer=tiny_tokenizer)
    assert ran == [len(PREFIX)]                                     # answers of one id need nothing more


def test_refusal_of_what_cannot_be_scored(tiny_tokenizer):
    model = make(tiny_tokenizer)
    for prefix, answers in (([], [[5]]), ([5], [[5], []])):
        with pytest.raises(ValueError, match="holds no ids"):
            loglikelihood(model, prefix, answers, tokenizer=tiny_tokenizer)
    with pytest.raises(ValueError, match="260 tokens long and the model is steady up to 256"):
        loglikelihood(model, [5] * 258, [[5], [6, 7]], tokenizer=tiny_tokenizer)
    turning = make(tiny_tokenizer, max_position_embeddings=24, rope_scaling=RopeScaling("dynamic", 4.0))
    with pytest.raises(ValueError, match="steady up to 24"):
        loglikelihood(turning, PREFIX, ANSWERS, tokenizer=tiny_tokenizer)
