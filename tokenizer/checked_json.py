"""From the JSON of a stranger's file to values that can be trusted: types and ranges, stated once, in a table by field.

    GENERATION = {"eos_token_id": either(whole(), listed(whole())), "temperature": number(least=0)}
    values = read_object(content, "generation_config.json")         # bytes → dict, or a sentence with the line
    check_fields(values, GENERATION, "generation_config.json")      # or a sentence: field, value, what it must be

What a table does not name is left as it is, for files hold more than one program reads; null says the same as nothing.

Try: let `whole` take True for 1, as Python does; tests/test_checked_json.py
(test_refusal_what_is_of_another_type_or_out_of_range) fails.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_HALF_CHARACTER = re.compile(rb"\\u[dD][89a-fA-F]")
LARGEST = 2**31 - 1                     # of sizes and ids: above it, no file could hold what they count
LARGEST_FLOAT = 3.4e38                  # of float32, in which numbers are computed with

Misfit = tuple[str, Any, str]           # where inside a value, what stands there, what it must be


@dataclass(frozen=True)
class Field:
    """What a value may be: in words, as a test, and for values that hold others what first misfits inside.

    plain  whether a value fits and holds no others: asked first of long lists, where it saves time
    """

    words: str
    fits: Callable[[Any], bool]
    inside: Callable[[Any], Misfit | None] | None = None
    plain: Callable[[Any], bool] | None = None

    def __post_init__(self) -> None:
        if self.plain is None:
            object.__setattr__(self, "plain", (lambda value: False) if self.inside else self.fits)

    def misfit(self, value: Any) -> Misfit | None:
        if not self.fits(value):
            return "", value, self.words
        return self.inside(value) if self.inside else None


Fields = Mapping[str, Field]

TEXT = Field("a text", lambda value: isinstance(value, str))
FLAG = Field("true or false", lambda value: isinstance(value, bool))
NULL = Field("null", lambda value: value is None)
ANYTHING = Field("anything", lambda value: True)


def whole(least: int = 0, most: int = LARGEST) -> Field:
    return Field(f"a whole number from {least:,} to {most:,}",
                 lambda value: type(value) is int and least <= value <= most)


def number(least: float = -LARGEST_FLOAT, *, above: float = -math.inf) -> Field:
    limit = f" above {above:g}" if above > -math.inf else f" of at least {least:g}" if least > -LARGEST_FLOAT else ""
    return Field(f"a number{limit}",
                 lambda value: type(value) in (int, float) and above < value and least <= value <= LARGEST_FLOAT)


def one_of(*values: Any) -> Field:
    return Field(f"one of {', '.join(map(repr, values))}",
                 lambda value: any(type(value) is type(each) and value == each for each in values))


def either(*fields: Field) -> Field:
    """What the first fits of these; a value that fits one from outside alone is told what misfits inside."""
    def inside(value: Any) -> Misfit | None:
        found = [field.misfit(value) for field in fields if field.fits(value)]
        return None if None in found else found[0]

    return Field(" or ".join(field.words for field in fields), lambda value: any(f.fits(value) for f in fields), inside,
                 plain=lambda value: any(f.plain(value) for f in fields))


def listed(each: Field) -> Field:
    def inside(values: list) -> Misfit | None:
        if all(map(each.plain, values)):                            # the usual case, of 300,000 merges: at once
            return None
        return next((_below(f"[{i}]", found) for i, value in enumerate(values) if (found := each.misfit(value))), None)

    return Field(f"a list, each {each.words}", lambda value: isinstance(value, list), inside)


def mapped(each: Field, keys: Callable[[str], bool] = lambda key: True, named: str = "a text") -> Field:
    """An object with any keys, or with those alone that `keys` lets through; `named` says what one is."""
    def inside(values: dict) -> Misfit | None:
        for key in values:
            if not isinstance(key, str) or not keys(key):
                return " key", key, named
        if all(map(each.plain, values.values())):
            return None
        return next((_below(f"[{key!r:.60}]", found) for key, value in values.items() if (found := each.misfit(value))),
                    None)

    return Field(f"an object, each value {each.words}", lambda value: isinstance(value, dict), inside)


def record(required: Fields, optional: Fields | None = None) -> Field:
    """An object with these fields; those that it may leave out may also be null."""
    def inside(values: dict) -> Misfit | None:
        if missing := [name for name in required if name not in values]:
            return "", values, f"an object with {', '.join(missing)}"
        found = [_below(f".{name}", found) for name, field in required.items() if (found := field.misfit(values[name]))]
        return found[0] if found else _first_misfit(values, optional or {})

    return Field("an object", lambda value: isinstance(value, dict), inside)


def check_fields(values: Mapping[str, Any], fields: Fields, place: str) -> None:
    """Raise ValueError, naming place, field and value, for the first value that is not what its field may be."""
    if found := _first_misfit(values, fields):
        path, value, words = found
        raise ValueError(f"{place}: {path.strip('. ')} is {value!r:.80}; it must be {words}")


def check_value(value: Any, field: Field, place: str) -> Any:
    """The value of a whole file. Raises ValueError where it is not what it may be."""
    if found := field.misfit(value):
        path, value, words = found
        raise ValueError(f"{place}: {path.strip('. ') or 'the content'} is {value!r:.80}; it must be {words}")
    return value


def _first_misfit(values: Mapping[str, Any], fields: Fields) -> Misfit | None:
    return next((_below(f".{name}", found) for name, field in fields.items()
                 if values.get(name) is not None and (found := field.misfit(values[name]))), None)


def _below(step: str, found: Misfit) -> Misfit:
    path, value, words = found
    return step + path, value, words


# ---- bytes to values -------------------------------------------------------------------------------------------------


def read_value(content: bytes | str, place: str) -> Any:
    """What a JSON text holds. A byte order mark before it is left out.

    Raises ValueError, naming place and line, for what is no JSON in UTF-8, is nested too deeply, holds a number of
    thousands of digits, or half a character, which could be neither printed nor written again.
    """
    try:
        if isinstance(content, bytes):
            content = content.removeprefix(b"\xef\xbb\xbf").decode()
        value = json.loads(content)
        if _HALF_CHARACTER.search(content.encode()):                # seldom there, and then mostly both halves
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}, line {error.lineno}: not JSON ({error.msg})") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: not JSON in UTF-8 (byte {error.start + 1:,})") from None
    except UnicodeEncodeError as error:
        raise ValueError(f"{place}: a text in it holds half a character, U+{ord(error.object[error.start]):04X}"
                         ) from None
    except (ValueError, RecursionError):
        raise ValueError(f"{place}: not JSON that can be read: nested too deeply, or a number of too many digits"
                         ) from None


def read_object(content: bytes | str, place: str) -> dict[str, Any]:
    """The same of a text that must hold an object."""
    value = read_value(content, place)
    if not isinstance(value, dict):
        raise ValueError(f"{place}: holds a JSON {type(value).__name__}, but must hold an object: {{…}}")
    return value
