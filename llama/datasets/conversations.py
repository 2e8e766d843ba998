"""The forms in which conversations lie around, all brought into one: OpenAI's messages.

    a record                                                    gives
    {"messages": [{"role", "content"}, …]}                      OpenAI; also `tool_calls`, `weight`, contents in parts
    {"conversations": [{"from": "human", "value": …}, …]}       ShareGPT; also function_call, observation, gpt …
    {"conversation": [{"human": …, "assistant": …}, …]}         pairs, or texts in turn
    {"instruction", "input", "output", "system", "history"}     Alpaca; prompt and response, question and answer
    {"instruction", "instances": [{"input", "output"}, …]}      the seeds of self-instruct and BELLE: an example each
    {…, "chosen", "rejected"}                                   preferences: the chosen answer alone is learned
    {"prompt": [message, …], "completion": [message, …]}        a conversation in two parts
    {…, "kto_tag": false}                                       an answer marked as bad: left out, as is "weight": 0

    messages  {"role": "system" | "user" | "assistant" | "tool", "content": text}, and where there is something to say
              "tool_calls" [{"type": "function", "function": {"name", "arguments": object}}], "reasoning_content",
              "weight": 0 for an answer that is read and not learned

The tables name every field that means something. What means something that a model of text cannot read (images, sound)
is refused by its name; what is in no table is left aside, aloud.

Try: leave "weight" out of WEIGHTS; tests/test_conversations.py (test_worked_example_answers_that_are_not_learned)
fails.
"""

import json
import re
from collections.abc import Iterable
from typing import Any

from llama.datasets.lines import text_field
from llama.datasets.reading import Reading

TURNS = ("messages", "conversations", "conversation", "chosen_messages")    # the first that is there is taken
SPEAKER, SAID = ("role", "from"), ("content", "value", "text")
ASKED = ("instruction", "prompt", "question", "query", "human", "user")
MORE = ("input", "context")
ANSWERED = ("output", "response", "answer", "completion", "assistant", "gpt", "bot")
SYSTEM = ("system", "system_prompt")
TOOLS = ("tools", "functions")
CALLS = ("tool_calls", "function_call")
REASONING = ("reasoning_content", "reasoning", "thinking")
WEIGHTS = ("weight", "loss_weight", "loss", "train", "trainable")
OF_RECORD = WEIGHTS[:2]                                             # at a whole record, `loss` may be a measured one
JUDGED = ("kto_tag", "label")
MEDIA = ("image", "images", "video", "videos", "audio", "audios", "image_url", "video_url", "audio_url", "input_audio",
         "input_image", "file", "input_file")
PLAIN = ("name", "tool_call_id")                                    # of a message, passed on as they are
OTHERS = {"history", "instances", "chosen", "rejected", "rejected_messages"}
MESSAGE = {*SPEAKER, *SAID, *CALLS, *REASONING, *WEIGHTS, *MEDIA, *PLAIN}
CALL = "tool call"                                                  # a speaker who is the assistant, and calls
ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user", "prompter": "user",
         "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant",
         "tool": "tool", "observation": "tool", "function": "tool", "function_response": "tool",
         "tool_response": "tool", "function_call": CALL, "tool_call": CALL}
TEXT, THOUGHT = ("text", "input_text", "output_text"), ("reasoning", "thinking")           # kinds of parts of a content

_UNFILLED = re.compile(r"\{\{\w+\}\}")

Message = dict[str, Any]
Record = dict[str, Any]


def examples_of(record: Record, place: str, reading: Reading) -> list[dict[str, Any]]:
    """{"messages", "place"}, with "tools" where there are any, for each conversation of a record; none if it is marked
    as bad.

    Raises ValueError, naming the place, for a record of no form known here, and for what would be lost.
    """
    for name in MEDIA:
        if record.get(name):
            raise ValueError(f"{place}: the record has '{name}', and the model reads text alone; leave such records "
                             "out")
    if (judged := _named(record, JUDGED)) and _is_false(record[judged]):
        reading.note(f"records whose '{judged}' calls the answer bad, left out", place)
        return []
    if (weight := _named(record, OF_RECORD)) and record[weight] == 0:
        reading.note(f"records whose '{weight}' is 0, left out", place)
        return []
    talks = _talks(record, place, reading)
    tools = tools_of(record, place)
    reading.aside |= dict.fromkeys(_unused(record))
    for talk in talks:
        _check(talk, place, reading)
    return [{"messages": talk, **({"tools": tools} if tools else {}), "place": place} for talk in talks]


def _unused(record: Record) -> list[str]:
    """The fields that hold something and became nothing; of two names for one thing the first is taken."""
    answered = () if record.get("chosen") is not None else ANSWERED
    rows = (TURNS, SYSTEM, TOOLS, JUDGED) if _named(record, TURNS) else (ASKED, MORE, answered, SYSTEM, TOOLS, JUDGED)
    used = OTHERS.union(_named(record, row) for row in rows)
    used |= {name for name in OF_RECORD if record.get(name) in (0, 1)}
    return [name for name, value in record.items() if name not in used and value not in ("", [], {}) and _is(value)]


def _talks(record: Record, place: str, reading: Reading) -> list[list[Message]]:
    before = _system(record, place) + _history(record, place)
    if turns := _named(record, TURNS):
        talk = _turns(record[turns], turns, place, reading)
        if before and talk[:1] and talk[0]["role"] == "system":
            if before[0] != talk[0]:
                reading.note("system messages beside the turns that differ from the one among them, which was taken",
                             place)
            before = []
        return [_preferred(record, before + talk, place, reading)]
    asked = _named(record, ASKED)
    if not asked and "chosen" in record:
        return [_preferred(record, before, place, reading)]
    if not asked and (_named(record, MORE) and _named(record, ANSWERED)):
        asked = _named(record, MORE)                                # {"input", "output"}
    if not asked:
        hint = "; plain text is learned with --task generation" if set(record) >= {"text"} else ""
        raise ValueError(f"{place}: the record has neither 'messages' or 'conversations' (chat) nor 'instruction' and "
                         f"'output' (Alpaca); it has {', '.join(record)[:99] or 'no fields'}{hint}")
    if record.get("instances") is not None:
        instances = record["instances"]
        if not isinstance(instances, list) or not instances or not all(isinstance(each, dict) for each in instances):
            raise ValueError(f"{place}: 'instances' must be a list of objects with 'input' and 'output', at least one")
        return [before + _pair(record | each, asked, place) for each in instances]
    if isinstance(record[asked], list):                             # a chat as the prompt of an answer
        talk = before + _turns(_objects(record, asked, place), asked, place, reading)
        if record.get("chosen") is None and (answered := _named(record, ANSWERED)):
            answer = record[answered]
            talk += [{"role": "assistant", "content": answer}] if isinstance(answer, str) else \
                _turns(_objects(record, answered, place), answered, place, reading)
        return [_preferred(record, talk, place, reading)]
    if record.get("chosen") is not None:
        return [_preferred(record, before + [_question(record, asked, place)], place, reading)]
    return [before + _pair(record, asked, place)]


def _objects(record: Record, field: str, place: str) -> Any:
    """A list of messages. Raises ValueError for one of texts, which is a column of many records and no conversation."""
    turns = record[field]
    if isinstance(turns, list) and turns and all(isinstance(turn, str) for turn in turns):
        raise ValueError(f"{place}: the field '{field}' is a list of {len(turns)} texts, a column of many records; "
                         "write a record a line (pandas: to_json(…, orient='records', lines=True))")
    return turns


def _question(record: Record, asked: str, place: str) -> Message:
    text = text_field(record, asked, place)
    more = _named(record, MORE)
    if more and more != asked and (added := text_field(record, more, place)):
        text += "\n\n" + added
    return {"role": "user", "content": text}


def _pair(record: Record, asked: str, place: str) -> list[Message]:
    question = _question(record, asked, place)
    answered = _named(record, ANSWERED) or ANSWERED[0]
    answer = text_field(record, answered, place)
    if not answer.strip():
        raise ValueError(f"{place}: the field '{answered}' is empty; write an answer, or remove the record")
    return [question, {"role": "assistant", "content": answer}]


def _system(record: Record, place: str) -> list[Message]:
    name = _named(record, SYSTEM)
    text = text_field(record, name, place) if name else ""
    return [{"role": "system", "content": text}] if text else []


def _history(record: Record, place: str) -> list[Message]:
    """Earlier turns, whose answers are learned as well."""
    history = record.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in history):
        raise ValueError(f"{place}: 'history' must be a list of pairs, [[question, answer], …]")
    return [{"role": role, "content": text_field({"history": text}, "history", place)}
            for pair in history for role, text in zip(("user", "assistant"), pair, strict=True)]


def _preferred(record: Record, talk: list[Message], place: str, reading: Reading) -> list[Message]:
    """With the chosen answer behind it; of earlier answers nobody says that they were preferred, so they are read."""
    chosen = record.get("chosen")
    if chosen is None:
        return talk
    answer = [{"role": "assistant", "content": chosen}] if isinstance(chosen, str) else \
        _turns([chosen] if isinstance(chosen, dict) else chosen, "chosen", place, reading)
    if any(message["role"] == "user" for message in answer):        # the whole conversation, not its end alone
        talk = [message for message in talk if message["role"] == "system" and answer[0]["role"] != "system"]
    elif not talk or talk[-1]["role"] not in ("user", "tool"):
        raise ValueError(f"{place}: nobody asked for what is 'chosen'; it must follow what a user says")
    return [{**message, "weight": 0} if message["role"] == "assistant" else message
            for message in talk + answer[:-1]] + answer[-1:]


# The turns of a conversation

def _turns(turns: Any, field: str, place: str, reading: Reading) -> list[Message]:
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"{place}: '{field}' must be a list of objects with 'role' and 'content', at least one")
    if all(isinstance(turn, str) for turn in turns):
        turns = [{"role": ("user", "assistant")[number % 2], "content": turn} for number, turn in enumerate(turns)]
    if not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"{place}: '{field}' must be a list of objects with 'role' and 'content', at least one")
    return [message for turn in turns for message in _messages(turn, place, reading)]


def _messages(turn: Record, place: str, reading: Reading) -> list[Message]:
    """One turn as a message, or a pair of what was asked and answered as two."""
    for name in MEDIA:
        if turn.get(name):
            raise ValueError(f"{place}: a turn has '{name}', and the model reads text alone; leave such records out")
    speaker = _named(turn, SPEAKER)
    if not speaker:
        asked = _named(turn, ASKED) or _named(turn, MORE)
        if not asked:
            raise ValueError(f"{place}: a turn has {', '.join(turn)[:99] or 'no fields'}; it must say with 'role' or "
                             "'from' who speaks")
        return _system(turn, place) + _pair(turn, asked, place)
    reading.aside |= dict.fromkeys(name for name in turn if name not in MESSAGE)
    said = text_field(turn, speaker, place)
    role = ROLES.get(said.strip().lower())
    if role is None:
        raise ValueError(f"{place}: the role '{said:.40}' is not known; roles are {', '.join(ROLES)}")
    content = _named(turn, SAID)
    message = {"role": "assistant" if role == CALL else role, "content": ""}
    calls: list[Any] = []
    if role == CALL:
        calls += _list(text_field(turn, content or SAID[0], place), f"what the {said} says", place)
    elif content and isinstance(turn[content], list):
        message |= _joined(turn[content], calls, place)
    elif content or not _named(turn, CALLS):
        field = content or next((name for name in SAID if name in turn), SAID[0])
        message["content"] = text_field(turn, field, place)
    for name in CALLS:
        if turn.get(name):
            calls += _list(turn[name], f"'{name}'", place)
    if calls:
        message["tool_calls"] = [_call(call, place) for call in calls]
    if reasoning := _named(turn, REASONING):
        message["reasoning_content"] = text_field(turn, reasoning, place)
    message |= {name: turn[name] for name in PLAIN if turn.get(name) is not None}
    return [message | _weight(turn, message["role"], place)]


def _joined(parts: Iterable[Any], calls: list[Any], place: str) -> Message:
    """The parts of a content as one text; thoughts beside it, and calls added to `calls`."""
    texts, thoughts = [], []
    for part in parts:
        part = {"type": "text", "text": part} if isinstance(part, str) else part
        kind = part.get("type") if isinstance(part, dict) else None
        value = next((part[name] for name in ("text", "value", "content", kind) if kind and name in part), None)
        if kind in ("tool_call", "function_call"):
            calls += _list(value if value is not None else part, "a part 'tool_call'", place)
        elif kind in TEXT or kind in THOUGHT:
            (texts if kind in TEXT else thoughts).append(text_field({kind: value}, kind, place))
        else:
            raise ValueError(f"{place}: a content has a part of the type {kind!r:.40}, and the model reads text alone; "
                             "leave such records out")
    return {"content": "".join(texts)} | ({"reasoning_content": "".join(thoughts)} if thoughts else {})


def _weight(turn: Record, role: str, place: str) -> Message:
    """{"weight": 0} for what the assistant says and is not learned; weights between are nobody's."""
    name = _named(turn, WEIGHTS)
    if not name:
        return {}
    if turn[name] not in (0, 1):                                    # True and False among them
        raise ValueError(f"{place}: the {name} {turn[name]!r:.40} is neither 0 (only read) nor 1 (learned)")
    if turn[name] and role != "assistant" and name != "weight":
        raise ValueError(f"{place}: the {name} of what the {role} says is {turn[name]}; only what the assistant says "
                         "is learned, so it must be 0")
    return {} if turn[name] or role != "assistant" else {"weight": 0}


# Tools, and calls of them

def tools_of(record: Record, place: str) -> list[Any]:
    """The tools of a record, each as {"type": "function", "function": …}, whether it describes the function alone."""
    name = _named(record, TOOLS)
    given = _list(record[name], f"'{name}'", place) if name and record[name] else []
    for tool in given:
        if not isinstance(tool, dict):
            raise ValueError(f"{place}: a tool is {tool!r:.40}; it must be an object that describes a function")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in given]


def _call(call: Any, place: str) -> dict[str, Any]:
    call = call if isinstance(call, dict) else {}
    function = call.get("function") if isinstance(call.get("function"), dict) else call
    name, arguments = function.get("name"), function.get("arguments", function.get("parameters", {}))
    if isinstance(arguments, str):
        arguments = _json(arguments, "the arguments of a call", place) if arguments.strip() else {}
    if not isinstance(name, str) or not isinstance(arguments, dict):
        raise ValueError(f"{place}: a call must be an object with the 'name' of a function and its 'arguments'; here "
                         f"it is {json.dumps(call, ensure_ascii=False):.60}")
    number = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return number | {"type": "function", "function": {"name": name, "arguments": arguments}}


def _list(value: Any, what: str, place: str) -> list[Any]:
    """A list, an object alone, or the JSON of either."""
    value = _json(value, what, place) if isinstance(value, str) else value
    if not isinstance(value, dict | list):
        raise ValueError(f"{place}: {what} is {value!r:.40}; it must be an object, or a list of objects")
    return value if isinstance(value, list) else [value]


def _json(text: str, what: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: {what} is not JSON ({str(error):.60}): {text:.40}") from None


# What holds of all

def _check(talk: list[Message], place: str, reading: Reading) -> None:
    """What nobody answers at the end is left aside."""
    for message in talk:
        if message["role"] == "assistant" and not (message["content"].strip() or message.get("tool_calls")):
            raise ValueError(f"{place}: the assistant says nothing; write an answer, or remove the record")
    last = max((i for i, message in enumerate(talk) if message["role"] == "assistant"), default=-1)
    if last < 0:
        ends = f"the last message is the {talk[-1]['role']}'s" if talk else "there is no message"
        raise ValueError(f"{place}: {ends}, and nobody answers; what the assistant says is what is learned")
    if any(_UNFILLED.search(message["content"]) for message in talk if message["role"] == "assistant"):
        reading.note("answers with a place that nobody filled in, such as {{name}}; they are learned so", place)
    if talk[last + 1 :]:
        reading.note("conversations that end with what nobody answers; that end is left aside", place)
        del talk[last + 1 :]


def _named(record: Record, names: Iterable[str]) -> str:
    """The first of these fields that holds something."""
    return next((name for name in names if _is(record.get(name))), "")


def _is(value: Any) -> bool:
    """Whether a field holds something: null and NaN are what pandas and others write for nothing."""
    return value is not None and value == value


def _is_false(value: Any) -> bool:
    return value is False or isinstance(value, str) and value.strip().lower() == "false"
