"""What the runs say: tables with the Pareto set marked, a law of the loss, advice for a time, and a plot.

A point is on the front where nothing that costs as little is better. ★ stands there; ☆ where something cheaper is
better by the mean, but seeds overlap or are fewer than three, so that nobody can tell.

Try: let `front` forget the cost; tests/test_frontier_report.py (test_worked_example_the_front) fails.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from llama.benchmark.goals import table
from llama.frontier import power_law
from llama.frontier.spread import beats, shown
from llama.runtime.figures import figure_to, label_log_axis
from llama.runtime.progress import duration

Result = Mapping[str, Any]
CLOCKS = ("wall", "cpu")


class Cell(NamedTuple):
    """All seeds of one thing: `cost` their mean in seconds, `values` what they came to."""

    name: str
    cost: float
    values: tuple[float, ...]
    results: tuple[Result, ...]


def cells(results: Iterable[Result], kind: str, value: str, clock: str) -> list[Cell]:
    """Results of a kind, "start" or "tuned", by cell, in the order of their making."""
    found: dict[str, list[Result]] = {}
    for result in results:
        if result.get("kind") == kind:
            found.setdefault(result["cell"], []).append(result)
    return [Cell(name, statistics.fmean(cost(result, clock) for result in some),
                 tuple(result[value] for result in some), tuple(some)) for name, some in found.items()]


def cost(result: Result, clock: str) -> float:
    """Seconds from the start of the commands to their end, those of what a model began with among them."""
    return result[clock] + result.get(f"{clock}_before", 0.0)


def front(points: Sequence[Cell], *, lower: bool = False) -> list[str]:
    """★, ☆ or "" for each point."""
    def sign(point: Cell) -> str:
        mean = statistics.fmean(point.values)
        ahead = [other for other in points if other.cost <= point.cost and other is not point
                 and (statistics.fmean(other.values) < mean if lower else statistics.fmean(other.values) > mean)]
        certain = any(beats(other.values, point.values, lower=lower) for other in ahead)
        return "★" if not ahead else "" if certain else "☆"

    return [sign(point) for point in points]


def tables(results: Sequence[Result], score: str, clock: str) -> str:
    """Markdown: what was trained from nothing or was there, and what it was tuned to."""
    starts, tuned = cells(results, "start", "loss", clock), cells(results, "tuned", "score", clock)
    time = "seconds" if clock == "wall" else "CPU s"
    trained = [cell for cell in starts if cell.results[0]["tokens"]]
    signs = dict(zip((cell.name for cell in trained), front(trained, lower=True), strict=True))
    rows = [_start(cell, signs.get(cell.name, ""), clock) for cell in starts]
    parts = [table(["", "start", "parameters", time, "tokens/s", "MB, predicted / measured", "MB stored",
                    "nats a token", "bits per byte", "seeds"], rows)] if rows else []
    rows = []
    for sign, cell in zip(front(tuned), tuned, strict=True):
        first = cell.results[0]
        rows.append([sign, cell.name, f"{first['learned']:,}", f"{first['stored'] / 1e6:.2f}",
                     f"{statistics.fmean(result[clock] for result in cell.results):.0f}", f"{cell.cost:.0f}",
                     _speed(cell, clock), _memory(cell), shown(cell.values), str(len(cell.values))])
    parts += [table(["", "tuned", "trainable", "MB stored", f"{time}, tuning", "with its start", "tokens/s",
                     "MB, predicted / measured", score, "seeds"], rows)] if rows else []
    return "\n\n".join(parts)


def _start(cell: Cell, sign: str, clock: str) -> list[str]:
    """A row; of a model that was there already, what it can do alone: it has a vocabulary of its own, too."""
    first, bits = cell.results[0], shown([result["bits_per_byte"] for result in cell.results])
    if not first["tokens"]:
        return [sign, cell.name, *["–"] * 6, bits, str(len(cell.values))]
    return [sign, cell.name, f"{first['parameters']:,}", f"{cell.cost:.0f}", _speed(cell, clock), _memory(cell),
            f"{first['stored'] / 1e6:.1f}", shown(cell.values), bits, str(len(cell.values))]


def _speed(cell: Cell, clock: str) -> str:
    return f"{statistics.fmean(speed(result, clock) for result in cell.results):,.0f}"


def _memory(cell: Cell) -> str:
    measured = max(result["measured"] for result in cell.results)
    return f"{cell.results[0]['predicted'] / 1e6:.0f} / {measured / 1e6:.0f}"


def speed(result: Result, clock: str) -> float:
    """Tokens a second of training alone. Where others compute, CPU time is taken to pass in it as in the whole run."""
    share = result["train_cpu"] / result["train_wall"] if clock == "cpu" else 1.0
    return result["read"] / (result["seconds"] * share)


# ---- the law and its advice ------------------------------------------------------------------------------------------


def clean(results: Sequence[Result]) -> list[Result]:
    """Starts that were trained here, on text as it is, of the first source."""
    starts = [result for result in results if result.get("kind") == "start" and result["tokens"]]
    return [result for result in starts if not float(result["shuffled"]) and result["text"] == starts[0]["text"]]


def points_of(results: Sequence[Result]) -> list[power_law.Point]:
    return [(result["parameters"], result["read"], result["loss"]) for result in clean(results)]


def advice(results: Sequence[Result], minutes: float, score: str, clock: str) -> str:
    """The law, and what to do with so many minutes; honest where the runs do not say."""
    points, starts = points_of(results), clean(results)
    why, lines = power_law.undetermined(points), []
    law = None if why else power_law.fit(points)
    if law:
        lines += [str(law), "measured less the law: " + "; ".join(
            f"{result['cell']} {residual:+.3f}" for result, residual in zip(starts, law.residuals, strict=True))]
        if law.open_ends():
            why = f"exponents as far as the ends of what was tried fit about as well ({', '.join(law.open_ends())})"
    if why:
        lines.append(f"these runs do not determine a law of the loss: {why}; what it says is a guess"
                     if law else f"no law of the loss is fitted: {why}")
    if not starts:
        return "\n".join(lines)
    shapes: dict[str, list[Result]] = {}
    for result in starts:
        shapes.setdefault(result["shape"], []).append(result)
    told = []
    for shape, some in shapes.items():
        reads = 60 * minutes * statistics.fmean(speed(result, clock) for result in some)
        most = max(result["read"] for result in some)
        guess = law.loss(some[0]["parameters"], reads) if law else None
        told.append((guess, min(result["loss"] for result in some), shape, reads, reads / most))
    if law:
        told.sort(key=lambda each: each[0])
        lines.append(f"for {minutes:g} minutes on this machine: {told[0][2]}, which reads {told[0][3] / 1e6:.1f} "
                     "million tokens in them; " + ", ".join(f"{shape} {guess:.2f}" for guess, _, shape, _, _ in told)
                     + f" nats a token by the law, each as much text as it can read: {told[0][4]:.0f} × as much as was "
                     "tried" + (", an extrapolation" if told[0][4] > 2 else ""))
    else:
        told.sort(key=lambda each: each[1])
        lines.append(f"for {minutes:g} minutes on this machine: of what was run, {told[0][2]} had the lowest loss, "
                     f"{told[0][1]:.2f} nats a token; what a longer run gives, more --tokens and --shapes would tell")
    lines += _tuning_advice(cells(results, "tuned", "score", clock), minutes, score)
    return "\n".join(lines)


def _tuning_advice(tuned: Sequence[Cell], minutes: float, score: str) -> list[str]:
    within = [cell for cell in tuned if cell.cost <= 60 * minutes]
    if not within:
        return []
    best = max(within, key=lambda cell: statistics.fmean(cell.values))
    equals = [cell for cell in within if not beats(best.values, cell.values)]
    cheapest = min(equals, key=lambda cell: cell.cost)
    line = f"tuned within that time, {best.name} has the best {score}, {shown(best.values)}, after " \
        f"{duration(best.cost)}"
    if cheapest is not best:
        line += f"; the cheapest that is not told from it by its seeds is {cheapest.name}, {shown(cheapest.values)}, " \
            f"after {duration(cheapest.cost)}"
    return [line]


# ---- the plot --------------------------------------------------------------------------------------------------------


def write_plot(path: str, results: Sequence[Result], score: str, clock: str) -> None:
    """Loss and score against seconds, on an axis of logarithms. The ending of `path` says in which format."""
    panels = [(name, found, lower) for name, found, lower in (
        ("nats a token, held out", [cell for cell in cells(results, "start", "loss", clock)
                                    if cell.results[0]["tokens"]], True),
        (score, cells(results, "tuned", "score", clock), False)) if found]
    if not panels:
        raise ValueError(f"--plot {path}: no run is there to be drawn yet")
    with figure_to(path, 6.5 * len(panels), 5) as figure:
        for axes, (name, found, lower) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _draw(axes, found, lower=lower)
            axes.set(xscale="log", xlabel="seconds" if clock == "wall" else "CPU seconds", ylabel=name)
            label_log_axis(axes.xaxis, "{x:,.0f}")
            axes.grid(visible=True, which="both", alpha=0.3)
            axes.legend(fontsize=8)


def _draw(axes: Any, found: Sequence[Cell], *, lower: bool) -> None:
    """Points with the range of their seeds, a colour for each method or shape, and the front as steps."""
    series: dict[str, list[Cell]] = {}
    for cell in found:
        series.setdefault(cell.results[0].get("method", cell.results[0]["shape"]), []).append(cell)
    for label, some in series.items():
        middle = [statistics.fmean(cell.values) for cell in some]
        spread = [[value - min(cell.values) for value, cell in zip(middle, some, strict=True)],
                  [max(cell.values) - value for value, cell in zip(middle, some, strict=True)]]
        axes.errorbar([cell.cost for cell in some], middle, yerr=spread, fmt="o", capsize=2, label=label)
    best = sorted((cell.cost, statistics.fmean(cell.values))
                  for sign, cell in zip(front(found, lower=lower), found, strict=True) if sign == "★")
    axes.step(*zip(*best, strict=True), "k--", where="post", linewidth=1, label="front")
