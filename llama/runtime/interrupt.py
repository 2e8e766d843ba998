"""Ctrl-C at moments that need care: while torch is imported it leaves at once, between two steps it waits.

    with quiet_start(__name__):
        import torch

Importing nothing heavy itself. From its `main` to the end of that, llama/runtime/cli.py looks after Ctrl-C.

Try: raise in `_Leave.__call__` instead of leaving; tests/test_interrupt.py fails, with a traceback out of torch.
"""

import contextlib
import gc
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any


class _Leave:
    """A handler of Ctrl-C that ends the process where it stands."""

    def __init__(self, code: int):
        self.code = code

    def __call__(self, number: int, frame: Any) -> None:
        os._exit(self.code)


@contextlib.contextmanager
def quiet_start(name: str) -> Iterator[None]:
    """Let Ctrl-C end the process from here to its `main`, if `name` says that this module is the program that runs.

    Nothing has been done yet that could be left half done, so nothing is unwound: an exception here could come out of
    the middle of a C library's start as a failure of its own. What ignores Ctrl-C, as a shell's background jobs do,
    goes on ignoring it. What a program imports is never garbage, so it is not searched for any, now or later.
    """
    if name != "__main__":
        yield
        return
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _Leave(128 + signal.SIGINT))
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def quiet_until_now() -> bool:
    """Whether this process began with `quiet_start`; from here on Ctrl-C raises KeyboardInterrupt, as usual."""
    if quiet := isinstance(signal.getsignal(signal.SIGINT), _Leave):
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return quiet


def quiet_end(code: int) -> None:
    """Let Ctrl-C from here on end the process with the code that it ends with anyway: all is done, all is said."""
    signal.signal(signal.SIGINT, _Leave(code))


class Stopped(KeyboardInterrupt):
    """Asked to end by a signal other than Ctrl-C, say SIGTERM: the exit code is 128 and its number."""

    def __init__(self, number: int):
        super().__init__()
        self.signal = number


# What asks a program to end: Ctrl-C, whoever gives back a borrowed machine, a terminal that is closed.
ENDINGS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))


@contextlib.contextmanager
def signals_wait(*, second_raises: bool) -> Iterator[list[int]]:
    """Collect the signals that ask for an end instead of ending: half a step cannot be resumed.

    A second one ends at once, if asked. What was ignored before (as SIGHUP under nohup) stays so.
    """
    caught: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield caught                                                # signals reach the main thread alone
        return
    before = {number: signal.getsignal(number) for number in ENDINGS}

    def wait(number: int, frame: Any) -> None:
        caught.append(number)
        if second_raises:
            for each, handler in before.items():
                signal.signal(each, handler)

    for number, handler in before.items():
        if handler is not signal.SIG_IGN or number == signal.SIGINT:
            signal.signal(number, wait)
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def signals_raise() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end the body by an exception, as Ctrl-C does, so that it can say what it leaves.

    What was ignored before stays so.
    """
    def stop(number: int, frame: Any) -> None:
        raise Stopped(number)

    before = {}
    if threading.current_thread() is threading.main_thread():       # signals reach it alone
        before = {number: signal.getsignal(number) for number in ENDINGS if number != signal.SIGINT}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
