"""What quality costs on this machine: a grid of small runs within a budget of minutes, and what follows from them.

    python -m llama.frontier --minutes 20                       # a table, the Pareto set, a law of the loss, advice
    python -m llama.frontier --shapes tiny-1m,zh-small --methods full,lora-8 --seeds 3 --plot frontier.svg
    python -m llama.frontier --minutes 0                        # what is there already, and no run

Each run is a call of train.py, finetune.py or llama.evaluate as one types it (llama/frontier/grid.py), and its result
is kept as soon as it is there: the same command, or one with other flags, goes on with what is missing, and a training
in the midst of it too. A run begins only if it is likely to end within the budget; what is left out is said.

Try: forget what was kept; tests/test_frontier.py (test_property_what_is_kept_is_not_run_again) fails.
"""

import json
import shutil
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llama.runtime.interrupt import quiet_start

with quiet_start(__name__):
    from llama.benchmark.machine import machine
    from llama.frontier import grid as grids
    from llama.frontier.grid import Files, Grid, Run, Start, Tuned, key, runs_of
    from llama.frontier.report import CLOCKS, advice, tables, write_plot
    from llama.frontier.runs import Results, shown, timed, trained
    from llama.runtime import cli
    from llama.runtime.destinations import file_to_write
    from llama.runtime.figures import need_matplotlib
    from llama.runtime.progress import duration
    from llama.runtime.ranges import Range
    from llama.runtime.terminal import say

ENDED = 20.0                                                        # s for starting, saving and scoring: a guess


def main() -> None:
    parser = cli.Parser("python -m llama.frontier", __doc__.splitlines()[0],
                        most=("minutes", "shapes", "tokens", "texts", "shuffled", "methods", "seeds", "task-data",
                              "plot", "advise", "clock", "output", "json"),
                        example="python -m llama.frontier --minutes 20 --plot frontier.svg")
    parser.add_argument("--minutes", type=Range(0.0, 1e6), default=20.0, metavar="X", help="of all runs; 0: tell what "
                        "is there")
    parser.add_argument("--task-data", nargs=2, metavar=("TRAIN", "TEST"), help="records with text and label "
                        "(default: reviews, fetched)")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="what runs cost: time that passes, or that "
                        "processors work, where others compute beside")
    parser.add_argument("--advise", type=Range(0.01, 1e7), default=60.0, metavar="X", help="minutes to advise for")
    parser.add_argument("--plot", type=file_to_write, metavar="FILE", help="draw it, as .png or .svg")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/frontier"), metavar="FOLDER",
                        help="texts, models and logs")
    parser.add_argument("--output", type=file_to_write, default="benchmarks/frontier.json", metavar="FILE",
                        help="results so far")
    parser.add_argument("--again", action="store_true", help="make these runs anew, even if they are there or were "
                        "interrupted")
    parser.add_argument("--json", action="store_true", help="print results as JSON on stdout")
    cli.add_flags(parser, Grid)
    arguments = parser.parse_args()
    if arguments.plot:
        need_matplotlib(arguments.plot)
    grid = cli.from_flags(Grid, arguments)
    kept, wanted = Results(Path(arguments.output)), list(runs_of(grid))
    failed = False
    if arguments.minutes:
        deadline = time.monotonic() + 60 * arguments.minutes
        files = Files(grid, arguments.work, arguments.task_data or ())
        failed = not Budget(grid, files, kept, deadline, again=arguments.again).spend(wanted)
    results = [kept[name] for run in wanted if (name := key(grid, run)) in kept]
    if arguments.json:
        print(json.dumps({"machine": machine(), "results": results}, ensure_ascii=False))
    elif results:
        about = machine()
        print(f"{about['cpu']}, {about['threads']} threads, {time.strftime('%Y-%m-%d')}\n")
        print(tables(results, grid.score, arguments.clock) + "\n")
        print("★ the Pareto set; ☆ beaten by the mean of something cheaper, though seeds do not tell them apart\n")
        print(advice(results, arguments.advise, grid.score, arguments.clock))
    if arguments.plot:
        write_plot(arguments.plot, results, grid.score, arguments.clock)
    sys.exit(1 if failed else 0)


class Budget:
    """The runs within a time, one after the other.

    deadline  by time.monotonic()
    again     make runs anew that are kept, or that were interrupted
    """

    def __init__(self, grid: Grid, files: Files, kept: Results, deadline: float, *, again: bool = False):
        self.grid, self.files, self.kept, self.deadline, self.again = grid, files, kept, deadline, again
        self.models = files.folder / f"models-{grid.vocab_size}-{grid.block_size}"

    def left(self) -> float:
        return self.deadline - time.monotonic()

    def has(self, run: Run) -> bool:
        return key(self.grid, run) in self.kept

    def spend(self, wanted: Sequence[Run]) -> bool:
        """Run what is missing while there is time. Whether nothing failed."""
        missing = [run for run in wanted if self.again or not self.has(run)]
        for shape in dict.fromkeys(run.shape for run in missing if isinstance(run, Start) and run.text):
            self.costs(self.dry_run_of(shape), grids.train_command(
                self.grid, next(run for run in missing if isinstance(run, Start) and run.shape == shape), self.files))
        say(self.plan(missing, len(wanted)))
        late, failed = [], []
        for number, run in enumerate(missing, start=1):
            if isinstance(run, Tuned) and not self.has(run.start):  # its start came too late, or failed
                (late if run.start in late else failed).append(run)
            elif (expected := self.expected(run)) > self.left():
                late.append(run)
            else:
                say(f"[{number}/{len(missing)}] {run.name}: about {duration(expected)}, {duration(self.left())} left …")
                try:
                    found = self.started(run) if isinstance(run, Start) else self.tuned(run)
                except KeyboardInterrupt:
                    say(f"interrupted; {self.kept.path} keeps what is done, and the same command goes on")
                    raise
                except RuntimeError as error:
                    say(f"left out: {error}")
                    failed.append(run)
                    continue
                self.kept.keep(key(self.grid, run), found)
                what = "loss" if isinstance(run, Start) else "score"
                say(f"    {what} {found[what]:.3f} after {duration(found['wall'])}")
        if late:
            say(f"no time was left for {_named(late)}; the same command goes on with them")
        if failed:
            say(f"failed, or wanted a start that did: {_named(failed)}")
        return not failed

    def plan(self, missing: Sequence[Run], count: int) -> str:
        """How the time is divided, by what is known before the first run."""
        fits, rest, left = [], [], self.left()
        for run in missing:
            expected = self.expected(run)
            comes = isinstance(run, Start) or self.has(run.start) or run.start in fits
            if comes and expected <= left:
                fits, left = [*fits, run], left - expected
            else:
                rest.append(run)
        lines = [f"{count} runs, {count - len(missing)} of them kept from before; of the others {len(fits)} fit into "
                 f"{duration(self.left())}, by estimates that get better with every run"]
        return "\n".join(lines + [f"what will not fit: {_named(rest)}"] * bool(rest))

    def expected(self, run: Run) -> float:
        """Seconds that a run takes, as others of its kind did, or else by the steps of a dry run."""
        alike = [result["wall"] * (run.tokens / result["tokens"] if isinstance(run, Start) and run.text else 1)
                 for result in self.kept.values() if _kind(result) == _kind_of(run)]
        if alike:
            return statistics.fmean(alike)
        shape = run.shape if isinstance(run, Start) else run.start.shape
        dry = self.kept.get(self.dry_run_of(shape))
        a_token = dry["seconds_a_step"] / (grids.BATCH * self.grid.block_size) if dry else 0.0
        tokens = run.tokens if isinstance(run, Start) else \
            self.grid.tune_steps * grids.TUNED_BATCH * grids.TUNED_LENGTH
        return ENDED + tokens * a_token

    def dry_run_of(self, shape: str) -> str:
        return f"dry run of {shape}, {self.grid.vocab_size} pieces, blocks of {self.grid.block_size}"

    def costs(self, name: str, command: Sequence[str]) -> Mapping[str, Any]:
        """What --dry-run says of a command, kept under a name."""
        if name not in self.kept:
            found = timed([*command, "--dry-run", "--json"], self.files.folder / "dry-run.log")["dry_run"]
            self.kept.keep(name, {"parameters": found["parameters"], "learned": found["learned"],
                                  "seconds_a_step": found["seconds_a_step"], "memory": found["memory"]["training"]})
        return self.kept[name]

    def started(self, start: Start) -> dict[str, Any]:
        """A start trained, unless it is there, and scored on held-out text."""
        output, log = self.models / start.folder, self.files.folder / "run.log"
        result = {"kind": "start", "cell": start.cell, "shape": start.shape, "text": start.text,
                  "shuffled": start.shuffled, "tokens": start.tokens, "seed": start.seed}
        times = {"wall": 0.0, "cpu": 0.0}
        if start.text:
            command = grids.train_command(self.grid, start, self.files)
            dry = self.costs(self.dry_run_of(start.shape), command)
            found = trained(command, output, log, again=self.again)
            times = {clock: found[clock] for clock in CLOCKS}
            shutil.rmtree(f"{output}.training", ignore_errors=True)
            result |= _training(found, dry) | {"command": shown(command), "stored": _size(output)}
        scores = timed(grids.judge_command(self.grid, str(output) if start.text else start.shape, self.files), log)
        return result | times | {"loss": scores["loss"], "bits_per_byte": scores["bits_per_byte"]}

    def tuned(self, tuned: Tuned) -> dict[str, Any]:
        """A start tuned and scored; the result itself is not kept."""
        start = self.kept[key(self.grid, tuned.start)]
        model = str(self.models / tuned.start.folder) if tuned.start.text else tuned.start.shape
        command = grids.tune_command(self.grid, model, tuned, self.files)
        dry = self.costs(f"{self.dry_run_of(tuned.start.shape)}: {tuned.method}, {self.grid.task}", command)
        output = self.models / "tuned"
        found = trained(command, output, self.files.folder / "run.log", again=True)
        stored = _size(output)
        for folder in (output, Path(f"{output}.training")):
            shutil.rmtree(folder, ignore_errors=True)
        return {"kind": "tuned", "cell": tuned.cell, "shape": tuned.start.shape, "method": tuned.method,
                "seed": tuned.seed, "score": found["test"][self.grid.score], "stored": stored,
                "command": shown(command), **_training(found, dry), **{clock: found[clock] for clock in CLOCKS},
                **{f"{clock}_before": start[clock] for clock in CLOCKS}}


def _training(found: Mapping[str, Any], dry: Mapping[str, Any]) -> dict[str, Any]:
    train = found["train"]
    return {"parameters": dry["parameters"], "learned": dry["learned"], "predicted": dry["memory"],
            "measured": train["peak_memory"], "seconds": train["seconds"], "read": train["tokens"],
            "train_wall": found["wall"], "train_cpu": found["cpu"]}


def _kind(result: Mapping[str, Any]) -> tuple[Any, ...]:
    """Results of one kind take about as long as each other."""
    return result.get("kind"), result.get("shape"), result.get("method"), bool(result.get("text"))


def _kind_of(run: Run) -> tuple[Any, ...]:
    if isinstance(run, Start):
        return "start", run.shape, None, bool(run.text)
    return "tuned", run.start.shape, run.method, False


def _size(folder: Path) -> int:
    """Bytes of the tensors that a result consists of."""
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _named(runs: Sequence[Run]) -> str:
    shown = "; ".join(run.name for run in runs[:3])
    return shown + (f"; and {len(runs) - 3} more" if len(runs) > 3 else "")


if __name__ == "__main__":
    cli.run(main)
