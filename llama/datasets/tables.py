"""Tables: rows of cells become records, by a header or by the order of the columns.

    .csv          as RFC 4180: quotation marks around fields that need them, which may go over several lines; commas
                  between them, or where its first line has none, tabs or semicolons
    .tsv, .txt    tabs alone, every other sign means itself, quotation marks too

A first line that names one of the fields, in whatever letters (Text, LABEL), is the header. Where it names none and yet
looks like one, since its label is the only one that stands in a single line, nobody guesses: `header` says which it is.

Try: compare a header's names letter by letter; tests/test_tables.py (test_worked_example_a_header_in_other_letters)
fails.
"""

import csv
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from llama.datasets.lines import numbered_lines
from llama.datasets.reading import Reading
from llama.datasets.text_files import ending

log = logging.getLogger(__name__)

TABLES = (".csv", ".tsv", ".txt")
SKIP = "-"
_LONGEST = 2**31 - 1                                                # of a cell, as large as C's long is everywhere

Row = tuple[int, list[str]]


def table_records(path: Path, reading: Reading, *, known: Sequence[str], fields: Sequence[str],
                  columns: Sequence[str] | None, header: bool | None) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, record) of each row: cells become fields by the header, by `columns`, or by their order; what was
    concluded is said.

    known   every name that a header may have; `fields` are those that each record must have
    header  None looks for one of the known names in the first line
    """
    rows = rows_of(path, reading)
    if not rows:
        return
    first = [_name(cell, known) for cell in rows[0][1]]
    if header is None:
        header = not set(first).isdisjoint(known)
        if not header:
            _refuse_to_guess(path, rows, columns or (list(fields) if len(first) == len(fields) else ()))
    if header:
        rows = rows[1:]
        columns = columns or first
        _refuse_twice(path, columns, fields)
        if missing := set(fields) - set(columns):
            raise ValueError(f"{path}:1: the header names {', '.join(first)}, and not {', '.join(sorted(missing))}; "
                             "rename its columns, or say with --columns which is which")
    elif columns is None:
        columns = _by_order(path, rows, fields)
        log.info("%s has no header; its columns are read as %s", path, ", ".join(columns))
    yield from reading.each(lambda number, row: _record(path, number, row, columns), rows)


def headed_records(path: Path, reading: Reading) -> Iterator[tuple[str, dict[str, str]]]:
    """(place, record) of each row of a table whose first line names its columns."""
    rows = iter_rows(path, reading)
    columns = [cell.strip() for cell in next(rows, (0, []))[1]]
    _refuse_twice(path, columns, [name for name in columns if name])
    yield from reading.each(lambda number, row: _record(path, number, row, columns), rows)


def rows_of(path: Path, reading: Reading) -> list[Row]:
    """All of `iter_rows`, for what must be seen whole."""
    return list(iter_rows(path, reading))


def iter_rows(path: Path, reading: Reading) -> Iterator[Row]:
    """The rows that are not blank, each with the number of its first line, of a table of any length."""
    if ending(path) == ".csv":
        yield from _quoted_rows(path, reading)
    else:
        yield from ((number, line.split("\t")) for number, line in numbered_lines(path, reading) if line.strip())


def _quoted_rows(path: Path, reading: Reading) -> Iterator[Row]:
    lines = numbered_lines(path, reading)
    first = next(((number, line) for number, line in lines if line.strip()), (0, ""))
    delimiter = next((sign for sign in ",\t;" if sign in first[1]), ",")
    csv.field_size_limit(_LONGEST)                                  # csv's own 131,072 characters are less than a novel
    taken: list[int] = []                                           # the lines of the row that is being read

    def feed() -> Iterator[str]:
        for number, line in itertools.chain([first], lines):
            taken.append(number)
            yield line + "\n"

    reader = csv.reader(feed(), strict=True, delimiter=delimiter)
    while True:
        taken.clear()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            reading.wrong(f"{path}:{taken[0]}: this is no row of comma-separated fields: {error}; write a quotation "
                          "mark within a quoted field twice, or give the data as .jsonl")
            continue
        if any(cell.strip() for cell in row):
            yield taken[0], row


def _name(cell: str, known: Sequence[str]) -> str:
    """A cell of a header; the names that are known in whatever letters."""
    return cell.strip().lower() if cell.strip().lower() in known else cell.strip()


def _refuse_twice(path: Path, columns: Sequence[str], fields: Sequence[str]) -> None:
    """Raise ValueError for a header that names a field twice: of the two one would be lost."""
    if twice := next((name for name in fields if list(columns).count(name) > 1), None):
        raise ValueError(f"{path}:1: the header names '{twice:.40}' twice; rename one of these columns, or drop it")


def _refuse_to_guess(path: Path, rows: list[Row], columns: Sequence[str]) -> None:
    """Raise ValueError for a first line that may be a header, or a sample with a label of its own."""
    if "label" not in columns:
        return
    at = columns.index("label")
    labels = [row[at].strip() for _, row in rows if len(row) == len(columns)]
    times = Counter(labels)
    others = [label for label in times if label != labels[0]]
    numbers = all(map(str.isdecimal, others)) and not labels[0].isdecimal()
    if times[labels[0]] == 1 and others and (numbers or all(times[label] > 1 for label in others)):
        raise ValueError(f"{path}:{rows[0][0]}: the label '{labels[0]:.40}' stands in the first line alone, as if that "
                         "were a header; say --header yes, or --header no if it is data")


def _by_order(path: Path, rows: list[Row], fields: Sequence[str]) -> list[str]:
    width = len(rows[0][1])
    constant = len(rows) > 1 and len({row[0] for _, row in rows}) == 1
    if width == len(fields) + 1 and constant:
        return [SKIP, *fields]
    if width == len(fields):
        return list(fields)
    raise ValueError(f"{path}:1: the first line has {width} columns and is no header; write one with "
                     f"{' and '.join(fields)} above it, or say with --columns what they hold")


def _record(path: Path, number: int, row: list[str], columns: Sequence[str]) -> tuple[str, dict[str, Any]]:
    if len(row) != len(columns):
        raise ValueError(f"{path}:{number}: this line has {len(row)} columns, and {len(columns)} are expected "
                         f"({', '.join(columns)}); mend it, or say with --columns what they hold")
    return f"{path}:{number}", dict(zip(columns, row, strict=True))
