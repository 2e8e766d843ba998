import json

import pytest

from llama.datasets.conversations import examples_of
from llama.datasets.reading import Reading

ASKED, SAID = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}
CALL = {"name": "weather", "arguments": {"city": "北京"}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": CALL}]}
TOLD = {"role": "tool", "content": "rain"}
SYSTEM = {"role": "system", "content": "Be short."}


def _talks(record, reading=None):
    return [{name: value for name, value in example.items() if name != "place"}
            for example in examples_of(record, "f:1", reading or Reading())]


def _said(*pairs, speaker="from", said="value"):
    return [{speaker: who, said: what} for who, what in pairs]


@pytest.mark.parametrize("record", [
    {"messages": [ASKED, SAID]},
    {"conversations": _said(("human", "hi"), ("gpt", "hello"))},
    {"conversations": _said(("user", "hi"), ("assistant", "hello"), speaker="role", said="value")},
    {"messages": _said(("User", "hi"), ("ASSISTANT", "hello"), speaker="role", said="content")},
    {"conversation": [{"human": "hi", "assistant": "hello"}]},
    {"conversation": [{"input": "hi", "output": "hello"}]},
    {"conversations": ["hi", "hello"]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}]}, SAID]},
    {"messages": [{"role": "user", "content": [{"type": "text", "value": "hi"}], "loss_weight": 0.0}, SAID],
     "images": []},
    {"messages": [ASKED, SAID | {"weight": 1, "tool_calls": None}], "system": None, "tools": "", "history": None},
    {"instruction": "hi", "input": None, "output": "hello", "history": [], "system": ""},
    {"prompt": "hi", "completion": "hello"}, {"question": "hi", "answer": "hello"}, {"input": "hi", "output": "hello"},
    {"instruction": "hi", "instances": [{"input": "", "output": "hello"}], "is_classification": False},
    {"instruction": "hi", "chosen": "hello", "rejected": "no"},
    {"conversations": _said(("human", "hi")), "chosen": {"from": "gpt", "value": "hello"}, "rejected": {}},
    {"prompt": [ASKED], "chosen": [SAID], "rejected": [SAID]},
    {"prompt": "hi", "chosen": [ASKED, SAID], "rejected": []},
    {"chosen": [ASKED, SAID], "rejected": [ASKED, SAID]}, {"chosen_messages": [ASKED, SAID], "rejected_messages": []},
    {"messages": [ASKED, SAID], "label": True}, {"prompt": "hi", "completion": "hello", "kto_tag": "true"},
    {"prompt": [ASKED], "completion": [SAID]}, {"prompt": [ASKED], "response": "hello", "weight": 1},
    {"instruction": "hi", "input": float("nan"), "output": "hello", "note": float("nan")},
], ids=lambda record: json.dumps(record)[:40])
def test_two_ways_every_dialect_says_the_same(record):
    assert _talks(record) == [{"messages": [ASKED, SAID]}]


def test_worked_example_alpaca_with_history_and_system():
    record = {"instruction": "And times three?", "input": "", "output": "Twelve.", "system": "You are a pirate.",
              "history": [["What is two plus two?", "Four."]]}
    assert [(each["role"], each["content"]) for each in _talks(record)[0]["messages"]] == [
        ("system", "You are a pirate."), ("user", "What is two plus two?"), ("assistant", "Four."),
        ("user", "And times three?"), ("assistant", "Twelve.")]


def test_worked_example_seeds_give_an_example_for_each_instance():
    record = {"instruction": "Add.", "instances": [{"input": "1 1", "output": "2"}, {"input": "1 2", "output": "3"}]}
    assert [[each["content"] for each in talk["messages"]] for talk in _talks(record)] == [
        ["Add.\n\n1 1", "2"], ["Add.\n\n1 2", "3"]]


@pytest.mark.parametrize("record", [
    {"conversations": _said(("human", "hi"), ("function_call", json.dumps(CALL)), ("observation", "rain"),
                            ("gpt", "hello")), "tools": json.dumps([{"name": "weather"}])},
    {"conversations": _said(("human", "hi"), ("function_call", json.dumps([CALL])), ("tool", "rain"), ("gpt", "hello")),
     "tools": [{"type": "function", "function": {"name": "weather"}}]},
    {"messages": [ASKED, {"role": "assistant", "content": None, "tool_calls": [
        {"type": "function", "function": {"name": "weather", "arguments": json.dumps(CALL["arguments"])}}]},
        TOLD, SAID],
     "functions": [{"name": "weather"}]},
    {"messages": [ASKED, {"role": "assistant", "content": None, "function_call": CALL},
                  {"role": "function", "content": "rain"}, SAID], "tools": {"name": "weather"}},
    {"messages": [ASKED, {"role": "assistant", "content": [{"type": "tool_call", "value": json.dumps(CALL)}]},
                  {"role": "tool", "content": [{"type": "text", "value": "rain"}]}, SAID],
     "tools": [{"name": "weather"}]},
])
def test_two_ways_tools_and_their_calls(record):
    assert _talks(record) == [{"messages": [ASKED, CALLED, TOLD, SAID],
                               "tools": [{"type": "function", "function": {"name": "weather"}}]}]


def test_worked_example_thoughts_stand_beside_what_is_said():
    parts = [{"type": "reasoning", "value": "A greeting."}, {"type": "text", "value": "hello"}]
    expected = [{"messages": [ASKED, SAID | {"reasoning_content": "A greeting."}]}]
    assert _talks({"messages": [ASKED, {"role": "assistant", "content": parts}]}) == expected
    assert _talks({"messages": [ASKED, SAID | {"reasoning_content": "A greeting."}]}) == expected


def test_worked_example_answers_that_are_not_learned():
    """weight 0, and what comes before a preferred answer."""
    read = SAID | {"weight": 0}
    for name in ("weight", "loss_weight", "loss", "train"):
        for no, yes in ((0, 1), (0.0, 1.0), (False, True)):
            assert _talks({"messages": [ASKED, SAID | {name: no}, ASKED, SAID | {name: yes}]}) == [
                {"messages": [ASKED, read, ASKED, SAID]}]
    talk = {"conversations": _said(("human", "hi"), ("gpt", "hello"), ("human", "hi")), "chosen": "hello"}
    assert _talks(talk) == [{"messages": [ASKED, read, ASKED, SAID]}]


@pytest.mark.parametrize("record", [{"instruction": "hi", "output": "hello"}, {"messages": [ASKED, SAID]}])
def test_worked_example_records_of_no_weight_are_left_out_aloud(record, tmp_path, caplog):
    reading = Reading()
    assert _talks({**record, "weight": 0}, reading) == _talks({**record, "loss_weight": 0.0}, reading) == []
    assert _talks({**record, "loss": 0.0}, reading) == _talks(record)           # a number that somebody measured
    reading.tell(tmp_path)
    assert "records whose 'weight' is 0, left out: 1 (first in f:1)" in caplog.text and "aside: loss" in caplog.text


@pytest.mark.parametrize("judged", [{"kto_tag": False}, {"label": False}, {"label": "False"}])
def test_worked_example_answers_marked_as_bad_are_left_out_aloud(judged, tmp_path, caplog):
    reading = Reading()
    assert _talks({"messages": [ASKED, SAID], **judged}, reading) == []
    reading.tell(tmp_path)
    assert f"records whose '{list(judged)[0]}' calls the answer bad, left out: 1 (first in f:1)" in caplog.text


def test_worked_example_what_is_left_aside_is_said(tmp_path, caplog):
    reading = Reading()
    record = {"id": 7, "messages": [SYSTEM, ASKED, SAID | {"time": 3}, ASKED], "system": "Other.", "prompt": "hi",
              "note": ""}
    assert _talks(record, reading) == [{"messages": [SYSTEM, ASKED, SAID]}]
    _talks({"instruction": "hi", "prompt": "ho", "output": "hello"}, reading)
    reading.tell(tmp_path)
    assert "fields that nothing is learned from, left aside: time, id, prompt" in caplog.text
    assert "conversations that end with what nobody answers; that end is left aside: 1 (first in f:1)" in caplog.text
    assert "system messages beside the turns that differ from the one among them, which was taken: 1" in caplog.text
    _talks({"prompt": "hi", "response": "I am {{name}}."}, reading)
    reading.tell(tmp_path)
    assert "answers with a place that nobody filled in, such as {{name}}; they are learned so: 1 (" in caplog.text
    caplog.clear()
    _talks({"messages": [SYSTEM, ASKED, SAID], "system": "Be short."}, reading)
    reading.tell(tmp_path)
    assert not caplog.records


@pytest.mark.parametrize(("record", "words"), [
    ({"messages": [ASKED, SAID], "images": ["x.jpg"]}, "the record has 'images', and the model reads text alone"),
    ({"instruction": "a", "output": "b", "videos": "x"}, "the record has 'videos'"),
    ({"messages": [ASKED | {"audio": {"data": ""}}, SAID]}, "a turn has 'audio', and the model reads text alone"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}, SAID]},
     "a content has a part of the type 'image_url'"),
    ({"messages": [ASKED, SAID | {"weight": 0.5}]}, "the weight 0.5 is neither 0 .only read. nor 1 .learned."),
    ({"messages": [ASKED | {"loss_weight": 1.0}, SAID]}, "the loss_weight of what the user says is 1.0; only what the"),
    ({"messages": [{"who": "user"}, SAID]}, "a turn has who; it must say with 'role' or 'from' who speaks"),
    ({"messages": [ASKED, CALLED | {"tool_calls": [{"name": 5}]}]}, "a call must be an object with the 'name' of a"),
    ({"conversations": _said(("human", "hi"), ("function_call", "weather(北京)"))}, "what the function_call says is"),
    ({"messages": [ASKED, SAID], "tools": "[{"}, "'tools' is not JSON"),
    ({"messages": [ASKED, SAID], "tools": ["weather"]}, "a tool is 'weather'; it must be an object"),
    ({"messages": [ASKED, SAID], "tools": 5}, "'tools' is 5; it must be an object, or a list of objects"),
    ({"instruction": "a", "output": "b", "history": [["q"]]}, "'history' must be a list of pairs"),
    ({"instruction": "a", "output": "b", "history": [["q", None]]}, "the field 'history' is None; it must be a text"),
    ({"instruction": "a", "instances": []}, "'instances' must be a list of objects with 'input' and 'output'"),
    ({"instruction": ["a", "b"], "output": ["c", "d"]}, "the field 'instruction' is a list of 2 texts, a column of"),
    ({"prompt": [ASKED], "completion": ["c", "d"]}, "the field 'completion' is a list of 2 texts"),
    ({"conversations": _said(("human", "hi"), ("gpt", None))}, "the field 'value' is None; it must be a text"),
    ({"chosen": "Human: a", "rejected": ""}, "nobody asked for what is 'chosen'; it must follow what a user says"),
    ({"messages": [ASKED, SAID], "chosen": "b"}, "nobody asked for what is 'chosen'"),
])
def test_refusal_of_what_would_be_lost(record, words):
    with pytest.raises(ValueError, match=f"^f:1: {words}"):
        _talks(record)
