"""Examples of being asked and answering, as chat messages. Each record tells by its fields which form it has.

    .jsonl   one record a line, or each over several lines
    .json    a list of them; the forms of conversations.py, several may stand in one file
    .csv .tsv    a table, whose header names the fields

Try: let nobody answer in a record; tests/test_instructions.py shows the sentence that refuses it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llama.datasets.conversations import examples_of
from llama.datasets.examples import Examples, named_files
from llama.datasets.lines import json_records
from llama.datasets.reading import Reading
from llama.datasets.tables import headed_records
from llama.datasets.text_files import ending


class InstructionDataset(Examples):
    """The conversations of instruction files: `dataset[i]` is {"messages": [{"role", "content", …}, …], "place": …},
    with "tools" where a record names some.

    encoding  of the files, "" for UTF-8
    skip_bad  go on without records in which something is wrong; they are counted aloud

    Each ends with what the assistant says. Raises ValueError, naming file and line, for a record that does not.
    """

    def __init__(self, *files: str | Path, encoding: str | None = None, skip_bad: bool | None = None):
        self.files = named_files(files, ".json or .jsonl")
        self._examples = []
        reading = Reading(encoding, skip_bad=skip_bad)
        self._read(reading, lambda path: _conversations(path, reading), "conversations to learn")


def _conversations(path: Path, reading: Reading) -> Iterator[dict[str, Any]]:
    records = headed_records(path, reading) if ending(path) in (".csv", ".tsv") else json_records(path, reading)
    for found in reading.each(lambda place, record: examples_of(record, place, reading), records):
        yield from found
