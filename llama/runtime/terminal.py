r"""What reaches a terminal is text, and no command to it: names of files, data and answers may hold such commands.

A terminal obeys what stands in a text: `\x1b[2J` clears it, `\x1b]0;…\x07` renames its window, `\x9b8m` hides what
follows, and U+202E shows `gpj.exe` as `exe.jpg`. Here each such character is written as JSON writes it, `\u001b`. They
are replaced one by one, so that nothing is parsed and a sequence that comes in two pieces is as harmless; and what a
string of JSON says stays the same.

    stdout, on a terminal      cleaned
    stdout, a file or pipe     exactly what the model wrote
    stderr                     cleaned: a log is looked at on a terminal, too

The streams themselves do it (`guard`, once, in cli.run), so no `print` can forget to.

Try: take U+202E out of `_COMMANDS`; tests/test_terminal.py (test_worked_example_what_a_terminal_obeys_is_shown) fails.
"""

import logging
import re
import sys
import traceback
from collections.abc import Iterable
from typing import Any, TextIO

# C0 but tab and line end, DEL, C1, and what turns the direction of text. Joiners, as in emoji, are no commands.
_COMMANDS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")

_READERS = ("weights.formats.", "tokenizer", "llama.checkpoint", "llama.config_json", "llama.lora.files")


def visible(text: str) -> str:
    """The text with every command to a terminal written out."""
    return _COMMANDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class _Guarded:
    """A stream that shows commands instead of giving them; `bare` is the stream itself."""

    def __init__(self, bare: TextIO):
        self.bare = bare

    def write(self, text: str) -> int:
        self.bare.write(visible(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.bare, name)


def guard() -> None:
    """From now on, stderr and a stdout that is a terminal show commands instead of giving them."""
    if sys.stdout and sys.stdout.isatty():                          # None where it was closed
        sys.stdout = _Guarded(bare(sys.stdout))
    if sys.stderr:
        sys.stderr = _Guarded(bare(sys.stderr))
    sys.excepthook = traceback.print_exception                      # Python's own paints with such commands, from 3.13


def bare(stream: TextIO) -> TextIO:
    """The stream for commands of our own, a colour or a line that is rewritten; text beside them goes through
    `visible`."""
    return getattr(stream, "bare", stream)


class SaidOnce(logging.Filter):
    """What there is to say about a model's files is said the first time that they are read, and not again where a
    conversion, a merge or a proof reads them anew."""

    def __init__(self) -> None:
        super().__init__()
        self.said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if not (record.name or "").startswith(_READERS):
            return True
        before = len(self.said)
        self.said.add(record.getMessage())
        return len(self.said) > before


def say(text: str) -> None:
    """A line for whoever looks on. Results go to stdout, all else here."""
    print(visible(text), file=sys.stderr, flush=True)
