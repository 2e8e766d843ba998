"""Examples of being asked and answering, as chat messages. Each record tells by its fields which form it has.

    Alpaca  {"instruction": …, "input": … (may be missing), "output": …}
    chat    {"messages": [{"role": "system" | "user" | "assistant" | "tool", "content": …}, …]}, and beside them
            "tools"; contents may be lists of parts, and an assistant's message may have "tool_calls" instead

Files hold one record a line (.jsonl) or a JSON list of them (.json); both forms may stand in one file.

Try: end a record's messages with the user; tests/test_instructions.py shows the sentence that refuses it.
"""

import json
from pathlib import Path
from typing import Any

from llama.datasets.examples import Examples, named_files
from llama.datasets.lines import json_records, text_field

ROLES = ("system", "user", "assistant", "tool", "developer")
FIELDS = ("name", "tool_calls", "tool_call_id", "reasoning_content")    # of a message, which chat templates write
Messages = list[dict[str, Any]]


class InstructionDataset(Examples):
    """The conversations of instruction files: `dataset[i]` is {"messages": [{"role", "content"}, …], "place": …}.

    Each ends with what the assistant says. Raises ValueError, naming file and line, for a record that does not.
    """

    def __init__(self, *files: str | Path):
        self.files = named_files(files, ".json or .jsonl")
        self._examples = [{"messages": _messages(record, place), **_tools(record, place), "place": place}
                          for path in self.files for place, record in json_records(path)]


def _messages(record: dict[str, Any], place: str) -> Messages:
    if "messages" in record:
        return _chat(record["messages"], place)
    if "instruction" in record:
        return _alpaca(record, place)
    raise ValueError(f"{place}: the record has neither 'messages' (chat) nor 'instruction' and 'output' (Alpaca); "
                     f"it has {', '.join(record) or 'no fields'}")


def _alpaca(record: dict[str, Any], place: str) -> Messages:
    asked = text_field(record, "instruction", place)
    if more := text_field({"input": "", **record}, "input", place):
        asked += "\n\n" + more
    answered = text_field(record, "output", place)
    if not answered.strip():
        raise ValueError(f"{place}: the field 'output' is empty; write an answer, or remove the record")
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]


def _chat(turns: Any, place: str) -> Messages:
    if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
        raise ValueError(f"{place}: 'messages' must be a list of objects with 'role' and 'content', at least one")
    messages = [{"role": text_field(turn, "role", place), "content": _content(turn, place),
                 **{name: turn[name] for name in FIELDS if turn.get(name)}} for turn in turns]
    for message in messages:
        if message["role"] not in ROLES:
            raise ValueError(f"{place}: the role '{message['role']}' is not known; roles are {', '.join(ROLES)}")
        if message["role"] == "assistant" and not _says(message):
            raise ValueError(f"{place}: the assistant says nothing; write an answer, or remove the record")
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"{place}: the last message is the {messages[-1]['role']}'s; "
                         "a record must end with the assistant's, for that is what is learned")
    return messages


def _content(turn: dict[str, Any], place: str) -> str | list[dict[str, Any]]:
    """A text, or parts as OpenAI's interface has them, of which a chat template writes the texts."""
    content = turn.get("content")
    if turn.get("tool_calls") and content is None:
        return ""
    if not isinstance(content, list):
        return text_field(turn, "content", place)
    if not content or not all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in content):
        raise ValueError(f"{place}: a 'content' that is a list must hold objects with a 'type', at least one")
    if others := sorted({part["type"] for part in content} - {"text"}):
        raise ValueError(f"{place}: a message holds {', '.join(others)}, and this model reads text alone; remove the "
                         "record")
    return content


def _says(message: dict[str, Any]) -> bool:
    content = message["content"]
    text = content if isinstance(content, str) else "".join(str(part.get("text", "")) for part in content)
    return bool(text.strip() or message.get("tool_calls"))


def _tools(record: dict[str, Any], place: str) -> dict[str, Any]:
    """{"tools": […]} of a record that has them, as a list or as the JSON of one."""
    tools = record.get("tools") or []
    try:
        tools = json.loads(tools) if isinstance(tools, str) else tools
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: the field 'tools' is no JSON: {error.msg}") from None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError(f"{place}: the field 'tools' must be a list of objects, one a tool")
    return {"tools": tools} if tools else {}
