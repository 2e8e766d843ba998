"""What the doors share: a dataclass becomes flags, an error becomes one sentence and an exit code.

A field with its help, `lr: Annotated[float, "peak learning rate"] = 3e-4`, is at once default, flag, line of `--help`
and saved record. Exit codes: 0 done, 1 failed midway, 2 refused, 130 interrupted (143 by SIGTERM, 129 by
SIGHUP).

Try: give a field the type `list[int]`; tests/test_cli.py says which types a flag can have.
"""

import argparse
import dataclasses
import errno
import itertools
import logging
import os
import re
import select
import signal
import sys
import traceback
import typing
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, TextIO

from llama.runtime import interrupt, run_lock, terminal
from llama.runtime.destinations import check_name
from llama.runtime.ranges import ranges_of
from llama.runtime.room import OutOfMemory, is_out_of_memory
from weights.formats.atomic_write import sweep

PROJECT_ROOT = Path(__file__).resolve().parents[2]  # where llama/, tokenizer/, weights/ and doors lie
PACKAGES = ("llama", "tokenizer", "weights", "train.py", "finetune.py", "generate.py")


class _Help(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows the defaults that say something: not None, no switch that is off, no empty name. Tables stay tables."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False or action.default in ("", (), [], {})
        return action.help if silent else super()._get_help_string(action)


class _HelpAll(argparse.Action):
    """--help-all: every flag, in groups."""

    def __call__(self, parser: Any, *_: Any) -> NoReturn:
        print(parser.format_everything(), end="")
        sys.exit(0)


class _Store(argparse.Action):
    """Keeps what a flag is given. A list that comes in parts, --data A --data B, is all of them."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None
                 ) -> None:
        before = getattr(namespace, self.dest, None)
        if option_string and self.nargs in ("+", "*") and before is not self.default:
            values = [*before, *values]
        setattr(namespace, self.dest, values)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are one sentence, and whose --help shows what most people need.

    most     the flags that --help shows, by their names without dashes; --help-all shows all. Empty: all are few
    example  a command line that --help ends with
    table    what --help-all ends with
    """

    def __init__(self, prog: str, description: str, *, most: Sequence[str] = (), example: str = ""):
        super().__init__(prog=prog, description=description, allow_abbrev=False, formatter_class=_Help)
        self.register("action", None, _Store)
        self.most, self.example, self.table = most, example, ""
        self.color = False                                          # from Python 3.14 on, argparse would paint
        self.add_argument("--help-all", action=_HelpAll, nargs=0,
                          help="show every flag" if most else argparse.SUPPRESS)

    def format_help(self) -> str:
        if not self.most:
            return self.format_everything()
        by_name = {action.dest: action for action in self._actions}
        formatter = self._get_formatter()
        several = "".join(f" [{action.metavar} …]" for action in self._actions if not action.option_strings)
        formatter.add_usage(f"{self.prog} [flags]{several}", [], [])
        formatter.add_text(self.description)
        formatter.start_section(f"the flags that most people need, of {len(self._actions)}")
        formatter.add_arguments([by_name[name.replace("-", "_")] for name in (*self.most, "help", "help_all")])
        formatter.end_section()
        return formatter.format_help() + (f"\nexample: {self.example}\n" if self.example else "")

    def format_everything(self) -> str:
        return super().format_help() + (f"\n{self.table}\n" if self.table else "")

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help{'-all' if self.most else ''}", file=sys.stderr)
        sys.exit(2)


def add_flags(parser: argparse.ArgumentParser, record: type, *, skip: tuple[str, ...] = ()) -> None:
    """One flag for each field of the dataclass `record`, but for those in `skip`, which the door adds in its own way.

    Types: bool (a switch), int, float, str, Literal (choices), tuple[str, ...] and tuple[int, ...] (comma-separated),
    tuple[str, ...] | str (names with commas between, or where the text is more than names, a pattern), and Mapping
    from str to int or float (NAME=NUMBER, with commas between). A number beyond the range that its field states is
    refused.
    """
    group = parser.add_argument_group((record.__doc__ or record.__name__).splitlines()[0].rstrip("."))
    ranges = ranges_of(record)
    for name, kind, text, default in _fields(record):
        if name in skip:
            continue
        flag, text = "--" + name.replace("_", "-"), text.replace("%", "%%")
        if kind is bool:
            group.add_argument(flag, action="store_true", default=default, help=text)
        elif typing.get_origin(kind) is Literal:
            alone = {"nargs": "?", "const": "on"} if "on" in typing.get_args(kind) else {}      # --pack is --pack on
            group.add_argument(flag, choices=typing.get_args(kind), default=default, help=text, **alone)
        elif kind in _LISTS:
            read, metavar = _LISTS[kind]
            group.add_argument(flag, type=read, default=default, help=text, metavar=metavar)
        elif kind in (int, float, str):
            group.add_argument(flag, type=ranges.get(name, kind), default=default, help=text, metavar=_METAVARS[kind])
        else:
            raise TypeError(f"{record.__name__}.{name}: no flag is made of the type {kind}")


def from_flags(record: type, arguments: argparse.Namespace, **given: Any) -> Any:
    """The dataclass again, from parsed flags; `given` are the fields that have no flag of their own."""
    names = {field.name for field in dataclasses.fields(record)}
    return record(**{name: value for name, value in vars(arguments).items() if name in names} | given)


_METAVARS = {int: "N", float: "X", str: "TEXT"}


def _fields(record: type) -> list[tuple[str, Any, str, Any]]:
    hints = typing.get_type_hints(record, include_extras=True)
    rows = []
    for field in dataclasses.fields(record):
        kind, text = typing.get_args(hints[field.name])[:2]
        made = field.default_factory is not dataclasses.MISSING
        rows.append((field.name, kind, text, field.default_factory() if made else field.default))
    return rows


def _comma_separated(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in _comma_separated(text))


_numbers.__name__ = "list of whole numbers"                         # argparse says so of what it cannot read


def _names_or_pattern(text: str) -> tuple[str, ...] | str:
    return _comma_separated(text) if re.fullmatch(r"[\w.,\s]*", text) else text


def _by_name(number: Callable[[str], Any]) -> Callable[[str], dict[str, Any]]:
    def numbers_by_name(text: str) -> dict[str, Any]:
        """NAME=NUMBER,… as regular expressions for ends of names; a NAME that ends with a dot is a beginning."""
        pairs = [part.rpartition("=") for part in _comma_separated(text)]
        if twice := [name for name, count in Counter(name for name, _, _ in pairs).items() if count > 1]:
            raise argparse.ArgumentTypeError(f"it names '{twice[0]}' twice; give it once")
        return {re.escape(name) + ".*" if name.endswith(".") else name: number(value) for name, _, value in pairs}

    numbers_by_name.__name__ = "NAME=NUMBER list"                   # argparse says so of what it cannot read
    return numbers_by_name


_LISTS = {tuple[str, ...]: (_comma_separated, "A,B"), tuple[int, ...]: (_numbers, "0,1"),
          tuple[str, ...] | str: (_names_or_pattern, "A,B|PATTERN"),
          Mapping[str, int]: (_by_name(int), "NAME=N,…"), Mapping[str, float]: (_by_name(float), "NAME=X,…")}


def unique_path(folder: Path, name: str, *, take: bool) -> Path:
    """folder/name, or folder/name-2, -3 … : the first that neither a result nor a run in progress has taken.

    take  hold it for this process at once: two runs that start side by side get two names
    """
    for number in itertools.count(1):
        path = folder / (name if number == 1 else f"{name}-{number}")
        try:
            check_name(path)
        except ValueError as error:
            raise ValueError(f"{error}: with --output FOLDER") from None
        if path.exists() or Path(f"{path}.training").exists():
            continue
        if take:
            try:
                run_lock.take(path)
            except ValueError:
                continue
        return path
    raise AssertionError("numbers do not end")


def check_output(output: Path, *, marker: str, overwrite: bool, resume: bool) -> None:
    """Raise ValueError where there is something that nobody asked to replace, or nothing to go on with.

    marker  the file by which a result of this kind is known; a folder of another kind is never replaced
    """
    sweep(output.parent, output.name)                               # before anything is refused: killed runs' leftovers
    run = Path(f"{output}.training")
    interrupted = any(run.glob("last-*.pt"))                        # states: llama/training/run_state.py
    if Path(f"{output}.training", "lock").exists():
        run_lock.take(output)                                       # or say who has it
    if overwrite and resume:
        raise ValueError("--overwrite starts anew and --resume goes on; give one of them")
    if resume and not interrupted:
        raise ValueError(f"{run}: there is nothing to resume here; start without --resume")
    if not (overwrite or resume):
        if output.exists():
            raise ValueError(f"{output} exists already; give --overwrite to replace it, or another --output")
        if interrupted:
            raise ValueError(f"{output} is an interrupted run; give --resume to go on, --overwrite to start anew, "
                             "or another --output")
    if output.exists() and not (output / marker).exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"{output} holds no {marker}, so it is no earlier result; give another --output")


def run(main: Callable[[], None]) -> NoReturn:
    """Run a door's main and leave with its exit code; user errors become one sentence on stderr, bugs a traceback."""
    program = _program()
    for stream, errors in ((sys.stdin, "strict"), (sys.stdout, "replace"), (sys.stderr, "replace")):
        if hasattr(stream, "reconfigure"):                          # not None, where it was closed, nor a notebook's
            stream.reconfigure(encoding="utf-8", errors=errors)     # Chinese where the system has another code page
    terminal.guard()
    if logging.lastResort:                                          # the handler of whoever sets up none
        logging.lastResort.addFilter(terminal.SaidOnce())
    quiet = False
    try:
        quiet = interrupt.quiet_until_now()
        main()
        sys.stdout.flush()
        if others := _others():
            others.destroy_process_group()
        code = 0
    except KeyboardInterrupt as error:
        if (others := _others()) and others.launched():
            signal.signal(signal.SIGINT, signal.SIG_IGN)            # torchrun passes on what the terminal sent already
        print("", file=sys.stderr)
        code = 128 + getattr(error, "signal", signal.SIGINT)        # 130 of Ctrl-C, 143 of SIGTERM
    except BrokenPipeError:
        code = 1 if _reader_left(sys.stderr) else 0                 # `| head` is no failure; a log cut off stops a run
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (ValueError, RuntimeError, OSError, MemoryError) as error:
        others = _others()
        if is_out_of_memory(error) and not isinstance(error, OutOfMemory):
            what = next((part for part in str(error).split(". ") if "memory" in part), "out of memory")
            error = OutOfMemory(f"{what}: {_LESS_MEMORY}")
        elif others and others.lost(error):
            error = RuntimeError("another process has gone, and says why")
        elif not (isinstance(error, OutOfMemory) or _said_by_us(error)):
            if others:
                others.hear()
            raise
        if others:
            others.complain(f"{program}: {_sentence(error)}")
        else:
            print(f"{program}: {_sentence(error)}", file=sys.stderr, flush=True)
        wrong_path = isinstance(error, _WRONG_PATH) or getattr(error, "errno", 0) in _WRONG_NAME
        code = 2 if isinstance(error, ValueError) or wrong_path else 1
    if quiet:
        interrupt.quiet_end(code)
    sys.exit(code)


def _program() -> str:
    """What was run, as one types it: two doors may have files of one name."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    named = spec and spec.origin == sys.argv[0]                     # else somebody's program calls one of ours
    return f"python -m {spec.name.removesuffix('.__main__')}" if named else Path(sys.argv[0]).name


_WRONG_PATH = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError, PermissionError)
_WRONG_NAME = (errno.ENAMETOOLONG, errno.ELOOP)
_LESS_MEMORY = ("take a smaller --batch-size (with --accumulate larger by as much the updates stay the same), a "
                "shorter --max-length or --block-size, --checkpoint-activations, or a smaller model; what was saved is "
                "kept, and --resume goes on from there with the batch size of before")


def _others() -> Any:
    """llama.runtime.distributed, or None in a process that is alone, for it has not even loaded torch."""
    return sys.modules.get("llama.runtime.distributed")


def _reader_left(stream: TextIO) -> bool:
    """Whether nobody reads the pipe behind a stream any more. Windows cannot tell."""
    if not hasattr(select, "poll"):
        return False
    poll = select.poll()
    poll.register(stream.fileno(), 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _said_by_us(error: Exception) -> bool:
    """Raised by a line of ours (or by the system, about a file), not from inside a library, which would be a bug."""
    if isinstance(error, OSError):
        return True
    innermost = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    return innermost.is_relative_to(PROJECT_ROOT) and innermost.relative_to(PROJECT_ROOT).parts[0] in PACKAGES


def _sentence(error: Exception) -> str:
    system = isinstance(error, OSError) and error.strerror
    return " ".join((f"{error.filename or 'a file'}: {error.strerror}" if system else str(error)).split())
