"""The flags of texts beside the data that a run learns: mixed in, watched, and guarded.

    --mix english.txt=0.1           learned, too: a tenth of all tokens
    --watch poems=poems-dev.txt     scored with --eval-data, in bits per byte
    --guard english-dev.txt=1.05    watched, and the run ends where it needs more than 1.05 times the bits of before

Try: take «english=1.05» for a file where --watch has given that name; tests/test_side_texts.py
(test_worked_example_names_and_guards) fails.
"""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from llama.commands.flags import data_files
from llama.datasets.language_modeling import LanguageModelingDataset
from llama.runtime.ranges import Range
from llama.tasks.labelled import LabelledTask
from llama.tasks.task import Task
from llama.training.watched_texts import WatchedText

SHARE = Range(1e-6, 1 - 1e-6)
GUARD = Range(1.0, 1e6)


def add_side_texts(parser: argparse.ArgumentParser) -> None:
    """--mix, --watch and --guard, of the doors that train."""
    group = parser.add_argument_group("Texts beside the data")
    group.add_argument("--mix", nargs="+", default=[], type=_Numbered(SHARE), metavar="FILE=SHARE",
                       help="learn these, too, each as that part of all tokens, such as english.txt=0.1")
    group.add_argument("--watch", nargs="+", default=[], metavar="[NAME=]FILE",
                       help="score these texts, too, whenever --eval-data is")
    group.add_argument("--guard", nargs="+", default=[], type=_Numbered(GUARD), metavar="FILE=FACTOR",
                       help="watch these, or what --watch has so named, and stop where the bits per byte of one exceed "
                       "FACTOR times those before training, such as english.txt=1.05")


def check_task(arguments: argparse.Namespace, task: Task) -> None:
    """Raise ValueError for texts to watch, where the model gets a head of labels."""
    if isinstance(task, LabelledTask) and (arguments.watch or arguments.guard):
        raise ValueError(f"--{'watch' if arguments.watch else 'guard'}: a model with a head of labels writes no text; "
                         "leave it out")


def mixed(arguments: argparse.Namespace, dataset: Callable[[list[str]], Any]) -> Mapping[str, tuple[Any, float]]:
    """What `Trainer` mixes in; `dataset` reads files as those of --data. Raises ValueError for one that comes twice,
    and for shares that leave nothing for the data."""
    shares = dict(arguments.mix)
    if len(shares) < len(arguments.mix):
        raise ValueError("--mix names a file twice; give it once, with the sum of its shares")
    if (total := sum(shares.values())) >= 1:
        raise ValueError(f"--mix gives {total:.3g} of all tokens to other texts, which leaves none for --data; give "
                         "less")
    return {name: (dataset([name]), share) for name, share in shares.items()}


def watched(arguments: argparse.Namespace, **reading: Any) -> list[WatchedText]:
    """What `Trainer` watches. reading: how LanguageModelingDataset is to read it. Raises ValueError for equal names."""
    files = dict(_named(each) for each in arguments.watch)
    if len(files) < len(arguments.watch):
        raise ValueError(f"--watch {' '.join(arguments.watch)}: two texts have one name; call one otherwise, NAME=FILE")
    guards: dict[str, float] = {}
    for given, factor in arguments.guard:
        name = given if given in files else Path(given).name
        if name == given and given not in files and not (Path(given).suffix or Path(given).exists()):
            raise ValueError(f"--guard {given}: no watched text is called so ({', '.join(files) or 'there is none'}), "
                             f"and it is no file; --watch {given}=FILE gives a file that name")
        if given not in files and files.get(name, given) != given:
            raise ValueError(f"--guard {given}: {files[name]} is called '{name}' as well; give each its own name, "
                             "--watch NAME=FILE, and guard that")
        if name in guards:
            raise ValueError(f"--guard {given}: '{name}' is guarded already, by {guards[name]}; guard it once")
        files.setdefault(name, given)
        guards[name] = factor
    return [WatchedText(name, LanguageModelingDataset(*data_files([file]), **reading), guards.get(name, 0.0))
            for name, file in files.items()]


def _named(text: str) -> tuple[str, str]:
    """A text is called as its file is, unless it is NAME=FILE; a file of which the name has a = goes by that alone."""
    name, equals, file = text.partition("=")
    return (name, file) if equals and not Path(text).exists() else (Path(text).name, text)


class _Numbered:
    """FILE=NUMBER, as a type of argparse's flags."""

    def __init__(self, within: Range):
        self.within = within

    def __call__(self, text: str) -> tuple[str, float]:
        name, _, number = text.rpartition("=")
        if not name:
            raise argparse.ArgumentTypeError(f"it is {text!r:.60}, and must be FILE=NUMBER, the number {self.within}")
        try:
            return name, self.within(number)
        except argparse.ArgumentTypeError as error:
            raise argparse.ArgumentTypeError(f"of {text!r:.60}, {error}") from None
