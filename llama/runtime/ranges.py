"""Which numbers a setting may be, said once, beside the field or the flag that takes it.

    lr: Annotated[float, "peak learning rate", Range(1e-12, 1e3)] = 2e-4    # a field: `check_ranges(self)` when made
    parser.add_argument("--limit", type=Range(0, MANY), default=0, …)       # a flag alone

So what no computation could take is refused before a model is loaded: 2^64 as a seed, or a temperature of 1e-320, which
is 0 in float32, and by which logits would be divided. Every bound is finite, so NaN and infinity lie in no range.

Try: give a flag the type `int` again; tests/test_ranges.py (test_property_every_number_of_every_door_has_a_range)
fails.
"""

import argparse
import functools
import numbers
import typing
from dataclasses import dataclass, fields
from typing import Any

MANY = 10**9                                                        # of what is merely counted
MOST_TOKENS = 2**24                                                      # of a text


@dataclass(frozen=True)
class Range:
    """From `least` to `most`, both among them; whole numbers where both are whole. A type of argparse's flags.

    off  0, too, which lies below
    """

    least: float
    most: float
    off: bool = False

    @property
    def whole(self) -> bool:
        return isinstance(self.least, int) and isinstance(self.most, int)

    def __contains__(self, value: Any) -> bool:
        if isinstance(value, bool) or not isinstance(value, numbers.Integral if self.whole else numbers.Real):
            return False
        return self.least <= value <= self.most or (self.off and value == 0)

    def __str__(self) -> str:
        bounds = [f"{each:,}" if isinstance(each, int) else f"{each:g}" for each in (self.least, self.most)]
        return f"{'0 (off) or ' if self.off else ''}{'a whole number ' if self.whole else ''}from {' to '.join(bounds)}"

    def __call__(self, text: str) -> float:
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:
            value = None
        if value not in self:
            shown = text if len(text) <= 40 else f"{text[:40]}…"
            raise argparse.ArgumentTypeError(f"it is {shown!r}, and must be {self}")
        return value


SEEDS = Range(0, 2**32 - 1)                                         # times a million, still a seed of torch
FACTORS = Range(1e-6, 1e6, off=True)                                # that float32 can divide by, and multiply with


def check_ranges(record: Any) -> None:
    """Raise ValueError for the first field of a dataclass whose number, or one of several, lies outside its range."""
    for name, within in ranges_of(type(record)).items():
        value = getattr(record, name)
        for number in value if isinstance(value, tuple) else (value,):
            if number not in within:
                raise ValueError(f"{name} is {number}; it must be {within}")


@functools.cache
def ranges_of(record: type) -> dict[str, Range]:
    """The ranges that a dataclass states, by the names of its fields."""
    hints = typing.get_type_hints(record, include_extras=True)
    found = {field.name: [each for each in typing.get_args(hints[field.name]) if isinstance(each, Range)]
             for field in fields(record)}
    return {name: within[0] for name, within in found.items() if within}
