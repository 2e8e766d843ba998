"""What is done to a text before it is learned from, a function each, in an order that counts.

A text is first put right, then judged, and compared with others last: copies of a page that differ in their forms of
characters, digits and blanks are the same by then.

Try: let `Cleaner` compare first; tests/test_clean.py (test_property_copies_in_other_characters_are_duplicates) fails.
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Literal

from llama.clean.han import CONFIGURATIONS
from llama.clean.near_duplicates import NearDuplicates
from llama.runtime.ranges import MANY, Range, check_ranges

SHARE = Range(0.0, 1.0)
SHOWN = 3                                                           # examples of what was dropped
_HALF = {code: code - 0xFEE0 for first, last in (("０", "９"), ("Ａ", "Ｚ"), ("ａ", "ｚ"))
         for code in range(ord(first), ord(last) + 1)}


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
    """What a step did: how many texts it changed or dropped, and the first of the latter."""

    changed: int = 0
    dropped: int = 0
    examples: list[str] = field(default_factory=list)


class Cleaner:
    """`cleaner(text, place)` is the text to keep, or None; `steps` says what was done, `read` and `kept` how much.

    convert  of `characters`, a llama.clean.han.Converter
    """

    def __init__(self, config: CleanConfig, convert: Callable[[str], str] | None = None):
        assert (config.characters in CONFIGURATIONS) == (convert is not None), config.characters
        changes: dict[str, Callable[[str], str] | None] = {
            "repaired encoding": mojibake_repaired if config.repair else None,
            f"normal form {config.normal_form}": None if config.normal_form == "none" else
            lambda text: unicodedata.normalize(config.normal_form.upper(), text),
            "half width": half_width if config.half_width else None,
            f"characters {config.characters}": convert,
            "control characters and blanks": tidy,
            "boilerplate": Boilerplate(config.boilerplate) if config.boilerplate else None}
        near = NearDuplicates(config.near_duplicates) if config.near_duplicates else None
        reasons: dict[str, Callable[[str], bool] | None] = {
            "too short": lambda text: len(text) < config.min_characters,
            "too few Chinese characters": lambda text: han_share(text) < config.min_han,
            "too many Chinese characters": lambda text: han_share(text) > config.max_han,
            "too many symbols": lambda text: symbol_share(text) > config.max_symbols,
            "duplicate": None if config.keep_duplicates else Duplicates(),
            "near-duplicate": near.seen if near else None}
        self._changes = {name: step for name, step in changes.items() if step}
        self._reasons = {name: step for name, step in reasons.items() if step}
        self.steps = {name: Step() for name in (*self._changes, *self._reasons)}
        self.read, self.kept, self.scripts = Counter(), Counter(), Counter()

    def __call__(self, text: str, place: str) -> str | None:
        self.read.update(texts=1, characters=len(text))
        for name, change in self._changes.items():
            changed = change(text)
            self.steps[name].changed += changed != text
            text = changed
        for name, holds in self._reasons.items():
            if holds(text):
                step = self.steps[name]
                step.dropped += 1
                if len(step.examples) < SHOWN:
                    step.examples.append(f"{place} «{text[:20]}»")
                return None
        self.kept.update(texts=1, characters=len(text))
        self.scripts.update(scripts(text))
        return text


# ---- changes ---------------------------------------------------------------------------------------------------------


def half_width(text: str) -> str:
    """Digits and letters of double width as plain ones; punctuation stays as Chinese text has it."""
    return text.translate(_HALF)


def tidy(text: str) -> str:
    """Without control and formatting characters, surrogates and U+FFFD; lines trimmed, without blank ones between."""
    kept = "".join(sign for sign in text if sign in "\n\t" or
                   sign != "\ufffd" and unicodedata.category(sign) not in ("Cc", "Cs", "Co") and sign != "\ufeff")
    return "\n".join(line for line in (" ".join(line.split(" ")).strip() for line in kept.split("\n")) if line)


def mojibake_repaired(text: str) -> str:
    """UTF-8 or GB18030 that somebody read as Latin-1 (ä¸­å›½, ÖÐ¹ú) as it was meant; any other text as it is."""
    if han_share(text) > 0 or all(sign < "\x80" for sign in text):
        return text
    for wrong in ("cp1252", "latin-1"):
        for right in ("utf-8", "gb18030"):
            try:
                meant = text.encode(wrong).decode(right)
            except UnicodeError:
                continue
            if han_share(meant) > 0.5 and "\ufffd" not in meant:
                return meant
    return text


class Boilerplate:
    """Leaves out lines that stood in `times` texts before. Of each line 8 bytes and a count are kept."""

    def __init__(self, times: int):
        self.times, self._texts = times, Counter()

    def __call__(self, text: str) -> str:
        lines = text.split("\n")
        kept = "\n".join(line for line in lines if self._texts[_sign(line)] < self.times)
        self._texts.update({_sign(line) for line in lines})
        return kept


# ---- reasons to drop a text ------------------------------------------------------------------------------------------


class Duplicates:
    """Whether a text's letters and digits, in any case and width, stood in one before; 8 bytes of each are kept."""

    def __init__(self):
        self._seen: set[bytes] = set()

    def __call__(self, text: str) -> bool:
        sign = _sign("".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold())) or text)
        known = sign in self._seen
        self._seen.add(sign)
        return known


def _sign(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def scripts(text: str) -> Counter[str]:
    """How many characters are Chinese, Latin or other letters, digits, blanks, or other signs."""
    counts: Counter[str] = Counter()
    for sign, times in Counter(text).items():
        kind = "Chinese" if is_han(sign) else "blanks" if sign.isspace() else "digits" if sign.isdigit() else \
            "other signs" if not sign.isalpha() else "Latin" if unicodedata.name(sign, "").startswith(
                ("LATIN", "FULLWIDTH LATIN")) else "other letters"
        counts[kind] += times
    return counts


def is_han(sign: str) -> bool:
    """Whether a character is one of Unicode's CJK ideographs."""
    code = ord(sign)
    return 0x4E00 <= code <= 0x9FFF or 0x3400 <= code <= 0x4DBF or 0x20000 <= code <= 0x3FFFF or \
        0xF900 <= code <= 0xFAFF or sign == "〇"


def han_share(text: str) -> float:
    """The part of a text's letters that are Chinese characters; 0 where there is no letter."""
    letters = [sign for sign in text if sign.isalpha() or sign == "〇"]
    return sum(map(is_han, letters)) / len(letters) if letters else 0.0


def symbol_share(text: str) -> float:
    return sum(not (sign.isalnum() or sign.isspace()) for sign in text) / max(len(text), 1)
