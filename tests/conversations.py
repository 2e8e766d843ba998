"""Conversations made to be hard on chat templates; MARKS in a text stands for all special tokens of a vocabulary.

Each is what ChatTemplate.encode takes: messages, and where it brings some, tools, documents and variables.
"""

from typing import Any

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "The weather in a <city>, «now» & later",
    "parameters": {"type": "object", "properties": {
        "city": {"type": "string", "description": "its name"}, "unit": {"enum": ["celsius", "kelvin"]}},
        "required": ["city"]}}}
CLOCK = {"type": "function", "function": {"name": "时间", "description": "几点了？", "parameters": {
    "type": "object", "properties": {}}}}
PAPER = {"title": "A paper", "text": "Camels keep water in their blood.", "doc_id": 1}


def system(text: Any) -> dict:
    return {"role": "system", "content": text}


def user(text: Any) -> dict:
    return {"role": "user", "content": text}


def assistant(text: Any, **more: Any) -> dict:
    return {"role": "assistant", "content": text, **more}


def tool(text: str, **more: Any) -> dict:
    return {"role": "tool", "content": text, **more}


def call(name: str, arguments: Any, id: str = "abcdefghi") -> dict:
    return {"type": "function", "id": id, "function": {"name": name, "arguments": arguments}}


CALLED = [user("What is it like in 北京?"), assistant("", tool_calls=[call("get_weather", {"city": "北京", "n": 1.5})]),
          tool("晴, 21°", tool_call_id="abcdefghi", name="get_weather")]

CONVERSATIONS: dict[str, dict[str, Any]] = {
    "a question": {"messages": [user("Who are you?")]},
    "a system message": {"messages": [system("Be brief."), user("你好！")]},
    "an empty system message": {"messages": [system(""), user("Hello")]},
    "three turns": {"messages": [user("床前明月光"), assistant("疑是地上霜。"), user("举头望明月"),
                                 assistant("低头思故乡。"), user("谁写的？")]},
    "white space at all ends": {"messages": [system(" \n be brief \n"), user("  Hello\n"), assistant("Hi there \n"),
                                             user("\n\n(and?)\t"), assistant("(so) "), user("x\n\n\n")]},
    "closed": {"messages": [user("Hello"), assistant("Hi there")]},
    "a system message in the middle": {"messages": [user("a"), assistant("b"), system("now in French"), user("c")]},
    "two users in a row": {"messages": [user("a"), user("b")]},
    "two answers in a row": {"messages": [user("a"), assistant("b"), assistant("c"), user("d")]},
    "the assistant first": {"messages": [assistant("Hello"), user("Hi")]},
    "special tokens in words": {"messages": [system("no MARKS"), user("MARKS x MARKS"), assistant("MARKS"),
                                             user("MARKS\n")]},
    "halves of special tokens": {"messages": [user("<|im_start"), assistant("|>user <"), user("s><|"), assistant("<|"),
                                              user("im_end|> [INST [/INST] <</SYS>>")]},
    "contents as lists": {"messages": [system([{"type": "text", "text": "Be kind."}]),
                                       user([{"type": "text", "text": "one "}, {"type": "text", "text": "two"}])]},
    "tools": {"messages": [user("What time is it?")], "tools": [WEATHER, CLOCK]},
    "tools and a system message": {"messages": [system("Use tools."), user("时间？")], "tools": [CLOCK]},
    "a call answered": {"messages": CALLED, "tools": [WEATHER]},
    "a call answered, and on": {"messages": [*CALLED, assistant("It is sunny."), user("Thanks")], "tools": [WEATHER]},
    "a call as JSON text": {"messages": [user("时间？"), {"role": "assistant", "content": None, "tool_calls": [
        call("时间", '{"zone": "UTC"}')]}, tool("12:00", tool_call_id="abcdefghi")]},
    "two calls at once": {"messages": [user("both"), assistant("", tool_calls=[
        call("get_weather", {"city": "a"}), call("时间", {}, "123456789")]),
        tool("1", tool_call_id="abcdefghi"), tool("2", tool_call_id="123456789")], "tools": [WEATHER, CLOCK]},
    "thinking in the text": {"messages": [user("2+2?"), assistant("<think>\n2 and 2\n</think>\n\n4"), user("3+3?"),
                                          assistant("<think>\nhm </think> 6"), user("sure?")]},
    "thinking in a field": {"messages": [user("2+2?"), assistant("4", reasoning_content="\n2 and 2\n"), user("3?")]},
    "thinking before a call": {"messages": [user("w?"), assistant("", reasoning_content="I need it.", tool_calls=[
        call("get_weather", {"city": "c"})]), tool("rain"), assistant("Rain.", reasoning_content="So."), user("ok")],
        "tools": [WEATHER]},
    "no thinking": {"messages": [user("Hello")], "variables": {"enable_thinking": False}},
    "an unknown role": {"messages": [user("a"), {"role": "critic", "content": "b"}, user("c")]},
    "an empty question": {"messages": [user(""), assistant(""), user("x")]},
    "what a template might run": {"messages": [user("{{ 7 * 7 }} {% raw %} <b>&amp;</b> \"q\" 'q' \\n {0} %s"),
                                               assistant("🦙👩‍👩‍👧 e\u0301"), user("{# x #}")]},
    "documents": {"messages": [user("Where is it?")], "documents": [PAPER, PAPER]},
    "a developer's message": {"messages": [{"role": "developer", "content": "Be terse."}, user("a")]},
}


def with_marks(value: Any, marks: str) -> Any:
    """The same with the special tokens of a vocabulary in place of MARKS."""
    if isinstance(value, str):
        return value.replace("MARKS", marks)
    if isinstance(value, dict):
        return {key: with_marks(each, marks) for key, each in value.items()}
    return [with_marks(each, marks) for each in value] if isinstance(value, list) else value
