"""What is done to a text before it is learned from, a function each, in an order that counts.

A text is first put right, then judged, and compared with others last: copies of a page that differ in their forms of
characters, digits and blanks are the same by then.

Try: let `Cleaner` compare first; tests/test_clean.py (test_property_copies_in_other_characters_are_duplicates) fails.
"""

import functools
import hashlib
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

import numpy as np

from llama.clean.han import CONFIGURATIONS
from llama.clean.near_duplicates import NearDuplicates
from llama.datasets.split import letters_and_digits
from llama.runtime.ranges import MANY, Range, check_ranges

SHARE = Range(0.0, 1.0)
SHOWN = 3                                                           # examples of what was dropped
_FULL_WIDTH = re.compile("[０-９Ａ-Ｚａ-ｚ]+")
_HAN = re.compile("[〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_LATIN_1, _NOT_ASCII = re.compile("[\xa1-\xff]"), re.compile("[^\x00-\x7f]")
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# controls, soft hyphens, blanks without a width, turns of direction, surrogates, private use, marks of order and U+FFFD
_UNSEEN = re.compile("[\x00-\x08\x0e-\x1f\x7f-\x9f\xad\u200b\u2060\u202a-\u202e\u2066-\u2069\ud800-\uf8ff\ufeff\ufffd"
                     "\U000f0000-\U0010ffff]")


@dataclass(frozen=True)
class CleanConfig:
    """What becomes of texts."""

    normal_form: Annotated[Literal["nfc", "nfkc", "none"], "Unicode's: nfc composes accents; nfkc also turns ① into 1 "
                           "and ： into :, and cannot be undone"] = "nfc"
    half_width: Annotated[bool, "full-width digits and letters become plain ones, １９９８ 1998"] = False
    characters: Annotated[Literal["", "t2s", "s2t", "tw2s", "s2tw", "hk2s", "s2hk"],
                          "convert characters: t traditional, s simplified, tw Taiwan's, hk Hong Kong's"] = ""
    repair: Annotated[bool, "put right what was read in a wrong encoding; lines that are not UTF-8 are read as "
                      "GB18030, or without the bytes that are wrong"] = False
    boilerplate: Annotated[int, "leave out lines that stand in so many texts before; 0 for none", Range(0, MANY)] = 0
    min_characters: Annotated[int, "drop shorter texts", Range(1, MANY)] = 1
    min_han: Annotated[float, "drop texts in which fewer of the letters are Chinese characters", SHARE] = 0.0
    max_han: Annotated[float, "drop texts in which more of them are", SHARE] = 1.0
    max_symbols: Annotated[float, "drop texts of which more is neither letter, digit nor blank", SHARE] = 1.0
    keep_duplicates: Annotated[bool, "keep texts whose letters and digits are those of one before"] = False
    near_duplicates: Annotated[float, "drop texts that are alike by so much or more to one before, such as 0.8; 0 for "
                               "none", SHARE] = 0.0

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass
class Step:
    """What a step did: how many texts it changed or dropped, and the first few of them."""

    changed: int = 0
    dropped: int = 0
    examples: list[str] = field(default_factory=list)

    def change(self, text: str, place: str) -> None:
        self.changed += 1
        self._show(text, place)

    def drop(self, text: str, place: str) -> None:
        self.dropped += 1
        self._show(text, place)

    def _show(self, text: str, place: str) -> None:
        if len(self.examples) < SHOWN:
            self.examples.append(f"{place} «{' '.join(text[:20].split())}»" if text else place)


class Cleaner:
    """`cleaner(text, place)` is the text to keep, or None; `steps` says what was done, `read` and `kept` how much.

    convert  of `characters`, a llama.clean.han.Converter
    """

    def __init__(self, config: CleanConfig, convert: Callable[[str], str] | None = None):
        assert (config.characters in CONFIGURATIONS) == (convert is not None), config.characters
        changes: dict[str, Callable[[str], str] | None] = {
            "wrong encoding put right": mojibake_repaired if config.repair else None,
            f"normal form {config.normal_form}": None if config.normal_form == "none" else
            lambda text: unicodedata.normalize(config.normal_form.upper(), text),
            "half width": half_width if config.half_width else None,
            f"characters {config.characters}": convert,
            "control characters and blanks": tidy,
            "boilerplate": Boilerplate(config.boilerplate) if config.boilerplate else None}
        near = NearDuplicates(config.near_duplicates) if config.near_duplicates else None
        reasons: dict[str, Callable[[str], bool] | None] = {
            "too short": lambda text: len(text) < config.min_characters,
            "too few Chinese characters": config.min_han > 0 and (lambda text: han_share(text) < config.min_han),
            "too many Chinese characters": config.max_han < 1 and (lambda text: han_share(text) > config.max_han),
            "too many symbols": config.max_symbols < 1 and (lambda text: symbol_share(text) > config.max_symbols),
            "duplicate": None if config.keep_duplicates else Duplicates(),
            "near-duplicate": near.seen if near else None}
        self._changes = {name: step for name, step in changes.items() if step}
        self._reasons = {name: step for name, step in reasons.items() if step}
        self.steps = {name: Step() for name in (*self._changes, *self._reasons)}
        self.read, self.kept = Counter(texts=0, characters=0), Counter(texts=0, characters=0)
        self._characters = Characters()

    def __call__(self, text: str, place: str) -> str | None:
        _count(self.read, text)
        for name, change in self._changes.items():
            changed = change(text)
            if changed != text:
                self.steps[name].change(changed, place)
            text = changed
        for name, holds in self._reasons.items():
            if holds(text):
                self.steps[name].drop(text, place)
                return None
        _count(self.kept, text)
        self._characters.count(text)
        return text

    @property
    def scripts(self) -> Counter[str]:
        """Of all texts that were kept."""
        return scripts(self._characters.counts())


def _count(sums: Counter[str], text: str) -> None:
    sums["texts"] += 1
    sums["characters"] += len(text)


# ---- changes ---------------------------------------------------------------------------------------------------------


def half_width(text: str) -> str:
    """Digits and letters of double width as plain ones; punctuation stays as Chinese text has it."""
    return _FULL_WIDTH.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)


def tidy(text: str) -> str:
    """Without what is not seen (joiners and variants stay: emoji need them); lines trimmed, without blank ones between.

    Whatever ends a line or a page is a line feed. What this drops of private use has no meaning outside one font.
    """
    text = _UNSEEN.sub("", _LINE_ENDS.sub("\n", text))
    return "\n".join(filter(None, map(str.strip, text.split("\n"))))


def mojibake_repaired(text: str) -> str:
    """UTF-8 or GB18030 that somebody read as Latin-1 (ä¸­å›½, ÖÐ¹ú) as it was meant; any other text as it is.

    Such a text is full of Latin-1's letters; a row of dashes, which could be characters too, has none.
    """
    if text.isascii() or _HAN.search(text) or 3 * len(_LATIN_1.findall(text)) < len(_NOT_ASCII.findall(text)):
        return text
    for wrong in ("cp1252", "latin-1"):
        for right in ("utf-8", "gb18030"):
            try:
                meant = text.encode(wrong).decode(right)
            except UnicodeError:
                continue
            if han_share(meant) > 0.5 and len(_HAN.findall(meant)) > 1 and "\ufffd" not in meant:
                return meant
    return text


class Boilerplate:
    """Leaves out lines that stood in `times` texts before. A number and a count of each line that differs are kept,
    some 150 bytes.
    """

    def __init__(self, times: int):
        self.times, self._texts = times, Counter()

    def __call__(self, text: str) -> str:
        lines = [(line, _sign(line)) for line in text.split("\n")]
        kept = "\n".join(line for line, sign in lines if self._texts[sign] < self.times)
        self._texts.update({sign for _, sign in lines})
        return kept


# ---- reasons to drop a text ------------------------------------------------------------------------------------------


class Duplicates:
    """Whether a text's letters and digits, in any case and width, stood in one before. A number of each text is kept,
    some 80 bytes.
    """

    def __init__(self):
        self._seen: set[int] = set()

    def __call__(self, text: str) -> bool:
        before = len(self._seen)
        self._seen.add(_sign(letters_and_digits(text)))
        return len(self._seen) == before


def _sign(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")


def held_out(text: str, share: float) -> bool:
    """Whether a text is among the `share` that is held out: drawn by its letters and digits, so that texts which differ
    in nothing else are on one side, in whatever order they come, today and tomorrow.
    """
    return _sign(f"held out {letters_and_digits(text)}") < share * 2**64


# ---- which characters a text is made of ------------------------------------------------------------------------------


class Characters:
    """How often each character stands in all texts together; some at a time, several times as fast as a Counter."""

    AT_ONCE = 1 << 18

    def __init__(self):
        self._counts = np.zeros(sys.maxunicode + 1, np.int64)
        self._waiting: list[str] = []
        self._length = 0

    def count(self, text: str) -> None:
        self._waiting.append(text)
        self._length += len(text)
        if self._length >= self.AT_ONCE:
            self._add()

    def counts(self) -> dict[str, int]:
        self._add()
        return {chr(code): int(self._counts[code]) for code in self._counts.nonzero()[0]}

    def _add(self) -> None:
        codes = np.frombuffer("".join(self._waiting).encode("utf-32-le", "surrogatepass"), "<u4")
        self._counts += np.bincount(codes, minlength=len(self._counts))
        self._waiting.clear()
        self._length = 0


def scripts(counts: Mapping[str, int]) -> Counter[str]:
    """How many of the characters counted are Chinese, Latin or other letters, digits, blanks, or other signs."""
    kinds: Counter[str] = Counter()
    for sign, times in counts.items():
        kinds[_kind(sign)] += times
    return kinds


@functools.cache
def _kind(sign: str) -> str:
    if is_han(sign):
        return "Chinese"
    if sign.isspace():
        return "blanks"
    if sign.isnumeric():
        return "digits"
    if unicodedata.category(sign)[0] not in "LM":                   # an accent belongs to its letter
        return "other signs"
    latin = unicodedata.name(sign, "").startswith(("LATIN", "FULLWIDTH LATIN"))
    return "Latin" if latin else "other letters"


def is_han(sign: str) -> bool:
    """Whether a character is one of Unicode's CJK ideographs."""
    return _HAN.match(sign) is not None


def han_share(text: str) -> float:
    """The part of a text's letters that are Chinese characters; 0 where there is no letter."""
    kinds = scripts(Counter(text))
    letters = kinds["Chinese"] + kinds["Latin"] + kinds["other letters"]
    return kinds["Chinese"] / letters if letters else 0.0


def symbol_share(text: str) -> float:
    """The part of a text that is neither letter, digit nor blank."""
    return scripts(Counter(text))["other signs"] / max(len(text), 1)
