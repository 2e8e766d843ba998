"""What all data sets that lie in memory share: a length, examples by index, and parts of themselves.

Try: let `part` keep all examples; tests/test_records.py (test_property_a_part_is_of_the_same_kind) fails.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from llama.datasets.reading import Reading


class Examples(Sequence):
    """Plain dicts, each with its `place`. A subclass reads `files` into `_examples`."""

    _examples: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, i: int) -> dict[str, Any]:
        return self._examples[i]

    def part(self, indices: Iterable[int]) -> "Examples":
        """A data set of the same kind and settings with these examples alone; those are shared, not copied."""
        part = copy.copy(self)
        part._examples = [self._examples[i] for i in indices]
        return part

    def _read(self, reading: Reading, examples_of: Callable[[Path], Iterable[dict[str, Any]]], what: str) -> None:
        """All files, one after the other. Raises ValueError for one that holds no `what`, with the first reason."""
        for path in self.files:
            found = list(examples_of(path))
            if not found:
                why = f": {reading.skipped[0]}" if reading.skipped else "; give one that does"
                raise ValueError(f"{path}: the file holds no {what}{why}")
            reading.tell(path)
            self._examples += found


def named_files(files: Sequence[str | Path], endings: str, *, folders: bool = False) -> list[Path]:
    """The files as paths. Raises ValueError if there are none, with the endings that one could have, and for a folder
    unless that will do as well."""
    if not files:
        raise ValueError(f"no files given; name at least one {endings} file")
    paths = [Path(file) for file in files]
    if folder := next((path for path in paths if path.is_dir() and not folders), None):
        raise ValueError(f"{folder}: this is a folder; name the files in it")
    return paths
