"""Text that knows who wrote each of its characters: the template, or those whose conversation is laid out.

    {{ '<|im_start|>' + message.role + '\n' + message.content }}
       ^ the template                         ^ said: text for ever, even where it spells <|im_end|>

A special token counts only where the template wrote every character of it (chat_template.py). So what is known is kept
through all that templates do to texts: +, ~, slices, strip, split, replace, join, upper, … What this class does not
know gives a plain str, and a plain str is said. Whatever is forgotten thereby errs on the one side that is safe.

Comparisons, searches and lengths are those of str: to a template this is the text itself, and nothing else.

Try: let `joined` count a plain str as the template's; tests/test_chat_template.py
(test_property_words_stay_words_through_all_that_templates_do) fails.
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from typing import Any, SupportsIndex

SAID, WRITTEN, LEARNED = 0, 1, 2    # by whom: a person or a file, the template; and whether within {% generation %}
MESSAGE = 4                         # times its number, from 1: whose words these are; 0 where nobody knows

_DIRECTIVE = re.compile(r"(%(?:\(\w*\))?[^a-zA-Z%]*[a-zA-Z%])")


class Text(str):
    """A str with `runs`, ((end, origin), …): all characters up to `end` that no earlier run holds are of `origin`."""

    runs: tuple[tuple[int, int], ...]

    def __new__(cls, text: str = "", origin: int = SAID) -> "Text":
        new = super().__new__(cls, text)
        new.runs = ((len(new), origin),) if len(new) else ()
        return new

    def __str__(self) -> str:
        return self                                                 # where str would forget the runs

    def plain(self) -> str:
        """The text alone."""
        return str.__str__(self)

    def __getitem__(self, key: SupportsIndex | slice) -> str:
        if isinstance(key, slice):
            start, stop, step = key.indices(len(self))
            return self._cut(start, stop) if step == 1 else Text(str.__getitem__(self, key))
        at = range(len(self))[key]
        return self._cut(at, at + 1)

    def _cut(self, start: int, stop: int) -> "Text":
        text = Text(str.__getitem__(self, slice(start, max(start, stop))))
        runs, at = [], bisect_right(self.runs, start, key=lambda run: run[0])
        while len(text) and (not runs or runs[-1][0] < len(text)):
            end, origin = self.runs[at]
            runs.append((min(end - start, len(text)), origin))
            at += 1
        text.runs = tuple(runs)
        return text

    def with_origin(self, change: Callable[[int], int]) -> "Text":
        """The same text, its origins changed."""
        text = Text(self.plain())
        text.runs = tuple((end, change(origin)) for end, origin in self.runs)
        return text

    def stretches(self) -> Iterator[tuple[int, int, int]]:
        """(begin, end, origin) of each run."""
        begin = 0
        for end, origin in self.runs:
            yield begin, end, origin
            begin = end

    # What templates do to texts

    def __add__(self, other: str) -> "Text":
        return joined((self, other)) if isinstance(other, str) else NotImplemented

    def __radd__(self, other: str) -> "Text":
        return joined((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, times: int) -> "Text":
        if not isinstance(times, int):
            return NotImplemented
        if len(self.runs) == 1:
            return Text(str.__mul__(self, times), self.runs[0][1])
        return joined([self] * times) if times < 1000 else Text(str.__mul__(self, times))

    __rmul__ = __mul__

    def __mod__(self, values: Any) -> "Text":
        whole = str.__mod__(self, values)
        parts, given = [], iter(values if isinstance(values, tuple) else (values,))
        for i, part in enumerate(_split_at(_DIRECTIVE, self)):
            if i % 2 == 0:
                parts.append(part)
            elif part == "%%":
                parts.append(part[:1])
            elif "(" in part:
                parts.append(str.__mod__(part, values))
            elif part == "%s":
                parts.append(str(next(given)))
            elif "*" in part:
                return Text(whole)
            else:
                parts.append(str.__mod__(part, (next(given),)))
        made = joined(parts)
        return made if made == whole else Text(whole)

    def strip(self, characters: str | None = None) -> "Text":
        return self.lstrip(characters).rstrip(characters)

    def lstrip(self, characters: str | None = None) -> "Text":
        return self._cut(len(self) - len(str.lstrip(self, characters)), len(self))

    def rstrip(self, characters: str | None = None) -> "Text":
        return self._cut(0, len(str.rstrip(self, characters)))

    def removeprefix(self, prefix: str) -> "Text":
        return self._cut(len(self) - len(str.removeprefix(self, prefix)), len(self))

    def removesuffix(self, suffix: str) -> "Text":
        return self._cut(0, len(str.removesuffix(self, suffix)))

    def split(self, sep: str | None = None, maxsplit: int = -1) -> list[str]:
        return self._found(str.split(self, sep, maxsplit), sep)

    def rsplit(self, sep: str | None = None, maxsplit: int = -1) -> list[str]:
        return self._found(str.rsplit(self, sep, maxsplit), sep)

    def splitlines(self, keepends: bool = False) -> list[str]:
        return self._found(str.splitlines(self, keepends), None)

    def partition(self, sep: str) -> tuple[str, ...]:
        return tuple(self._found(str.partition(self, sep), ""))

    def rpartition(self, sep: str) -> tuple[str, ...]:
        return tuple(self._found(str.rpartition(self, sep), ""))

    def _found(self, parts: Iterable[str], sep: str | None) -> list[str]:
        """The parts as they stand in this text one behind the other, `sep` between them; None for white space."""
        begin, found = 0, []
        for part in parts:
            begin = self.find(part, begin) if sep is None else begin
            found.append(self._cut(begin, begin + len(part)))
            begin += len(part) + len(sep or "")
        return found

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> "Text":
        if not old:
            return Text(str.replace(self, old, new, count))
        return joined(_between(self.split(old, count), new))

    def join(self, texts: Iterable[str]) -> "Text":
        texts = list(texts)
        return joined(_between(texts, self)) if all(isinstance(text, str) for text in texts) else \
            Text(str.join(self, texts))                             # which says what is wrong

    def _mapped(self, change: Callable[[str], str]) -> "Text":
        """Where a change of letters is the same run by run; Σ at the end of a word is not."""
        whole = change(self.plain())
        made = joined([Text(change(str.__getitem__(self, slice(begin, end))), origin)
                       for begin, end, origin in self.stretches()])
        return made if made == whole else Text(whole)

    def upper(self) -> "Text":
        return self._mapped(str.upper)

    def lower(self) -> "Text":
        return self._mapped(str.lower)

    def title(self) -> "Text":
        return self._mapped(str.title)

    def capitalize(self) -> "Text":
        return self._mapped(str.capitalize)


def joined(parts: Iterable[str]) -> Text:
    """Texts laid end to end, each character as it was known; a plain str is said."""
    parts = list(parts)
    text = Text("".join(parts))
    runs, begin = [], 0
    for part in parts:
        for end, origin in part.runs if isinstance(part, Text) else ((len(part), SAID),):
            if runs and runs[-1][1] == origin:
                runs.pop()
            if end:
                runs.append((begin + end, origin))
        begin += len(part)
    text.runs = tuple(runs)
    return text


def _between(parts: list[str], separator: str) -> Iterator[str]:
    for i, part in enumerate(parts):
        if i:
            yield separator
        yield part


def _split_at(pattern: re.Pattern, text: Text) -> Iterator[str]:
    """As pattern.split with one group: text, found, text, …."""
    begin = 0
    for match in pattern.finditer(text):
        yield text[begin : match.start()]
        yield text[match.start() : match.end()]
        begin = match.end()
    yield text[begin:]


def said(value: Any, message: int = 0) -> Any:
    """A JSON value with every text in it marked as said, in which message (from 1; 0 for none)."""
    if isinstance(value, str):
        return Text(value, message * MESSAGE)
    if isinstance(value, dict):
        return {key: said(each, message) for key, each in value.items()}
    return [said(each, message) for each in value] if isinstance(value, list | tuple) else value


def message_of(value: Any) -> int:
    """The number of the message from which all texts in a value come; 0 where there is no such one."""
    if isinstance(value, Text):
        numbers = {origin // MESSAGE for _, origin in value.runs}
    elif isinstance(value, dict | list | tuple):
        numbers = {message_of(each) for each in (value.values() if isinstance(value, dict) else value)}
    else:
        return 0
    numbers -= {0}
    return numbers.pop() if len(numbers) == 1 else 0
