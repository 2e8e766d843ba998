"""Speculative decoding: the distribution of plain decoding, proven by following every random choice; texts and ends."""

import dataclasses
from collections import defaultdict
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from llama import cache, generation
from llama.checkpoint import PretrainedLlama
from llama.config import RopeScaling, preset
from llama.decoding import speculative
from llama.decoding.prefix_cache import PrefixCache
from llama.decoding.speculative import (
    DraftModel,
    NoDraft,
    PromptLookup,
    SpeculationConfig,
    SpeculativeCompletion,
    check_draft,
    draft_stats,
    generate_speculatively,
    keep,
    write,
)
from llama.generation import TextRow, generate
from llama.sampling import SamplingConfig, probabilities
from tokenizer import bpe

GREEDY, HOT = SamplingConfig(temperature=0), SamplingConfig(temperature=1.5, top_p=0.95, repetition_penalty=1.2)


def make(seed=0, **changes):
    """A random model whose weights are so large that what it says depends on what it has read."""
    torch.manual_seed(seed)
    return PretrainedLlama(preset("test", **{"initializer_range": 0.3} | changes)).eval()


@pytest.fixture
def model(tiny_tokenizer):
    model = make(vocab_size=tiny_tokenizer.vocab_size + 8)          # rows beyond the tokenizer's, as many models have
    model.tokenizer = tiny_tokenizer
    return model


@pytest.fixture
def draft(tiny_tokenizer):
    return DraftModel(make(1, vocab_size=tiny_tokenizer.vocab_size, num_hidden_layers=1),
                      vocab_size=tiny_tokenizer.vocab_size)


def prompts_of(number, vocab_size=400):
    """Of 2 to 40 ids, half of them with a passage that comes twice."""
    generator = torch.Generator().manual_seed(5)
    prompts = []
    for i in range(number):
        ids = torch.randint(3, vocab_size, (2 + i * 38 // number,), generator=generator).tolist()
        prompts.append(ids + ids[: len(ids) // 2] if i % 2 else ids)
    return prompts


# The rule

def every_outcome(monkeypatch, experiment):
    """{what experiment() returns: how often it does}, by following each of its random choices both (all) ways."""
    outcomes, scripts = defaultdict(float), [[]]
    while scripts:
        script, taken, weight = scripts.pop(), [], [1.0]

        def choose(chances, script=script, taken=taken, weight=weight):
            possible = [i for i, chance in enumerate(chances) if chance > 0]
            if len(taken) == len(script):
                scripts.extend([*script, other] for other in possible[1:])
                script.append(possible[0])
            choice = script[len(taken)]
            taken.append(choice)
            weight[0] *= chances[choice]
            return choice

        monkeypatch.setattr(
            speculative, "accepts", lambda chance, _: choose([1 - min(chance, 1), min(chance, 1)]) == 1)
        monkeypatch.setattr(speculative, "draw", lambda w, _: choose((w.double() / w.double().sum()).tolist()))
        outcomes[tuple(experiment())] += weight[0]
    assert abs(sum(outcomes.values()) - 1) < 1e-6
    return outcomes


def test_worked_example_what_is_left_when_a_guess_fails(monkeypatch):
    """A guess of 1 has 0.3 of p and 0.5 of q: kept 3 times of 5, else 0 comes, which alone has more of p than of q."""
    p, q = torch.tensor([[0.5, 0.3, 0.2], [0.0, 0.0, 1.0]]), torch.tensor([[0.2, 0.5, 0.3]])
    assert every_outcome(monkeypatch, lambda: keep([1], p, q, None)) == pytest.approx({(1, 2): 0.6, (0,): 0.4})
    assert every_outcome(monkeypatch, lambda: keep([0], p, q, None)) == pytest.approx({(0, 2): 1.0})
    assert every_outcome(monkeypatch, lambda: keep([1], p, None, None)) == pytest.approx(
        {(1, 2): 0.3, (0,): 0.5, (2,): 0.2})
    assert every_outcome(monkeypatch, lambda: keep([], p[1:], None, None)) == {(2,): 1.0}


def test_worked_example_the_rule_gives_the_models_own_distribution(monkeypatch):
    """Two guesses from q: the first token comes as p has it, and the second, where there is one, as p has it then."""
    p, q = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(0)).pow(2)
    p, q = p / p.sum(-1, keepdim=True), q / q.sum(-1, keepdim=True)

    def experiment():
        guesses = [speculative.draw(q[i], None) for i in range(2)]
        return keep(guesses, p, q[:2], None)
    outcomes = every_outcome(monkeypatch, experiment)
    first, second = torch.zeros(3), torch.zeros(3)
    for ids, chance in outcomes.items():
        first[ids[0]] += chance
        if len(ids) > 1:
            second[ids[1]] += chance
    assert_close(first, p[0])
    assert_close(second / second.sum(), p[1])


def test_property_a_guess_that_fails_by_rounding_alone_still_gives_a_token(monkeypatch):
    monkeypatch.setattr(speculative, "accepts", lambda chance, _: False)
    p = torch.tensor([[0.5, 0.5], [1.0, 0.0]])
    assert keep([0], p, p[:1], torch.Generator())[0] in (0, 1)


class Memo:
    """A reader that runs every text once: the experiments below read the same few ones thousands of times."""

    def __init__(self, reader):
        self.decoder, self.reader, self.known = reader.decoder, reader, {}

    def read(self, ids, count=1):
        key = tuple(ids), count
        if key not in self.known:
            self.known[key] = self.reader.read(ids, count)
        return self.known[key]


SAMPLINGS = {
    "hot": SamplingConfig(temperature=1.3, top_p=1),
    "top-k": SamplingConfig(temperature=0.8, top_k=2, top_p=1),
    "top-p": SamplingConfig(temperature=1.0, top_p=0.8),
    "min-p": SamplingConfig(temperature=1.0, top_p=1, min_p=0.3),
    "penalty": SamplingConfig(temperature=1.0, top_p=1, repetition_penalty=2.0),
}


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("guesses", ["draft", "lookup"])
def test_two_ways_all_texts_are_as_likely_as_by_plain_decoding(monkeypatch, tiny_tokenizer, name, guesses):
    """All 27 texts of three tokens out of three, with guesses of two tokens at a time; a penalty knows the guesses."""
    sampling, prompt = SAMPLINGS[name], [0, 1, 0] if guesses == "draft" else [1, 2, 0, 1, 1]
    model = make(3, vocab_size=3, initializer_range=0.12)
    reader = Memo(PrefixCache(model, vocab_size=3))
    if guesses == "lookup":
        guesser = PromptLookup(shortest=1)
    else:
        guesser = DraftModel(make(4, vocab_size=3, initializer_range=0.12), vocab_size=3)
        guesser.reader = Memo(guesser.reader)

    def experiment():
        row = TextRow(prompt, tokenizer=tiny_tokenizer, chat_format=None, limit=3, stop=[], ignore_eos=True)
        tally = write(row, reader, guesser, sampling, draft_tokens=2)
        assert tally.steps <= 3
        return row.token_ids
    with torch.inference_mode():
        outcomes = every_outcome(monkeypatch, experiment)
        for text in product(range(3), repeat=3):
            chance, ids = 1.0, list(prompt)
            for token in text:
                seen = torch.zeros(3, dtype=torch.bool)
                seen[ids] = True
                chance *= probabilities(model(torch.tensor([ids]))[0, -1], sampling, seen)[token].item()
                ids.append(token)
            assert outcomes[text] == pytest.approx(chance, abs=2e-6)
    assert max(outcomes.values()) < 0.9


# Texts

def gap_at(model, tokenizer, ids):
    """How far apart the two likeliest tokens after a text are, as part of the largest logit."""
    with torch.no_grad():
        logits = model(torch.tensor([ids]), rows=(slice(None), -1))[0, : tokenizer.vocab_size]
    best = logits.topk(2).values
    return ((best[0] - best[1]) / logits.abs().max()).item()


@pytest.mark.parametrize("guesses", ["draft", "lookup"])
def test_two_ways_greedy_texts_equal_plain_ones(model, draft, tiny_tokenizer, guesses):
    """Unless two tokens are nearer to each other than 1e-4 of the largest logit, which rounding may decide."""
    options = {"tokenizer": tiny_tokenizer, "sampling": GREEDY, "max_new_tokens": 30, "ignore_eos": True}
    prompts = prompts_of(14)
    plain = generate(model, prompts, **options)
    drafter = draft if guesses == "draft" else PromptLookup(shortest=1)
    sooner = generate_speculatively(model, prompts, drafter, **options)
    for prompt, a, b in zip(prompts, plain, sooner, strict=True):
        if a.token_ids != b.token_ids:
            same = next(i for i in range(30) if a.token_ids[i] != b.token_ids[i])
            assert gap_at(model, tiny_tokenizer, prompt + a.token_ids[:same]) < 1e-4
        else:
            assert a.text == b.text and a.finish_reason == b.finish_reason
    assert guesses == "draft" or max(completion.tokens_per_step for completion in sooner) > 1.2


@pytest.mark.parametrize("changes", [
    {"sliding_window": 6}, {"max_position_embeddings": 24, "rope_scaling": RopeScaling("dynamic", 4.0)}],
    ids=["rolling window", "dynamic"])
def test_two_ways_greedy_texts_of_variants_equal_plain_ones(tiny_tokenizer, monkeypatch, changes):
    """Dynamic scaling turns all positions with every token beyond the 24 trained ones: no guesses there."""
    monkeypatch.setattr(cache, "EVICTION_SLACK", 4)
    model = make(vocab_size=tiny_tokenizer.vocab_size, **changes)
    options = {"tokenizer": tiny_tokenizer, "sampling": GREEDY, "max_new_tokens": 30, "ignore_eos": True}
    prompts = prompts_of(6)[1:5]
    plain = [completion.token_ids for completion in generate(model, prompts, **options)]
    for guesser in (PromptLookup(shortest=1), DraftModel(model, vocab_size=tiny_tokenizer.vocab_size)):
        sooner = generate_speculatively(model, prompts, guesser, prefill_chunk=8, **options)
        assert [completion.token_ids for completion in sooner] == plain


def test_two_ways_without_guesses_texts_equal_plain_ones_at_any_temperature(model, tiny_tokenizer):
    options = {"tokenizer": tiny_tokenizer, "sampling": HOT, "max_new_tokens": 20, "seed": 7, "num_samples": 2}
    plain, one = (run.token_ids for run in (generate(model, [[5, 6, 7]], **options)[1],
                                            generate_speculatively(model, [[5, 6, 7]], NoDraft(), **options)[1]))
    assert plain == one


def test_property_a_seed_gives_one_text_and_another_another(model, draft, tiny_tokenizer):
    def texts(seed, guesser):
        return [row.token_ids for row in generate_speculatively(
            model, [[5, 6, 7], [8, 9]], guesser, tokenizer=tiny_tokenizer, sampling=HOT, max_new_tokens=12, seed=seed,
            num_samples=2)]
    for guesser in (draft, PromptLookup()):
        assert texts(1, guesser) == texts(1, guesser) != texts(2, guesser)


def test_property_a_model_that_drafts_for_itself_is_always_right(model, tiny_tokenizer):
    itself = DraftModel(model, vocab_size=tiny_tokenizer.vocab_size)
    for sampling in (GREEDY, HOT):
        completion, = generate_speculatively(model, [[5, 6, 7]], itself, tokenizer=tiny_tokenizer, sampling=sampling,
                                             max_new_tokens=12, ignore_eos=True, draft_tokens=3)
        assert completion.acceptance == 1.0 and completion.tokens_per_step == 4.0


def test_worked_example_a_penalty_on_the_guesses_own_words(model, tiny_tokenizer):
    sampling, ids = SamplingConfig(temperature=1.0, top_p=1, repetition_penalty=3.0), [5, 6, 7]
    seen = torch.zeros(tiny_tokenizer.vocab_size, dtype=torch.bool)
    seen[ids] = True
    with torch.inference_mode():
        guessed, q = DraftModel(model, vocab_size=len(seen)).guess(ids, 3, sampling=sampling, seen=seen,
                                                                   generator=torch.Generator())
        for i in range(3):
            logits = model(torch.tensor([ids + guessed[:i]]))[0, -1, : len(seen)]
            assert_close(q[i], probabilities(logits, sampling, seen), rtol=1e-4, atol=1e-6)
            seen[guessed[i]] = True


# Ends

@pytest.mark.parametrize("end", ["stop", "eos", "length", "context"])
def test_two_ways_a_text_ends_where_a_plain_one_does(model, tiny_tokenizer, monkeypatch, end):
    prompt, options = [5, 6, 7, 5, 6], {"tokenizer": tiny_tokenizer, "sampling": GREEDY, "max_new_tokens": 21}
    text = generate(model, [prompt], ignore_eos=True, **options)[0]
    if end == "stop":
        options["stop"] = [text.text[9:12]]
    elif end == "eos":
        monkeypatch.setattr(tiny_tokenizer, "eos_ids", (text.token_ids[11],))
    elif end == "context":
        prompt = [*prompt] * 50                                     # 250 of 256
    itself, shown = DraftModel(model, vocab_size=tiny_tokenizer.vocab_size), []
    plain, = generate(model, [prompt], **options)
    sooner, = generate_speculatively(model, [prompt], itself, draft_tokens=4, **options,
                                     on_text=lambda row, text: shown.append(text))
    for field in dataclasses.fields(plain):
        if field.name != "tokens_per_second":
            assert getattr(plain, field.name) == getattr(sooner, field.name)
    assert "".join(shown) == sooner.text and sooner.tokens_per_step > 2
    assert sooner.finish_reason == ("stop" if end in ("stop", "eos") else "length")


def test_property_a_draft_model_of_a_shorter_context_falls_silent_there(model, tiny_tokenizer):
    short = DraftModel(make(1, vocab_size=tiny_tokenizer.vocab_size, max_position_embeddings=10),
                       vocab_size=tiny_tokenizer.vocab_size)
    completion, = generate_speculatively(model, [[5] * 8], short, tokenizer=tiny_tokenizer, sampling=GREEDY,
                                         max_new_tokens=20, ignore_eos=True)
    assert completion.token_ids == generate(model, [[5] * 8], tokenizer=tiny_tokenizer, sampling=GREEDY,
                                            max_new_tokens=20, ignore_eos=True)[0].token_ids


# What is told

def told(steps, guessed, acceptance, tokens, seconds, speed_up):
    return SpeculativeCompletion("", "", [0] * tokens, "stop", 1, tokens / seconds, steps, guessed, acceptance,
                                 tokens / steps, speed_up)


def test_worked_example_of_several_texts_together():
    """30 of 60 guesses, 60 tokens in 30 steps; 6 s at 2 × and 2 s at 4 × would have taken 12 + 8 s: 20 / 8."""
    texts = [told(20, 50, 0.4, 40, 6.0, 2.0), told(10, 10, 1.0, 20, 2.0, 4.0)]
    found = draft_stats(texts)
    assert dataclasses.astuple(found) == pytest.approx((0.5, 2.0, 2.5))
    assert str(found) == "50% of the guesses kept, 2.00 tokens a step, 2.50 × as fast as one a step"
    assert str(draft_stats([told(4, 0, 0.0, 4, 1.0, 0.0)])) == "0% of the guesses kept, 1.00 tokens a step"


def test_worked_example_speed_counts_no_token_of_the_first_pass(model, tiny_tokenizer, monkeypatch):
    """Clocked at a second a pass: 1 + 4 tokens with the prompt, then 15 in three passes; alone each takes one pass."""
    itself = DraftModel(model, vocab_size=tiny_tokenizer.vocab_size)
    read = PrefixCache.read
    now = [0.0]

    def timed(self, *given):
        now[0] += self is not itself.reader             # guesses take no time
        return read(self, *given)

    monkeypatch.setattr(PrefixCache, "read", timed)
    for module in (speculative, generation):
        monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])
    completion, = generate_speculatively(model, [[5, 6, 7]], itself, tokenizer=tiny_tokenizer, sampling=GREEDY,
                                         max_new_tokens=20, ignore_eos=True, draft_tokens=4)
    assert (completion.steps, completion.guessed, completion.tokens_per_second) == (4, 16, 5.0)
    assert completion.speed_up == 5.0


def test_property_no_speed_up_is_told_where_a_token_runs_the_whole_text(tiny_tokenizer):
    model = make(vocab_size=tiny_tokenizer.vocab_size, max_position_embeddings=8,
                 rope_scaling=RopeScaling("dynamic", 4.0))
    completion, = generate_speculatively(model, [[5, 6, 7]], PromptLookup(shortest=1), tokenizer=tiny_tokenizer,
                                         sampling=GREEDY, max_new_tokens=12, ignore_eos=True)
    assert completion.speed_up == 0.0


# Guessers

def test_worked_example_look_up():
    guess = PromptLookup(longest=3, shortest=2).guess
    assert guess([1, 2, 3, 4, 9, 2, 3], 2) == ([4, 9], None)
    assert guess([1, 2, 3, 4, 2, 3, 5, 2, 3], 1) == ([5], None)                 # the latest of two
    assert guess([1, 2, 3, 7, 9, 2, 3, 8, 1, 2, 3], 1) == ([7], None)           # the longest before the latest
    assert guess([1, 2, 3, 1, 2, 3], 9) == ([1, 2, 3], None)                    # no more than there is
    assert guess([3, 1, 2, 3], 4) == ([], None) == guess([3], 4) == guess([1, 1], 4)
    assert PromptLookup(shortest=1).guess([1, 1], 4) == ([1], None)
    assert PromptLookup(shortest=1).guess([0, 1 << 40, 7, 1 << 40], 1) == ([7], None)
    assert PromptLookup(shortest=1).guess([256, 0, 5, 1], 1) == ([], None)            # 1 is a byte of 256, and not it


def test_worked_example_the_number_of_guesses_follows_success(model, tiny_tokenizer):
    text = generate(model, [[5, 6]], tokenizer=tiny_tokenizer, sampling=GREEDY, max_new_tokens=80, ignore_eos=True)[0]
    whole, asked = [5, 6, *text.token_ids], []

    class Oracle:
        """Knows the text, up to where it is told to be wrong."""

        def guess(self, ids, count, **_):
            asked.append(count)
            right = whole[len(ids) : len(ids) + count]
            return ([(token + 1) % 300 for token in right] if 25 < len(ids) < 32 else right), None

    completion, = generate_speculatively(model, [[5, 6]], Oracle(), tokenizer=tiny_tokenizer, sampling=GREEDY,
                                         max_new_tokens=60, ignore_eos=True)
    assert completion.token_ids == text.token_ids[:60]
    assert asked == [4, 6, 7, 7, 7, 6, 5, 7, 7, 7]                 # wrong at 30 and 31 ids
    asked.clear()
    generate_speculatively(model, [[5, 6]], Oracle(), tokenizer=tiny_tokenizer, sampling=GREEDY, max_new_tokens=60,
                           ignore_eos=True, draft_tokens=2)
    assert set(asked[:-1]) == {2}


def test_refusal_of_a_draft_with_another_vocabulary(model, tiny_tokenizer):
    other = make(vocab_size=tiny_tokenizer.vocab_size)
    with pytest.raises(ValueError, match="the draft model small has no tokenizer"):
        check_draft(model, other, "small")
    other.tokenizer = tiny_tokenizer
    check_draft(model, other, "small")
    other.tokenizer = bpe.train(["abc abc"], 300, special=("<|endoftext|>",))
    with pytest.raises(ValueError, match=r"small has \d+ tokens and the model \d+; give one with the same vocabulary"):
        check_draft(model, other, "small")
    pieces = [tiny_tokenizer.piece(i) for i in range(tiny_tokenizer.vocab_size)]
    pieces[7] = "odd"
    other.tokenizer = SimpleNamespace(vocab_size=len(pieces), piece=pieces.__getitem__)
    with pytest.raises(ValueError, match="small means 'odd' by id 7 and the model"):
        check_draft(model, other, "small")


@pytest.mark.parametrize("options, words", [
    ({"draft": "x", "lookup": True}, "--draft x and --lookup are two ways to guess"),
    ({"draft_tokens": 3}, "--draft-tokens 3 needs something that guesses"),
    ({"lookup": True, "draft_tokens": -1}, "draft_tokens is -1"),
])
def test_refusal_of_bad_options(options, words):
    with pytest.raises(ValueError, match=words):
        SpeculationConfig(**options)
