"""Text files, line by line: every line knows its number, so that whatever is wrong with it can be found.

Try: let `numbered_lines` split the whole text with str.splitlines(); tests/test_lines.py
(test_property_only_a_line_feed_ends_a_line) fails, for that also splits at U+2028, which JSON strings may hold.
"""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from llama.datasets.reading import Reading
from llama.datasets.text_files import MARK, UTF8, opened

_WHITE_SPACE = re.compile(r"[ \t\n\r]*")                            # JSON's
_WORDS = re.compile(r"[^\x00-\x7f].*")
_EMPTY_LIST = re.compile(r"\s*\[\s*]\s*")


def numbered_lines(path: Path, reading: Reading | None = None) -> Iterator[tuple[int, str]]:
    """The lines of a text file without their ends (LF or CR LF), counted from 1; a byte order mark is left out.

    Raises what `text_files.opened` does, and ValueError for a line that is not of the encoding.
    """
    reading = reading or Reading()
    with opened(path, reading.encoding, flag=reading.has_flags, watch=reading.watch) as (file, encoding):
        for number, line in enumerate(file, start=1):
            if (text := decoded(line, encoding, reading, f"{path}:{number}")) is not None:
                yield number, text


def lines_as_they_come(stream: IO[bytes], reading: Reading, name: str) -> Iterator[list[tuple[int, str]]]:
    """The same of a stream such as standard input, those together that one read brings: a line that somebody types is
    there at once, and a file that is piped in comes in pieces of 64 KiB.
    """
    if "\n".encode(reading.encoding) != b"\n":
        raise ValueError(f"{name}: {reading.encoding} ends lines with several bytes, which a stream may tear apart; "
                         "write it to a file first, and name that")
    number, rest = 0, b""
    while piece := stream.read1(1 << 16):
        *whole, rest = (rest + piece).split(b"\n")
        if whole:
            yield [(number + i, text) for i, line in enumerate(whole, start=1)
                   if (text := _line_of(line, number + i, reading, name)) is not None]
        number += len(whole)
    if rest and (text := _line_of(rest, number + 1, reading, name)) is not None:
        yield [(number + 1, text)]


def _line_of(line: bytes, number: int, reading: Reading, name: str) -> str | None:
    return decoded(line.removeprefix(MARK) if number == 1 else line, reading.encoding, reading, f"{name}:{number}")


def decoded(line: bytes, encoding: str, reading: Reading, place: str) -> str | None:
    """A line without its end as text; one that is not of the encoding is wrong, and None where that is skipped."""
    line = line.removesuffix(b"\n").removesuffix(b"\r")
    try:
        return reading.decode(line, encoding, place)
    except UnicodeDecodeError as error:
        return reading.undecodable(line, f"{place}: byte {error.start + 1} of this line is not {encoding.upper()}; "
                                         f"{_remedy(line, encoding, flag=reading.has_flags)}")


def json_records(path: Path, reading: Reading | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, record) for each object of a file that holds one a line, or a JSON list of them, or objects that go on
    over several lines: its first sign tells, and whether the first line is a value by itself.

    Raises ValueError, naming file and line, for what is not JSON and for what is no object.
    """
    reading = reading or Reading()
    lines = ((number, line) for number, line in numbered_lines(path, reading) if line.strip())
    first = list(itertools.islice(lines, 2))
    if not first:
        raise ValueError(f"{path}: the file holds {'nothing but blank lines' if not reading.skipped else 'no text'}; "
                         "give one that holds data")
    if first[0][1].lstrip().startswith("["):
        values = _list_items(path, _whole(path, reading))
    elif is_json(first[0][1]) or len(first) < 2 or is_json(first[1][1]):
        values = reading.each(lambda number, line: (number, _parse(path, number, line)), itertools.chain(first, lines))
    else:
        values = _objects(path, _whole(path, reading))

    def placed(number: int, value: Any) -> tuple[str, dict[str, Any]]:
        if not isinstance(value, dict):
            raise ValueError(f"{path}:{number}: this is a JSON {type(value).__name__}; an object, {{…}}, is expected")
        return f"{path}:{number}", value

    yield from reading.each(placed, values)


def text_field(record: dict[str, Any], name: str, place: str) -> str:
    """The text under `name`. Raises ValueError, naming the place, if there is none, or no text, or half a character."""
    if name not in record:
        raise ValueError(f"{place}: the field '{name}' is missing; the record has {', '.join(record) or 'no fields'}; "
                         "give it this one")
    text = record[name]
    if not isinstance(text, str):
        raise ValueError(f"{place}: the field '{name}' is {text!r:.40}; it must be a text, in quotation marks")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: the field '{name}' holds half a character, {text[error.start]!a}; "
                         "write both halves of the pair, or the character itself") from None
    return text


def _remedy(line: bytes, encoding: str, *, flag: bool) -> str:
    """What to do about a line that is not of this encoding; what it would say in the commonest other one is shown."""
    remedy = "save it as UTF-8 text"
    if not flag:
        return remedy
    try:
        text = line.decode("gb18030") if encoding == UTF8 else ""
    except UnicodeDecodeError:
        text = ""
    if words := _WORDS.search(text):
        return f"{remedy}, or, if it says «{words[0].strip():.20}», give --encoding gb18030"
    return f"{remedy}, or name its encoding with --encoding"


def _whole(path: Path, reading: Reading) -> str:
    """A file that is read all at once: without a line that is wrong nothing of it could be read."""
    return "\n".join(line for _, line in numbered_lines(path, reading.strict()))


def is_json(line: str) -> bool:
    """Whether a line is an object or a list by itself."""
    try:
        return isinstance(json.loads(line), dict | list)
    except (ValueError, RecursionError):
        return False


def _parse(path: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(_not_json(path, number, error)) from None


def _list_items(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """(line, item) after item: json.loads would forget on which line each begins."""
    if _EMPTY_LIST.fullmatch(text):
        raise ValueError(f"{path}: the list holds no records; give a file that holds data")
    number, counted = 1, 0
    end, sign = text.index("["), ","
    while sign == ",":
        number, item, counted, end = _value(path, text, end + 1, number, counted)
        yield number, item
        end = _WHITE_SPACE.match(text, end).end()
        sign = text[end : end + 1]
    if sign != "]" or text[end + 1 :].strip():
        number += text.count("\n", counted, end)
        raise ValueError(f"{path}:{number}: the list of records should end here or go on after a comma; "
                         "the file may be cut off")


def _objects(path: Path, text: str) -> Iterator[tuple[int, Any]]:
    """(line, object) after object, however each is laid out over lines."""
    number, counted, end = 1, 0, 0
    while _WHITE_SPACE.match(text, end).end() < len(text):
        number, item, counted, end = _value(path, text, end, number, counted)
        yield number, item


def _value(path: Path, text: str, begin: int, number: int, counted: int) -> tuple[int, Any, int, int]:
    """The value behind `begin`: its line, itself, its place, which the next lines are counted from, and its end."""
    start = _WHITE_SPACE.match(text, begin).end()
    number += text.count("\n", counted, start)
    try:
        item, end = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        raise ValueError(_not_json(path, getattr(error, "lineno", number), error)) from None
    return number, item, start, end


def _not_json(path: Path, number: int, error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{path}:{number}: this is not JSON: {error.msg} at column {error.colno}; mend this line"
    return (f"{path}:{number}: this JSON cannot be read: it is nested too deeply, or holds a number of too many "
            "digits; mend it")
