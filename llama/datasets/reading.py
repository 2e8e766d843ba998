"""How files are read: in which encoding, and what becomes of what is wrong in them, or is left aside.

What is wrong is refused with its place. With `skip_bad` the rest is read without it: counted, and the first few named.

Try: let `wrong` only count; tests/test_reading.py (test_refusal_what_is_wrong_is_refused_unless_it_is_skipped) fails.
"""

import copy
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from llama.datasets.text_files import checked_encoding

log = logging.getLogger(__name__)

SHOWN = 3                                                           # of what was skipped


class Reading:
    """encoding  of text files; None or "" for UTF-8
    skip_bad  go on without what is wrong; None where there is no such flag to name
    """

    def __init__(self, encoding: str | None = None, *, skip_bad: bool | None = None):
        self.encoding, self.skip_bad = checked_encoding(encoding or ""), skip_bad
        self.has_flags = skip_bad is not None
        self.skipped: list[str] = []
        self.position: Callable[[], int] = lambda: 0                # bytes of the file being read, as it is packed
        self.notes: dict[str, list[str]] = defaultdict(list)        # what was done -> the places
        self.aside: dict[str, None] = {}                            # fields that nobody asked for, in their order

    def wrong(self, what: Any) -> None:
        """Something is wrong: raise ValueError, or with skip_bad remember it."""
        if not self.skip_bad:
            raise ValueError(f"{what}{' (--skip-bad goes on without it)' * self.has_flags}") from None
        self.skipped.append(str(what))

    def decode(self, line: bytes, encoding: str, place: str) -> str:
        """A line as text. Raises UnicodeDecodeError. A subclass may know better what it is."""
        return line.decode(encoding)

    def undecodable(self, line: bytes, what: str) -> str | None:
        """A line is not of the encoding, as `what` says: None goes on without it. A subclass may know better."""
        self.wrong(what)

    def strict(self) -> "Reading":
        """The same, and nothing that is wrong is left out."""
        strict = copy.copy(self)
        strict.skip_bad = False if self.has_flags else None
        return strict

    def watch(self, position: Callable[[], int]) -> None:
        """A file was opened, and says so how far it is read."""
        self.position = position

    def each(self, convert: Callable[..., Any], items: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """convert(*item) of all items in which nothing is wrong."""
        for item in items:
            try:
                made = convert(*item)
            except ValueError as error:
                self.wrong(error)
                continue
            yield made

    def note(self, what: str, place: str) -> None:
        """Something was read otherwise than it stands there, and is to be said once a file."""
        self.notes[what].append(place)

    def tell(self, path: Path) -> None:
        """Say what there is to say about a file that was read."""
        for what, places in self.notes.items():
            log.warning("%s: %s: %d (first in %s)", path, what, len(places), places[0])
        if self.aside:
            log.warning("%s: fields that nothing is learned from, left aside: %s", path, ", ".join(self.aside))
        if self.skipped:
            log.warning("%s: %d left out by --skip-bad, the first: %s", path, len(self.skipped),
                        " · ".join(self.skipped[:SHOWN]))
        for told in (self.notes, self.aside, self.skipped):
            told.clear()
