"""Samples of which a machine can hold a million: ids and marks in arrays, everything else made when it is asked for.

    as Python's lists   36 bytes an id, 8 a mark, and 900 for the messages of a pair
    in arrays            4              1         and 8: where the example is of which they are made again

Try: keep marks as the ids are kept; tests/test_stored_samples.py (test_property_an_id_takes_five_bytes) fails.
"""

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llama.tasks.task import Sample

Example = dict[str, Any]


class StoredSamples(Sequence):
    """What a list of these samples would be, read only.

    pairs    each sample, and the example that it was made of, which is kept as it is
    remade   that example as `Sample.example` has it; of a sample that was shortened, its own is kept instead
    """

    def __init__(self, pairs: Iterable[tuple[Sample, Example]], remade: Callable[[Example], Example]):
        self._ids, self._marks, self._ends = array("I"), bytearray(), array("Q", [0])
        self._examples: list[Example] = []
        self._shortened: dict[int, tuple[int, int, Example]] = {}
        self._remade = remade
        for sample, example in pairs:
            if sample.cut or sample.lost:
                self._shortened[len(self._examples)] = sample.cut, sample.lost, sample.example
            self._ids.extend(sample.ids)
            self._marks.extend(sample.loss_mask)
            self._ends.append(len(self._ids))
            self._examples.append(example)

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self[each] for each in range(*i.indices(len(self)))]
        number = range(len(self))[i]                                # IndexError ends an iteration
        given, own = self._examples[number], slice(self._ends[number], self._ends[number + 1])
        cut, lost, example = self._shortened.get(number) or (0, 0, self._remade(given))
        return Sample(self._ids[own].tolist(), list(map(bool, self._marks[own])), given.get("place", ""), cut, lost,
                      example)
