"""Prompts out of flags and files, each with its place, so that a bad one among many is found by file and line.

    many.jsonl:17: the field 'prompt' is 3; it must be a text, in quotation marks

Try: let `read_prompts` number prompts instead of lines; tests/test_prompts.py
(test_worked_example_a_place_is_that_of_the_file) fails: behind a blank line, or a prompt that is left out, it would
name the wrong one.
"""

import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llama.datasets.lines import json_records, numbered_lines, text_field
from llama.datasets.reading import Reading

NAMED = 10                                                          # bad prompts, before they are only counted


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


def read_prompts(texts: Sequence[str], file: str | None, bad: BadPrompts) -> list[tuple[str, str]]:
    """(place, text) of those given on the command line, then those of the file: a .jsonl, or a text that is one."""
    bad.among_others = len(texts) > 1 or bool(file) and _holds_many(Path(file))
    prompts = [("--prompt" if len(texts) == 1 else f"--prompt, number {number}", text)
               for number, text in enumerate(texts, start=1)]
    return prompts + list(_prompts_of(Path(file), bad) if file else [])


def _holds_many(path: Path) -> bool:
    return path.suffix in (".jsonl", ".json")


def _prompts_of(path: Path, bad: BadPrompts) -> Iterator[tuple[str, str]]:
    if _holds_many(path):
        yield from bad.each(lambda place, record: (place, text_field(record, "prompt", place)), json_records(path, bad))
        return
    try:                                                            # without the line end that editors close it with
        yield str(path), "\n".join(line for _, line in numbered_lines(path))
    except ValueError as error:
        bad.wrong(error)


def encode_prompts(prompts: Iterable[tuple[str, str]], encode: Callable[[str], list[int]], bad: BadPrompts
                   ) -> list[Prompt]:
    """Those that can be used. `encode` raises ValueError for a text that cannot."""
    good = []
    for place, text in prompts:
        try:
            good.append(Prompt(place, text, array("i", encode(text))))
        except ValueError as error:
            bad.wrong(f"{place}: {error}")
    bad.report(good)
    return good
