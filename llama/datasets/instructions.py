"""Examples of being asked and answering, as chat messages. Each record tells by its fields which form it has.

    Alpaca  {"instruction": …, "input": … (may be missing), "output": …}
    chat    {"messages": [{"role": "system" | "user" | "assistant", "content": …}, …]}

Files hold one record a line (.jsonl) or a JSON list of them (.json); both forms may stand in one file.

Try: end a record's messages with the user; tests/test_instructions.py shows the sentence that refuses it.
"""

from pathlib import Path
from typing import Any

from llama.datasets.examples import Examples, named_files
from llama.datasets.lines import json_records, text_field

ROLES = ("system", "user", "assistant")
Messages = list[dict[str, str]]


class InstructionDataset(Examples):
    """The conversations of instruction files: `dataset[i]` is {"messages": [{"role", "content"}, …], "place": …}.

    Each ends with what the assistant says. Raises ValueError, naming file and line, for a record that does not.
    """

    def __init__(self, *files: str | Path):
        self.files = named_files(files, ".json or .jsonl")
        self._examples = [{"messages": _messages(record, place), "place": place}
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
    messages = [{"role": text_field(turn, "role", place), "content": text_field(turn, "content", place)}
                for turn in turns]
    for message in messages:
        if message["role"] not in ROLES:
            raise ValueError(f"{place}: the role '{message['role']}' is not known; roles are {', '.join(ROLES)}")
        if message["role"] == "assistant" and not message["content"].strip():
            raise ValueError(f"{place}: the assistant says nothing; write an answer, or remove the record")
    if messages[-1]["role"] != "assistant":
        raise ValueError(f"{place}: the last message is the {messages[-1]['role']}'s; "
                         "a record must end with the assistant's, for that is what is learned")
    return messages
