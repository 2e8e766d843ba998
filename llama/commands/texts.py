"""Texts to predict on, from the command line, files and standard input: (place, text) after another, as they come.

    TEXT …          in their order
    .txt            a text a line; blank lines are left out
    .jsonl, .json   the field «text» (or «source», or «question» and «context») of objects
    .csv, .tsv      the column of that name, or the only one
    standard input  a text a line, answered before the next is waited for

Try: read all of standard input first; tests/test_predict.py
(test_property_a_line_is_answered_before_the_next_is_written) fails.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from llama.commands.flags import TaskFlags, data_files
from llama.datasets.lines import json_records, lines_as_they_come, numbered_lines, text_field
from llama.datasets.reading import Reading
from llama.datasets.records import RecordDataset
from llama.datasets.text_files import ending

INPUT = "standard input"

Placed = tuple[str, Any]                                            # where a text stands, and what `predict` takes


def given_texts(texts: Sequence[str]) -> Iterator[Placed]:
    """Those of the command line. Raises ValueError for one that says nothing, or holds half a character."""
    for number, text in enumerate(texts, start=1):
        place = f"text {number}"
        if not text_field({"text": text}, "text", place).strip():
            raise ValueError(f"{place} is empty; give at least one character")
        yield place, text


def texts_of_file(name: str, flags: TaskFlags, field: str) -> Iterator[Placed]:
    """Those of a file: lines of a .txt, or `field` of records."""
    [path] = map(Path, data_files([name]))
    reading = Reading(**flags.reading)
    if ending(path) == ".txt":
        for number, line in numbered_lines(path, reading):
            if line.strip():
                yield f"{path}:{number}", line
        reading.tell(path)
        return
    for example in RecordDataset(path, fields=(field,), **flags.table):
        yield example["place"], example[field]


def questions_of_file(name: str, flags: TaskFlags) -> Iterator[Placed]:
    """(question, context) of each object of a file of JSON."""
    [path] = map(Path, data_files([name]))
    reading = Reading(**flags.reading)
    if ending(path) not in (".jsonl", ".json"):
        raise ValueError(f"{path}: questions with their texts are read from .jsonl or .json, objects with 'question' "
                         "and 'context'; or give questions with one --context")
    yield from reading.each(
        lambda place, record: (place, (_filled(record, "question", place), _filled(record, "context", place))),
        json_records(path, reading))
    reading.tell(path)


def _filled(record: dict[str, Any], name: str, place: str) -> str:
    if not (text := text_field(record, name, place)).strip():
        raise ValueError(f"{place}: the field '{name}' is empty; fill it in, or remove the record")
    return text


def texts_of_input(flags: TaskFlags) -> Iterator[list[Placed]]:
    """Those of standard input, a few at a time: as many as are there."""
    if sys.stdin is None:
        raise ValueError(f"{INPUT} is closed; give a TEXT, or --data FILE")
    reading = Reading(**flags.reading)
    for some in lines_as_they_come(sys.stdin.buffer, reading, INPUT):
        yield [(f"{INPUT}:{number}", line) for number, line in some if line.strip()]
    reading.tell(Path(INPUT))


def in_batches(pieces: Iterable[Iterable[Placed]], size: int) -> Iterator[list[Placed]]:
    """At most `size` at a time, none from two pieces."""
    for piece in pieces:
        items = iter(piece)
        while some := list(islice(items, size)):
            yield some
