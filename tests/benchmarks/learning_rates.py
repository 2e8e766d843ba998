"""How fast each way of tuning should learn: rates tried on some data, by the loss of data held out, epoch by epoch.

    python -m tests.benchmarks.learning_rates --data alpaca_en_demo.json --ways lora all --rates 5e-5 5e-4
    python -m tests.benchmarks.learning_rates --task ner --data wnut17_train.conll --records 300 --eval-records 200

The data is divided so that nothing leaks (llama/datasets/split.py); all else is as finetune.py has it by default, but
for --epochs and --max-length, which bound the time. The table goes to docs/experiments.md, what it says to
llama/training/recipes.py. Every run is kept in --output as soon as it ends, so that the same command goes on with what
is missing; one with another way, rate or task adds to the table.

Try: let `key` forget the rate; tests/test_learning_rates.py (test_property_only_what_is_missing_is_run) fails.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from llama.benchmark import goals
from llama.commands import flags
from llama.datasets.split import split
from llama.freeze import freeze
from llama.lora.swap import add_lora
from llama.lora.targets import LoRAConfig
from llama.pretrained import get_model
from llama.runtime import cli
from llama.runtime.progress import duration
from llama.trainer import Trainer
from llama.training.optimizer import TrainConfig
from llama.training.recipes import RECIPES, WAYS
from llama.training.run_state import RunFolder
from weights.formats.atomic_write import atomic_file

MAIN_SCORES = ("accuracy", "f1")                                    # of tasks with labels, beside the loss
Run = dict[str, Any]


class Evaluations(RunFolder):
    """Keeps what a run would write to metrics.jsonl of its evaluation data."""

    def __init__(self) -> None:
        super().__init__(None)
        self.scores: list[dict[str, float]] = []

    def log(self, line: dict[str, Any]) -> None:
        self.scores += [line["eval"]] if "eval" in line else []


def main() -> None:
    arguments = _parser().parse_args()
    runs: dict[str, Run] = json.loads(arguments.output.read_text("utf-8")) if arguments.output.exists() else {}
    missing = [(way, rate) for rate in arguments.rates for way in arguments.ways
               if key(arguments, way, rate) not in runs]
    started = time.monotonic()
    for number, (way, rate) in enumerate(missing):
        each = (time.monotonic() - started) / max(number, 1)
        left = f" (about {duration(each * (len(missing) - number))} left)" if number else ""
        print(f"[{number + 1}/{len(missing)}] {arguments.task}: {way}, {rate:g} …{left}", file=sys.stderr, flush=True)
        try:
            runs[key(arguments, way, rate)] = measured(arguments, way, rate)
        except KeyboardInterrupt:
            print(f"interrupted; {arguments.output} keeps what is done, and the same command goes on with the rest",
                  file=sys.stderr)
            raise
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(arguments.output) as file:
            file.write((json.dumps(runs, indent=1, ensure_ascii=False) + "\n").encode())
    print(table(list(runs.values())))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.learning_rates",
                                     description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=RECIPES, default="instruction", help="what the data means")
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE", help="examples to learn and to hold out")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="of tuning")
    parser.add_argument("--rates", nargs="+", type=float, required=True, metavar="LR", help="peak learning rates")
    parser.add_argument("--last", type=int, default=10, metavar="N", help="blocks that learn in the way «last»")
    parser.add_argument("--records", type=int, default=200, help="examples to learn")
    parser.add_argument("--eval-records", type=int, default=100, help="examples to evaluate on")
    parser.add_argument("--epochs", type=int, default=2, help="times through the data")
    parser.add_argument("--batch-size", type=int, default=0, help="examples an update; 0: the task's own")
    parser.add_argument("--max-length", type=int, default=128, help="tokens of a sample at most")
    parser.add_argument("--model", default=flags.ModelFlags.model, help="as for finetune.py")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/rates.json"), help="runs so far")
    return parser


def key(arguments: argparse.Namespace, way: str, rate: float) -> str:
    """All that makes a run what it is, so that only what is missing is run."""
    most = {name: value for name, value in vars(arguments).items() if name not in ("ways", "rates", "output", "last")}
    most["data"] = [Path(file).name for file in arguments.data]
    return json.dumps(most | {"way": way, "rate": rate} | ({"last": arguments.last} if way == "last" else {}))


def measured(arguments: argparse.Namespace, way: str, rate: float) -> Run:
    """One run, in this process: {"task", "way", "rate", "scores": before and after each epoch, "minutes", …}."""
    task, dataset = flags.task_and_dataset(flags.TaskFlags(task=arguments.task, max_length=arguments.max_length))
    examples = dataset(arguments.data)
    learn, hold = (count / len(examples) for count in (arguments.records, arguments.eval_records))
    if learn + hold > 1:
        raise ValueError(f"{arguments.data} hold {len(examples)} examples, fewer than --records {arguments.records} "
                         f"and --eval-records {arguments.eval_records} together; give lower ones")
    data, eval_data, _ = split(examples, learn, hold, 1 - learn - hold)
    dtype = flags.choose_dtype("auto", torch.device("cpu"), purpose="train")
    model = get_model(arguments.model, dtype=dtype if way == "lora" else torch.float32)
    task.prepare(model, data, seed=0)
    if way == "lora":
        add_lora(model, LoRAConfig(), generator=torch.Generator().manual_seed(0))
    elif way == "last":
        freeze(model, layers=len(model.layers) - arguments.last, embeddings=True)
    batch_size = arguments.batch_size or RECIPES[arguments.task].batch_size
    trainer = Trainer(model, task, data, eval_data, config=TrainConfig(
        epochs=arguments.epochs, batch_size=batch_size, lr=rate), dtype=None if way == "lora" else dtype,
        allow=("eos-cut",))                                         # where samples are cut short to save time
    trainer.folder = Evaluations()
    train = trainer.train()["train"]
    return {"task": arguments.task, "way": f"last {arguments.last}" if way == "last" else way, "rate": rate,
            "data": " ".join(Path(file).name for file in arguments.data), "records": len(data),
            "steps": train["steps"], "scores": trainer.folder.scores, "minutes": train["seconds"] / 60,
            "date": time.strftime("%Y-%m-%d")}


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """A row for each run, in Markdown, by task, way and rate.

    The result of a run is that of its best epoch: the score is of that, and the way's lowest loss is marked.
    """
    def kind(run: Mapping[str, Any]) -> tuple[Any, ...]:
        return run["task"], run["data"], run["records"], run["steps"], run["way"]

    def best_epoch(run: Mapping[str, Any]) -> Mapping[str, float]:
        return min(run["scores"][1:], key=lambda scores: scores["loss"])

    rows = []
    for run in sorted(runs, key=lambda run: (*kind(run), run["rate"])):
        before, *after = (f"{scores['loss']:.3f}" for scores in run["scores"])
        best = best_epoch(run)
        lowest = best["loss"] == min(best_epoch(other)["loss"] for other in runs if kind(other) == kind(run))
        shown = [f"{name} {best[name]:.3f}" for name in MAIN_SCORES if name in best]
        rows.append([run["task"], run["data"], f"{run['records']}", f"{run['steps']}", run["way"], f"{run['rate']:.0e}",
                     before, f"**{', '.join(after)}**" if lowest else ", ".join(after), " ".join(shown),
                     f"{run['minutes']:.1f}"])
    return goals.table(["task", "data", "records", "updates", "way", "--lr", "loss before", "after each epoch", "score",
                        "minutes"], rows)


if __name__ == "__main__":
    cli.run(main)
