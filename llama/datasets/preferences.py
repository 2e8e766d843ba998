"""Two answers to one conversation, of which one was preferred. Each record tells by its fields which form it has.

    {"prompt": "…" or [message, …], "chosen": "…", "rejected": "…"}
    {"messages" or "conversations": [turn, …], "chosen": turn, "rejected": turn}
    {"chosen": [message, …], "rejected": [message, …]}          whole conversations that differ in their last message
    {"chosen_messages": [message, …], "rejected_messages": [message, …]}

In the place of a turn may stand a text, or a list of one turn; all names that conversations.py knows are known.

Try: let `_example` keep pairs whose answers are one; tests/test_preferences.py (test_refuses_what_is_no_pair) fails.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama.datasets.conversations import examples_of
from llama.datasets.examples import Examples, named_files
from llama.datasets.lines import json_records
from llama.datasets.reading import Reading

SIDES = (("chosen", "rejected"), ("chosen_messages", "rejected_messages"))


class PreferenceDataset(Examples):
    """The pairs of files: `dataset[i]` is {"messages": what both answer, "chosen": message, "rejected": message,
    "place": …}, with "tools" where a record names some.

    encoding  of the files, "" for UTF-8
    skip_bad  go on without records in which something is wrong; they are counted aloud

    Raises ValueError, naming file and line, for a record that is no pair.
    """

    def __init__(self, *files: str | Path, encoding: str | None = None, skip_bad: bool | None = None):
        self.files = named_files(files, ".json or .jsonl")
        self._examples = []
        reading = Reading(encoding, skip_bad=skip_bad)
        self._read(reading, lambda path: _pairs(path, reading), "pairs of a chosen and a rejected answer")


def _pairs(path: Path, reading: Reading) -> Iterator[dict[str, Any]]:
    yield from reading.each(lambda place, record: _example(place, record, reading), json_records(path, reading))


def _example(place: str, record: dict[str, Any], reading: Reading) -> dict[str, Any]:
    sides = next((names for names in SIDES if record.get(names[0]) is not None and record.get(names[1]) is not None),
                 None)
    if sides is None:
        raise ValueError(f"{place}: the record has {', '.join(record)[:99] or 'no fields'}; a pair has 'chosen' and "
                         "'rejected', two answers, and what they answer: 'prompt', or 'conversations'")
    chosen_name, rejected_name = sides
    talks = []
    for name, told in ((chosen_name, reading), (rejected_name, Reading())):     # what is told is told once
        found = examples_of(record | {chosen_name: record[name]}, place, told)
        if len(found) != 1:
            raise ValueError(f"{place}: the record holds {len(found)} conversations, and a pair belongs to one")
        talks.append(found[0])
    (*asked, chosen), (*also, rejected) = (talk["messages"] for talk in talks)
    asked, also = ([_read(message) for message in each] for each in (asked, also))
    if asked != also:
        raise ValueError(f"{place}: 'chosen' and 'rejected' answer different conversations; they must differ in their "
                         "last message alone")
    if chosen == rejected:
        raise ValueError(f"{place}: 'chosen' and 'rejected' are the same answer, so nothing is preferred; remove the "
                         "record")
    tools = {"tools": talks[0]["tools"]} if "tools" in talks[0] else {}
    return {"messages": asked, "chosen": chosen, "rejected": rejected, "place": place} | tools


def _read(message: dict[str, Any]) -> dict[str, Any]:
    """Of earlier answers nobody says that they were preferred: they are read and not learned."""
    return {**message, "weight": 0} if message["role"] == "assistant" else message
