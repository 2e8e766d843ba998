"""Beam search: by hand, against every text there is, against greedy decoding, and without a cache."""

import dataclasses
import itertools
import json
import math
import sys

import pytest
import torch

import generate as door
from llama.checkpoint import PretrainedLlama, save_model
from llama.config import RopeScaling, preset
from llama.decoding.beam_search import BeamConfig, beam_search, search
from llama.generation import BatchDecoder, generate
from llama.runtime import cli
from llama.sampling import SamplingConfig
from tokenizer.chat import FORMATS

END, A, B = 0, 1, 2
PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16, 17, 18]]


@pytest.fixture
def tiny_model(tiny_tokenizer):
    """Weights so large that what it says depends on what it has read."""
    torch.manual_seed(0)
    model = PretrainedLlama(preset("test", vocab_size=tiny_tokenizer.vocab_size, initializer_range=0.3)).eval()
    model.tokenizer = tiny_tokenizer
    return model


@pytest.fixture
def find(tiny_model, tiny_tokenizer):
    def find(prompts, beams, length_penalty=1.0, **options):
        return beam_search(tiny_model, prompts, BeamConfig(beams, length_penalty), tokenizer=tiny_tokenizer,
                           **{"max_new_tokens": 12} | options)
    return find


class Table:
    """A decoder whose probabilities of END, A, B stand in a table, by what was said before."""

    def __init__(self, table):
        self.table, self.said = table, [()]

    def select(self, rows):
        self.said = [self.said[row] for row in rows]

    def step(self, tokens):
        self.said = [said + tuple(new) for said, new in zip(self.said, tokens.tolist(), strict=True)]
        return torch.tensor([self.table[said] for said in self.said]).log()


def best(table, beams, limit, length_penalty=0.0):
    table = Table(table)
    return search(table, torch.tensor([table.table[()]]).log(), BeamConfig(beams, length_penalty), limit=limit,
                  ends=lambda ids: ids[-1] == END, ends_at_most=1)[0]


def test_worked_example_two_beams_find_what_greedy_misses():
    """A is likelier than B, but all that follows it is unlikely: A A has 0.6 · 0.4 = 0.24, B B 0.4 · 0.9 = 0.36."""
    table = {(): [0.0, 0.6, 0.4], (A,): [0.3, 0.4, 0.3], (B,): [0.0, 0.1, 0.9]}
    assert best(table, 1, limit=2) == [A, A]
    assert best(table, 2, limit=2) == [B, B]


def test_worked_example_the_length_penalty_weighs_long_against_short():
    """END has ln 0.4 = -0.92 for one token, A END ln 0.3 = -1.20 for two, that is -0.60 for each."""
    table = {(): [0.4, 0.6, 0.0], (A,): [0.5, 0.25, 0.25], (B,): [0.4, 0.3, 0.3]}
    assert best(table, 2, limit=2, length_penalty=0.0) == [END]
    assert best(table, 2, limit=2, length_penalty=1.0) == [A, END]


def test_worked_example_an_end_of_low_rank_does_not_count():
    """With one beam A is first; END at 0.4 is second and dropped, though the text goes on to A END at 0.3."""
    table = {(): [0.4, 0.6, 0.0], (A,): [0.5, 0.25, 0.25]}
    assert best(table, 1, limit=2) == [A, END]


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_two_ways_enough_beams_equal_a_search_through_every_text(seed, length_penalty):
    torch.manual_seed(seed)
    model = PretrainedLlama(preset("test", vocab_size=5, initializer_range=0.3)).eval()
    V, prompt, limit, config = 5, [3, 1], 4, BeamConfig(5**3, length_penalty)
    every = [list(ids) for n in range(1, limit + 1) for ids in itertools.product(range(V), repeat=n)
             if END not in ids[:-1] and (n == limit or ids[-1] == END)]
    assert len(every) == 1 + 4 + 16 + 4**3 * 5
    with torch.inference_mode():
        texts = torch.tensor([prompt + ids + [END] * (limit - len(ids)) for ids in every])
        steps = model(texts)[:, 1:-1].log_softmax(-1).gather(2, texts[:, 2:, None]).squeeze(2)     # (texts, limit)
        scores = [config.score(step[: len(ids)].sum().item(), len(ids)) for step, ids in zip(steps, every, strict=True)]
        decoder = BatchDecoder(model, [0], 6, vocab_size=V)
        found, _ = search(decoder, decoder.step(torch.tensor([prompt])), config, limit=limit,
                          ends=lambda ids: ids[-1] == END, ends_at_most=1)
    assert found == every[scores.index(max(scores))]


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 4}, {"max_position_embeddings": 8,
                                     "rope_scaling": RopeScaling("dynamic", 4.0)}], ids=["plain", "window", "dynamic"])
def test_two_ways_through_the_cache_equals_running_every_beam_anew(changes):
    class Anew:
        """A decoder without a cache."""
        def __init__(self, model):
            self.model, self.ids = model, torch.empty(1, 0, dtype=torch.int64)

        def select(self, rows):
            self.ids = self.ids[rows]

        def step(self, tokens):
            self.ids = torch.cat([self.ids, tokens], dim=1)
            return self.model(self.ids)[:, -1]

    torch.manual_seed(0)
    model = PretrainedLlama(preset("test", vocab_size=40, initializer_range=0.3, **changes)).eval()
    texts = []
    with torch.inference_mode():
        for decoder in (BatchDecoder(model, [0], 20, vocab_size=40), Anew(model)):
            logits = decoder.step(torch.tensor([[7, 8, 9]]))
            texts.append(search(decoder, logits, BeamConfig(5), limit=15, ends=lambda ids: False, ends_at_most=0)[0])
    assert texts[0] == texts[1] and len(texts[0]) == 15


def test_two_ways_one_beam_is_greedy(find, tiny_model, tiny_tokenizer):
    greedy = generate(tiny_model, PROMPTS, tokenizer=tiny_tokenizer, sampling=SamplingConfig(temperature=0),
                      max_new_tokens=12)
    assert [dataclasses.replace(found, tokens_per_second=0.0) for found in find(PROMPTS, 1)] == [
        dataclasses.replace(written, tokens_per_second=0.0) for written in greedy]


def test_property_more_beams_find_a_likelier_text(find, tiny_model):
    def log_probability(prompt, ids):
        with torch.inference_mode():
            logits = tiny_model(torch.tensor([prompt + ids]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        return logits.gather(1, torch.tensor(ids)[:, None]).sum().item()
    greedy, wide = (find(PROMPTS, beams, ignore_eos=True) for beams in (1, 8))
    likelier = [log_probability(prompt, b.token_ids) - log_probability(prompt, a.token_ids)
                for prompt, a, b in zip(PROMPTS, greedy, wide, strict=True)]
    assert min(likelier) > -1e-4 and max(likelier) > 0.01


def test_worked_example_texts_end_at_the_models_ends_the_formats_end_and_stop_strings(
        find, tiny_model, tiny_tokenizer, monkeypatch):
    """The head is made to say "The dog sleeps" and then the end of an answer, whatever was said."""
    end = tiny_tokenizer.special_ids["<|im_end|>"]
    said = [*tiny_tokenizer.encode("The dog sleeps"), end, *tiny_tokenizer.encode("The"), 5, 5, 5, 5, 5, 5, 5]

    def hidden(tokens, *, cache, **_):
        cache.length += tokens.shape[1]
        logits = torch.zeros(len(tokens), 1, tiny_tokenizer.vocab_size)
        logits[..., said[cache.length - 1]] = 9.0
        return logits
    monkeypatch.setattr(tiny_model, "hidden", hidden)
    monkeypatch.setattr(tiny_model, "lm_head", torch.nn.Identity())
    shown = []
    found, = find([[5]], 3, on_text=lambda row, text: shown.append((row, text)))
    assert (found.text, found.finish_reason) == ("The dog sleeps", "stop") and end not in found.token_ids
    assert "".join(text for _, text in shown) == found.text
    found, = find([[5]], 3, stop=["g s"])
    assert (found.text, found.finish_reason) == ("The do", "stop")
    found, = find([[5]], 3, max_new_tokens=2)
    assert (found.token_ids, found.finish_reason) == (said[:2], "length")
    assert end in find([[5]], 3, ignore_eos=True, max_new_tokens=12)[0].token_ids
    monkeypatch.setattr(tiny_tokenizer, "eos_ids", (tiny_tokenizer.special_ids["<|endoftext|>"],))
    assert end in find([[5]], 3)[0].token_ids
    assert find([[5]], 3, chat_format=FORMATS["chatml"])[0].text == "The dog sleeps"


def test_worked_example_the_context_limits_the_text(find, tiny_model):
    context = tiny_model.config.context
    found = find([[5] * (context - 3), [6] * 4], 2, ignore_eos=True)
    assert [len(completion.token_ids) for completion in found] == [3, 12]


@pytest.mark.parametrize("options, words", [
    ({"beams": 0}, "beams is 0, which is no search"),
    ({"beams": 1_000_000}, "beams is 1,000,000, and the vocabulary has"),
    ({"beams": -1}, "beams is -1; it must be a whole number from 0"),
    ({"beams": 2, "length_penalty": math.inf}, "length_penalty is inf"),
    ({"beams": 2, "max_new_tokens": 0}, "max_new_tokens is 0"),
    ({"beams": 2, "stop": [""]}, "at least one character"),
])
def test_refusal_of_bad_options(find, options, words):
    with pytest.raises(ValueError, match=words):
        find([[5]], **options)


# The door

def run(monkeypatch, capsys, *flags):
    monkeypatch.setattr(sys, "argv", ["generate.py", *map(str, flags)])
    with pytest.raises(SystemExit) as ended:
        cli.run(door.main)
    return ended.value.code, *capsys.readouterr()


def test_two_ways_the_door_writes_what_the_function_finds(find, tiny_model, tmp_path, monkeypatch, capsys):
    save_model(tiny_model, tmp_path / "model")
    flags = ["--model", tmp_path / "model", "--prompt", "The fox", "--max-new-tokens", 8, "--beams", 4,
             "--length-penalty", 0.5]
    expected = find([tiny_model.tokenizer.encode("The fox")], 4, 0.5, max_new_tokens=8)[0]
    assert run(monkeypatch, capsys, *flags)[:2] == (0, f"The fox{expected.text}\n")
    code, out, _ = run(monkeypatch, capsys, *flags, "--json")
    assert code == 0 and json.loads(out)["token_ids"] == expected.token_ids


@pytest.mark.parametrize("flags, words", [
    (["--beams", 2, "--temperature", 0.5], "--temperature 0.5 is for drawing tokens, and --beams 2 draws none"),
    (["--beams", 2, "--top-k", 5], "--top-k 5 is for drawing"),
    (["--beams", 2, "--repetition-penalty", 1.2], "--repetition-penalty 1.2 is for drawing"),
    (["--beams", 2, "--num-samples", 3], "--num-samples 3 is for drawing"),
    (["--length-penalty", 2], "--length-penalty 2.0 is for beam search; add --beams N"),
    (["--beams", -2], "--beams: it is '-2', and must be"),
])
def test_refusal_of_flags_that_contradict_each_other(monkeypatch, capsys, flags, words):
    code, _, said = run(monkeypatch, capsys, "--prompt", "x", *flags)
    assert code == 2 and words in said


def test_refusal_of_beams_in_an_interactive_chat(monkeypatch, capsys):
    code, _, said = run(monkeypatch, capsys, "--chat", "--beams", 2)
    assert code == 2 and "--beams 2 does not go with an interactive chat" in said
