"""Traditional characters to simplified ones and back, by OpenCC's tables: the longest entry that fits, from the left.

    convert = Converter("t2s", folder)                 # of `python -m weights.fetch opencc`
    convert("漢語輸入法")                               # 汉语输入法

One character can have several others (发: 發 or 髮), so words decide: the tables hold words, and of what begins at a
place the longest is taken. A configuration says which tables, and in which order: those of tw2s turn Taiwan's forms
into OpenCC's own, and these into simplified ones.

Try: let `_table` try short words first; tests/test_han.py (test_worked_example_words_decide) fails.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

CONFIGURATIONS = ("t2s", "s2t", "tw2s", "s2tw", "hk2s", "s2hk")
_COMMENT = re.compile(r"^\s*//.*$", re.MULTILINE)

Read = Callable[[str, int], tuple[str, str] | None]                 # (text, place): the word there, what it becomes


class Converter:
    """`converter(text)` is the text in the other characters; what no table knows stays as it is.

    configuration  one of CONFIGURATIONS: t traditional, s simplified, tw Taiwan's and hk Hong Kong's forms
    folder         with OpenCC's `config/NAME.json` and the tables that it names

    Raises ValueError for another configuration, and FileNotFoundError, naming what brings them, without the tables.
    """

    def __init__(self, configuration: str, folder: Path):
        if configuration not in CONFIGURATIONS:
            raise ValueError(f"'{configuration}' is no conversion; there are {', '.join(CONFIGURATIONS)}")
        path = folder / "config" / f"{configuration}.json"
        if not path.is_file():
            raise FileNotFoundError(f"{path}: there is no such file; python -m weights.fetch opencc brings it")
        plan = json.loads(_COMMENT.sub("", path.read_text(encoding="utf-8")))
        self._normal = [_reader(step["dict"], folder) for step in plan.get("normalization", [])]
        self._words = _reader(plan["segmentation"]["dict"], folder) if "segmentation" in plan else None
        self._chain = [_reader(step["dict"], folder) for step in plan["conversion_chain"]]

    def __call__(self, text: str) -> str:
        for read in self._normal:
            text = _convert(text, read)
        converted = []
        for piece in _pieces(text, self._words) if self._words else [text]:
            for read in self._chain:
                piece = _convert(piece, read)
            converted.append(piece)
        return "".join(converted)


def _convert(text: str, read: Read) -> str:
    made, at = [], 0
    while at < len(text):
        old, new = read(text, at) or (text[at], text[at])
        made.append(new)
        at += len(old)
    return "".join(made)


def _pieces(text: str, read: Read) -> Iterator[str]:
    """Words of the tables, and whatever stands between two of them: no match of the chain goes across their borders."""
    begin = at = 0
    while at < len(text):
        if found := read(text, at):
            if begin < at:
                yield text[begin:at]
            yield found[0]
            at = begin = at + len(found[0])
        else:
            at += 1
    if begin < at:
        yield text[begin:at]


def _reader(described: dict[str, Any], folder: Path) -> Read:
    """A table, or a group of them: of «union» the longest word of all counts, else that of the first that has one."""
    if described["type"] == "text":
        return _table(folder / described["file"])
    readers = [_reader(each, folder) for each in described["dicts"]]
    if described["match_policy"] == "union":
        return lambda text, at: max((found for read in readers if (found := read(text, at))),
                                    key=lambda found: len(found[0]), default=None)
    return lambda text, at: next((found for read in readers if (found := read(text, at))), None)


def _table(path: Path) -> Read:
    """«word TAB what it becomes [or, or]» a line."""
    words: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            word, _, others = line.partition("\t")
            words[word] = others.split(" ")[0]
    lengths: dict[str, set[int]] = {}                               # by first character: what need not be tried
    for word in words:
        lengths.setdefault(word[0], set()).add(len(word))
    longest_first = {first: sorted(some, reverse=True) for first, some in lengths.items()}

    def read(text: str, at: int) -> tuple[str, str] | None:
        for length in longest_first.get(text[at], ()):
            word = text[at : at + length]
            if word in words:
                return word, words[word]
        return None

    return read
