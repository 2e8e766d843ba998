"""Traditional characters to simplified ones and back, by OpenCC's tables: the longest entry that fits, from the left.

    convert = Converter("t2s", folder)                 # of `python -m weights.fetch opencc`
    convert("漢語輸入法")                               # 汉语输入法

One character can have several others (发: 發 or 髮), so words decide: the tables hold words, and of what begins at a
place the longest is taken. A configuration says which tables, and in which order: those of tw2s turn Taiwan's forms
into OpenCC's own, and these into simplified ones.

Try: let `_read` put short words first; tests/test_han.py (test_worked_example_words_decide) fails.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CONFIGURATIONS = ("t2s", "s2t", "tw2s", "s2tw", "hk2s", "s2hk")
_COMMENT = re.compile(r"^\s*//.*$", re.MULTILINE)

# by the first character of words: how long they are and where they stand, in the order in which they are tried
Plan = dict[str, list[tuple[int, dict[str, str]]]]


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
        self._normal = [_Table(_plan(step["dict"], folder)) for step in plan.get("normalization", [])]
        words = plan.get("segmentation")
        self._words = _Table(_plan(words["dict"], folder), alone=True) if words else None
        self._chain = [_Table(_plan(step["dict"], folder)) for step in plan["conversion_chain"]]

    def __call__(self, text: str) -> str:
        for table in self._normal:
            text = table.convert(text)
        converted = []
        for piece in self._words.pieces(text) if self._words else [text]:
            for table in self._chain:
                piece = table.convert(piece)
            converted.append(piece)
        return "".join(converted)


class _Table:
    """Tables as one. Few pairs of characters begin a word, so pairs are looked up first; between those words all
    others, of one character, are changed at once.

    alone  words of one character are matches, too
    """

    def __init__(self, plan: Plan, *, alone: bool = False):
        one = {first: [choice for choice in choices if choice[0] == 1] for first, choices in plan.items()}
        self._one = {ord(first): choices[0][1][first] for first, choices in one.items() if choices}
        self._alone = {first: choices for first, choices in one.items() if choices} if alone else {}
        begin = defaultdict(set)                                    # of two characters: which words begin so
        for words in {id(words): words for choices in plan.values() for _, words in choices}.values():
            for word in words:
                if len(word) > 1:
                    begin[word[:2]].add((len(word), id(words)))
        self._pairs = {pair: [(length, words) for length, words in plan[pair[0]] if length == 1 and pair[0] in words
                              or (length, id(words)) in some] for pair, some in begin.items()}
        firsts = sorted({pair[0] for pair in self._pairs} | self._alone.keys())
        self._firsts = re.compile(f"[{re.escape(''.join(firsts))}]") if firsts else re.compile("(?!)")

    def convert(self, text: str) -> str:
        made, at = [], 0
        for begin, end, new in self._matches(text):
            made += text[at:begin].translate(self._one), new
            at = end
        made.append(text[at:].translate(self._one))
        return "".join(made)

    def pieces(self, text: str) -> Iterator[str]:
        """Words of the tables, and whatever stands between two of them: no match of the chain goes across their
        borders.
        """
        at = 0
        for begin, end, _ in self._matches(text):
            if at < begin:
                yield text[at:begin]
            yield text[begin:end]
            at = end
        if at < len(text):
            yield text[at:]

    def _matches(self, text: str) -> Iterator[tuple[int, int, str]]:
        """(begin, end, what it becomes) of words, from the left, none in another."""
        at = 0
        for found in self._firsts.finditer(text):
            begin = found.start()
            if begin < at:
                continue
            for length, words in self._pairs.get(text[begin : begin + 2]) or self._alone.get(text[begin], ()):
                new = words.get(text[begin : begin + length])
                if new is not None:
                    at = begin + length
                    yield begin, at, new
                    break


def _plan(described: dict[str, Any], folder: Path) -> Plan:
    """Of a table, or of a group of them: in a «union» the longest word of all counts, else that of the first that has
    one.
    """
    if described["type"] == "text":
        return _read(folder / described["file"])
    plan: Plan = defaultdict(list)
    for each in described["dicts"]:
        for first, choices in _plan(each, folder).items():
            plan[first] += choices
    if described["match_policy"] == "union":
        for choices in plan.values():
            choices.sort(key=lambda choice: -choice[0])
    return plan


def _read(path: Path) -> Plan:
    """«word TAB what it becomes [or, or]» a line."""
    words: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            word, _, others = line.partition("\t")
            words[word] = others.split(" ")[0]
    lengths: dict[str, set[int]] = defaultdict(set)
    for word in words:
        lengths[word[0]].add(len(word))
    return {first: [(length, words) for length in sorted(some, reverse=True)] for first, some in lengths.items()}
