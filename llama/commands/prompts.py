"""Prompts out of flags and files, each with its place, so that a bad one among many is found by file and line.

    many.jsonl:17: the field 'prompt' is 3; it must be a text, in quotation marks

A record may hold a conversation in the place of a text, {"messages": […], "tools": […]}, to which an answer is asked.

Try: let `read_prompts` number prompts instead of lines; tests/test_prompts.py
(test_worked_example_a_place_is_that_of_the_file) fails: behind a blank line, or a prompt that is left out, it would
name the wrong one.
"""

import json
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.datasets.conversations import examples_of, tools_of
from llama.datasets.lines import json_records, numbered_lines, text_field
from llama.datasets.reading import Reading

NAMED = 10                                                          # bad prompts, before they are only counted


TALKS = ("messages", "conversations")


@dataclass(frozen=True)
class Conversation:
    """What was said until now, tools' answers among it, and which tools there are; as a text its last words."""

    messages: list[dict[str, Any]]
    tools: list[Any]

    def __str__(self) -> str:
        return self.messages[-1]["content"]


@dataclass(frozen=True)
class Prompt:
    """A text to continue, where it stands, and its ids: 4 bytes each, for they are all held while a job runs."""

    place: str
    text: str
    ids: array


class BadPrompts(Reading):
    """What is done about a prompt that cannot be used: it refuses the whole job, or with `skip` is left out."""

    def __init__(self, *, skip: bool):
        super().__init__()
        self.skip, self.count = skip, 0
        self.among_others = False

    def wrong(self, what: ValueError | str) -> None:
        if not self.skip:
            raise ValueError(f"{what}{', or --skip-bad to leave such prompts out' if self.among_others else ''}")
        self.count += 1
        if self.count <= NAMED:
            print(f"left out: {what}", file=sys.stderr)

    def report(self, prompts: Sequence[Prompt]) -> None:
        """Say how many were left out. Raises ValueError if that leaves nothing to do."""
        if self.count and not prompts:
            raise ValueError(f"none of the {self.count} prompts can be used; correct them")
        if self.count:
            print(f"left out {self.count} of {self.count + len(prompts)} prompts, which cannot be used",
                  file=sys.stderr)


def read_prompts(texts: Sequence[str], file: str | None, bad: BadPrompts) -> list[tuple[str, str | Conversation]]:
    """(place, prompt) of those given on the command line, then those of the file: a .jsonl, or a text that is one."""
    bad.among_others = len(texts) > 1 or bool(file) and _holds_many(Path(file))
    prompts = [("--prompt" if len(texts) == 1 else f"--prompt, number {number}", text)
               for number, text in enumerate(texts, start=1)]
    return prompts + list(_prompts_of(Path(file), bad) if file else [])


def _holds_many(path: Path) -> bool:
    return path.suffix in (".jsonl", ".json")


def read_tools(path: str | Path) -> list[Any]:
    """The tools in a file of JSON: a list of them, or one. Raises ValueError for what describes none."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); give a list of objects that describe functions") from None
    if not (tools := tools_of({"tools": found}, str(path))):
        raise ValueError(f"{path} describes no tool; give a list of objects that describe functions")
    return tools


def _prompts_of(path: Path, bad: BadPrompts) -> Iterator[tuple[str, str | Conversation]]:
    if _holds_many(path):
        yield from bad.each(_prompt_of, json_records(path, bad))
        return
    try:                                                            # without the line end that editors close it with
        yield str(path), "\n".join(line for _, line in numbered_lines(path))
    except ValueError as error:
        bad.wrong(error)


def _prompt_of(place: str, record: dict[str, Any]) -> tuple[str, str | Conversation]:
    name = next((name for name in TALKS if isinstance(record.get(name), list) and "prompt" not in record), None)
    if name is None:
        return place, text_field(record, "prompt", place)
    answered = record | {name: [*record[name], {"role": "assistant", "content": "!"}]}         # as data would have it
    [example] = examples_of(answered, place, Reading())
    *messages, _ = example["messages"]
    if not messages or messages[-1]["role"] == "assistant":
        raise ValueError(f"{place}: the last message is the assistant's, so nothing is asked; end with what a user or "
                         "a tool says")
    return place, Conversation(messages, example.get("tools", []))


def encode_prompts(prompts: Iterable[tuple[str, Any]], encode: Callable[[Any], list[int]], bad: BadPrompts
                   ) -> list[Prompt]:
    """Those that can be used. `encode` raises ValueError for a text that cannot."""
    good = []
    for place, text in prompts:
        try:
            good.append(Prompt(place, str(text), array("i", encode(text))))
        except ValueError as error:
            bad.wrong(f"{place}: {error}")
    bad.report(good)
    return good
