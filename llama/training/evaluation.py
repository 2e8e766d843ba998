"""Scores of a model on a data set, over any number of processes.

Try: weigh batches equally instead of by targets; tests/test_evaluate.py fails on ragged lengths.
"""

from collections.abc import Sequence
from typing import Any

import torch

from llama.runtime import distributed
from llama.runtime.room import memory_for
from llama.tasks.instruction import ANSWER, InstructionTask
from llama.tasks.labelled import LabelledTask
from llama.tasks.task import Sample, Totals, sort_by_length
from llama.training.fsdp import is_sharded, reshard
from llama.training.objective import Plain

Result = dict[str, Any]


def evaluate(objective: Plain, samples: Sequence[Sample], tokenizer: object, *, batch_size: int) -> dict[str, float]:
    """The task's scores over all samples."""
    return objective.task.score(add_up(objective, samples, tokenizer, batch_size=batch_size))


@torch.no_grad()
def add_up(objective: Plain, samples: Sequence[Sample], tokenizer: object, *, batch_size: int) -> Totals:
    """What the scores are made of. Processes share the samples, and all have the result."""
    task, was_training = objective.task, objective.model.training
    objective.eval()
    totals = Totals()
    batches = list(sort_by_length(samples, batch_size))
    mine = distributed.shard(batches)
    with memory_for(f"evaluating batches of {batch_size} samples", lambda: _less(batch_size)):
        for some in mine:
            task.accumulate(totals, objective, samples, some, tokenizer)
        for _ in range(distributed.longest_shard(batches) - len(mine)):
            task.accumulate(Totals(), objective, samples, batches[0], tokenizer)     # shards meet in every forward pass
    objective.train(was_training)
    reshard(objective)
    return _of_all(totals)


def _less(batch_size: int) -> str:
    return f"--batch-size {batch_size // 2} takes about half" if batch_size > 1 else "give a smaller --max-length"


def _of_all(totals: Totals) -> Totals:
    """What all processes have found together."""
    loss, *counts = distributed.all_reduce_sum(totals.loss, totals.targets, totals.bytes, totals.characters)
    found = {number: each for part in distributed.all_gather(totals.found) for number, each in part.items()}
    return Totals(loss, *map(int, counts), found=found)


def evaluate_dataset(objective: Plain, dataset: Any, *, batch_size: int = 8,
          max_new_tokens: int = ANSWER) -> tuple[dict[str, float], list[Result]]:
    """All scores of a task on a data set, and what was found in each example; tasks that write have written for it.

    A model in shards writes nothing: its scores are those of the given answers alone.
    """
    model, task = objective.model, objective.task
    task.check(dataset)
    task.bind(model)
    samples = task.samples(dataset, model.tokenizer)
    totals = add_up(objective, samples, model.tokenizer, batch_size=batch_size)
    scores = task.score(totals)
    if isinstance(task, LabelledTask):
        return scores, task.results(totals)
    if not (isinstance(task, InstructionTask) and task.writes) or is_sharded(objective):
        return scores, []
    results = task.answered(model, dataset, batch_size=batch_size, max_new_tokens=max_new_tokens)
    return scores | (task.compute_metrics(results) if results else {}), results
