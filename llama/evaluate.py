"""Scores of a model on a data set: a function for the trainer, and the command `python -m llama.evaluate`.

Try: weigh batches equally instead of by targets; tests/test_evaluate.py fails on ragged lengths.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama.interrupt import quiet_start

with quiet_start(__name__):
    import torch

    from llama import cli
    from llama.objectives import Plain
    from llama.tasks.labelled import LabelledTask
    from llama.tasks.task import Sample, Totals, longest_first
    from weights.whole import whole_file


def evaluate(objective: Plain, samples: Sequence[Sample], tokenizer: object, *, batch_size: int) -> dict[str, float]:
    """The task's scores over all samples."""
    return objective.task.score(add_up(objective, samples, tokenizer, batch_size=batch_size))


@torch.no_grad()
def add_up(objective: Plain, samples: Sequence[Sample], tokenizer: object, *, batch_size: int) -> Totals:
    """What the scores are made of."""
    task, was_training = objective.task, objective.model.training
    objective.eval()
    totals = Totals()
    for some in longest_first(samples, batch_size):
        task.tally(totals, objective, samples, some, tokenizer)
    objective.train(was_training)
    return totals


def main() -> None:
    parser = cli.Parser("python -m llama.evaluate", "Score a model, with or without an adapter, on a data set.")
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE", help="what to score on")
    parser.add_argument("--batch-size", type=int, default=8, metavar="N", help="samples at a time")
    parser.add_argument("--predictions", metavar="FILE", help="write what was found in each example, as lines of JSON")
    parser.add_argument("--show-errors", type=int, default=0, metavar="N", help="print N examples that came out wrong")
    cli.add_flags(parser, cli.TaskFlags)
    cli.add_flags(parser, cli.ModelFlags, skip=("compile",))
    arguments = parser.parse_args()

    task_flags = cli.from_flags(cli.TaskFlags, arguments)
    task, dataset = cli.task_and_dataset(task_flags)
    with_labels = isinstance(task, LabelledTask)
    if not with_labels and (arguments.predictions or arguments.show_errors):
        raise ValueError(f"--predictions and --show-errors are about labels; --task {task_flags.task} has none")
    data = dataset(arguments.data)
    model = cli.load(cli.from_flags(cli.ModelFlags, arguments), purpose="evaluate")
    cli.check_model(task_flags, model)
    task.adopt(model)
    samples = task.samples(data, model.tokenizer)
    totals = add_up(Plain(model, task), samples, model.tokenizer, batch_size=arguments.batch_size)
    scores = task.score(totals)
    results = task.results(totals) if with_labels else []
    details, text = task.details(results) if with_labels else ({}, "")
    if arguments.predictions:
        write_predictions(arguments.predictions, results)
    print(json.dumps(scores | details, ensure_ascii=False) if arguments.json else "\n\n".join(
        filter(None, [table(scores), text])))
    if arguments.show_errors:
        print(errors(results, arguments.show_errors), file=sys.stderr if arguments.json else sys.stdout)


def write_predictions(path: str | Path, results: Sequence[dict[str, Any]]) -> None:
    """What was found in each example, a line of JSON each; the file is written whole or not at all."""
    with whole_file(Path(path)) as file:
        for result in results:
            file.write((json.dumps({name: _named(value) for name, value in result.items()}, ensure_ascii=False)
                        + "\n").encode())


def _named(value: Any) -> Any:
    """Entities as objects with names, not as rows."""
    if isinstance(value, list):
        return [each._asdict() if isinstance(each, tuple) else each for each in value]
    return value


def errors(results: Sequence[dict[str, Any]], most: int) -> str:
    """The first `most` examples in which something else was found than what is right, to look at."""
    wrong = [result for result in results if not result["correct"]]
    lines = [f"{len(wrong):,} of {len(results):,} are not right" + (f"; the first {most}" if len(wrong) > most else "")]
    for result in wrong[:most]:
        lines += ["", f"{result['place']}  {shortened(result['text'])}", f"  right      {_shown(result['gold'])}",
                  f"  predicted  {_shown(result['predicted'])}"]
    return "\n".join(lines)


def shortened(text: str, most: int = 200) -> str:
    """In one line, without what a terminal would obey."""
    text = "".join(sign if sign.isprintable() else " " for sign in text)
    return text if len(text) <= most else f"{text[:most]} …"


def _shown(found: Any) -> str:
    """A label, words or entities, each between quotation marks."""
    if isinstance(found, str):
        return f"«{shortened(found)}»"
    return " ".join(f"«{shortened(each[0])}» {each[1]}" if isinstance(each, tuple) else f"«{shortened(each)}»"
                    for each in found) or "nothing"


def table(scores: dict[str, float]) -> str:
    """A score a line."""
    return "\n".join(f"{name:<20}{value:.4f}" for name, value in scores.items())


if __name__ == "__main__":
    cli.run(main)
