"""Questions with options A to D, one of them right, as the tests of knowledge lay them out.

    CMMLU     ,Question,A,B,C,D,Answer                      a number in front, which has no name
    C-Eval    id,question,A,B,C,D,answer,explanation

    NAME.csv                                                a file is a subject, called after it
    FOLDER/test/NAME.csv  FOLDER/dev/NAME.csv               or NAME_test.csv, NAME_dev.csv: what is asked, and examples

A test whose answers are kept secret, as C-Eval's are, cannot be scored: then FOLDER/val is taken, which is said.

Try: read what is in dev/ as questions, too; tests/test_multiple_choice.py
(test_worked_example_a_folder_asks_what_is_in_test_and_shows_what_is_in_dev) fails: whoever has seen the answers is no
longer tested.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llama.datasets.examples import Examples, named_files
from llama.datasets.reading import Reading
from llama.datasets.tables import headed_records
from llama.datasets.text_files import ending

log = logging.getLogger(__name__)

LETTERS = "ABCDEFGH"
SPLITS = ("test", "val", "dev")
_SPLIT = re.compile(f"(?:^|_)(?:{'|'.join(SPLITS)})$")


class MultipleChoiceDataset(Examples):
    """The questions of files and folders: `dataset[i]` is {"question", "options": {"A": …}, "answer": "B", "subject",
    "place"}, without "answer" where the file does not say it.

    dev  those that folders have as examples, in the order of their files
    encoding, skip_bad  see reading.py

    Raises ValueError, naming file and line, for a table without these columns, for an option that is empty, and for an
    answer that is none of the options.
    """

    def __init__(self, *paths: str | Path, encoding: str | None = None, skip_bad: bool | None = None):
        self.files = named_files(paths, ".csv, or folder with dev/ and test/,", folders=True)
        self._reading = Reading(encoding, skip_bad=skip_bad)
        self._examples: list[dict[str, Any]] = []
        self.dev: list[dict[str, Any]] = []
        for path in self.files:
            there = [name for name in SPLITS if (path / name).is_dir()]
            if "dev" in there:
                self.dev += self._questions(_tables(path / "dev"))
            asked = [path / name for name in there if name != "dev"]
            self._examples += self._asked(asked) if there else self._questions(_tables(path))

    @property
    def subjects(self) -> list[str]:
        """Every subject that is asked about, once, in its order."""
        return list(dict.fromkeys(example["subject"] for example in self._examples))

    def shots(self, count: int, pool: Sequence[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
        """The first `count` examples of each subject, from `dev`, or from a `pool`, which of one subject is for all.

        Raises ValueError where a subject has fewer.
        """
        by_subject: dict[str, list[dict[str, Any]]] = {}
        for example in self.dev if pool is None else pool:
            by_subject.setdefault(example["subject"], []).append(example)
        if pool is not None and len(by_subject) == 1:
            by_subject = dict.fromkeys(self.subjects, *by_subject.values())
        found = []
        for subject in self.subjects:
            some = by_subject.get(subject, [])[:count]
            if len(some) < count:
                raise ValueError(f"--few-shot {count}: of the subject '{subject}' there are {len(some)} to show; take "
                                 "fewer, or give more in the folder's dev/, or with --examples")
            found += [example | {"subject": subject} for example in some]
        return found

    def _asked(self, folders: list[Path]) -> list[dict[str, Any]]:
        """The questions of the first folder that says what is right; of the last where none does."""
        for folder in folders:
            found = self._questions(_tables(folder))
            if folder == folders[-1] or any("answer" in example for example in found):
                return found
            log.warning("%s: its questions come without answers; those of %s are taken", folder, folders[-1])
        raise ValueError(f"{self.files[0]}: the folder has examples in dev/ alone, and nothing to ask; give one with "
                         "test/ or val/")

    def _questions(self, tables: Iterable[Path]) -> list[dict[str, Any]]:
        found = []
        for path in tables:
            here = list(self._reading.each(lambda place, record, path=path: _example(path, place, record),
                                           headed_records(path, self._reading)))
            if not here:
                raise ValueError(f"{path}: the file holds no questions; give one that does")
            self._reading.tell(path)
            found += here
        return found


def _tables(path: Path) -> Iterator[Path]:
    if not path.is_dir():
        yield path
        return
    if not (found := sorted(each for each in path.iterdir() if ending(each) == ".csv")):
        raise ValueError(f"{path}: there is no .csv in this folder; give one with a table for each subject, or with "
                         "such folders dev/ and test/ in it")
    yield from found


def _example(path: Path, place: str, record: dict[str, str]) -> dict[str, Any]:
    cells = {name.strip().lower(): cell.strip() for name, cell in record.items()}
    letters = [letter for letter in LETTERS if letter.lower() in cells]
    if "question" not in cells or letters[:2] != ["A", "B"] or "".join(letters) not in LETTERS:
        raise ValueError(f"{path}:1: the columns are {', '.join(record):.100}; questions have question, A, B, C, D and "
                         "answer, and a header that names them")
    if empty := [name for name in record if name.strip().lower() in ("question", *map(str.lower, letters))
                 and not cells[name.strip().lower()]]:
        raise ValueError(f"{place}: the column '{empty[0]}' is empty; fill it in, or remove the question")
    example: dict[str, Any] = {"question": cells["question"],
                               "options": {letter: cells[letter.lower()] for letter in letters},
                               "subject": _SPLIT.sub("", path.name.partition(".csv")[0]), "place": place}
    if answer := cells.get("answer", "").upper():
        if answer not in letters:
            raise ValueError(f"{place}: the answer is '{cells['answer']:.40}', and the options are "
                             f"{', '.join(letters)}; mend one of the two")
        example["answer"] = answer
    return example
