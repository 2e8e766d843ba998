"""What helps when data are few and texts are badly typed: an ablation table, by commands as anybody types them.

    python -m tests.ablation --sets sentiment --shares 0.01 --methods plain lora word-dropout
    python -m tests.ablation --method "mine=--lr 1e-3 --weight-decay 1" --table

zh-small learns a task from a share of its data by each method, with three seeds, that draw the share, too; the result
is scored on a clean test set and on the same texts perturbed (tests/ablation/perturb.py). A method is a name and flags
of finetune.py. Every run is kept in --output as soon as it is there: the same command goes on with what is missing.
How much a run may cost is a Budget; those of another budget stand in another table.

The table shows mean ± standard deviation over seeds. ▲ stands where every seed of a method is better than every seed of
«plain», ▼ where every one is worse, and nothing where they overlap or are fewer than three: there nobody can tell.

Try: let `marked` compare means; tests/test_method_ablation.py
(test_worked_example_nothing_is_better_within_the_spread) fails.
"""

import argparse
import contextlib
import functools
import io
import json
import shlex
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

import finetune
from llama.benchmark import goals
from llama.checkpoint import PretrainedLlama
from llama.commands.flags import TaskFlags, task_and_dataset
from llama.frontier.runs import Results, shown
from llama.frontier.spread import beats
from llama.frontier.spread import shown as mean_and_spread
from llama.pretrained import get_model
from llama.runtime import cli
from llama.runtime.progress import duration
from llama.trainer import Trainer
from llama.training.evaluation import evaluate_dataset
from tests.ablation.forked import forked
from tests.ablation.sets import SETS, TESTS, DataSet, files_of, share_of

PLAIN, BASE = "plain", "zh-small"
METHODS = {
    PLAIN: (),
    "word-dropout": ("--word-dropout", "0.1"),
    "FGM": ("--adversarial", "fgm"),
    "noise": ("--noise", "5"),
    "R-Drop": ("--r-drop", "1", "--word-dropout", "0.1"),
    "augment": ("--augment", "delete=0.1,swap=0.1"),                # without tables that have to be fetched
    "weight decay": ("--weight-decay", "0.1"),
    "freeze-3": ("--freeze-layers", "3"),
    "LoRA": ("--lora", "--lr", "3e-3"),
    "DoRA": ("--lora", "--dora", "--lr", "3e-3"),
    "LoRA+": ("--lora", "--lora-plus", "16", "--lr", "5e-4"),
    "PiSSA": ("--lora", "--lora-init", "pissa", "--lr", "3e-3"),
    "LoRA on int4": ("--lora", "--quantize", "int4", "--lr", "3e-3"),
}


class Budget(NamedTuple):
    """What every run may cost; 0 is what the set says, and no limit.

    steps    of a training at most; else three times through the data, and 40 at least
    batch    examples of a step, half as many of instructions
    length   characters of a review or a sentence, those of more left out
    whole    examples that count as 100 %
    test     examples of each test set
    dtype    to compute in; weights are kept in float32
    """

    steps: int = 0
    batch: int = 0
    length: int = 0
    whole: int = 0
    test: int = 300
    dtype: str = "float32"


def main() -> None:
    arguments = _parser().parse_args()
    methods = METHODS | dict(_named(text) for text in arguments.method)
    wanted = arguments.methods or list(methods)
    if unknown := [name for name in wanted if name not in methods]:
        raise ValueError(f"--methods {unknown[0]}: there are {', '.join(methods)}")
    kept, budget = Results(arguments.output), Budget(*(getattr(arguments, field) for field in Budget._fields))
    missing = [] if arguments.table else [
        (name, share, method, seed) for seed in range(arguments.seeds) for name in arguments.sets
        for share in arguments.shares for method in wanted
        if key(name, share, method, seed, budget) not in kept]
    started, failed = time.monotonic(), False
    for number, (name, share, method, seed) in enumerate(missing):
        each = (time.monotonic() - started) / max(number, 1)
        left = f" (about {duration(each * (len(missing) - number))} left)" if number else ""
        print(f"[{number + 1}/{len(missing)}] {name}, {share:.0%}: {method}, seed {seed} …{left}", file=sys.stderr,
              flush=True)
        try:
            found = measured(name, share, methods[method], seed, budget, arguments)
        except RuntimeError as error:
            print(f"left out: {error}", file=sys.stderr)
            failed = True
            continue
        kept.keep(key(name, share, method, seed, budget), found)
    print(json.dumps(kept, ensure_ascii=False) if arguments.json else "\n\n".join(
        table(kept, name, share, budget) for name in arguments.sets for share in arguments.shares
        if rows_of(kept, name, share, budget)))
    sys.exit(1 if failed else 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.ablation", description=__doc__.splitlines()[0],
                                     formatter_class=argparse.RawDescriptionHelpFormatter, epilog="methods:\n" +
                                     "\n".join(f"  {name:<20}{' '.join(flags)}" for name, flags in METHODS.items()))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS), help="what to learn")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.01, 0.1, 1.0], metavar="X", help="of the data")
    parser.add_argument("--methods", nargs="+", metavar="NAME", help="of those below")
    parser.add_argument("--method", action="append", default=[], metavar="NAME=FLAGS", help="one more: its flags of "
                        "finetune.py")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each")
    parser.add_argument("--max-steps", dest="steps", type=int, default=0, metavar="N", help="of a training at most; 0: "
                        "three times through the data, and 40 at least")
    parser.add_argument("--batch-size", dest="batch", type=int, default=0, metavar="N", help="examples of a step; "
                        "half as many instructions")
    parser.add_argument("--length", type=int, default=0, metavar="N", help="leave out reviews and sentences of more "
                        "characters")
    parser.add_argument("--whole", type=int, default=0, metavar="N", help="examples that count as 100 %%")
    parser.add_argument("--test", type=int, default=300, metavar="N", help="examples of each test set")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="to compute in")
    parser.add_argument("--samples", type=Path, default=Path("../shared/data"), help="where the files of others lie")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/ablation"), help="data, trained models and logs")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/ablation.json"), help="results so far")
    parser.add_argument("--table", action="store_true", help="run nothing; print what is there")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    return parser


def _named(text: str) -> tuple[str, tuple[str, ...]]:
    name, equals, flags = text.partition("=")
    if not (name and equals):
        raise ValueError(f"--method {text}: write NAME=FLAGS, as in mine='--lr 1e-3'")
    return name, tuple(shlex.split(flags))


def key(name: str, share: float, method: str, seed: int, budget: Budget) -> str:
    """What makes a run what it is."""
    return json.dumps([name, share, method, seed, budget], ensure_ascii=False)


def measured(name: str, share: float, flags: Sequence[str], seed: int, budget: Budget, arguments: argparse.Namespace
             ) -> dict[str, Any]:
    """{"scores": by test set, "minutes" and "cpu" of learning and scoring, "memory", "steps", "examples", "command"}.

    It is the command that one types, but in a copy of this process (forked.py), which has imported torch and read the
    model already, and the result is scored where it was learned: nothing is saved, loaded and compared.
    """
    data, adapts = SETS[name].within(budget.batch), "--lora" in flags
    work = arguments.work / "-".join(map(str, filter(None, (name, budget.length))))
    files = files_of(name, work, arguments.samples, budget.test, budget.length)
    train, examples = share_of(name, files["train"], share, seed, work, whole=budget.whole)
    steps = max(40, round(3 * examples / data.batch_size))
    steps = min(steps, budget.steps) if budget.steps else steps
    output = work / ("adapter" if adapts else "model")
    command = ["finetune.py", "--model", BASE, "--data", str(train), *data.flags, "--epochs", "100000", "--max-steps",
               str(steps), "--save-every", str(steps), "--seed", str(seed), "--dtype", budget.dtype, *flags]
    base(getattr(torch, budget.dtype) if adapts else torch.float32)                     # before the process is copied

    def learn_and_score() -> dict[str, Any]:
        learned, objective = tuned([*command, "--output", str(output), "--overwrite"])
        return {"scores": scored(data, objective, files), "minutes": learned["seconds"] / 60,
                "memory": learned["peak_memory"]}

    return forked(learn_and_score, work / "tuned.log") | {"steps": steps, "examples": examples,
                                                         "command": shown(command)}


@functools.cache
def base(dtype: torch.dtype) -> PretrainedLlama:
    return get_model(BASE, dtype=dtype)


def tuned(command: Sequence[str]) -> tuple[dict[str, Any], torch.nn.Module]:
    """What finetune.py prints of its training, and the objective with the model that has learned. Once a process."""
    trainers = []

    class InMemory(Trainer):
        def __init__(self, *args: Any, **options: Any):
            super().__init__(*args, **options | {"output": None})
            trainers.append(self)

    def read(name: str, *, dtype: torch.dtype, bits: int, **options: Any) -> PretrainedLlama:
        return get_model(name, dtype=dtype, bits=bits, **options) if bits else base(dtype)

    sys.argv, said = list(command), io.StringIO()
    with contextlib.redirect_stdout(said):
        finetune.main(read, InMemory)
    return json.loads(said.getvalue().splitlines()[-1])["train"], trainers[0].objective


def scored(data: DataSet, objective: torch.nn.Module, files: Mapping[str, Path]) -> dict[str, float]:
    """What llama.evaluate would print of each test set."""
    _, dataset = task_and_dataset(TaskFlags(task=data.task, **data.reading))
    return {test: evaluate_dataset(objective, dataset([str(files[test])]), batch_size=32)[0][data.score]
            for test in TESTS}


Rows = dict[str, list[Mapping[str, Any]]]


def rows_of(kept: Mapping[str, Mapping[str, Any]], name: str, share: float, budget: Budget) -> Rows:
    """The runs of each method on a share of a data set, in the order of METHODS and then of their making."""
    found: Rows = {}
    for text, result in kept.items():
        of, part, method, _, cost = json.loads(text)
        if (of, part, cost) == (name, share, list(budget)):
            found.setdefault(method, []).append(result)
    order = [*METHODS, *found]
    return dict(sorted(found.items(), key=lambda item: order.index(item[0])))


def table(kept: Mapping[str, Mapping[str, Any]], name: str, share: float, budget: Budget) -> str:
    """A row for each method, in Markdown; ▲ and ▼ where it does not overlap with «plain»."""
    data, found = SETS[name], rows_of(kept, name, share, budget)
    rows = []
    for method, results in found.items():
        by_test = {test: [result["scores"][test] for result in results] for test in TESTS}
        against = [result["scores"] for result in found.get(PLAIN, [])] if method != PLAIN else []
        cells = [marked(values, [scores[test] for scores in against], lower=data.lower)
                 for test, values in by_test.items()]
        rows.append([method, *cells, str(len(results)), f"{statistics.fmean(each['cpu'] for each in results):.0f}",
                     f"{max(each['memory'] for each in results) / 1e9:.2f}"])
    examples = sorted({result["examples"] for results in found.values() for result in results})
    steps = sorted({result["steps"] for results in found.values() for result in results})
    head = f"**{name}, {share:.0%}**: {', '.join(map(str, examples))} examples, {', '.join(map(str, steps))} steps; " \
        f"{data.score}{', lower is better' if data.lower else ''}"
    return head + "\n\n" + goals.table(["method", *TESTS, "seeds", "CPU s", "GB"], rows)


def marked(values: Sequence[float], plain: Sequence[float], *, lower: bool) -> str:
    """Mean ± spread, with ▲ or ▼ where no value overlaps with those of plain."""
    sign = " ▲" if beats(values, plain, lower=lower) else " ▼" if beats(plain, values, lower=lower) else ""
    return mean_and_spread(values) + sign


if __name__ == "__main__":
    cli.run(main)
