"""Records of a few fields: texts with labels, with dates, or pairs of texts.

    text, label       one label a text                 classification, sentiment, opinion
    text, labels      several, or none                 JSON: a list; in a table separated by |
    source, target    what is given, what is expected  translation, summarization
    date              besides, where a file has it     2024-05-01, 2024/5/1, 2024年5月1日, a time behind it or not

    .jsonl, .json       objects with these fields, others are left aside
    .csv, .tsv, .txt    tables (tables.py), with a header that names these fields

Without a header the columns are the fields asked for in their order, behind any first column that says the same on
every line («to category»); `columns` says it otherwise.

Try: read .tsv with csv's quotation marks; tests/test_records.py (test_worked_example_tables_without_a_header) fails.
"""

import datetime
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llama.datasets.examples import Examples, named_files
from llama.datasets.lines import json_records, text_field
from llama.datasets.reading import Reading
from llama.datasets.tables import SKIP, TABLES, table_records
from llama.datasets.text_files import ending

FIELDS = ("text", "label", "labels", "source", "target", "date")
ENDINGS = (".jsonl", ".json", *TABLES)
_WHOLE = re.compile(r"-?\d+\.0")
_DATE = re.compile(r"(\d{4})(?:-(\d{1,2})-|/(\d{1,2})/|\.(\d{1,2})\.|年(\d{1,2})月)(\d{1,2})日?(?![0-9])")


class RecordDataset(Examples):
    """The records of files: `dataset[i]` is {"text": …, "label": …, "date": …, "place": "file:line"}.

    fields   those that every record must have; others of FIELDS come along where they are
    columns  of tables: a field for each column, "-" for one to leave out: ("-", "text", "label")
    header   whether the first line of tables is a header; None looks whether it names one of FIELDS
    encoding, skip_bad  see reading.py

    Labels are texts: what JSON holds as the number 1 or as true is "1" or "true", and so is what pandas writes as 1.0
    or as True.
    Dates are ISO days. Raises ValueError, naming file and line, for a record that lacks a field or holds an empty one.
    """

    def __init__(self, *files: str | Path, fields: Sequence[str] = ("text", "label"),
                 columns: Sequence[str] | None = None, header: bool | None = None, encoding: str | None = None,
                 skip_bad: bool | None = None):
        self.files = named_files(files, " or ".join(ENDINGS))
        self.fields = tuple(fields)
        if not fields or not set(fields) <= set(FIELDS):
            raise ValueError(f"fields are {', '.join(fields) or 'none'}; a record has some of {', '.join(FIELDS)}")
        if columns is not None and (unknown := set(columns) - {*FIELDS, SKIP} or set(fields) - set(columns)):
            raise ValueError(f"columns are {', '.join(columns)}, fields {', '.join(fields)}; columns name all the "
                             f"fields, and else only {', '.join(FIELDS)} or {SKIP}: look at "
                             f"{', '.join(sorted(unknown))}")
        self._examples = []
        reading = Reading(encoding, skip_bad=skip_bad)

        def records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
            if ending(path) in TABLES:
                return table_records(path, reading, known=FIELDS, fields=self.fields, columns=columns, header=header)
            if ending(path) in ENDINGS:
                return json_records(path, reading)
            raise ValueError(f"{path}: records are read from {', '.join(ENDINGS)}; give it the ending of what it holds")

        self._read(reading, lambda path: reading.each(
            lambda place, record: _example(record, self.fields, place), records(path)), "records")

    @property
    def labels(self) -> list[str]:
        """Every label that occurs, once, in the order of their names."""
        return sorted({label for example in self._examples
                       for label in example.get("labels", [example["label"]] if "label" in example else [])})


def _example(record: dict[str, Any], fields: Sequence[str], place: str) -> dict[str, Any]:
    record = {name: value for name, value in record.items() if value is not None or name in fields}
    if "label" in record:
        record["label"] = _as_text(record["label"])
    if not record.get("date") and "date" not in fields:
        record = {name: value for name, value in record.items() if name != "date"}      # not every text has its day
    example: dict[str, Any] = {}
    for name in FIELDS:
        if name == "labels" and (name in record or name in fields):
            example[name] = _labels(record, place)
        elif name in record or name in fields:
            text = text_field(record, name, place).strip()
            if not text:
                raise ValueError(f"{place}: the field '{name}' is empty; fill it in, or remove the record")
            example[name] = _day(text, place) if name == "date" else text
    return example | {"place": place}


def _labels(record: dict[str, Any], place: str) -> list[str]:
    """Several labels, each once, in their order; none is allowed: such a text belongs to no class."""
    value = record.get("labels")
    if isinstance(value, str):
        value = value.split("|") if value.strip() else []
    if not isinstance(value, list):
        raise ValueError(f"{place}: the field 'labels' is {value!r:.40}; it must be a list, or labels separated by |")
    found = [text_field({"labels": _as_text(each)}, "labels", place).strip() for each in value]
    if "" in found:
        raise ValueError(f"{place}: one of the labels is empty; remove it")
    return list(dict.fromkeys(found))


def _as_text(value: Any) -> Any:
    """Numbers as they stand in the file, but whole ones without the .0 that pandas gives a column with gaps; truth
    values as JSON writes them; everything else as it is."""
    if isinstance(value, int) or isinstance(value, float) and math.isfinite(value):
        value = str(value)
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        value = value.strip().removesuffix(".0")
    return value.lower() if isinstance(value, str) and value.strip().lower() in ("true", "false") else value


def _day(text: str, place: str) -> str:
    if found := _DATE.match(text):
        year, *months, day = found.groups()
        try:
            return datetime.date(int(year), int(next(filter(None, months))), int(day)).isoformat()
        except ValueError:
            pass
    raise ValueError(f"{place}: the date is '{text:.40}'; write year, month and day, as in 2024-05-01")
