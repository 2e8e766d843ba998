"""Sentences whose tokens carry tags: entities of a text, or its words.

    columns     a token and its tag a line, others between them, tabs or blanks as separators; a blank line ends a
                sentence                                                                            .conll .bio .bmes …
    word/tag    a sentence a line, «江/nr 泽民/nr 在/p 北京/ns»; a blank line ends a document        tagged_words.py

Which of the two a file holds is told by its first line, whatever its name. In columns, -DOCSTART- begins a document.
Tags come out in the scheme asked for, whichever of those of tags.py the file is written in.

Try: split lines with str.split(); tests/test_columns.py (test_worked_example_only_blanks_and_tabs_separate) fails.
"""

import itertools
import logging
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from llama.datasets.examples import Examples, named_files
from llama.datasets.lines import is_json, numbered_lines
from llama.datasets.reading import Reading
from llama.datasets.tagged_words import character_spans, is_tagged_words, sentences
from llama.datasets.tags import LETTERS, SCHEMES, is_legal, spans_of, tags_of

log = logging.getLogger(__name__)

DOCUMENT = "-DOCSTART-"
_BLANKS = re.compile(r" +")                                         # U+3000 and its like may be tokens

Sentence = dict[str, Any]


class ColumnDataset(Examples):
    """The sentences of tagged files: `dataset[i]` is {"tokens", "tags", "text", "starts", "place"}.

    text and starts  the sentence as one would write it: token i begins at its character starts[i]
    document         where the document begins, in files that mark documents: what belongs together in a split

    spans      what is read from word/tag files: "entities" (PER, LOC, ORG), or "words" (without a type). Their tokens
               are characters
    scheme     of the tags that come out: "BIO" or "BMES" (with O)
    separator  of columns: None for tabs, or in a line without any for blanks, the token first and the tag last; given,
               the tag is behind the last one in a line, and the token all that is before
    encoding, skip_bad  see reading.py; of a sentence in which something is wrong, nothing is kept

    Tags that break their scheme's rules are read as conlleval does, and counted aloud. Raises ValueError, naming file
    and line, for what is no token and tag.
    """

    def __init__(self, *files: str | Path, spans: Literal["entities", "words"] = "entities", scheme: str = "BIO",
                 separator: str | None = None, encoding: str | None = None, skip_bad: bool | None = None):
        self.files = named_files(files, ".conll, .bio, .bmes or other")
        if scheme not in SCHEMES or spans not in ("entities", "words"):
            raise ValueError(f"scheme is '{scheme}', one of {', '.join(SCHEMES)}; spans is '{spans}', one of entities, "
                             "words")
        if separator == "":
            raise ValueError("the separator is empty; give at least one sign, or None for blanks and tabs")
        self.scheme = scheme
        self._examples = []
        reading = Reading(encoding, skip_bad=skip_bad)

        def sentences_of(path: Path) -> Iterator[Sentence]:
            lines = numbered_lines(path, Reading(encoding, skip_bad=True))
            first = next((line for _, line in lines if line.strip()), "")
            if is_json(first):
                raise ValueError(f"{path}: this is JSON; tagged words are read from lines of a token and its tag, a "
                                 "blank line behind each sentence: write them so")
            if is_tagged_words(first):
                return _tagged_words(path, spans, scheme, reading)
            return _columns(path, separator, scheme, reading)

        self._read(reading, sentences_of, "tokens")

    @property
    def types(self) -> list[str]:
        """Every type of span that occurs, once, in the order of their names."""
        return sorted({kind for example in self._examples for _, _, kind in spans_of(example["tags"])})


def laid_out(tokens: Sequence[str]) -> tuple[str, list[int]]:
    """The text of tokens, and where in it each begins: with blanks between them, but none beside a wide character.

    Wide are those of Chinese, Japanese and Korean (East Asian Width W or F). Files of columns do not say whether there
    was a blank; in English before a full stop there is one too many.
    """
    text, starts = "", []
    for token in tokens:
        if text and not _is_wide(text[-1]) and not _is_wide(token[0]):
            text += " "
        starts.append(len(text))
        text += token
    return text, starts


def _is_wide(character: str) -> bool:
    return unicodedata.east_asian_width(character) in "WF"


def _columns(path: Path, separator: str | None, scheme: str, reading: Reading) -> Iterator[Sentence]:
    document, broken, count, width = {}, 0, 0, 0

    def read(block: list[tuple[int, str]]) -> tuple[int, list[str], list[str]]:
        nonlocal width
        if block[0][1].startswith(DOCUMENT):
            return block[0][0], [DOCUMENT], []
        tokens, tags = [], []
        for number, line in block:
            cells = _cells(line, separator)
            tags.append(_checked(path, number, line, cells))
            tokens.append(cells[0])
            if separator is None and "\t" not in line:
                width = width or len(cells)
                if len(cells) != width:
                    raise ValueError(f"{path}:{number}: '{line:.40}' has {len(cells)} columns, and {width} are "
                                     "expected; if a token holds a blank, let tabs stand between the columns")
        return block[0][0], tokens, tags

    for begin, tokens, tags in reading.each(read, ((block,) for block in _blocks(path, reading))):
        if tokens == [DOCUMENT]:
            document = {"document": f"{path}:{begin}"}
            continue
        text, starts = laid_out(tokens)
        spans = spans_of(tags)
        broken, count = broken + (not _keeps_rules(tags)), count + 1
        yield {"tokens": tokens, "tags": tags_of(spans, len(tags), scheme), "text": text, "starts": starts,
               **document, "place": f"{path}:{begin}"}
    if broken:
        log.warning("%s: the tags of %d of %d sentences break the rules of their scheme, and were read as conlleval "
                    "reads them", path, broken, count)


def _blocks(path: Path, reading: Reading) -> Iterator[list[tuple[int, str]]]:
    """Lines without a blank one between them, numbered. One that begins a document stands alone."""
    block = []
    for number, line in itertools.chain(numbered_lines(path, reading), [(0, "")]):
        begins = line.startswith(DOCUMENT)
        if block and (begins or not line.strip(" \t")):
            yield block
            block = []
        if begins:
            yield [(number, line)]
        elif line.strip(" \t"):
            block.append((number, line))


def _cells(line: str, separator: str | None) -> list[str]:
    """The token first, the tag last. Where tabs separate, blanks belong to the token."""
    if separator is not None:
        return line.rsplit(separator, 1)
    if "\t" in line:
        return [cell.strip(" ") for cell in line.rstrip(" \t").split("\t")]
    return _BLANKS.split(line.strip(" "))


def _checked(path: Path, number: int, line: str, cells: list[str]) -> str:
    place = f"{path}:{number}"
    if len(cells) < 2 or not cells[0]:
        raise ValueError(f"{place}: '{line:.40}' is no token with a tag; write both, or say what separates them")
    tag = cells[-1].strip()
    try:
        spans_of([tag])
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None
    return tag


def _keeps_rules(tags: list[str]) -> bool:
    if {tag[0] for tag in tags} <= set("BIO"):
        return is_legal(tags, "BIO")
    return is_legal([LETTERS[tag[0]] + tag[1:] for tag in tags], "BMES")


def _tagged_words(path: Path, wanted: str, scheme: str, reading: Reading) -> Iterator[Sentence]:
    for words, document, number in sentences(path, reading):
        text = "".join(word for word, _ in words.words)
        found = character_spans(words, wanted)
        yield {"tokens": list(text), "tags": tags_of(found, len(text), scheme), "text": text,
               "starts": list(range(len(text))), **({"document": document} if document else {}),
               "place": f"{path}:{number}"}
