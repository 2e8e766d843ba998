"""Names to write to, looked at when a command begins: types of argparse's flags, which give the name back or refuse it.

    parser.add_argument("--output", type=folder_to_write, …)
    parser.add_argument("--predictions", type=file_to_write, …)

What a system would say at the end of a night's training (File name too long) is said before anything is loaded. Beside
a result lie things of longer names: `.NAME_epoch3.0a1b2c3d.partial` until it is whole, NAME.training, NAME-merged.

Try: look only at the name itself; tests/test_destinations.py (test_refusal_names_that_cannot_be_written) fails: one of
240 letters can be made, and what is put beside it cannot.
"""

import argparse
import errno
import os
from collections.abc import Callable
from pathlib import Path

LONGEST = ".{}_epoch1000000.0a1b2c3d.partial"                       # of what is put beside a result
TOO_LONG = 206, 123                                                 # as Windows says it


def folder_to_write(text: str) -> str:
    """A folder to make. Raises ArgumentTypeError, which argparse makes a refusal of."""
    return _checked(text, _refuse_for_a_folder)


def file_to_write(text: str) -> str:
    """The same for a file."""
    return _checked(text, _refuse_for_a_file)


def file_or_folder_to_write(text: str) -> str:
    """The same where something else decides which of the two it is."""
    return _checked(text, lambda text, path: None)


def _checked(text: str, refuse: Callable[[str, Path], None]) -> str:
    try:
        check_name(text)
        refuse(text, Path(os.path.abspath(text)))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def check_name(text: str | Path) -> None:
    """Raise ValueError for a name at which nothing can be made, whatever it is to be."""
    text = str(text)
    shown = ascii(text) if not text.isprintable() else text
    if not text.strip():
        raise ValueError("the name is empty; give one, or leave the flag out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{shown} is no UTF-8, and would be lost in every record of the run; give another name") \
            from None
    if "\0" in text:
        raise ValueError(f"{shown} holds a character that no name may hold; give another name")
    path = Path(os.path.abspath(text))
    if Path(text).name in ("", "..") or Path.cwd().is_relative_to(path):
        raise ValueError(f"{shown} is a folder that this command runs in; give a name of its own to what is written")
    there = path.parent                                             # the nearest that exists
    while not os.path.exists(there):
        _refuse_nowhere(there)
        there = there.parent
    if not os.path.isdir(there):
        raise ValueError(f"{shown}: {there} is a file, so nothing can lie in it; give another name")
    longest = LONGEST.format(path.name)
    for name in (*path.parent.relative_to(there).parts, longest, str(path.parent.relative_to(there) / longest)):
        if _too_long(there / name):
            raise ValueError(f"{shown} is too long a name, with what is put beside it until it is whole; give a "
                             "shorter one")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"{shown}: nothing may be written into {there}; give another name, or change who may")
    _refuse_nowhere(path)


def _refuse_nowhere(path: Path) -> None:
    if os.path.islink(path) and not os.path.exists(path):
        raise ValueError(f"{path} is a link to {os.readlink(path)}, which is not there; give another name")


def _too_long(path: Path) -> bool:
    """As the system has it: limits differ, some count bytes and some letters."""
    try:
        os.lstat(path)
    except OSError as error:
        return error.errno == errno.ENAMETOOLONG or getattr(error, "winerror", 0) in TOO_LONG
    return False


def _refuse_for_a_folder(text: str, path: Path) -> None:
    run = path.with_name(f"{path.name}.training")
    for each in (path, run):
        if os.path.exists(each) and not os.path.isdir(each):
            raise ValueError(f"{each} is a file, and a folder would be written there; give another name")
    _refuse_nowhere(run)


def _refuse_for_a_file(text: str, path: Path) -> None:
    if os.path.isdir(path) or text.endswith(("/", os.sep)):
        raise ValueError(f"{text} is a folder; give the name of a file to make")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ValueError(f"{text} is no ordinary file, and would be replaced by one; give another name")
