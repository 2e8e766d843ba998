"""Plain text as documents, to learn by predicting each next token.

    .txt    documents with blank lines between them, or one a line
    .jsonl  one object a line, its field `text` is the document; .json: a list of them

Try: read documents="line" from a file with blank lines; tests/test_language_modeling.py
(test_property_documents_cover_every_line_that_is_not_blank) says where they go.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

from llama.datasets.examples import Examples, named_files
from llama.datasets.lines import json_records, numbered_lines, text_field
from llama.datasets.reading import Reading
from llama.datasets.text_files import ending


class LanguageModelingDataset(Examples):
    """The documents of text files, or of lists of texts: `dataset[i]` is {"text": str, "place": "file:line"}.

    block_size  tokens that a training sample predicts; documents are laid end to end and cut so (tasks/generation.py)
    overlap     tokens at the beginning of a sample that the sample before it has learned, given again as context
    documents   how .txt files separate them: "blank-line" or "line"
    encoding, skip_bad  see reading.py

    Blank documents are left out. Raises ValueError, naming file and line, for files that hold no such text.
    """

    def __init__(self, *files: str | Path | Sequence[str], block_size: int = 512, overlap: int = 0,
                 documents: Literal["blank-line", "line"] = "blank-line", encoding: str | None = None,
                 skip_bad: bool | None = None):
        texts = [text for given in files if not isinstance(given, str | Path) for text in given]
        paths = [given for given in files if isinstance(given, str | Path)]
        self.files = [] if texts and not paths else named_files(paths, ".txt or .jsonl")
        if documents not in _READ_TEXT:
            raise ValueError(f"documents is '{documents}'; .txt files separate them by one of {', '.join(_READ_TEXT)}")
        check_blocks(block_size, overlap)
        self.block_size, self.overlap = block_size, overlap
        self._examples = [{"text": text, "place": f"text {i}"} for i, text in enumerate(texts) if text.strip()]
        if texts and not self._examples:
            raise ValueError(f"none of the {len(texts)} texts given holds more than blanks")
        reading = Reading(encoding, skip_bad=skip_bad)
        self._read(reading, lambda path: ({"text": text, "place": place} for place, text in
                                          _documents(path, documents, reading) if text.strip()), "text, only blanks")


def check_blocks(block_size: int, overlap: int) -> None:
    """Raise ValueError for blocks that cannot be cut."""
    if block_size < 1:
        raise ValueError(f"block_size is {block_size}; a block predicts at least 1 token")
    if not 0 <= overlap < block_size:
        raise ValueError(f"overlap is {overlap}; it must be 0 (none) or more and below the block_size of {block_size}")


def hold_out(documents: Sequence[str], share: float) -> tuple[list[str], list[str]]:
    """(to learn from, to evaluate on): the last documents, or of too few of them the end of the last, from a line or a
    blank on, so that the second part is about `share` of all.

    Raises ValueError where nothing is left for one of the two.
    """
    first = len(documents) - round(len(documents) * share)
    learned, held = list(documents[:first]), list(documents[first:])
    if share and not held:
        last = learned.pop()
        size = max(1, round(share * sum(map(len, documents))))
        near = last[: max(0, len(last) - size)]
        at = next((near.rindex(sign) + 1 for sign in ("\n", " ") if sign in near[len(near) // 2 :]), len(near))
        learned += [last[:at]] if last[:at].strip() else []
        held = [last[at:]]
    if not learned or share and not "".join(held).strip():
        raise ValueError(f"--hold-out {share}: of {len(documents)} documents it leaves nothing to "
                         f"{'evaluate on' if learned else 'learn from'}; give more text, or --eval-data")
    return learned, held


def _documents(path: Path, documents: str, reading: Reading) -> Iterator[tuple[str, str]]:
    kind = ending(path)
    if kind in (".jsonl", ".json"):
        return reading.each(lambda place, record: (place, text_field(record, "text", place)),
                            json_records(path, reading))
    if kind == ".txt":
        return _READ_TEXT[documents](path, reading)
    raise ValueError(f"{path}: text is read from .txt and .jsonl files; give it the ending of what it holds")


def _by_blank_lines(path: Path, reading: Reading) -> Iterator[tuple[str, str]]:
    begin, lines = 1, []
    for number, line in numbered_lines(path, reading):
        if line.strip():
            begin = begin if lines else number
            lines.append(line)
        elif lines:
            yield f"{path}:{begin}", "\n".join(lines)
            lines = []
    yield f"{path}:{begin}", "\n".join(lines)


def _by_lines(path: Path, reading: Reading) -> Iterator[tuple[str, str]]:
    return ((f"{path}:{number}", line) for number, line in numbered_lines(path, reading))


_READ_TEXT = {"blank-line": _by_blank_lines, "line": _by_lines}
