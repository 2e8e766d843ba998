"""What long work shows: one live line on a terminal, nothing in a log but the lines that are meant for it.

Try: print the line to stdout; tests/test_terminal.py fails, because `--json` output must stay clean.
"""

import sys
import time


class Progress:
    """A live line on stderr: what is done, how fast, and an estimate of what is left. Silent where nobody watches."""

    def __init__(self, total: int, what: str):
        self.total, self.what = total, what
        self.started = time.monotonic()
        self.live = sys.stderr.isatty()

    def show(self, done: int, text: str = "") -> None:
        """`done` of `total`, and a few words about it."""
        if self.live:
            line = f"{self.what} {done}/{self.total} {text} · {duration(self.left(done))} left"
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    def left(self, done: int) -> float:
        """Seconds left, at the speed so far."""
        return (time.monotonic() - self.started) * (self.total - done) / max(done, 1)

    def clear(self) -> None:
        """Take the line away, so that something lasting can be printed."""
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """75 -> '1 min 15 s'."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"
