"""Curves of training: loss, learning rate and gradient norm of one run, or of several in one figure.

    python -m llama.plot adapters/mine --output mine.png
    python -m llama.plot weights/a weights/b --against tokens --output both.svg
    python train.py --plot curve.png                            # the same for a run, when it has ended

What is drawn stands in RUN.training/metrics.jsonl, a line a step, also while a run is under way.

Try: let `smoothed` begin at 0 instead of dividing by the weights so far; tests/test_plot.py
(test_worked_example_smoothed) fails: every curve would begin with a climb that no run made.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from llama.runtime.interrupt import quiet_start

with quiet_start(__name__):
    from llama.runtime import cli
    from llama.runtime.destinations import file_to_write
    from llama.runtime.figures import figure_to, label_log_axis, need_matplotlib
    from llama.runtime.terminal import say
    from weights.formats.paths import resolve

AGAINST = ("step", "tokens", "seconds")
PANELS = {"loss": "loss", "lr": "learning rate", "gradient_norm": "gradient norm"}       # by field of metrics.jsonl
SMOOTHING = 50                                                      # a curve is the mean over some 1/50 of it


@dataclass
class Run:
    """What metrics.jsonl tells: of every step its fields, of every evaluation the step and the loss."""

    name: str
    steps: list[dict[str, float]] = field(default_factory=list)
    evaluations: list[tuple[int, float]] = field(default_factory=list)
    skipped: int = 0

    def column(self, name: str) -> list[float]:
        """A field, by step."""
        return [step[name] for step in self.steps]

    def evaluated_at(self, against: str) -> list[float]:
        """Where evaluations lie on an axis: at the step before them, or where the run began."""
        place = {0: 0.0} | {int(step["step"]): step[against] for step in self.steps}
        return [place[max(step for step in place if step <= at)] for at, _ in self.evaluations]


def read_run(path: str | Path) -> Run:
    """The run of a result, of its OUTPUT.training, or of a metrics.jsonl. Lines that a killed run left half are told.

    Raises FileNotFoundError where there is none, and ValueError where it tells of no step.
    """
    file = _metrics_file(str(path))
    run, broken = Run(str(path)), 0
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
            if "loss" in record:
                run.steps.append({name: float(record[name]) for name in ("step", "tokens", "seconds", *PANELS)})
            elif "skipped" in record:
                run.skipped = int(record["skipped"])
            elif "samples" not in record and "loss" in record["eval"]:
                run.evaluations.append((int(record["step"]), float(record["eval"]["loss"])))
        except (ValueError, KeyError, TypeError):
            broken += 1
    if broken:
        say(f"{file}: {broken} lines cannot be read and are left out")
    if not run.steps:
        raise ValueError(f"{file} tells of no step yet; wait for the first, or give another run")
    return run


def _metrics_file(name: str) -> Path:
    folders = [resolve(f"{name}{ending}", kind) for ending in (".training", "") for kind in ("weights", "adapters")]
    found = [path for folder in folders for path in (folder / "metrics.jsonl", folder) if path.is_file()]
    if not found:
        raise FileNotFoundError(f"{name}: there is no {name}.training/metrics.jsonl; give the folder that a run wrote "
                                "its result to")
    return found[0]


def smoothed(values: Sequence[float], span: int) -> list[float]:
    """Exponentially weighted means over some `span` values, unbiased from the first on (arXiv:1412.6980, section 3)."""
    keep, total, weight, means = 1 - 1 / max(span, 1), 0.0, 0.0, []
    for value in values:
        total, weight = keep * total + value, keep * weight + 1
        means.append(total / weight)
    return means


def plot_runs(path: str | Path, runs: Sequence[Run], *, against: Literal["step", "tokens", "seconds"] = "step") -> None:
    """The curves of these runs, a colour each, in the file `path`, whose ending says the format."""
    with figure_to(path, 8, 8) as figure:
        draw(figure, runs, against=against)
    say(f"the curves are in {path}")


def draw(figure: Any, runs: Sequence[Run], *, against: str) -> None:
    """Below each other loss, learning rate and gradient norm; loss of evaluations as dots."""
    panels = figure.subplots(len(PANELS), 1, sharex=True, height_ratios=(3, 1, 1.5))
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        for number, run in enumerate(runs):
            x, y, colour = run.column(against), run.column(name), f"C{number}"
            label = run.name + (f", {run.skipped} steps skipped" if run.skipped else "")
            if name == "lr":
                axes.plot(x, y, color=colour)
                continue
            axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
            axes.plot(x, smoothed(y, len(y) // SMOOTHING), color=colour, label=label)
            if name == "loss" and run.evaluations:
                axes.plot(run.evaluated_at(against), [loss for _, loss in run.evaluations], "o", color=colour,
                          markersize=4, label=f"{run.name}, evaluated")
        axes.set_ylabel(title)
        axes.grid(visible=True, which="both", alpha=0.3)
    panels[0].legend()
    panels[-1].set_yscale("log")
    label_log_axis(panels[-1].yaxis, "{x:g}")
    panels[-1].set_xlabel(against)


def main() -> None:
    parser = cli.Parser("python -m llama.plot", "Curves of training runs: loss, learning rate and gradient norm.")
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders that runs wrote their results to")
    parser.add_argument("--output", type=file_to_write, required=True, metavar="FILE",
                        help="where the figure goes, as .png, .svg or .pdf")
    parser.add_argument("--against", choices=AGAINST, default="step", help="what lies along the axis")
    arguments = parser.parse_args()
    need_matplotlib(arguments.output, flag="--output")
    plot_runs(arguments.output, [read_run(run) for run in arguments.runs], against=arguments.against)


if __name__ == "__main__":
    cli.run(main)
