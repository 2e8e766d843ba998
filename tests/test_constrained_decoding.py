"""What may be written is a piece of the text, and every piece of it may be written."""

import random

import pytest
import torch

from llama.checkpoint import PretrainedLlama
from llama.config import preset
from llama.decoding.prefix_cache import PrefixCache
from llama.zero_shot.constrained_decoding import (
    BETWEEN,
    SegmentationGrammar,
    SpanGrammar,
    Vocabulary,
    constrained_greedy_decode,
)
from tokenizer import bpe

TEXT = "无锡的小驼, the lazy dog\n和 dog 在北京 👩‍👩‍👧."


@pytest.fixture(scope="module")
def letters():
    return bpe.train(["text"], 259)                                 # bytes alone: a Chinese character is three ids


def walk(grammar, choose):
    state = grammar.start
    while not state.ended:
        options = grammar.options(state)
        assert options, f"a dead end after {state}"
        state = options[choose(options)]
    return grammar.found(state)


def test_worked_example_the_table_of_the_module(letters):
    grammar = SpanGrammar("无锡 dog", Vocabulary(letters), closing=1, none="无")
    state = grammar.start
    first = {letters.token_bytes(i) for i in grammar.options(state)}
    assert first == {"无".encode()[:1], "锡".encode()[:1], b"d", b" "}      # a blank may come with the first id
    for i in letters.encode("无"):
        state = grammar.options(state)[i]
    after = grammar.options(state)
    assert set(after) == {1, letters.encode("锡")[0]} and grammar.found(after[1]) == [(0, 1)]
    nothing = SpanGrammar("小驼", Vocabulary(letters), closing=1, none="无")
    state = nothing.start
    for i in letters.encode("无"):
        state = nothing.options(state)[i]
    assert nothing.options(state).keys() == {1} and nothing.found(nothing.options(state)[1]) == []


@pytest.mark.parametrize("several", [False, True])
def test_property_whatever_is_chosen_is_a_piece_of_the_text(tiny_tokenizer, letters, several):
    generator = random.Random(0)
    for tokenizer in (tiny_tokenizer, letters):
        vocabulary = Vocabulary(tokenizer)
        for _ in range(30):
            grammar = SpanGrammar(TEXT, vocabulary, closing=1, none="none", several=several, longest=6)
            found = walk(grammar, lambda options: generator.choice(sorted(options)))
            assert len(found) <= (99 if several else 1) and found == sorted(found)
            for begin, end in found:
                assert 0 <= begin < end <= len(TEXT) and TEXT[begin] not in " \n"
                assert not several or TEXT[begin].isalnum() and not BETWEEN & set(TEXT[begin:end])
            assert all(end <= begin for (_, end), (begin, _) in zip(found, found[1:], strict=False))


def test_property_every_piece_can_be_written(tiny_tokenizer):
    vocabulary = Vocabulary(tiny_tokenizer)
    for piece in ("小驼", "the lazy dog", "dog", "在北京 👩‍👩‍👧.", "锡的小"):
        for blank in ("", " "):
            grammar = SpanGrammar(TEXT, vocabulary, closing=1)
            ids = iter([*tiny_tokenizer.encode(blank + piece), 1])
            [(begin, end)] = walk(grammar, lambda options, ids=ids: next(ids))
            assert TEXT[begin:end] == piece


def test_property_no_word_is_cut(letters):
    generator, text = random.Random(1), "Paris, or Parisian cafés 在2024年"
    for _ in range(60):
        grammar = SpanGrammar(text, Vocabulary(letters), closing=1, longest=2)
        [(begin, end)] = walk(grammar, lambda options: generator.choice(sorted(options)))
        around = text[max(begin - 1, 0) : begin + 1], text[end - 1 : end + 1]
        assert not any(len(pair) == 2 and pair.isascii() and pair.isalnum() for pair in around)


def test_property_words_make_up_their_text(tiny_tokenizer, letters):
    generator = random.Random(2)
    for tokenizer in (tiny_tokenizer, letters):
        for text in ("今天天气很好", "小驼是dog", "👩‍👩‍👧好"):
            grammar = SegmentationGrammar(text, Vocabulary(tokenizer), closing=1)
            found = walk(grammar, lambda options: generator.choice(sorted(options)))
            assert [begin for begin, _ in found] + [len(text)] == [0, *(end for _, end in found)]


def test_property_control_tokens_spell_nothing(tiny_tokenizer):
    text = "a<|im_end|>b"
    found = SpanGrammar(text, Vocabulary(tiny_tokenizer), closing=1)
    assert tiny_tokenizer.special_ids["<|im_end|>"] not in found.options(found.start)
    ids = iter([*tiny_tokenizer.encode("<|im_end|>b"), 1])           # as text
    assert walk(found, lambda options: next(ids)) == [(1, len(text))]


def test_property_what_a_vocabulary_cannot_spell_is_a_wall(letters, monkeypatch):
    vocabulary = Vocabulary(letters)
    del vocabulary.ids["驼".encode()[2:]]
    generator = random.Random(3)
    for _ in range(40):
        [(begin, end)] = walk(SpanGrammar("小驼来了ab驼cd", vocabulary, closing=1),
                              lambda options: generator.choice(sorted(options)))
        assert "驼" not in "小驼来了ab驼cd"[begin:end]
    with pytest.raises(ValueError, match="no bytes for «驼»"):
        SegmentationGrammar("小驼", vocabulary, closing=1)


def test_two_ways_what_is_written_is_the_likeliest_of_plain_forward_passes(tiny_tokenizer):
    torch.manual_seed(0)
    model = PretrainedLlama(preset("test", vocab_size=tiny_tokenizer.vocab_size, initializer_range=0.5)).eval()
    prompt, text = tiny_tokenizer.encode("The dog?"), "今天天气很好, the dog sleeps."
    grammar = SpanGrammar(text, Vocabulary(tiny_tokenizer), closing=1)
    ids, state, score = list(prompt), grammar.start, 0.0
    with torch.no_grad():
        while not state.ended:
            options = grammar.options(state)
            logits = model(torch.tensor([ids]))[0, -1]
            masked = torch.full_like(logits, float("-inf"))
            masked[list(options)] = logits[list(options)]
            best = int(masked.argmax())
            score += masked.log_softmax(-1)[best].item()
            ids.append(best)
            state = options[best]
    written = constrained_greedy_decode(PrefixCache(model, vocab_size=tiny_tokenizer.vocab_size), prompt, grammar)
    assert written.found == grammar.found(state) and written.score == pytest.approx(score, abs=1e-4)
