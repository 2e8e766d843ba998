"""OpenAI's form: what requests may say, what is refused and how, and what answers look like."""

import base64
import json
import struct

import pytest

from llama.sampling import SamplingConfig
from llama.serve import openai_form as form
from llama.serve.batch import Piece, TokenLogprob
from llama.serve.openai_form import APIError, ChatChoice, TextChoice, Wish
from llama.serve.tool_calls import ToolText

HELLO = [{"role": "user", "content": "Hello"}]
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call>'


def test_worked_example_a_chat_request():
    asked = form.read_chat({"model": "m", "messages": HELLO, "temperature": 0, "max_tokens": 9, "n": 2, "seed": -1,
                            "stop": "\n", "stream": True, "stream_options": {"include_usage": True}, "logprobs": True,
                            "top_logprobs": 3, "top_k": 5, "user": "somebody", "presence_penalty": 0,
                            "response_format": {"type": "text"}, "tools": None}, Wish())
    assert asked.messages == HELLO and asked.tools == []
    assert asked.wish == Wish("m", SamplingConfig(temperature=0, top_k=5), max_new_tokens=9, n=2, seed=2**32 - 1,
                              stop=("\n",), stream=True, include_usage=True, top_logprobs=3)


def test_property_what_is_not_said_is_the_servers_default_and_another_seed_each_time():
    defaults = Wish(sampling=SamplingConfig(temperature=0.3), max_new_tokens=77)
    first, second = (form.read_chat({"messages": HELLO}, defaults).wish for _ in range(2))
    assert first.sampling == defaults.sampling and first.max_new_tokens == 77
    assert first.seed != second.seed
    assert form.read_chat({"messages": HELLO, "max_completion_tokens": 5, "max_tokens": 9}, defaults
                          ).wish.max_new_tokens == 5


def test_worked_example_messages_as_templates_read_them():
    messages = [{"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
                {"role": "assistant", "content": None, "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}]},
                {"role": "tool", "tool_call_id": "1", "content": "2"}]
    assert form.read_chat({"messages": messages}, Wish()).messages == [
        {"role": "system", "content": "Be kind."},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}]},
        {"role": "tool", "tool_call_id": "1", "content": "2"}]


@pytest.mark.parametrize("change, words, param", [
    ({"messages": []}, "messages is missing or empty", "messages"),
    ({"messages": ["Hello"]}, "message 0 must be an object with a role", "messages.[0]"),
    ({"messages": [{"role": "user", "content": 5}]}, "the content of message 0 is 5", "messages.[0]"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "parts that are no text", "messages.[0]"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"function": {}}]}]}, "arguments as JSON", "messages.[0]"),
    ({"temperature": "hot"}, 'temperature is "hot"; it must be', "temperature"),
    ({"temperature": True}, "temperature is true", "temperature"),
    ({"temperature": float("nan")}, "temperature is NaN", "temperature"),
    ({"top_p": 1.5}, "top_p is 1.5; it must be from 0 to 1", "top_p"),
    ({"n": 0}, "n is 0; it must be a whole number from 1 to 128", "n"),
    ({"max_tokens": 2.5}, "max_tokens is 2.5", "max_tokens"),
    ({"stop": ["", "a"]}, "stop must be", "stop"),
    ({"stop": 7}, "stop is 7; it must be of type str or list", "stop"),
    ({"stream": 1}, "stream is 1; it must be of type bool", "stream"),
    ({"stream_options": {"include_usage": True}}, "add \"stream\": true", "stream_options"),
    ({"stream": True, "stream_options": {"usage": True}}, 'the field "usage" is not known', "usage"),
    ({"top_logprobs": 3}, 'add "logprobs": true', "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs is 21", "top_logprobs"),
    ({"tools": [{"name": "f"}]}, "each of the tools", "tools"),
    ({"tools": [TOOL], "tool_choice": "required"}, "this server forces no call", "tool_choice"),
    ({"presence_penalty": 0.5}, "presence_penalty is not supported", "presence_penalty"),
    ({"response_format": {"type": "json_object"}}, "response_format is not supported", "response_format"),
    ({"temprature": 0}, 'the field "temprature" is not known', "temprature"),
])
def test_refuses_what_a_chat_request_cannot_mean(change, words, param):
    with pytest.raises(APIError, match=words.replace("(", r"\(")) as caught:
        form.read_chat({"messages": HELLO} | change, Wish())
    assert caught.value.status == 400
    assert caught.value.body["error"] == {"message": str(caught.value), "type": "invalid_request_error",
                                          "param": param, "code": None}


@pytest.mark.parametrize("prompt, expected", [
    ("a", ["a"]), (["a", "b"], ["a", "b"]), ([5, 6], [[5, 6]]), ([[5], [6, 7]], [[5], [6, 7]])])
def test_worked_example_prompts_are_texts_or_ids(prompt, expected):
    assert form.read_completion({"prompt": prompt}, Wish()).prompts == expected


@pytest.mark.parametrize("prompt", ["", [], [""], [[]], [5, "a"], [True], [-1], {"a": 1}, 5])
def test_refuses_prompts_that_are_neither(prompt):
    with pytest.raises(APIError, match="prompt"):
        form.read_completion({"prompt": prompt}, Wish())


def test_refuses_a_body_that_is_no_object_and_more_texts_than_are_embedded():
    with pytest.raises(APIError, match="JSON object"):
        form.read_embedding([1])
    with pytest.raises(APIError, match="2,049 texts, and at most 2,048 are embedded"):
        form.read_embedding({"input": ["a"] * 2049})


def test_worked_example_embeddings_as_base64():
    text = form.embedding([0.5, -1.0], as_base64=True)
    assert struct.unpack("<2f", base64.b64decode(text)) == (0.5, -1.0)
    assert form.read_embedding({"input": ["a", "b"], "encoding_format": "base64"}).base64


# Calls of tools

def test_worked_example_a_call_is_no_part_of_the_text():
    for size in (1, 2, 7, 100):
        tools, text = ToolText(["weather"]), f"One moment.\n{CALL}\n{CALL}"
        shown = "".join(tools.push(text[i : i + size]) for i in range(0, len(text), size))
        rest, calls = tools.end()
        assert shown + rest == "One moment.\n"
        assert [call["function"] for call in calls] == [{"name": "weather", "arguments": '{"city": "北京"}'}] * 2
        assert calls[0]["id"] != calls[1]["id"] and calls[0]["type"] == "function"


def test_worked_example_a_call_without_its_marks():
    for text, calls in ((' {"name": "weather", "arguments": {"city": "a"}}\n', 1), ('{"name": "other"}', 0),
                        ('{"name": "weather"} it is', 0), ("{}", 0), (" ", 0)):
        tools = ToolText(["weather"])
        shown = "".join(map(tools.push, text))
        rest, found = tools.end()
        assert len(found) == calls and shown + rest == ("" if calls else text)


@pytest.mark.parametrize("text", ["a < b", "<tool_", "<tool_call>no JSON</tool_call>", '<tool_call>{"name": 5}',
                                  '<tool_call>["name"]', '<tool_call>{"name": "f", "arguments": 3}</tool_call>'])
def test_property_what_is_no_call_is_text(text):
    tools = ToolText(["weather"])
    shown = "".join(map(tools.push, text))
    rest, calls = tools.end()
    assert shown + rest == text and not calls


def test_worked_example_a_call_that_was_cut_off_behind_its_json():
    tools = ToolText(["weather"])
    assert tools.push('<tool_call>{"name": "f"}') == ""
    assert tools.end()[1][0]["function"] == {"name": "f", "arguments": "{}"}


# Answers

def test_worked_example_the_chunks_of_a_chat(tiny_tokenizer):
    choice = ChatChoice(0, tiny_tokenizer, tools=[TOOL], logprobs=False)
    assert choice.first()["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["delta"] for chunk in choice.push(Piece(0, "Wait. <tool_"))] == [{"content": "Wait. "}]
    *chunks, last = choice.push(Piece(0, CALL.removeprefix("<tool_"), finish_reason="stop", tokens=9))
    assert chunks[0]["delta"]["tool_calls"][0]["index"] == 0
    assert (last["delta"], last["finish_reason"], choice.tokens) == ({}, "tool_calls", 9)
    whole = choice.whole()
    assert whole["message"]["content"] == "Wait." and whole["finish_reason"] == "tool_calls"
    assert json.loads(whole["message"]["tool_calls"][0]["function"]["arguments"]) == {"city": "北京"}


def test_worked_example_logprobs_of_both_kinds(tiny_tokenizer):
    a, b = tiny_tokenizer.encode("a")[0], tiny_tokenizer.encode("b")[0]
    piece = Piece(0, "a", [TokenLogprob(a, -0.5, [(a, -0.5), (b, float("-inf"))])], "length", 1)
    chat = ChatChoice(0, tiny_tokenizer, tools=[], logprobs=True)
    chat.push(piece)
    assert chat.whole()["logprobs"]["content"] == [{"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [
        {"token": "a", "logprob": -0.5, "bytes": [97]}, {"token": "b", "logprob": -9999.0, "bytes": [98]}]}]
    text = TextChoice(1, tiny_tokenizer, echo="x", logprobs=True)
    text.push(piece)
    assert text.whole() == {"index": 1, "text": "xa", "finish_reason": "length", "logprobs": {
        "tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"a": -0.5, "b": -9999.0}], "text_offset": [0]}}
