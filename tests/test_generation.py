"""Generation: rows of a batch against single runs, stopping, streaming, and the limits of the context."""

import dataclasses
import io
import itertools
import random

import pytest
import sentencepiece
import torch

from llama import cache, generation
from llama.cache import KVCache
from llama.checkpoint import PretrainedLlama
from llama.config import RopeScaling, preset
from llama.fast.numbers import relative_difference
from llama.generation import BatchDecoder, complete_text, encode_prompt, generate
from llama.sampling import SamplingConfig
from llama.stop_strings import StopStrings
from tokenizer.chat import FORMATS
from tokenizer.spm import SentencePieceTokenizer

GREEDY, HOT = SamplingConfig(temperature=0), SamplingConfig(temperature=1.5, top_p=1, repetition_penalty=1.1)
PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14, 15, 16, 17, 18], [20, 21, 22, 23]]
TEXT = "你好，world! 👩‍👩‍👧 and 🦙."


@pytest.fixture
def tiny_model(tiny_model):
    """The tiny model with larger weights: as initialised, it says the same whatever it has read."""
    with torch.no_grad():
        for parameter in tiny_model.layers.parameters():
            parameter.mul_(8 if parameter.dim() == 2 else 1)
    return tiny_model


@pytest.fixture
def write(tiny_model, tiny_tokenizer):
    """generate() with the tiny model, greedily unless told otherwise."""
    def write(prompts, **options):
        return generate(tiny_model, prompts, **{"tokenizer": tiny_tokenizer, "sampling": GREEDY} | options)
    return write


@pytest.fixture
def scripted(monkeypatch):
    """Let the rows «choose» given ids instead of sampling: scripted(ids of row 0, ids of row 1, …)."""
    def script(*rows):
        chosen = [iter(ids) for ids in rows]
        monkeypatch.setattr(generation, "sample", lambda logits, config, seen, generators: torch.tensor(
            [next(chosen[generator.initial_seed()]) for generator in generators]))
    return script


def bare(completions):
    """Without what a clock says."""
    return [dataclasses.replace(completion, tokens_per_second=0.0) for completion in completions]


# Rows and batches

def test_two_ways_cached_decoding_equals_running_the_whole_text_anew(tiny_model, write):
    ids = list(PROMPTS[0])
    for _ in range(20):
        ids.append(tiny_model(torch.tensor([ids]), rows=(slice(None), -1)).argmax().item())
    assert write([PROMPTS[0]], max_new_tokens=20, ignore_eos=True)[0].token_ids == ids[3:]


@pytest.mark.parametrize("changes", [
    {"sliding_window": 5}, {"max_position_embeddings": 16, "rope_scaling": RopeScaling("dynamic", 4.0)},
    {"rope_scaling": RopeScaling("yarn", 4.0, original_max_position_embeddings=64)}], ids=["window", "dynamic", "yarn"])
def test_two_ways_a_ragged_batch_of_each_variant_equals_running_whole_texts_anew(tiny_tokenizer, changes):
    """The dynamic one was trained on 16 positions, and what is written crosses them in every row, at its own time."""
    torch.manual_seed(0)
    shape = preset("test", vocab_size=tiny_tokenizer.vocab_size, initializer_range=0.4, **changes)
    model = PretrainedLlama(shape).eval()
    written = generate(model, PROMPTS, tokenizer=tiny_tokenizer, sampling=GREEDY, max_new_tokens=20, ignore_eos=True,
                       prefill_chunk=3)
    for prompt, completion in zip(PROMPTS, written, strict=True):
        ids = list(prompt)
        for _ in range(20):
            logits = model(torch.tensor([ids]), rows=(slice(None), -1))[:, : tiny_tokenizer.vocab_size]
            ids.append(logits.argmax().item())
        assert completion.token_ids == ids[len(prompt):] and len(set(completion.token_ids)) > 5


def test_two_ways_a_left_padded_row_equals_the_single_run(tiny_model):
    padding = [8 - len(prompt) for prompt in PROMPTS]
    batch = BatchDecoder(tiny_model, padding, 9, vocab_size=400)
    padded = torch.tensor([[0] * blank + prompt for blank, prompt in zip(padding, PROMPTS, strict=True)])
    prefilled, stepped = batch.step(padded), batch.step(torch.full((4, 1), 30))
    for row, prompt in enumerate(PROMPTS):
        single = BatchDecoder(tiny_model, [0], 9, vocab_size=400)
        assert relative_difference(prefilled[row], single.step(torch.tensor([prompt]))[0]) < 1e-5
        assert relative_difference(stepped[row], single.step(torch.tensor([[30]]))[0]) < 1e-5


@pytest.mark.parametrize("changes, shared", [
    ({}, False), ({}, True), ({"sliding_window": 26}, True), ({"sliding_window": 10}, False),
    ({"max_position_embeddings": 16, "rope_scaling": RopeScaling("dynamic", 4.0)}, False)],
    ids=["plain", "common start", "window behind it", "window", "dynamic"])
@pytest.mark.parametrize("cache_dtype", [None, torch.int8])
def test_two_ways_a_pass_for_each_length_equals_one_for_all(monkeypatch, tiny_tokenizer, changes, shared, cache_dtype):
    """Also behind a common start, with several texts of a prompt, where a window rolls, where angles change later."""
    monkeypatch.setattr(cache, "EVICTION_SLACK", 3)
    monkeypatch.setattr(cache, "ROLLBACK_SLOTS", 2)
    torch.manual_seed(0)
    shape = preset("test", vocab_size=tiny_tokenizer.vocab_size, initializer_range=0.4, **changes)
    model = PretrainedLlama(shape).eval()
    options = {"tokenizer": tiny_tokenizer, "sampling": HOT, "max_new_tokens": 30, "ignore_eos": True, "seed": 5,
               "cache_dtype": cache_dtype, "num_samples": 2}
    start = list(range(30, 30 + generation.MIN_SHARED_PREFIX)) if shared else []
    stacked, stack = [], BatchDecoder.stack
    monkeypatch.setattr(BatchDecoder, "stack", lambda *rows: stacked.append(rows) or stack(*rows))
    written = []
    for cost in (0, 1000):
        monkeypatch.setattr(generation, "PASS_OVERHEAD", cost)
        written.append(bare(generate(model, [start + prompt for prompt in PROMPTS], **options)))
        assert len(stacked) == 1                                    # in the first run alone
    assert written[0] == written[1]


def test_property_passes_cost_the_least(monkeypatch):
    monkeypatch.setattr(generation, "PASS_OVERHEAD", 10)

    def cost(lengths, starts):
        return sum(10 + (end - start) * lengths[end - 1] for start, end in itertools.pairwise([*starts, len(lengths)]))

    assert generation.prefill_batches([3, 3, 3]) == [0] and generation.prefill_batches([1, 1, 50, 50]) == [0, 2]
    generator = random.Random(0)
    for _ in range(50):
        lengths = sorted(generator.randrange(1, 40) for _ in range(7))
        best = min(cost(lengths, [0, *cuts]) for n in range(7) for cuts in itertools.combinations(range(1, 7), n))
        assert cost(lengths, generation.prefill_batches(lengths)) == best


def test_worked_example_positions_do_not_count_padding(tiny_model, monkeypatch):
    given, hidden = [], tiny_model.hidden
    monkeypatch.setattr(tiny_model, "hidden", lambda tokens, *, positions, **options: (
        given.append(positions.tolist()), hidden(tokens, positions=positions, **options))[1])
    decoder = BatchDecoder(tiny_model, [0, 2], 6, vocab_size=400)
    decoder.step(torch.tensor([[5, 6, 7, 8], [0, 0, 7, 8]]))
    decoder.step(torch.tensor([[9], [9]]))
    assert given == [[[0, 1, 2, 3], [0, 0, 0, 1]], [[4], [2]]]


@pytest.mark.parametrize("sampling", [GREEDY, HOT], ids=["greedy", "sampled"])
def test_two_ways_a_ragged_batch_equals_single_runs(write, sampling):
    together = write(PROMPTS, sampling=sampling, max_new_tokens=20, seed=3)
    alone = [write([prompt], sampling=sampling, max_new_tokens=20, seed=3 + row)[0]
             for row, prompt in enumerate(PROMPTS)]
    assert bare(together) == bare(alone)


def test_two_ways_rows_that_end_early_change_nothing_for_the_others(write, tiny_tokenizer):
    """At this temperature ids that end a text come up now and then, so rows are dropped at different steps."""
    wild = SamplingConfig(temperature=9.0, top_p=1)
    together = write(PROMPTS * 4, sampling=wild, max_new_tokens=120)
    assert len({len(completion.token_ids) for completion in together}) > 4
    alone = [write([prompt], sampling=wild, max_new_tokens=120, seed=row)[0] for row, prompt in enumerate(PROMPTS * 4)]
    assert bare(together) == bare(alone)


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_two_ways_prefill_in_chunks_equals_one_shot(write, tiny_model, chunk):
    assert bare(write(PROMPTS, max_new_tokens=10, prefill_chunk=chunk)) == bare(write(PROMPTS, max_new_tokens=10))
    decoder, whole = (BatchDecoder(tiny_model, [0, 5], 8, vocab_size=400) for _ in range(2))
    tokens = torch.tensor([PROMPTS[2], [0] * 5 + PROMPTS[0]])
    for piece in tokens.split(chunk, dim=1):
        logits = decoder.step(piece)
    assert relative_difference(logits, whole.step(tokens)) < 1e-5


def test_two_ways_samples_of_a_prompt_equal_the_prompt_given_several_times(write):
    three_each = write(PROMPTS[:2], num_samples=3, sampling=HOT, max_new_tokens=10)
    repeated = write([PROMPTS[0]] * 3 + [PROMPTS[1]] * 3, sampling=HOT, max_new_tokens=10)
    assert bare(three_each) == bare(repeated)
    assert len({completion.text for completion in three_each[:3]}) == 3     # rows draw from generators of their own


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_property_the_batch_size_changes_nothing(write, batch_size):
    options = {"num_samples": 2, "sampling": HOT, "max_new_tokens": 8}
    assert bare(write(PROMPTS, batch_size=batch_size, **options)) == bare(write(PROMPTS, **options))


def test_two_ways_a_cache_that_grew_equals_one_made_large(tiny_model):
    small, large = BatchDecoder(tiny_model, [0], 3, vocab_size=400), BatchDecoder(tiny_model, [0], 8, vocab_size=400)
    for decoder in (small, large):
        decoder.step(torch.tensor([[1, 2, 3]]))
    small.cache.reserve(8)
    assert torch.equal(small.step(torch.tensor([[4, 5]])), large.step(torch.tensor([[4, 5]])))


# Prompts that begin alike

@pytest.mark.parametrize("changes", [{}, {"sliding_window": 18}, {
    "max_position_embeddings": 24, "rope_scaling": RopeScaling("dynamic", 4.0)}], ids=["plain", "window", "dynamic"])
def test_two_ways_prompts_with_a_common_start_equal_single_runs(tiny_tokenizer, changes):
    torch.manual_seed(0)
    shape = preset("test", vocab_size=tiny_tokenizer.vocab_size, initializer_range=0.4, **changes)
    model = PretrainedLlama(shape).eval()
    start, ran, hidden = list(range(30, 50)), [], model.hidden
    prompts = [start + rest for rest in ([5], [6, 7, 8], list(range(60, 90)), [], [5, 6])]
    options = {"tokenizer": tiny_tokenizer, "sampling": GREEDY, "max_new_tokens": 6, "ignore_eos": True}
    alone = [generate(model, [prompt], **options)[0] for prompt in prompts]
    model.hidden = lambda tokens, **given: (ran.append(tuple(tokens.shape)), hidden(tokens, **given))[1]
    assert bare(generate(model, prompts, batch_size=4, num_samples=2, **options)) == bare(
        [completion for completion in alone for _ in range(2)])
    common = changes.get("sliding_window", 19)                      # of the 20, one is left: a prompt ends with them
    assert ran[:2] == [(1, common), (2, 23 - common)]               # the common start once, then the rest of each batch


def test_property_a_short_common_start_is_not_worth_a_pass(tiny_model, write, monkeypatch):
    ran, hidden = [], tiny_model.hidden
    monkeypatch.setattr(tiny_model, "hidden",
                        lambda tokens, **options: (ran.append(tuple(tokens.shape)), hidden(tokens, **options))[1])
    write([[1] * 15 + [2], [1] * 15 + [3, 4]], max_new_tokens=1)
    write([[1] * 40], max_new_tokens=1, num_samples=3)
    assert ran == [(2, 17), (1, 40)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.int8])
def test_property_the_caches_format_reaches_the_cache(tiny_model, write, monkeypatch, dtype):
    made = []
    monkeypatch.setattr(generation, "KVCache", lambda *given, **options: (
        made.append(options["dtype"]), KVCache(*given, **options))[1])
    write(PROMPTS, max_new_tokens=3, cache_dtype=dtype)
    write(PROMPTS, max_new_tokens=3)
    assert made == [dtype, torch.float32]


# Stopping

def test_worked_example_a_stop_string_across_pieces():
    stops = StopStrings(["END", "\n\n"])
    assert [stops.push(piece) for piece in ["a\n", "bE", "N", "x", "EN", "D and more"]] == [
        "a", "\nb", "", "ENx", "", ""]
    assert stops.found


def test_worked_example_text_held_back_is_not_lost():
    stops = StopStrings(["</answer>"])
    assert (stops.push("1 </ans"), stops.flush(), stops.found) == ("1 ", "</ans", False)


def shown(text, size, stop_texts):
    """What StopStrings lets through of a text that comes in pieces of `size` characters."""
    stops, out = StopStrings(stop_texts), ""
    for start in range(0, len(text), size):
        if not stops.found:
            out += stops.push(text[start : start + size])
    return out + stops.flush()


def test_property_stopping_does_not_depend_on_the_borders_between_pieces():
    generator = random.Random(0)
    for _ in range(500):
        text = "".join(generator.choices("ab", k=14))
        stop_texts = ["".join(generator.choices("ab", k=generator.randint(1, 5))) for _ in range(3)]
        whole = shown(text, 14, stop_texts)
        assert text.startswith(whole) and not any(stop in whole for stop in stop_texts)
        assert [shown(text, size, stop_texts) for size in (1, 2, 3)] == [whole] * 3


def test_worked_example_every_end_of_the_files_ends_a_row(write, scripted, tiny_tokenizer):
    text = tiny_tokenizer.encode("The dog")
    ends = tiny_tokenizer.eos_ids
    scripted(*([*text, end, 0, 0] for end in ends))
    for completion in write([[5]] * len(ends)):
        assert (completion.text, completion.token_ids, completion.finish_reason) == ("The dog", text, "stop")
    scripted([*text, ends[0], *text])
    ignored = write([[5]], ignore_eos=True, max_new_tokens=2 * len(text) + 1)[0]
    assert (ignored.text, ignored.finish_reason) == ("The dogThe dog", "length")
    assert ignored.token_ids == [*text, ends[0], *text]


def test_worked_example_an_answer_also_ends_at_its_chat_formats_end(write, scripted, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr(tiny_tokenizer, "eos_ids", (tiny_tokenizer.special_ids["<|endoftext|>"],))
    answer = [*tiny_tokenizer.encode("Yes."), tiny_tokenizer.special_ids["<|im_end|>"], *tiny_tokenizer.encode("No.")]
    scripted(answer)
    assert write([[5]], chat_format=FORMATS["chatml"])[0].text == "Yes."
    scripted(answer)
    assert write([[5]], max_new_tokens=len(answer))[0].text == "Yes.No."


def test_worked_example_a_stop_string_ends_a_row_and_its_text(write, scripted, tiny_tokenizer):
    ids = tiny_tokenizer.encode("lazy dog. The dog sleeps")
    scripted(ids)
    pieces = []
    completion = write([[5]], stop=["never", ". Th"], on_text=lambda row, text: pieces.append(text))[0]
    assert (completion.text, completion.finish_reason) == ("lazy dog", "stop")
    assert "".join(pieces) == "lazy dog"
    assert tiny_tokenizer.decode(completion.token_ids).startswith("lazy dog. Th")
    assert len(completion.token_ids) < len(ids)


def test_worked_example_limits(write, scripted, tiny_tokenizer):
    scripted(tiny_tokenizer.encode("The dog sleeps"))
    completion = write([[5]], max_new_tokens=1, stop=["The dog"])[0]
    assert (completion.finish_reason, len(completion.token_ids)) == ("length", 1)
    assert completion.text == tiny_tokenizer.decode(completion.token_ids)       # held back, then let go at the end


# Streaming

def test_two_ways_the_stream_equals_the_whole_for_chinese_and_emoji(write, scripted, tiny_tokenizer):
    ids = tiny_tokenizer.encode(TEXT)
    scripted([*ids, tiny_tokenizer.eos_ids[0]], [*ids[::-1], 5])
    pieces = {0: [], 1: []}
    first, second = write([[5], [6]], max_new_tokens=len(ids) + 1, on_text=lambda row, text: pieces[row].append(text))
    assert "".join(pieces[0]) == first.text == TEXT and "".join(pieces[1]) == second.text
    assert len(pieces[0]) > 10 and not any("\ufffd" in piece for piece in pieces[0])


def test_property_a_text_cut_within_a_character_ends_before_it(write, scripted, tiny_tokenizer):
    ids = tiny_tokenizer.encode("a🦙")
    assert len(ids) > 2, "the emoji must be several tokens"
    scripted(ids)
    assert write([[5]], max_new_tokens=len(ids) - 1)[0].text == "a"


def test_worked_example_raw_text_goes_on_with_the_space_that_sentencepiece_keeps_in_the_word(write, scripted):
    stored = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["Paris is in France"] * 20), model_writer=stored, model_type="bpe", vocab_size=300,
        byte_fallback=True, hard_vocab_limit=False, minloglevel=2)
    tokenizer = SentencePieceTokenizer(stored.getvalue())
    ids, word = tokenizer.encode("Paris is"), tokenizer.encode("in")
    for chat_format, text in ((None, " in"), (FORMATS["alpaca"], "in")):
        scripted(word + [tokenizer.eos_ids[0]])
        assert write([ids], tokenizer=tokenizer, chat_format=chat_format)[0].text == text


# The model around it

def test_property_no_id_beyond_the_tokenizers(tiny_tokenizer):
    padded = PretrainedLlama(preset("test", vocab_size=tiny_tokenizer.vocab_size + 600)).eval()
    completion = generate(padded, [[5]], tokenizer=tiny_tokenizer, sampling=SamplingConfig(temperature=50, top_p=1),
                          ignore_eos=True, max_new_tokens=60)[0]
    assert max(completion.token_ids) < tiny_tokenizer.vocab_size


def test_property_dropout_is_off_and_training_goes_on_after(tiny_model, write):
    seen = []
    tiny_model.train()
    tiny_model.layers[0].register_forward_pre_hook(lambda module, _: seen.append(module.training))
    write([[5]], max_new_tokens=2)
    assert not any(seen) and tiny_model.training and tiny_model.layers[0].training


def test_property_a_penalty_counts_the_prompt_and_what_was_written(write):
    sharp = SamplingConfig(temperature=0, repetition_penalty=1e6)
    completion = write([PROMPTS[0]], sampling=sharp, max_new_tokens=40, ignore_eos=True)[0]
    ids = PROMPTS[0] + completion.token_ids
    assert len(set(ids)) == len(ids)


def test_worked_example_the_short_door(tiny_model, tiny_tokenizer, write):
    ids = tiny_tokenizer.encode("The fox")
    text = tiny_model.generate("The fox", max_new_tokens=5, temperature=0.0)
    assert text == write([ids], max_new_tokens=5)[0].text
    sampled = complete_text(tiny_model, tiny_tokenizer, "The fox", temperature=1.5, seed=2, max_new_tokens=5)
    assert sampled == write([ids], sampling=SamplingConfig(temperature=1.5), seed=2, max_new_tokens=5)[0].text


def test_worked_example_a_completion_has_the_fields_of_the_contract(write):
    completion = write([PROMPTS[2]], max_new_tokens=3, ignore_eos=True)[0]
    assert [field.name for field in dataclasses.fields(completion)] == [
        "prompt", "text", "token_ids", "finish_reason", "prompt_tokens", "tokens_per_second"]
    assert completion.prompt_tokens == 8 and completion.tokens_per_second > 0
    assert write([[5]], max_new_tokens=1)[0].tokens_per_second == 0


def test_worked_example_a_bos_only_where_the_files_want_one(tiny_tokenizer, monkeypatch):
    plain = tiny_tokenizer.encode("The fox")
    assert encode_prompt(tiny_tokenizer, "The fox") == plain
    monkeypatch.setattr(tiny_tokenizer, "bos_id", 7)
    assert encode_prompt(tiny_tokenizer, "The fox") == plain        # having one is not asking for one
    monkeypatch.setattr(tiny_tokenizer, "adds_bos", True)
    assert encode_prompt(tiny_tokenizer, "The fox") == [7, *plain] and encode_prompt(tiny_tokenizer, "") == [7]


def test_property_special_tokens_in_a_raw_prompt_are_text(tiny_tokenizer):
    assert tiny_tokenizer.special_ids["<|im_end|>"] not in encode_prompt(tiny_tokenizer, "<|im_end|>")


# Refusals

def test_worked_example_the_context_limits_the_answer(write, tiny_model):
    context = tiny_model.config.max_position_embeddings
    long, short = write([[5] * (context - 3), [6] * 4], max_new_tokens=10, ignore_eos=True)
    assert (len(long.token_ids), long.finish_reason) == (3, "length")
    assert bare([short]) == bare(write([[6] * 4], max_new_tokens=10, ignore_eos=True))      # short rows lose nothing
    full = write([[5] * (context - 3), [6] * 4], max_new_tokens=10**6, ignore_eos=True)[1]
    assert len(full.token_ids) == context - 4


@pytest.mark.parametrize("length", [256, 300])
def test_refusal_of_a_prompt_longer_than_the_context(write, tiny_model, length, monkeypatch):
    monkeypatch.setattr(tiny_model, "hidden", lambda *_, **__: pytest.fail("refuse before anything runs"))
    with pytest.raises(ValueError, match=f"{length} tokens long .* context is 256.* by at least {length - 255} tokens"):
        write([[5], [5] * length])


@pytest.mark.parametrize("options, words", [
    ({"max_new_tokens": 0}, "max_new_tokens is 0; it must be at least 1"),
    ({"num_samples": -1}, "num_samples is -1; it must be at least 1"),
    ({"stop": [""]}, "at least one character"),
    ({"stop": "END"}, "must be a list of texts"),
])
def test_refusal_of_bad_options(write, options, words):
    with pytest.raises(ValueError, match=words):
        write([[5]], **options)


def test_refusal_of_nothing_to_continue(write, tiny_model, tiny_tokenizer):
    with pytest.raises(ValueError, match="prompt 1 holds no ids"):
        write([[5], []])
    with pytest.raises(ValueError, match="the prompt is empty"):
        tiny_model.generate("")
    tiny_model.tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer"):
        tiny_model.generate("x")
