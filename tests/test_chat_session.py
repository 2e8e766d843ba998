"""A conversation's cache against running everything anew, and what is left of an interrupted answer."""

import logging

import pytest
import torch

from llama.decoding import speculative
from llama.decoding.chat_session import ChatSession, Turn
from llama.decoding.prefix_cache import PrefixCache
from llama.decoding.speculative import PromptLookup, SpeculativeCompletion, draft_stats
from llama.decoding.speculative import draw as really_draw
from llama.sampling import SamplingConfig
from tokenizer.chat import FORMATS, end_of_turn_id
from tokenizer.chat_template import ChatTemplate

HOT = SamplingConfig(temperature=2.0, top_p=1)


@pytest.fixture
def chat(tiny_model, tiny_tokenizer):
    def chat(**options):
        options = {"sampling": HOT, "max_new_tokens": 12} | options
        return ChatSession(tiny_model, tiny_tokenizer, FORMATS["chatml"], **options)
    return chat


@pytest.fixture
def counted(tiny_model, monkeypatch):
    """The numbers of tokens that model.hidden is given, call by call."""
    calls, hidden = [], tiny_model.hidden
    monkeypatch.setattr(tiny_model, "hidden",
                        lambda tokens, **options: (calls.append(tokens.shape[1]), hidden(tokens, **options))[1])
    return calls


@pytest.fixture
def interrupt(monkeypatch):
    """Ctrl-C after the given number of tokens: interrupt(3)."""
    def interrupt(after):
        left = iter(range(after))
        def draw(*given):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return really_draw(*given)
        monkeypatch.setattr(speculative, "draw", draw)
    return interrupt


def ids_of(tokenizer, *messages):
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(messages)]
    return FORMATS["chatml"].encode(turns, tokenizer, reply=True)[0]


def test_two_ways_turn_n_runs_only_its_new_tokens(chat, counted, tiny_tokenizer):
    """Also when the model wrote a text in other ids than the tokenizer would, as a random one always does."""
    talk = chat(seed=4)
    first = talk.reply("Who is the fox?")
    assert tiny_tokenizer.encode(first.text) != first.token_ids
    assert counted[0] == len(ids_of(tiny_tokenizer, "Who is the fox?")) and set(counted[1:]) == {1}
    assert sum(counted[1:]) == len(first.token_ids) - (first.finish_reason == "length")
    counted.clear()
    talk.reply("And the dog?")
    closing, question = 2, len(ids_of(tiny_tokenizer, "And the dog?"))          # <|im_end|>\n, unrun until now
    last_of_a_cut_answer = first.finish_reason == "length"
    assert counted[0] == last_of_a_cut_answer + closing + question


def test_two_ways_a_cached_turn_equals_a_conversation_run_anew(chat, tiny_model):
    talk = chat()
    for question in ("Who is the fox?", "你好", "And the dog?"):
        remembered = list(talk.turns)
        seed = talk.generator.get_state()
        answer = talk.reply(question)
        fresh = chat()
        fresh.turns = remembered
        fresh.generator.set_state(seed)
        assert fresh.reply(question).token_ids == answer.token_ids
    assert [message["role"] for message in talk.messages] == ["user", "assistant"] * 3


def test_worked_example_the_ids_of_a_conversation(chat, tiny_tokenizer):
    talk = chat(system="Be brief.")
    answer = tiny_tokenizer.encode("The dog.")
    talk.turns = [Turn("Who?", "The dog.", answer)]
    expected = FORMATS["chatml"].encode([
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "The dog."}, {"role": "user", "content": "Why?"}], tiny_tokenizer, reply=True)
    assert talk._encode(talk.turns, "Why?") == expected[0]
    talk.turns = [Turn("Who?", "The dog.", None)]
    assert talk._encode(talk.turns, "Why?") == expected[0]


@pytest.mark.parametrize("name", ["chatml", "alpaca", "llama-2"])
def test_property_answers_as_written_stand_where_their_text_would(chat, tiny_tokenizer, monkeypatch, name):
    monkeypatch.setattr(tiny_tokenizer, "bos_id", 0)
    talk = chat()
    talk.chat_format = FORMATS[name]
    plain = talk._encode([Turn("a", "The dog", None), Turn("b", "", None)], "c")
    marked = talk._encode([Turn("a", "The dog", [77, 78, 79]), Turn("b", "", None)], "c")
    at = marked.index(77)
    assert marked[at : at + 3] == [77, 78, 79] and marked[:at] == plain[:at]
    closing = end_of_turn_id(FORMATS[name], tiny_tokenizer)
    assert marked[at + 3 :] == plain[plain.index(closing, at) :]


def test_property_a_template_that_strips_thoughts_runs_on_from_what_is_the_same(chat, tiny_tokenizer):
    """As Qwen 3's: the next turn writes the answer without its thoughts, and the cache is worth what lies before it."""
    thinking = ("{% for m in messages %}{{ '<|im_start|>' ~ m.role ~ '\n' ~ m.content.split('</think>')[-1] ~ "
                "'<|im_end|>\n' }}{% endfor %}{{ '<|im_start|>assistant\n' if add_generation_prompt }}")
    talk = chat()
    talk.chat_format = ChatTemplate(thinking)
    first = talk.reply("Who?")
    thoughts = tiny_tokenizer.encode("<think>dog</think> The fox.")
    talk.turns = [Turn("Who?", "<think>dog</think> The fox.", thoughts)]
    before = tiny_tokenizer.decode(talk._encode([], "Who?"))
    again = talk._encode(talk.turns, "Why?")
    assert tiny_tokenizer.decode(again) == before + " The fox.<|im_end|>\n" + before.replace("Who", "Why")
    written = [Turn("Who?", first.text, first.token_ids)]
    assert talk._encode(written, "Why?")[len(talk._encode([], "Who?")):][: len(first.token_ids)] == first.token_ids


@pytest.mark.parametrize("after", [1, 5])
def test_property_an_interrupted_answer_counts_as_said(chat, interrupt, monkeypatch, after):
    talk, said = chat(), []
    interrupt(after)
    with pytest.raises(KeyboardInterrupt):
        talk.reply("Who is the fox?", said.append)
    monkeypatch.undo()
    assert talk.messages[-1] == {"role": "assistant", "content": "".join(said)}
    assert talk.reader.decoder.cache.length == len(talk.reader.ids)
    again = chat()
    again.turns = list(talk.turns)
    again.generator.set_state(talk.generator.get_state())
    assert talk.reply("And the dog?").token_ids == again.reply("And the dog?").token_ids


def test_property_an_interruption_within_the_forward_pass_leaves_no_trace(chat, tiny_model, monkeypatch):
    talk, plain = chat(), chat()
    first = talk.reply("Who?")
    assert plain.reply("Who?").token_ids == first.token_ids

    def break_off(*_):
        raise KeyboardInterrupt
    handle = tiny_model.layers[1].register_forward_pre_hook(break_off)          # the first layer has run already
    with pytest.raises(KeyboardInterrupt):
        talk.reply("What?")
    handle.remove()
    assert len(talk.turns) == 1
    assert talk.reply("And the dog?").token_ids == plain.reply("And the dog?").token_ids


def test_property_an_interrupted_prefill_of_several_chunks_leaves_no_trace(chat, tiny_model, tiny_tokenizer):
    talk, plain = chat(), chat()
    talk.reader.chunk = 4
    calls, hidden = iter(range(2)), tiny_model.hidden

    def break_off(*given, **options):
        if next(calls, None) is None:
            raise KeyboardInterrupt
        return hidden(*given, **options)
    tiny_model.hidden = break_off
    with pytest.raises(KeyboardInterrupt):
        talk.reply("Who is the fox?")
    tiny_model.hidden = hidden
    odd = len(ids_of(tiny_tokenizer, "Who is the fox?")) % 4 or 4
    assert talk.turns == [] and len(talk.reader.ids) == odd + 4     # the first chunk is what does not fill one
    assert talk.reply("Who is the fox?").token_ids == plain.reply("Who is the fox?").token_ids


def test_property_an_answer_cut_by_a_stop_string_is_remembered_as_text(chat, monkeypatch, tiny_tokenizer):
    script = iter(tiny_tokenizer.encode("The dog sleeps, and"))
    monkeypatch.setattr(speculative, "draw", lambda *_: next(script))
    talk = chat(stop=["sl"])
    assert talk.reply("Who?").text == "The dog "
    assert talk.turns == [Turn("Who?", "The dog ", None)]
    assert talk._encode(talk.turns, "Why?") == ids_of(tiny_tokenizer, "Who?", "The dog ", "Why?")


def test_worked_example_reset_and_system(chat, counted, tiny_tokenizer):
    talk = chat()
    first = talk.reply("Who?")
    talk.reply("Why?")
    talk.reset()
    assert talk.messages == []
    counted.clear()
    assert talk.reply("Who?").token_ids == first.token_ids          # the seed starts again, too
    assert counted[0] == 1                                          # all but the last token was in the cache already
    talk.system = "Be brief."
    talk.reply("Why?")
    assert talk.messages[0] == {"role": "system", "content": "Be brief."} and len(talk.messages) == 5


def test_property_after_a_change_of_subject_only_new_tokens_run_again(chat, counted):
    talk = chat()
    talk.reply("Who is the fox?")
    talk.reset()
    talk.reply("What do dogs do?")
    held = talk.reader.decoder.cache.length
    counted.clear()
    talk.reply("Why?")
    assert counted[0] == len(talk._encode(talk.turns[:-1], "Why?")) - held


def test_property_the_cache_grows_with_the_conversation(chat, tiny_model, tiny_tokenizer):
    expected, talk = chat().reply("Who?").token_ids, chat()
    talk.reader = PrefixCache(tiny_model, slots=4, vocab_size=tiny_tokenizer.vocab_size)
    assert talk.reply("Who?").token_ids == expected and talk.reader.decoder.cache.max_length > 4


def test_worked_example_a_full_context_forgets_the_oldest_turns(chat, caplog, tiny_model):
    talk = chat(sampling=SamplingConfig(temperature=0), max_new_tokens=20, ignore_eos=True, system="Be brief.")
    with caplog.at_level(logging.WARNING):
        for turn in range(12):
            talk.reply(f"Question {turn}")
    assert "the context of 256 tokens is full: the oldest turns are forgotten" in caplog.text
    assert talk.turns[-1].question == "Question 11" and talk.turns[0].question != "Question 0"
    assert talk.messages[0]["content"] == "Be brief."
    assert talk.reader.decoder.cache.length <= tiny_model.config.max_position_embeddings


def test_refusal_of_a_question_longer_than_the_context(chat):
    talk = chat()
    talk.reply("Who?")
    before = list(talk.turns)
    with pytest.raises(ValueError, match="model's context is 256"):
        talk.reply("x y " * 300)
    assert talk.turns == before
    talk.reply("Why?")


def test_property_another_system_message_or_answer_runs_what_differs_alone(chat, counted, tiny_tokenizer):
    talk = chat(system="Be brief.")
    talk.reply("Who is the fox?")
    talk.reply("And the dog?")
    talk.turns.pop()
    counted.clear()
    talk.reply("And the dog?")
    assert counted[0] == 1                                          # another answer: its first logits alone
    talk.system = "Be long."
    counted.clear()
    talk.reply("Why?")
    ids = talk._encode(talk.turns[:-1], "Why?")
    same = len(tiny_tokenizer.encode("<|im_start|>system\nBe ", allow_special=True))
    assert abs(counted[0] - (len(ids) - same)) <= 1


def test_two_ways_a_chat_that_speculates_equals_one_that_does_not(chat):
    """Greedily; a random model repeats itself, so look-up finds something."""
    greedy = {"sampling": SamplingConfig(temperature=0), "max_new_tokens": 30, "ignore_eos": True}
    plain, sooner = chat(**greedy), chat(guesser=PromptLookup(shortest=1), draft_tokens=3, **greedy)
    answers = []
    for question in ("Who is the fox?", "你好", "And the dog?"):
        answers.append(sooner.reply(question))
        assert plain.reply(question).token_ids == answers[-1].token_ids
    told = draft_stats([answer for answer in answers if isinstance(answer, SpeculativeCompletion)])
    assert 0 < told.acceptance <= 1 and told.tokens_per_step > 1 and told.speed_up > 0


def test_property_a_chat_in_int8_answers(chat):
    talk = chat(cache_dtype=torch.int8)
    talk.reply("Who?")
    assert talk.reader.decoder.cache.layers[0].keys.dtype == torch.int8 and talk.reply("Why?").token_ids
