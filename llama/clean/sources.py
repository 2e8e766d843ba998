"""Texts out of files of any size, one after the other, each with its place.

    .txt            documents with blank lines between, or one a line; lines of «word/tag» as the text that they are
    .jsonl .json    the field `text` of each object, or another; of lines of JSON one at a time, a list is read whole
    .csv .tsv       the column of that name, or of that number where the first line names none
    .xml            the articles of a MediaWiki dump, each below its title

All of them also packed, .gz .xz .bz2. What else a record holds comes along.

Try: let `decoded` always trust GB18030; tests/test_clean_sources.py
(test_worked_examples_of_lines_in_a_wrong_encoding) fails: of a line with one bad byte it makes another text.
"""

import itertools
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llama.clean.mediawiki import articles
from llama.clean.steps import Step
from llama.datasets.examples import named_files
from llama.datasets.lines import json_records, numbered_lines, text_field
from llama.datasets.reading import Reading
from llama.datasets.tables import iter_rows
from llama.datasets.tagged_words import is_tagged_words, without_tags
from llama.datasets.text_files import UTF8, ending, opened
from llama.runtime.progress import Progress

ENDINGS = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".xml")
LOOKED_AT = 20                                                      # lines, before all are read as words with tags
WEIGHED = 10_000                                                    # lines, before a file counts as one of GB18030
MANY_LINES = 1000
EVERY = 0.3                                                         # seconds between two looks at the progress
_GB18030 = "gb18030"
_PART_OF_A_DUMP = re.compile(r"(?<=\.xml)-p\d+p\d+$")
_ASCII = bytes(range(128))
_SIDE_BY_SIDE = re.compile(r"[^\x00-\x7f]{2}")


def _kind(path: Path) -> str:
    """The ending that says what a file holds; that of a part of a dump, .xml-p1p187712.bz2, is .xml."""
    return _PART_OF_A_DUMP.sub("", ending(path))


@dataclass
class Text:
    """A text, the file and line where it begins, and the other fields of its record."""

    text: str
    place: str
    others: dict[str, Any] = field(default_factory=dict)


class Texts:
    """All texts of the files, in their order; iterate once. `position` of `size` bytes have been read so far.

    name       of the field or column that holds the text; a column may be named by its number, 1 for the first
    documents  how .txt files separate them: "blank-line" or "line"
    keep_tags  read «word/tag» as it stands
    encoding, skip_bad  see llama/datasets/reading.py; skip_bad also leaves out what of a file cannot be read
    repair     lines that are not of the encoding are read all the same (`decoded`), and halves of characters let be

    `steps` says what was repaired and left out, `remarks` what was concluded about a file. Raises FileNotFoundError and
    ValueError when it is made, for files that are not there, named twice, or of which none is read, and while it is
    read, naming file and line, for what is wrong in them.
    """

    def __init__(self, *files: str | Path, name: str = "text", documents: Literal["blank-line", "line"] = "blank-line",
                 keep_tags: bool = False, encoding: str | None = None, repair: bool = False,
                 skip_bad: bool | None = None):
        self.name, self.documents, self.keep_tags, self.repair = name, documents, keep_tags, repair
        self.reading = _Counting(encoding, repair=repair, skip_bad=skip_bad)
        self.steps, self.remarks = self.reading.steps, []
        self._before, seen, self.gb18030 = 0, {}, set()
        self.paths = []
        for path in named_files(files, "or ".join(f"{each} " for each in ENDINGS).strip()):
            if _kind(path) not in ENDINGS:
                raise ValueError(f"{path}: texts are read from {', '.join(ENDINGS)} files, also packed; give it the "
                                 "ending of what it holds")
            for _ in self._goes_on(self._look, path):
                here = path.stat()
                if (twice := seen.setdefault((here.st_dev, here.st_ino), path)) is not path:
                    raise ValueError(f"{path} is named twice{f', also as {twice}' * (twice != path)}; name it once")
                self.paths.append(path)
        self.size = sum(path.stat().st_size for path in self.paths)

    @property
    def position(self) -> int:
        return self._before + self.reading.position()

    def __iter__(self) -> Iterator[Text]:
        for path in self.paths:
            self.reading.mostly_gb18030 = path in self.gb18030
            yield from self._goes_on(self._read, path)
            self.reading.position = lambda: 0
            self._before += path.stat().st_size

    def watched(self, what: str) -> Iterator[Text]:
        """The same, with a line about it for whoever looks on."""
        progress, last = Progress(max(1, self.size >> 20), f"{what}, MB"), time.monotonic()
        try:
            for number, text in enumerate(self):
                if progress.live and time.monotonic() - last > EVERY:
                    progress.show(self.position >> 20, f"{number:,} texts")
                    last = time.monotonic()
                yield text
        finally:
            progress.clear()

    def _goes_on(self, read: Callable[[Path], Iterator[Any]], path: Path) -> Iterator[Any]:
        """All that is read of a file; with skip_bad as far as it can be."""
        try:
            yield from read(path)
        except ValueError as error:
            if not self.reading.skip_bad:
                raise
            self.reading.wrong(error)

    def _look(self, path: Path) -> Iterator[None]:
        """Raise at once what there is to say about a file as such: not in an hour, when its turn comes."""
        if path.exists() and not path.is_file():
            raise ValueError(f"{path} is no ordinary file, and cannot be looked at before it is read; write what it "
                             "holds into one")
        with opened(path, self.reading.encoding, flag=self.reading.has_flags) as (file, encoding):
            if self.repair and encoding == UTF8 and mostly_gb18030(itertools.islice(file, WEIGHED)):
                self.gb18030.add(path)
            yield

    def _read(self, path: Path) -> Iterator[Text]:
        kind = _kind(path)
        if kind == ".txt":
            return self._documents(path)
        if kind == ".xml":
            return (Text(f"{title}\n{text}", f"{path}:{line}", {"title": title})
                    for title, text, line in articles(path, self.reading))
        records = self._rows(path) if kind in (".csv", ".tsv") else json_records(path, self.reading)
        return self.reading.each(self._record, records)

    def _record(self, place: str, record: dict[str, Any]) -> Text:
        text = record.get(self.name)
        if not self.repair or not isinstance(text, str):            # halves of characters are no text, and go later
            text = text_field(record, self.name, place)
        return Text(text, place, {name: value for name, value in record.items() if name != self.name})

    def _rows(self, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
        rows = iter_rows(path, self.reading)
        first = next(rows, None)
        if not first:
            return
        columns = [cell.strip() for cell in first[1]]
        if self.name not in columns and self.name in (numbers := [str(i + 1) for i in range(len(columns))]):
            head = columns[int(self.name) - 1]
            self.remarks.append(f"{path}: column {self.name} is named by its number, so its first line is a text, too: "
                                f"'{head:.40}'; if that is its header, say --field '{head:.40}'")
            columns, rows = numbers, itertools.chain([first], rows)
        if self.name not in columns:
            raise ValueError(f"{path}:{first[0]}: the first line names {', '.join(columns):.100}, and not "
                             f"'{self.name}'; say with --field which column holds the text, of 1 to {len(columns)} "
                             "where the first line names none")

        def record(number: int, row: list[str]) -> tuple[str, dict[str, Any]]:
            if len(row) != len(columns):
                raise ValueError(f"{path}:{number}: this row has {len(row)} columns, and the first has {len(columns)} "
                                 f"({', '.join(columns):.100}); mend it")
            return f"{path}:{number}", dict(zip(columns, row, strict=True))

        yield from self.reading.each(record, rows)

    def _documents(self, path: Path) -> Iterator[Text]:
        if not self.keep_tags and _has_tags(path, self.reading.encoding):
            self.remarks.append(f"{path}: lines of words with their parts of speech, word/tag, are read as plain text")
            lines = without_tags(path, self.reading)
        else:
            lines = _lines(path, self.reading)
        held, begin, several = [], 0, False
        for number, line, fresh in lines:
            if held and (fresh or self.documents == "line"):
                yield Text("\n".join(held), f"{path}:{begin}")
                held, several = [], True
            begin = begin if held else number
            held.append(line)
        if len(held) > MANY_LINES and not several:
            self.remarks.append(f"{path}: no blank line divides its {len(held):,} lines, so they are one text; "
                                "--documents line takes each for one")
        if held:
            yield Text("\n".join(held), f"{path}:{begin}")


class _Counting(Reading):
    """Counts what is left out and repaired, and keeps the first few places: of a long file there may be millions."""

    def __init__(self, encoding: str | None, *, repair: bool, skip_bad: bool | None):
        super().__init__(encoding, skip_bad=skip_bad)
        self.repair = repair
        self.mostly_gb18030 = False                                 # the file that is read
        self.steps: dict[str, Step] = {}

    def wrong(self, what: Any) -> None:
        if not self.skip_bad:
            return super().wrong(what)
        self.steps.setdefault("wrong (--skip-bad)", Step()).drop("", str(what))

    def decode(self, line: bytes, encoding: str, place: str) -> str:
        if not (self.mostly_gb18030 and encoding == UTF8 and looks_like_gb2312(line)):
            return super().decode(line, encoding, place)
        text = line.decode(_GB18030)
        self._repaired(f"lines read as {_GB18030.upper()}", text, place)
        return text

    def undecodable(self, line: bytes, what: str) -> str | None:
        if not self.repair:
            return super().undecodable(line, f"{what}{', or --repair' * self.has_flags}")
        text, encoding, lost = decoded(line, self.encoding)
        place = what.partition(": byte ")[0]
        if encoding != self.encoding:
            self._repaired(f"lines read as {encoding.upper()}", text, place)
        if lost:
            self._repaired("lines read without bytes that were wrong", text, place)
        return text

    def _repaired(self, how: str, text: str, place: str) -> None:
        self.steps.setdefault(how, Step()).change(text, place)


def decoded(line: bytes, encoding: str = UTF8) -> tuple[str, str, int]:
    """(text, the encoding it is in, bytes left out) of a line that is not, or not all, of the encoding it should be in.

    GB18030 reads nearly any bytes as characters, so it is believed only where a third or more of what is not ASCII is
    wrong as UTF-8, less than half as much is wrong as GB18030, and two characters stand side by side, as in Chinese
    (and not in «naïve» of Latin-1). Else the line has a few damaged bytes, and is read without them. UTF-8, where
    another encoding is expected, is believed if nothing in it is wrong: no other text looks like it.
    """
    text, lost = _without_wrong(line, encoding)
    other = _GB18030 if encoding == UTF8 else UTF8
    there, lost_there = _without_wrong(line, other)
    beyond = len(line.translate(None, _ASCII))
    looks_so = 3 * lost > beyond and 2 * lost_there < lost and _SIDE_BY_SIDE.search(there)
    return (there, other, lost_there) if (not lost_there if other == UTF8 else looks_so) else (text, encoding, lost)


def looks_like_gb2312(line: bytes) -> bool:
    """Whether a line, in a file that is mostly GB18030, is: pairs of bytes from A1 on, as GB2312 has them, and no UTF-8
    with Chinese characters. Two pairs may well be UTF-8 too: «图片» is «ͼƬ» then.
    """
    beyond = line.translate(None, _ASCII)
    if not beyond or min(beyond) < 0xa1:
        return False
    try:
        line.decode(_GB18030)
        return max(line.decode()) < "\u0800"
    except UnicodeDecodeError as error:
        return error.encoding == UTF8


def mostly_gb18030(lines: Iterable[bytes]) -> bool:
    """Whether more of the lines that are one of both, as `decoded` finds, are GB18030 than UTF-8 of three bytes a
    character; «ͼƬ» counts for neither."""
    there = {UTF8: 0, _GB18030: 0}
    for line in lines:
        try:
            there[UTF8] += max(line.decode(), default="") >= "\u0800"
        except UnicodeDecodeError:
            there[_GB18030] += decoded(line)[1] == _GB18030
    return there[_GB18030] > there[UTF8]


def _without_wrong(line: bytes, encoding: str) -> tuple[str, int]:
    text = line.decode(encoding, "ignore")
    return text, len(line) - len(text.encode(encoding))


def _has_tags(path: Path, encoding: str) -> bool:
    lines = (line for _, line in numbered_lines(path, Reading(encoding, skip_bad=True)) if line.strip())
    first = list(itertools.islice(lines, LOOKED_AT))
    return bool(first) and all(map(is_tagged_words, first))


def _lines(path: Path, reading: Reading) -> Iterator[tuple[int, str, bool]]:
    """(line, its text, whether a document begins with it) for every line that is not blank."""
    fresh = True
    for number, line in numbered_lines(path, reading):
        if line.strip():
            yield number, line, fresh
        fresh = not line.strip()
