"""What a terminal sees of long work: one live line; a log gets nothing but what is meant for it.

Try: print the live line to stdout; tests/test_progress.py (test_property_a_log_gets_no_live_line) fails, because
results on stdout must stay clean.
"""

import sys
import time
import unicodedata

from llama.runtime.terminal import bare, visible


class Progress:
    """A live line on stderr: what is done, how fast, and an estimate of what is left. Silent where nobody watches.

    total   0 where the clock ends the work, and no count is known
    before  how many were done when this run began, and tell nothing of its speed
    """

    def __init__(self, total: int, what: str, *, before: int = 0):
        self.total, self.what, self.before = total, what, before
        self.started = time.monotonic()
        self.live, self.shown = sys.stderr.isatty(), False

    def show(self, done: int, text: str = "", *, left: float | None = None) -> None:
        """`done` of `total`, a few words about it, and seconds left, where the caller knows better than `left`."""
        if self.live:
            left = self.left(done) if left is None else left
            line = f"{self.what} {done}{f'/{self.total}' if self.total else ''} {text} · {duration(left)} left"
            print(f"\r\x1b[K{visible(line)}", end="", file=bare(sys.stderr), flush=True)
            self.shown = True

    def left(self, done: int) -> float:
        """Seconds left, at the speed so far."""
        return (time.monotonic() - self.started) * (self.total - done) / max(done - self.before, 1)

    def clear(self) -> None:
        """Take the line away, so that something lasting can be printed."""
        if self.shown:
            print("\r\x1b[K", end="", file=bare(sys.stderr), flush=True)
            self.shown = False


def duration(seconds: float) -> str:
    """75 -> '1 min 15 s'."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def display_width(text: str) -> int:
    """How many columns of a terminal a text takes: Chinese two a character, an accent or a joiner none."""
    widths = (0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 1 + (unicodedata.east_asian_width(c) in "WF")
              for c in text)
    return sum(widths)


def pad_to_width(text: str, columns: int) -> str:
    """The text with spaces up to so many columns of a terminal."""
    return text + " " * (columns - display_width(text))
