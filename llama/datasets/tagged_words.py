"""Chinese text as the People's Daily corpus has it: words with their parts of speech, a paragraph a line.

    中国/ns  主席/n  江/nr  泽民/nr  在/p  [中央/n  人民/n  广播/vn  电台/n]nt  发表/v  讲话/n

The corpus is that of Yu Shiwen and others (Peking University, 2002). Persons are nr, places ns, organisations nt; a
compound of several words stands in brackets with a tag of its own, brackets may nest. A family name and a given name
are two words there, and one person here. Some copies number their paragraphs, «19980101-01-003-002/m»: day, page,
article, paragraph.

Try: leave FAMILY_NAMES empty; tests/test_columns.py (test_worked_example_names_of_one_person_are_one_span) fails.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llama.datasets.lines import numbered_lines
from llama.datasets.reading import Reading
from llama.datasets.tags import Span

TYPES = {"nr": "PER", "ns": "LOC", "nt": "ORG"}                     # by the first two letters of a part of speech
FAMILY_NAMES = ("欧阳", "司马", "诸葛", "上官", "司徒", "令狐", "南宫", "皇甫", "尉迟", "慕容", "公孙", "长孙", "宇文",
                "端木", "夏侯", "东方", "独孤", "申屠", "淳于", "轩辕")        # of two characters; others have one
_ITEM = re.compile(r"(?P<open>\[*)(?P<word>\S*?)/(?P<part>[A-Za-z]+)(?P<close>(?:\][A-Za-z]+)*)")
_SIMPLE = re.compile(r"\s*(?:[^\s\[\]/]+/[A-Za-z]+(?:\s+|$))*")
_TAG = re.compile(r"/[A-Za-z]+\s*")
_NUMBER = re.compile(r"(\d{8}-\d{2}-\d{3})-\d{3}/m\b")
_RARE = re.compile(r"[（〈].*[）〉]")                                 # «钟（昆音）»: a character that had no code


@dataclass
class TaggedWords:
    """A sentence: its words with their parts of speech, and the compounds (first word, last + 1, part of speech)."""

    words: list[tuple[str, str]]
    compounds: list[tuple[int, int, str]]


def is_tagged_words(line: str) -> bool:
    """Whether every item of a line is a word with its part of speech: no line of columns is like that."""
    items = line.split()
    return bool(items) and all(_parse_item(item) for item in items)


def without_tags(path: Path, reading: Reading) -> Iterator[tuple[int, str, bool]]:
    """(line, its text, whether a document begins with it) for every line that holds words, of a file of any length."""
    article, fresh = "", True
    for number, line in numbered_lines(path, reading):
        if not line.strip():
            fresh = True
            continue
        numbered = _NUMBER.match(line)
        if numbered:
            fresh = numbered[1] != article
        article = numbered[1] if numbered else ""
        for text in reading.each(_plain, [(line[numbered.end() :] if numbered else line, f"{path}:{number}")]):
            if text:
                yield number, text, fresh
                fresh = False


def _plain(line: str, place: str) -> str:
    """The words alone; lines without brackets and slashes in words, which are nearly all, five times as fast."""
    if _SIMPLE.fullmatch(line):
        return _TAG.sub("", line.strip())
    return "".join(word for word, _ in parse(line, place).words)


def sentences(path: Path, reading: Reading | None = None) -> Iterator[tuple[TaggedWords, str, int]]:
    """(sentence, where its document begins, line) for every line that holds words; "" if no documents are marked."""
    reading = reading or Reading()
    lines = list(numbered_lines(path, reading))
    last = max((i for i, (_, line) in enumerate(lines) if line.strip()), default=-1)
    lines = lines[: last + 1]
    marked = any(not line.strip() or _NUMBER.match(line) for _, line in lines)
    document, article, fresh = "", "", True
    for number, line in lines:
        if not line.strip():
            fresh = True
            continue
        numbered = _NUMBER.match(line)
        if marked and (numbered[1] != article if numbered else fresh):
            document = f"{path}:{number}"
        article, fresh = numbered[1] if numbered else "", False
        item = line[numbered.end() :] if numbered else line, f"{path}:{number}"
        for words in reading.each(parse, [item]):
            if words.words:
                yield words, document, number


def parse(line: str, place: str) -> TaggedWords:
    """One line. Raises ValueError, naming the place, for an item without a part of speech and unmatched brackets."""
    words, compounds, opened = [], [], []
    for item in line.split():
        found = _parse_item(item)
        if not found:
            raise ValueError(f"{place}: '{item:.40}' is no word with its part of speech; write word/tag")
        opened += [len(words)] * len(found["open"])
        words.append((found["word"], found["part"]))
        for part in found["close"].split("]")[1:]:
            if not opened:
                raise ValueError(f"{place}: '{item:.40}' closes a bracket that was not opened")
            compounds.append((opened.pop(), len(words), part))
    if opened:
        raise ValueError(f"{place}: a bracket is opened before '{words[opened[-1]][0]}' and not closed in this line")
    return TaggedWords(words, compounds)


def _parse_item(item: str) -> re.Match | None:
    found = _ITEM.fullmatch(item)
    if found and not found["word"]:                                 # «[/w» and «//w» are words of one sign
        found = re.fullmatch(r"(?P<open>)(?P<word>[\[/]+)/(?P<part>[A-Za-z]+)(?P<close>)", item)
    return found


def character_spans(sentence: TaggedWords, wanted: Literal["entities", "words"]) -> list[Span]:
    """Spans of characters: every word, without a type; or persons, places and organisations, of nested ones the outer.

    Nested entities are commonly flattened so: [北京/ns 大学/n]nt is an organisation, and no place.
    """
    starts = [0]
    for word, _ in sentence.words:
        starts.append(starts[-1] + len(word))
    if wanted == "words":
        return [(begin, end, "") for begin, end in zip(starts, starts[1:], strict=False)]
    entities = [(begin, end, TYPES[part[:2]]) for begin, end, part in (*sentence.compounds, *_single(sentence.words))
                if part[:2] in TYPES]
    taken, outer = [False] * len(sentence.words), []
    for begin, end, kind in sorted(entities, key=lambda entity: (entity[0], -entity[1])):
        if not any(taken[begin:end]):
            taken[begin:end] = [True] * (end - begin)
            outer.append((starts[begin], starts[end], kind))
    return outer


def _single(words: list[tuple[str, str]]) -> Iterator[tuple[int, int, str]]:
    """Words one by one, but family and given name of a person together."""
    i = 0
    while i < len(words):
        pair = words[i : i + 2]
        end = i + 1 + (len(pair) == 2 and all(part == "nr" for _, part in pair) and _is_name(pair[0][0], pair[1][0]))
        yield i, end, words[i][1]
        i = end


def _is_name(family: str, given: str) -> bool:
    return (len(family) == 1 or family in FAMILY_NAMES) and len(_RARE.sub("？", given)) <= 2
