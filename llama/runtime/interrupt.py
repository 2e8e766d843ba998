"""Ctrl-C while a command is still importing torch, which takes seconds: it leaves at once, with 130 and no traceback.

    with quiet_start(__name__):
        import torch

Imported by nothing but commands, and importing nothing heavy itself. Once they run, llama/runtime/cli.py looks after
Ctrl-C.
"""

import contextlib
import os
import signal
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def quiet_start(name: str) -> Iterator[None]:
    """Let Ctrl-C end the process while the body imports, if `name` says that this module is the program that runs.

    Nothing has been done yet that could be left half done, so nothing is unwound: an exception here could come out of
    the middle of a C library's start as a failure of its own.
    """
    if name != "__main__":
        yield
        return
    before = signal.signal(signal.SIGINT, _leave)
    yield
    signal.signal(signal.SIGINT, before)


def _leave(number: int, frame: Any) -> None:
    os._exit(130)
