"""Text files, line by line: every line knows its number, so that whatever is wrong with it can be found.

Try: let `numbered_lines` split the whole text with str.splitlines(); tests/test_lines.py
(test_property_only_a_line_feed_ends_a_line) fails, for that also splits at U+2028, which JSON strings may hold.
"""

import itertools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

_WHITE_SPACE = re.compile(r"[ \t\n\r]*")                            # JSON's
_EMPTY_LIST = re.compile(r"\s*\[\s*]\s*")


def refuse(error: ValueError) -> None:
    raise error


def numbered_lines(path: Path, bad: Callable[[ValueError], None] = refuse) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file without their ends (LF or CR LF), counted from 1; a byte order mark is left out.

    bad  gets what is wrong with a line; where it does not raise that, the line is left out

    Raises FileNotFoundError for a missing file, ValueError for a folder, an empty file, or a line that is not UTF-8.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file; check the name, or the folder it is looked for in")
    if path.is_dir():
        raise ValueError(f"{path}: this is a folder; name the files in it")
    number = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            try:
                yield number, line.removesuffix(b"\n").removesuffix(b"\r").decode()
            except UnicodeDecodeError as error:
                bad(ValueError(f"{path}:{number}: byte {error.start + 1} of this line is not UTF-8; "
                               "save the file as UTF-8 text"))
    if number == 0:
        raise ValueError(f"{path}: the file is empty; give one that holds data")


def json_records(path: Path, bad: Callable[[ValueError], None] = refuse) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) for each object of a file that holds one a line, or a JSON list of them: its first sign tells.

    bad  gets what is wrong with a line or an item; where it does not raise that, the line or item is left out

    Raises ValueError, naming file and line, for what is not JSON and for what is no object. Behind what is not JSON in
    a list nothing can be found, so that is refused in any case.
    """
    lines = ((number, line) for number, line in numbered_lines(path, bad) if line.strip())
    first = next(lines, None)
    if first is None:
        raise ValueError(f"{path}: the file holds nothing but blank lines; give one that holds data")
    if first[1].lstrip().startswith("["):
        values = _list_items(path, "\n".join(line for _, line in numbered_lines(path)))
    else:
        values = _parsed_lines(path, itertools.chain([first], lines), bad)
    for number, value in values:
        if isinstance(value, dict):
            yield f"{path}:{number}", value
        else:
            bad(ValueError(f"{path}:{number}: this is a JSON {type(value).__name__}; an object, {{…}}, is expected"))


def text_field(record: dict[str, Any], name: str, place: str) -> str:
    """The text under `name`. Raises ValueError, naming the place, if there is none, or no text, or half a character."""
    if name not in record:
        raise ValueError(f"{place}: the field '{name}' is missing; the record has {', '.join(record) or 'no fields'}")
    text = record[name]
    if not isinstance(text, str):
        raise ValueError(f"{place}: the field '{name}' is {text!r:.40}; it must be a text, in quotation marks")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: the field '{name}' holds half a character, {text[error.start]!a}; "
                         "write both halves of the pair, or the character itself") from None
    return text


def _parsed_lines(path: Path, lines: Iterable[tuple[int, str]], bad: Callable[[ValueError], None]
                  ) -> Iterator[tuple[int, Any]]:
    for number, line in lines:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            bad(ValueError(_not_json(path, number, error)))
        else:
            yield number, value


def _list_items(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """(line, item) after item: json.loads would forget on which line each begins."""
    if _EMPTY_LIST.fullmatch(text):
        raise ValueError(f"{path}: the list holds no records; give a file that holds data")
    decoder, number, counted = json.JSONDecoder(), 1, 0
    end, sign = text.index("["), ","
    while sign == ",":
        start = _WHITE_SPACE.match(text, end + 1).end()
        number, counted = number + text.count("\n", counted, start), start
        try:
            item, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError) as error:
            raise ValueError(_not_json(path, getattr(error, "lineno", number), error)) from None
        yield number, item
        end = _WHITE_SPACE.match(text, end).end()
        sign = text[end : end + 1]
    if sign != "]" or text[end + 1 :].strip():
        number += text.count("\n", counted, end)
        raise ValueError(f"{path}:{number}: the list of records should end here or go on after a comma; "
                         "the file may be cut off")


def _not_json(path: Path, number: int, error: Exception) -> str:
    why = "it is nested too deeply, or holds a number of too many digits"
    if isinstance(error, json.JSONDecodeError):
        why = f"{error.msg} at column {error.colno}"
    return f"{path}:{number}: this is not JSON: {why}"
