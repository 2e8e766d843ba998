"""Reptile: a start from which few examples of new labels are enough (Nichol et al. 2018, arXiv:1803.02999).

    python -m llama.methods.reptile                             # new poets, from 1, 4 and 16 poems each
    python -m llama.methods.reptile --data my.jsonl --ways 3 --shots 2,8 --lora

Algorithm 1 of the paper: over many small tasks, each a few labels of the data and a few examples of each,

    φ ← θ after some steps of Adam on one task          θ ← θ + ε (φ − θ)

so that θ comes to lie near what each task wants. It is held against the model as it is, and against plain multi-task
tuning: as many steps over as many examples, on all of the same labels at once. Then labels that none has seen are
learned, from k examples each, by the same steps from each start, and other examples of them are found or not.

What is frozen stays: with --lora or --freeze-layers θ is what is left to learn.

Try: move θ all the way, ε = 1; tests/test_reptile.py (test_worked_example_a_step_goes_part_of_the_way) fails.
"""

import dataclasses
import json
import random
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

from llama.runtime.interrupt import quiet_start

with quiet_start(__name__):
    import torch
    from torch import Tensor

    from llama.checkpoint import PretrainedLlama
    from llama.clean.han import Converter
    from llama.datasets.records import RecordDataset
    from llama.fast.agreement import use_custom_gradients
    from llama.freeze import freeze
    from llama.frontier.runs import Results
    from llama.frontier.spread import beats, shown
    from llama.heads import remove_head
    from llama.lora.swap import add_lora, merge_lora
    from llama.lora.targets import LoRAConfig
    from llama.pretrained import get_model
    from llama.runtime import cli
    from llama.runtime.destinations import file_to_write
    from llama.runtime.progress import Progress
    from llama.runtime.ranges import MANY, MOST_TOKENS, Range
    from llama.runtime.terminal import say
    from llama.tasks.classification import ClassificationTask
    from llama.tasks.labelled import Labelled
    from llama.tasks.task import sort_by_length, to_device
    from llama.training.objective import Plain
    from tokenizer.base import Tokenizer
    from weights.fetch import fetch

STARTS = ("as it is", "multi-task", "Reptile")
Pool = Mapping[str, Sequence[Labelled]]                             # the examples of each label, encoded once


@dataclasses.dataclass(frozen=True)
class ReptileConfig:
    """The tasks, and how each is learned."""

    ways: Annotated[int, "labels of a task", Range(2, 1000)] = 5
    shots: Annotated[tuple[int, ...], "examples of each that are learned", Range(1, 10**6)] = (1, 4, 16)
    queries: Annotated[int, "other examples of each that are then found or not", Range(1, 10**6)] = 5
    held_out: Annotated[int, "labels that no start has seen, drawn by the seed", Range(2, 10**6)] = 6
    outer_steps: Annotated[int, "tasks that Reptile learns from", Range(1, MANY)] = 60
    outer_lr: Annotated[float, "ε at the beginning; it falls to 0", Range(1e-6, 1.0)] = 0.5
    inner_shots: Annotated[int, "examples of each label in a task of those", Range(1, 10**6)] = 6
    inner_steps: Annotated[int, "steps of Adam on a task", Range(1, MANY)] = 5
    lr: Annotated[float, "of Adam, on every task and in multi-task tuning", Range(1e-12, 1e3)] = 3e-4
    batch_size: Annotated[int, "examples a step", Range(1, 65_536)] = 10
    test_steps: Annotated[int, "steps of Adam on the examples of new labels", Range(1, MANY)] = 10
    episodes: Annotated[int, "tasks of new labels to find a mean over", Range(1, MANY)] = 10
    max_length: Annotated[int, "tokens of an example at most", Range(16, MOST_TOKENS)] = 32


# ---- the method ------------------------------------------------------------------------------------------------------


def learned(objective: Plain) -> list[Tensor]:
    """θ."""
    return [parameter for parameter in objective.parameters() if parameter.requires_grad]


def draw_task(pool: Pool, ways: int, shots: int, drawn: random.Random) -> list[list[Labelled]]:
    """So many examples each of so many labels, numbered from 0 in an order that says nothing of them."""
    labels = drawn.sample(sorted(pool), ways)
    return [[dataclasses.replace(sample, goals=[number]) for sample in drawn.sample(pool[label], shots)]
            for number, label in enumerate(labels)]


def tune(objective: Plain, samples: Sequence[Labelled], *, steps: int, lr: float, batch_size: int,
         drawn: random.Random, falling: bool = False) -> None:
    """Steps of Adam without momentum (the paper's section 6.1) over the samples, in one random order after another.

    falling  the rate falls to 0, where the end is no beginning for anything else
    """
    optimizer = torch.optim.Adam(learned(objective), lr=lr, betas=(0.0, 0.999))
    waiting: list[Labelled] = []
    for step in range(steps):
        if len(waiting) < min(batch_size, len(samples)):
            waiting += drawn.sample(samples, len(samples))
        some, waiting = waiting[:batch_size], waiting[batch_size:]
        for group in optimizer.param_groups:
            group["lr"] = lr * (1 - step / steps) if falling else lr
        loss, count = objective(to_device(objective.task.collate(some), objective.model.device))
        optimizer.zero_grad()
        (loss / count).backward()
        optimizer.step()
    optimizer.zero_grad()


def reptile_step(objective: Plain, samples: Sequence[Labelled], *, rate: float, config: ReptileConfig,
                 drawn: random.Random) -> None:
    """θ ← θ + rate (φ − θ), φ after `inner_steps` on one task (algorithm 1)."""
    before = [parameter.detach().clone() for parameter in learned(objective)]
    tune(objective, samples, steps=config.inner_steps, lr=config.lr, batch_size=config.batch_size, drawn=drawn)
    with torch.no_grad():
        for parameter, old in zip(learned(objective), before, strict=True):
            parameter.copy_(old.lerp(parameter, rate))


@torch.no_grad()
def accuracy(objective: Plain, samples: Sequence[Labelled], batch_size: int) -> float:
    right = 0
    for some in sort_by_length(samples, batch_size):
        batch = to_device(objective.task.collate([samples[i] for i in some]), objective.model.device)
        right += int((objective.scores(batch).argmax(-1) == batch["targets"]).sum())
    return right / len(samples)


def few_shot(objective: Plain, pool: Pool, shots: int, config: ReptileConfig, drawn: random.Random) -> float:
    """Mean accuracy over tasks of new labels, each learned anew from the same start."""
    start, found = [parameter.detach().clone() for parameter in learned(objective)], []
    for _ in range(config.episodes):
        task = draw_task(pool, config.ways, shots + config.queries, drawn)
        tune(objective, [sample for each in task for sample in each[:shots]], steps=config.test_steps, lr=config.lr,
             batch_size=config.batch_size, drawn=drawn)
        found.append(accuracy(objective, [sample for each in task for sample in each[shots:]], config.batch_size))
        with torch.no_grad():
            for parameter, value in zip(learned(objective), start, strict=True):
                parameter.copy_(value)
    return statistics.fmean(found)


# ---- the comparison --------------------------------------------------------------------------------------------------


def begin(start: str, model: PretrainedLlama, seen: Pool, config: ReptileConfig, seed: int, *, layers: int = 0,
          lora: bool = False) -> Plain:
    """One of STARTS: the model with a head for tasks of `ways` labels, tuned on the labels that may be seen."""
    drawn = random.Random(f"{seed} {start}")

    def headed(labels: Sequence[str]) -> Plain:
        task = ClassificationTask(labels, attention="full", pooling="mean", max_length=config.max_length)
        task.prepare(model, [], seed=seed)
        if layers:
            freeze(model, layers=layers, embeddings=True)
        if lora:
            add_lora(model, LoRAConfig(), generator=torch.Generator().manual_seed(seed))
        return Plain(model, task)

    numbers = [str(number) for number in range(config.ways)]
    if start == "multi-task":
        objective = headed(sorted(seen))
        samples = [dataclasses.replace(sample, goals=[number]) for number, label in enumerate(sorted(seen))
                   for sample in seen[label]]
        tune(objective, samples, steps=config.outer_steps * config.inner_steps, lr=config.lr,
             batch_size=config.batch_size, drawn=drawn, falling=True)
        if lora:
            merge_lora(model, keep_undo=False)
        remove_head(model)
    objective = headed(numbers)
    if start == "Reptile":
        progress = Progress(config.outer_steps, "task")
        for step in range(config.outer_steps):
            task = draw_task(seen, config.ways, config.inner_shots, drawn)
            reptile_step(objective, [sample for each in task for sample in each], config=config, drawn=drawn,
                         rate=config.outer_lr * (1 - step / config.outer_steps))
            progress.show(step + 1)
        progress.clear()
    return objective


def divide(pool: Pool, config: ReptileConfig, seed: int) -> tuple[Pool, Pool]:
    """Labels that may be seen, and those held out. Raises ValueError where either are too few for a task."""
    labels = random.Random(seed).sample(sorted(pool), len(pool))
    fewest = min(len(samples) for samples in pool.values())
    if min(config.held_out, len(labels) - config.held_out) < config.ways:
        raise ValueError(f"of {len(labels)} labels {config.held_out} are held out; --ways {config.ways} wants so many "
                         "on both sides: give lower --ways, or another --held-out")
    if (most := max(max(config.shots) + config.queries, config.inner_shots)) > fewest:
        raise ValueError(f"a label has {fewest} examples, fewer than {most} of --shots and --queries; give lower ones")
    return ({label: pool[label] for label in labels[config.held_out :]},
            {label: pool[label] for label in labels[: config.held_out]})


def read(examples: Sequence[Mapping[str, str]], tokenizer: Tokenizer, max_length: int) -> Pool:
    """The examples of each label as a model reads them."""
    task = ClassificationTask(sorted({example["label"] for example in examples}), max_length=max_length)
    return {label: [sample for example in examples if example["label"] == label
                    for sample in task.pieces(example, tokenizer)] for label in task.labels}


def table(kept: Mapping[str, Mapping], shots: Sequence[int], ways: int) -> str:
    """A row for each start; ▲ where each of its seeds is better than every one of multi-task tuning, ▼ where worse."""
    rows = {start: {k: [result["accuracy"][str(k)] for result in kept.values() if result["start"] == start]
                    for k in shots} for start in STARTS}
    lines = [f"accuracy among {ways} new labels, chance {1 / ways:.3f}",
             f"{'start':<14}" + "".join(f"{f'k = {k}':>18}" for k in shots)]
    for start, by_shots in rows.items():
        cells = []
        for k, values in by_shots.items():
            plain = rows["multi-task"][k] if start != "multi-task" else []
            sign = " ▲" if beats(values, plain) else " ▼" if beats(plain, values) else ""
            cells.append((shown(values) if values else "–") + sign)
        lines.append(f"{start:<14}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


def main() -> None:
    parser = cli.Parser("python -m llama.methods.reptile", __doc__.splitlines()[0])
    parser.add_argument("--model", default="zh-small", metavar="NAME|FOLDER", help="what every start begins with")
    parser.add_argument("--data", nargs="+", metavar="FILE", help="records with text and label (default: 20 poets, "
                        "fetched and put into simplified characters)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--freeze-layers", type=Range(0, 10**6), default=0, metavar="N", help="keep the embeddings and "
                      "the first N blocks as they are")
    what.add_argument("--lora", action="store_true", help="learn a LoRA adapter and the head alone")
    parser.add_argument("--seeds", type=Range(1, 1000), default=3, metavar="N", help="runs of each start")
    parser.add_argument("--output", type=file_to_write, default="benchmarks/reptile.json", metavar="FILE",
                        help="results so far: the same command goes on with what is missing")
    parser.add_argument("--json", action="store_true", help="print results as JSON on stdout")
    cli.add_flags(parser, ReptileConfig)
    arguments = parser.parse_args()
    config = cli.from_flags(ReptileConfig, arguments)
    kept = Results(Path(arguments.output))
    files = arguments.data or [fetch("poems") / "authors" / "train.jsonl"]
    simplified = str if arguments.data else Converter("t2s", fetch("opencc"))
    examples = [example | {"text": simplified(example["text"])} for example in RecordDataset(*files)]
    settings = dataclasses.asdict(config) | {"model": arguments.model, "data": [str(file) for file in files],
                                             "freeze_layers": arguments.freeze_layers, "lora": arguments.lora}
    names = {(start, seed): json.dumps(settings | {"start": start, "seed": seed}, ensure_ascii=False)
             for seed in range(arguments.seeds) for start in STARTS}
    missing = [each for each, name in names.items() if name not in kept]
    pool: Pool = {}
    for number, (start, seed) in enumerate(missing, start=1):
        say(f"[{number}/{len(missing)}] {start}, seed {seed} …")
        model = get_model(arguments.model, dtype=torch.float32)
        use_custom_gradients(model)
        pool = pool or read(examples, model.tokenizer, config.max_length)
        seen, new = divide(pool, config, seed)
        objective = begin(start, model, seen, config, seed, layers=arguments.freeze_layers, lora=arguments.lora)
        found = {str(k): few_shot(objective, new, k, config, random.Random(f"{seed} {k}")) for k in config.shots}
        kept.keep(names[start, seed], {"start": start, "seed": seed, "accuracy": found})
        say(f"    {found}")
    results = {name: kept[name] for name in names.values()}
    print(json.dumps(list(results.values()), ensure_ascii=False) if arguments.json else
          table(results, config.shots, config.ways))


if __name__ == "__main__":
    cli.run(main)
