import math

import pytest
import torch

from llama.benchmark import measure_generation
from llama.fast import compiled_step
from llama.generation import BatchDecoder


@pytest.fixture
def ids(tiny_model):
    return tiny_model.tokenizer.encode("The quick brown fox jumps over the lazy dog, 你好，世界！ and sleeps." * 2)


def test_worked_example_decode_counts(tiny_model, ids):
    works, steps = measure_generation.works(tiny_model), []
    tiny_model.layers[0].register_forward_hook(lambda _, inputs, __: steps.append(inputs[0].shape[1]))
    answer = works["decode"](prompt=ids[:9], new=5)
    assert steps == [9] + [1] * 5                                   # the prompt gives the first of six tokens
    assert answer["tokens"] == 5 and answer["seconds"] > 0
    steps.clear()
    assert works["prefill"](prompt=ids[:20])["tokens"] == 20 and steps == [20]
    assert works["batch"](prompts=[ids[:3], ids[5:9]], new=4)["tokens"] == 8


def test_worked_example_answers_end_where_they_end_and_guesses_are_told(tiny_model, ids, monkeypatch):
    plain, guessing = measure_generation.works(tiny_model), measure_generation.works(tiny_model, lookup=True)
    answer = plain["answers"](prompts=[ids[:9], ids[:4]], new=6)
    assert answer["tokens"] == 12 and answer["seconds"] > 0 and "guesses" not in answer
    third = tiny_model.generate(tiny_model.tokenizer.decode(ids[:9]), max_new_tokens=6, temperature=0.0)
    monkeypatch.setattr(tiny_model.tokenizer, "eos_ids", (tiny_model.tokenizer.encode(third)[-1],))
    assert plain["answers"](prompts=[ids[:9]], new=6)["tokens"] < 6
    monkeypatch.undo()
    told = guessing["answers"](prompts=[ids[:9], ids[:4]], new=6)
    assert told["tokens"] == 12 and set(told["guesses"]) == {"acceptance", "tokens_per_step", "speed_up"}


def test_two_ways_mean_loss_in_blocks_equals_the_whole_forward_pass(tiny_model, ids):
    expected, ids = 0.0, ids[:30]
    with torch.no_grad():
        for start in (0, 12, 24):
            logits = tiny_model(torch.tensor([ids[start : start + 12]])).log_softmax(-1)[0]
            targets = ids[start + 1 : start + 13]
            expected -= sum(logits[t, target].item() for t, target in enumerate(targets))
    found = measure_generation.mean_loss(tiny_model, ids, block=12)
    assert found == pytest.approx(expected / 29, rel=1e-5)
    assert measure_generation.works(tiny_model)["perplexity"](ids=ids, block=12) == {
        "perplexity": pytest.approx(math.exp(found)), "tokens": 29}


def test_property_perplexity_goes_through_the_step_that_the_mode_has(tiny_model, ids):
    class Step:
        """What compiled_step.py gives, in plain torch; wrong by a known factor."""

        def fits(self, tokens, cache):
            return cache.length > 0 and tokens.shape[1] <= compiled_step.MAX_TOKENS

        def __call__(self, tokens, *, padding, cache, count):
            return 0 * tiny_model(tokens, cache=cache)[:, -count:]

    tiny_model.step = Step()
    first = measure_generation.mean_loss(tiny_model, ids[:2], block=20)        # one token, which the model itself reads
    expected = (first + 18 * math.log(tiny_model.config.vocab_size)) / 19
    assert measure_generation.mean_loss(tiny_model, ids[:20], block=20) == pytest.approx(expected, rel=1e-5)
    assert measure_generation.STEP == compiled_step.MAX_TOKENS


@pytest.mark.parametrize("dtype, size", [(torch.float32, 4), (torch.bfloat16, 2)])
def test_worked_example_traffic(tiny_model, dtype, size):
    config = tiny_model.config
    tiny_model.to(dtype)
    matrices = sum(p.numel() for name, p in tiny_model.named_parameters() if "norm" not in name)    # the head is tied
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 10
    assert measure_generation.works(tiny_model)["traffic"](context=10)["bytes"] == size * (matrices + cache)
    assert BatchDecoder(tiny_model, [0], 10, vocab_size=9).cache.layers[0].keys.element_size() == size
