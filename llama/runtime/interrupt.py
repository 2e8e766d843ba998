"""Ctrl-C at moments that need care: while torch is imported it leaves at once, between two steps it waits.

    with quiet_start(__name__):
        import torch

Importing nothing heavy itself. Once a command runs, llama/runtime/cli.py looks after Ctrl-C.

Try: raise in `_leave` instead of leaving; tests/test_interrupt.py fails, with a traceback out of torch.
"""

import contextlib
import os
import signal
import threading
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


@contextlib.contextmanager
def ctrl_c_waits(*, second_raises: bool) -> Iterator[list[int]]:
    """Collect Ctrl-C instead of raising it: half a step cannot be resumed. A second interrupts at once, if asked."""
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught                                                # signals reach the main thread alone
        return
    before = signal.getsignal(signal.SIGINT)

    def wait(number: int, frame: Any) -> None:
        caught.append(number)
        if second_raises:
            signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, wait)
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, before)
