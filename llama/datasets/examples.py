"""What all data sets that lie in memory share: a length, examples by index, and parts of themselves."""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


class Examples(Sequence):
    """Plain dicts, each with its `place`. A subclass reads `files` and fills `_examples`."""

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


def named_files(files: Sequence[str | Path], endings: str) -> list[Path]:
    """The files as paths. Raises ValueError if there are none, with the endings that one could have."""
    if not files:
        raise ValueError(f"no files given; name at least one {endings} file")
    return [Path(file) for file in files]
