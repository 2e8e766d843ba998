"""Scores of a model on a data set: a function for the trainer, and the command `python -m llama.evaluate`.

Try: weigh batches equally instead of by targets; tests/test_evaluate.py fails on ragged lengths.
"""

import json
from collections.abc import Sequence

import torch

from llama import cli
from llama.objectives import Plain
from llama.tasks.task import Sample, Totals, to_device


@torch.no_grad()
def evaluate(objective: Plain, samples: Sequence[Sample], tokenizer: object, *, batch_size: int) -> dict[str, float]:
    """The task's scores over all samples, longest first, so that running out of memory happens at once or never."""
    task, was_training = objective.task, objective.model.training
    objective.eval()
    totals = Totals()
    order = sorted(range(len(samples)), key=lambda i: -len(samples[i].ids))
    for start in range(0, len(order), batch_size):
        batch = task.collate([samples[i] for i in order[start : start + batch_size]])
        loss, targets = objective(to_device(batch, objective.model.device))
        totals.loss += loss.item()
        totals.targets += targets
        totals.bytes += task.bytes_of(batch["targets"], tokenizer)
    objective.train(was_training)
    return task.score(totals)


def main() -> None:
    parser = cli.Parser("python -m llama.evaluate", "Score a model, with or without an adapter, on a data set.")
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE", help="what to score on")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="samples at a time")
    cli.add_flags(parser, cli.TaskFlags)
    cli.add_flags(parser, cli.ModelFlags)
    arguments = parser.parse_args()

    task_flags = cli.from_flags(cli.TaskFlags, arguments)
    task, dataset = cli.task_and_dataset(task_flags)
    data = dataset(arguments.data)
    model = cli.load(cli.from_flags(cli.ModelFlags, arguments))
    cli.check_model(task_flags, model)
    samples = task.samples(data, model.tokenizer)
    scores = evaluate(Plain(model, task), samples, model.tokenizer, batch_size=arguments.batch_size)
    print(json.dumps(scores) if arguments.json else table(scores))


def table(scores: dict[str, float]) -> str:
    """A score a line."""
    return "\n".join(f"{name:<16}{value:.4f}" for name, value in scores.items())


if __name__ == "__main__":
    cli.run(main)
