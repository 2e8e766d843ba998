"""What the benchmark's figures are held against: ratios to other engines, pair by pair, and limits of this project.

An engine that is measured a minute after another may meet another machine: cores get busy, clocks sink. So two engines
take turns, ours, theirs, ours, theirs …; each pair of neighbours gives a ratio, and the median of those is reported
with the smallest and the largest.

Try: divide the medians instead of the pairs; tests/test_goals.py (test_worked_example_ratio_of_pairs) fails.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ratio:
    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} × ({self.low:.2f}–{self.high:.2f})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Of speeds measured in turn: ours[i] just before theirs[i]."""
    if not ours or len(ours) != len(theirs):
        raise ValueError(f"{len(ours)} of our figures and {len(theirs)} of theirs make no pairs; measure both in turn")
    pairs = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return Ratio(statistics.median(pairs), min(pairs), max(pairs))


@dataclass(frozen=True)
class Goal:
    """At least so many times as fast."""

    work: str
    mode: str
    against: str
    floor: float | None
    stretch: float | None


# By the instructions that torch uses, as it calls them: another processor is at its limits elsewhere.
RATIOS = {
    "AVX2": (
        Goal("decode", "default", "transformers float32", 4.0, 6.0),
        Goal("decode", "default", "llama.cpp Q4_1 as fetched", 1.0, 1.3),
        Goal("decode", "int8", "llama.cpp Q8_0", 1.0, 1.3),
        Goal("prefill", "default", "transformers float32", 1.2, 1.5),
        Goal("prefill", "default", "llama.cpp Q8_0", 1.2, 2.0),
        Goal("batch 8", "default", "transformers float32", 1.5, 2.5),
        Goal("batch 32", "default", "transformers float32", 1.5, 2.5),
        Goal("edit", "no-compiler-lookup", "no-compiler", 1.5, None),
        Goal("edit", "lookup", "default", None, 1.5),
    ),
    "AVX512": (
        Goal("decode", "default", "transformers bfloat16", 1.8, 2.2),
        Goal("decode", "int8", "transformers bfloat16", 2.5, 3.8),
        Goal("decode", "int8", "llama.cpp Q8_0", 1.35, 1.7),
        Goal("decode", "int4", "llama.cpp Q4_1", 0.9, 1.6),
        Goal("prefill", "default", "transformers bfloat16", 1.2, 1.8),
        Goal("prefill", "default", "llama.cpp Q8_0", 1.6, 2.5),
        Goal("batch 8", "default", "transformers bfloat16", 1.5, 2.5),
        Goal("batch 32", "default", "transformers bfloat16", 1.5, 2.5),
        Goal("edit", "no-compiler-lookup", "no-compiler", 1.5, None),
        Goal("edit", "lookup", "default", None, 1.5),
        Goal("edit", "int8-lookup", "int8", None, 1.5),
    ),
}


@dataclass(frozen=True)
class Limit:
    """At most so much. `base` is an engine: the figure is then how much more than that one's, in per cent."""

    figure: str                                                     # "memory" in MB, "start" in seconds, "perplexity"
    mode: str
    floor: float
    stretch: float | None
    base: str = ""


LIMITS = (
    Limit("memory", "default", 450, 350),
    Limit("memory", "int8-saved", 450, 350),
    Limit("start", "default", 2.5, 1.5),
    Limit("start", "int8-saved", 2.5, 1.5),
    Limit("perplexity", "default", 0.1, None, base="float32"),
    Limit("perplexity", "bf16", 0.2, None, base="float32"),
    Limit("perplexity", "int8", 0.5, 0.15, base="float32"),
    Limit("perplexity", "int8", 0.1, None, base="llama.cpp Q8_0"),
    Limit("perplexity", "int4", 8, 4, base="float32"),
)


def met(value: float, floor: float | None, stretch: float | None, *, smaller: bool = False) -> str:
    """ "stretch", "floor" or "no": the hardest of the two that a value reaches."""
    sign = -1 if smaller else 1
    for name, bound in (("stretch", stretch), ("floor", floor)):
        if bound is not None and sign * value >= sign * bound:
            return name
    return "no"


def limits_met(mode: str, figure: str, value: float) -> tuple[list[str], str]:
    """Floor and stretch of a figure against float32, as they are shown, and which of them a value reaches."""
    limit = next(limit for limit in LIMITS if (limit.mode, limit.figure, limit.base) == (mode, figure, "float32"))
    return _shown(limit), met(value, limit.floor, limit.stretch, smaller=True)


def _shown(limit: Limit) -> list[str]:
    return ["" if bound is None else f"{bound:g}" for bound in (limit.floor, limit.stretch)]


# ---- tables ----------------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its columns aligned to be read as they stand."""
    widths = [max(len(cell) for cell in column) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
                     for line in lines)


def engine_table(engines: Mapping[str, Mapping[str, Any]], *, batches: Sequence[int], bandwidth: float) -> str:
    """One row an engine; an engine that refused says why below the table."""
    header = ["", "decode tok/s", "of the roof", "prefill tok/s", *[f"batch {n} tok/s" for n in batches], "peak MB",
              "start s", "perplexity", "to float32"]
    rows = []
    for name, found in engines.items():
        if "refused" in found:
            continue
        roof = statistics.median(found["decode"]) * found["traffic"] / bandwidth
        change = excess(engines, "perplexity", name, "float32")
        rows.append([name, _speed(found["decode"]), f"{roof:.0%}", _speed(found["prefill"]),
                     *[_speed(found.get(f"batch {n}")) for n in batches], f"{found['memory'] / 1e6:,.0f}",
                     f"{statistics.median(found['start']):.1f}" if found.get("start") else "",
                     f"{found['perplexity']:.3f}" if "perplexity" in found else "",
                     f"{change:+.2f} %" if change is not None else ""])
    refused = [f"{name}: {found['refused']}" for name, found in engines.items() if "refused" in found]
    kernels = [f"{name}: {found['kernel']}" for name, found in engines.items() if found.get("kernel")]
    return "\n".join([table(header, rows), *[""] * bool(refused), *refused, *[""] * bool(kernels), *kernels])


def ratio_table(turns: Sequence[Mapping[str, Any]]) -> str:
    """turns: {"work", "mode", "against", "ours", "theirs", "floor", "stretch"}, speeds in tokens a second."""
    rows = []
    for turn in turns:
        found, bounds = ratio(turn["ours"], turn["theirs"]), (turn["floor"], turn["stretch"])
        rows.append([turn["work"], turn["mode"], turn["against"], str(found),
                     *["" if bound is None else f"{bound:.2f}" for bound in bounds], met(found.median, *bounds)])
    return table(["work", "mode", "against", "ratio (least–most)", "floor", "stretch", "met"], rows)


def limit_table(engines: Mapping[str, Mapping[str, Any]]) -> str:
    """The limits whose figures were measured."""
    rows = []
    for limit in LIMITS:
        value = _figure(engines, limit)
        if value is not None:
            unit = {"memory": "MB", "start": "s", "perplexity": f"% over {limit.base}"}[limit.figure]
            rows.append([limit.figure, limit.mode, f"{value:.{0 if unit == 'MB' else 2}f} {unit}", *_shown(limit),
                         met(value, limit.floor, limit.stretch, smaller=True)])
    return table(["figure", "mode", "value", "floor", "stretch", "met"], rows)


def excess(engines: Mapping[str, Mapping[str, Any]], figure: str, name: str, base: str) -> float | None:
    """How much more, in per cent, an engine's figure is than another's; None unless both were measured."""
    mine, other = (engines.get(each, {}).get(figure) for each in (name, base))
    return None if mine is None or other is None else 100 * (mine / other - 1)


def _figure(engines: Mapping[str, Mapping[str, Any]], limit: Limit) -> float | None:
    if limit.base:
        return excess(engines, limit.figure, limit.mode, limit.base)
    value = engines.get(limit.mode, {}).get(limit.figure)
    if not value:
        return None
    return value / 1e6 if limit.figure == "memory" else statistics.median(value)


def _speed(speeds: Sequence[float] | None) -> str:
    if not speeds:
        return ""
    median = statistics.median(speeds)
    return f"{median:,.0f}" if median >= 100 else f"{median:.1f}"
