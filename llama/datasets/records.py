"""Records of a few fields: texts with labels, with dates, or pairs of texts.

    text, label       one label a text                 classification, sentiment, opinion
    text, labels      several, or none                 JSON: a list; in a table separated by |
    source, target    what is given, what is expected  translation, summarization
    date              besides, where a file has it     2024-05-01, 2024/5/1, 2024年5月1日, a time behind it or not

    .jsonl, .json     objects with these fields, others are left aside
    .csv              as RFC 4180: commas, quotation marks around fields that need them
    .tsv, .txt        tabs alone, every other sign means itself, quotation marks too

A table's first line is its header if it names one of these fields. Without one the columns are the fields asked for in
their order, behind any first column that says the same on every line («to category»); `columns` says it otherwise.

Try: read .tsv with csv's quotation marks; tests/test_records.py (test_worked_example_tables_without_a_header) fails.
"""

import csv
import datetime
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llama.datasets.examples import Examples, named_files
from llama.datasets.lines import json_records, numbered_lines, text_field

log = logging.getLogger(__name__)

FIELDS = ("text", "label", "labels", "source", "target", "date")
SKIP = "-"
ENDINGS = (".jsonl", ".json", ".csv", ".tsv", ".txt")
_DATE = re.compile(r"(\d{4})(?:-(\d{1,2})-|/(\d{1,2})/|\.(\d{1,2})\.|年(\d{1,2})月)(\d{1,2})日?(?![0-9])")


class RecordDataset(Examples):
    """The records of files: `dataset[i]` is {"text": …, "label": …, "date": …, "place": "file:line"}.

    fields   those that every record must have; others of FIELDS come along where they are
    columns  of tables: a field for each column, "-" for one to leave out: ("-", "text", "label")
    header   whether the first line of tables is a header; None looks whether it names one of FIELDS. With `columns`
             there is none unless True is said

    Labels are texts: what JSON holds as the number 1 or as true is "1" or "true". Dates are ISO days. Raises
    ValueError, naming file and line, for a record that lacks a field or holds an empty one.
    """

    def __init__(self, *files: str | Path, fields: Sequence[str] = ("text", "label"),
                 columns: Sequence[str] | None = None, header: bool | None = None):
        self.files = named_files(files, " or ".join(ENDINGS))
        self.fields = tuple(fields)
        if not fields or not set(fields) <= set(FIELDS):
            raise ValueError(f"fields are {', '.join(fields) or 'none'}; a record has some of {', '.join(FIELDS)}")
        if columns is not None and (unknown := set(columns) - {*FIELDS, SKIP} or set(fields) - set(columns)):
            raise ValueError(f"columns are {', '.join(columns)}, fields {', '.join(fields)}; columns name all the "
                             f"fields, and else only {', '.join(FIELDS)} or {SKIP}: look at "
                             f"{', '.join(sorted(unknown))}")
        self._examples = []
        for path in self.files:
            found = [_example(record, self.fields, place) for place, record in
                     _records(path, self.fields, columns, header)]
            if not found:
                raise ValueError(f"{path}: the file holds no records; give one that does")
            self._examples += found

    @property
    def labels(self) -> list[str]:
        """Every label that occurs, once, in the order of their names."""
        return sorted({label for example in self._examples
                       for label in example.get("labels", [example["label"]] if "label" in example else [])})


def _records(path: Path, fields: Sequence[str], columns: Sequence[str] | None,
             header: bool | None) -> Iterator[tuple[str, dict[str, Any]]]:
    kind = path.suffix.lower()
    if kind in (".jsonl", ".json"):
        return json_records(path)
    if kind not in ENDINGS:
        raise ValueError(f"{path}: records are read from {', '.join(ENDINGS)}; give it the ending of what it holds")
    rows = list(_comma_rows(path) if kind == ".csv" else _tab_rows(path))
    return _table(path, rows, fields, columns, header)


def _tab_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    return ((number, line.split("\t")) for number, line in numbered_lines(path) if line.strip())


def _comma_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """A quoted field may go over several lines: a row has the number of its first."""
    reader = csv.reader((line + "\n" for _, line in numbered_lines(path)), strict=True)
    number = 1
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                yield number, row
            number = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{path}:{number}: this is no row of comma-separated fields: {error}; write a quotation mark "
                         'within a quoted field twice, or give the data as .jsonl') from None


def _table(path: Path, rows: list[tuple[int, list[str]]], fields: Sequence[str], columns: Sequence[str] | None,
           header: bool | None) -> Iterator[tuple[str, dict[str, str]]]:
    """Cells become fields by the header, by `columns`, or by their order; what was concluded is said."""
    if not rows:
        return
    first = [cell.strip() for cell in rows[0][1]]
    if header is None:
        header = columns is None and not set(first).isdisjoint(FIELDS)
    if header:
        rows = rows[1:]
        columns = columns or first
        if missing := set(fields) - set(columns):
            raise ValueError(f"{path}:1: the header names {', '.join(first)}, and not {', '.join(sorted(missing))}; "
                             "rename its columns, or say with columns which is which")
    elif columns is None:
        columns = _by_order(path, rows, fields)
        log.info("%s has no header; its columns are read as %s", path, ", ".join(columns))
    for number, row in rows:
        if len(row) != len(columns):
            raise ValueError(f"{path}:{number}: this line has {len(row)} columns, and {len(columns)} are expected "
                             f"({', '.join(columns)}); mend it, or say with columns what they hold")
        yield f"{path}:{number}", dict(zip(columns, row, strict=True))


def _by_order(path: Path, rows: list[tuple[int, list[str]]], fields: Sequence[str]) -> list[str]:
    width = len(rows[0][1])
    constant = len(rows) > 1 and len({row[0] for _, row in rows}) == 1
    if width == len(fields) + 1 and constant:
        return [SKIP, *fields]
    if width == len(fields):
        return list(fields)
    raise ValueError(f"{path}:1: the first line has {width} columns and is no header; write one with "
                     f"{' and '.join(fields)} above it, or say with columns what they hold")


def _example(record: dict[str, Any], fields: Sequence[str], place: str) -> dict[str, Any]:
    if isinstance(record.get("label"), int):
        record = record | {"label": _as_text(record["label"])}
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
    """JSON's numbers and truth values as they stand in the file; everything else as it is."""
    return str(value).lower() if isinstance(value, int) else value


def _day(text: str, place: str) -> str:
    if found := _DATE.match(text):
        year, *months, day = found.groups()
        try:
            return datetime.date(int(year), int(next(filter(None, months))), int(day)).isoformat()
        except ValueError:
            pass
    raise ValueError(f"{place}: the date is '{text:.40}'; write year, month and day, as in 2024-05-01")
