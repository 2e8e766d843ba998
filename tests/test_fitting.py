import pytest

from llama.tasks.fitting import GAP, fit, refuse_lost, unlearn
from tokenizer.chat import FORMATS

LONG = "Once a fox went home. " + "The dog sleeps. 天气很好。" * 20 + "What did the fox do?"


def _talk(*contents, **last):
    talk = [{"role": ("user", "assistant")[number % 2], "content": content} for number, content in enumerate(contents)]
    return [*talk[:-1], talk[-1] | last]


@pytest.fixture
def fitted(tiny_tokenizer):
    def fitted(talk, most):
        def encode(messages):
            ids, learned = FORMATS["chatml"].encode(messages, tiny_tokenizer)
            return ids, unlearn(messages, learned)

        found = fit(talk, encode, tiny_tokenizer, most)
        learned = [token for token, learn in zip(found.ids, found.learned, strict=True) if learn]
        whole = encode(talk)[0]
        return found, tiny_tokenizer.decode(found.ids), tiny_tokenizer.decode(learned), whole
    return fitted


def test_worked_example_what_fits_is_left_as_it_is(fitted):
    found, text, learned, whole = fitted(_talk("The dog?", "sleeps."), 99)
    assert found.ids == whole and (found.cut, found.lost) == (0, 0) and learned == "sleeps.<|im_end|>"


def test_worked_example_a_long_answer_loses_its_end_and_a_long_question_its_middle(fitted):
    found, text, learned, whole = fitted(_talk("The dog?", LONG), 100)
    assert found.ids == whole[:100] and (found.cut, found.lost) == (0, len(whole) - 100)
    assert "user\nThe dog?<|im_end|>" in text and "<|im_end|>" not in learned and LONG.startswith(learned)
    found, text, learned, whole = fitted(_talk(LONG, "went home."), 100)
    assert learned == "went home.<|im_end|>" and len(found.ids) <= 100 and found.cut >= len(whole) - 101
    assert text.startswith("<|im_start|>user\nOnce a fox went home. The dog") and GAP in text
    assert "What did the fox do?<|im_end|>\n<|im_start|>assistant\nwent" in text
    assert found.messages[0]["content"] in text and found.lost == 0


def test_worked_example_of_a_long_conversation_the_last_turns_are_left_out(fitted):
    talk = _talk("The dog?", "sleeps.", LONG, "went home.")
    found, text, learned, whole = fitted(talk, 100)
    assert learned == "sleeps.<|im_end|>" and text.endswith("sleeps.<|im_end|>") and found.messages == talk
    assert found.ids == whole[: len(found.ids)] and found.lost == len(whole) - len(found.ids)


def test_worked_example_earlier_answers_that_are_only_read_are_shortened(fitted):
    talk = [*_talk("The dog?", LONG, weight=0), *_talk("The fox?", "went home.")]
    found, text, learned, whole = fitted(talk, 100)
    assert learned == "went home.<|im_end|>" and "user\nThe fox?<|im_end|>" in text and GAP in text


@pytest.mark.parametrize("most", range(8, 400, 14))
def test_property_the_question_stays(fitted, most):
    """Whatever the room: not more than that, no answer without both ends of its question, no character in parts."""
    for talk in (_talk(LONG, LONG), _talk("The dog?", LONG), _talk(LONG, "sleeps."), _talk("一", "二", LONG, LONG)):
        found, text, learned, whole = fitted(talk, most)
        assert len(found.ids) <= most and len(whole) - 1 <= len(found.ids) + found.cut + found.lost <= len(whole)
        if learned:
            asked = text[: text.index(learned[:3], text.index("assistant"))]
            assert talk[0]["content"][:4] in asked and talk[0]["content"][-4:] in asked
            assert "\ufffd" not in asked
            assert most < 99 or sum(found.learned) >= 4


def test_refusal_of_weights_that_cannot_be_told_to_answers():
    talk = _talk("?", "!", "?", "!", weight=0)
    assert unlearn(talk, [False, True, True, False, True]) == [False, True, True, False, False]
    with pytest.raises(ValueError, match="writes 2 answers in 1 pieces, so a weight of 0 cannot be told"):
        unlearn(talk, [False, True, True])


@pytest.mark.parametrize("field", ["tools", "tool_calls", "reasoning_content"])
def test_refusal_of_what_a_template_leaves_out_though_words_hold_its_name_by_chance(field, tiny_tokenizer):
    """A tool called f, a call of it and a thought of one letter: each letter stands somewhere in the chat."""
    called = {"tools": [], "tool_calls": [{"function": {"name": "f", "arguments": {}}}], "reasoning_content": "f"}
    talk = [*_talk("f", "f"), *_talk("f", "f", **{field: called[field]})]
    tools = [{"type": "function", "function": {"name": "f"}}] if field == "tools" else []

    def lose(messages, tools):
        return tiny_tokenizer.encode(" ".join(message["content"] for message in messages))

    def write(messages, tools):
        return tiny_tokenizer.encode(str(messages) + str(tools))

    refuse_lost(talk, tools, write(talk, tools), tiny_tokenizer, write)
    with pytest.raises(ValueError, match=f"the chat template does not write the '{field}' of this conversation .«f»"):
        refuse_lost(talk, tools, lose(talk, tools), tiny_tokenizer, lose)
