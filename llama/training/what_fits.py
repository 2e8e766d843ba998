"""Whether a run has room, on its disk and in memory, and by which flags it would fit.

    dry_run(trainer, …)             # a run's costs, and what is free
    check_disk_of(trainer)          # refuses before the first step what would end at the last
    print(remark(trainer))          # before a run, where the estimate exceeds what is free
    advice(trainer, free)           # for the sentence of a run that has no memory left

Estimates are those of llama/training/memory_estimate.py, so only flags are named that by its figures help, those first
that cost least: smaller batches give the same updates, computing again costs time, fewer bits change the base, and
shorter samples the data.

Try: let every flag count that needs less at all; tests/test_what_fits.py (test_property_named_flags_fit) fails.
"""

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from llama.lora.swap import has_lora
from llama.quantization.swap import BYTES, is_quantized
from llama.runtime.progress import duration
from llama.runtime.room import SURE, check_disk, free_disk, free_memory, memory_for, size
from llama.runtime.worker import peak_memory
from llama.training.memory_estimate import artefact_bytes, megabytes, predict, terms_of, time_two_steps
from llama.training.run_state import KEPT

HELD_BEFORE = ("program", "weights", "float32 masters", "teacher")
SHORTEST = 32                                                       # tokens of a sample


# ---- the disk --------------------------------------------------------------------------------------------------------


def disk_of(trainer: Any) -> dict[str, int]:
    """Bytes that a run writes and has on the disk at once at most, by what they are for."""
    config, learned = trainer.config, sum(4 * each.numel() for each in trainer.masters.learned.values())
    moments = {"adamw": 2, "adam": 2, "sgd": 0}[trainer.optimizer_name]
    every = config.save_every or trainer.steps_per_epoch
    epochs = trainer.total_steps // trainer.steps_per_epoch if config.save_epochs else 0
    return {
        "results": (1 + epochs) * artefact_bytes(trainer),
        "states": min(KEPT + 1, math.ceil(trainer.total_steps / every)) * (1 + moments) * learned,   # one in writing
        "the best": (KEPT + 1) * learned if trainer.eval_samples is not None else 0,
    }


def check_disk_of(trainer: Any) -> None:
    """Raise ValueError where the disk of the output has no room for it; what an earlier part wrote there is reused."""
    needs, run = disk_of(trainer), Path(f"{trainer.output}.training")
    there = sum(path.stat().st_size for name in ("*.pt", "last-*/*", "best-*/*") for path in run.glob(name))
    parts = ", ".join(f"{name} {size(needs[name])}" for name in needs if needs[name])
    ways = ["make room", *(["leave --save-epochs out"] if trainer.config.save_epochs else []),
            *(["learn an adapter alone with --lora"] if trainer.model.source and not has_lora(trainer.model) else [])]
    check_disk(trainer.output, sum(needs.values()) - there, f"this run ({parts})",
               f"{', '.join(ways)}, or give --output on another disk")


# ---- memory ----------------------------------------------------------------------------------------------------------


def more_memory(trainer: Any, **other: Any) -> int:
    """Bytes that a step takes beside what is held before it: of the run as it is, or as `terms_of` has `other`."""
    terms = terms_of(trainer, optimizer=trainer.optimizer_name, dtype=trainer.masters.dtype, **other)
    return sum(count for name, count in terms.items() if name not in HELD_BEFORE)


def remark(trainer: Any) -> str:
    """A line where a step takes more than is free; "" where it does not, or nobody knows."""
    if trainer.config.parallel == "fsdp":                           # the estimate is of a whole model
        return ""
    free, needed = free_memory(trainer.model.device), more_memory(trainer)
    if needed <= free:
        return ""
    return (f"a step of this run takes about {size(needed)} more memory by the estimate, and {size(free)} are free: "
            f"{advice(trainer, free)}")


def watch_memory(trainer: Any) -> Callable[[], AbstractContextManager[None]]:
    """Say on stderr what `remark` says; gives the context of every step, in which a lack of memory is explained."""
    if line := remark(trainer):
        print(line, file=sys.stderr)
    free = free_memory(trainer.model.device)                        # before the first step
    what = "training step {} on batches of {} samples"
    return lambda: memory_for(f"taking {what.format(trainer.step + 1, trainer.config.batch_size)}",
                              lambda: advice(trainer, free))


def advice(trainer: Any, free: float) -> str:
    """Which flags would fit into `free` bytes, or where it ran out though it seemed to fit, into less than now."""
    needed = more_memory(trainer)
    room = min(free, 0.9 * needed) / SURE
    found = list(_fitting(trainer, room))
    if found:
        return f"by the estimate of {size(needed)} these would fit: {'; '.join(found)}"
    return f"by the estimate of {size(needed)} no flag alone makes it fit; take a smaller model, or more memory"


def _fitting(trainer: Any, room: float) -> Iterator[str]:
    config, model = trainer.config, trainer.model
    smaller = [count for count in (2**n for n in range(16, -1, -1)) if count < config.batch_size]
    fits = next((count for count in smaller if more_memory(trainer, batch_size=count) <= room), 0)
    if fits:
        yield (f"--batch-size {fits} --accumulate {math.ceil(config.batch_size * config.accumulate / fits)} (the same "
               "updates)")
    fewest = 1 if smaller else config.batch_size
    for name, flag in (("mlps", "--checkpoint-mlps"), ("blocks", "--checkpoint-activations")):
        given = config.checkpoint_activations or config.checkpoint_mlps and name == "mlps"
        if not given and more_memory(trainer, checkpointed=name) <= room:
            yield f"{flag} (more time)"
    if not fits and not config.checkpoint_activations and smaller and more_memory(
            trainer, batch_size=fewest, checkpointed="blocks") <= room:
        yield f"--batch-size 1 --accumulate {config.batch_size * config.accumulate} with --checkpoint-activations"
    if has_lora(model) and not is_quantized(model) and config.parallel != "fsdp":
        for bits in (8, 4):
            if more_memory(trainer) - saved_by(model, bits) <= room:
                yield f"--quantize int{bits}"
    longest = max(sample.reads for sample in (trainer.samples[i] for i in trainer._samples_of_step(trainer.step)))
    shorter = (2**n for n in range(24, 4, -1) if SHORTEST <= 2**n < longest)
    if fits := next((count for count in shorter if more_memory(trainer, longest=count) <= room), 0):
        yield f"--max-length {fits} (train.py: --block-size {fits})"


def saved_by(model: nn.Module, bits: int) -> float:
    """Bytes that a frozen base of floats takes less in 8 or 4 bits; embeddings are in 8 both times."""
    weights = {id(module.weight): (module.weight, BYTES[8 if isinstance(module, nn.Embedding) else bits])
               for module in model.modules() if isinstance(module, nn.Embedding | nn.Linear)}
    return sum(weight.nbytes - weight.numel() * each for weight, each in weights.values())


# ---- a plan ----------------------------------------------------------------------------------------------------------


def dry_run(trainer: Any, *, optimizer: str, dtype: torch.dtype | None, program: int, output: Path,
            as_json: bool) -> None:
    """Print what the run will cost; nothing is written.

    program  `resident_set_size()` before loading the model;  output  where the result would go
    """
    free = free_memory(trainer.model.device)                        # before the two steps take their part
    costs = predict(trainer, optimizer=optimizer, dtype=dtype, program=program, loading=peak_memory())
    costs |= {"disk": disk_of(trainer), "free_disk": free_disk(output)}
    warning = remark(trainer)
    costs |= time_two_steps(trainer)
    print("\n".join(filter(None, [table(costs, free), warning])), file=sys.stderr if as_json else sys.stdout)
    if as_json:
        print(json.dumps({"dry_run": costs}))


def table(costs: dict[str, Any], free: float) -> str:
    memory, numbers = costs["memory"], costs["parameters"]
    an_hour, steps = 3600 / costs["seconds_a_step"], round(costs["seconds"] / costs["seconds_a_step"])
    all_steps = f"{steps:,} of {costs['steps']:,}" if steps < costs["steps"] else f"{steps:,}"
    rows = [("parameters", f"{numbers:,}, of which {costs['learned']:,} learn ({costs['learned'] / numbers:.2%})")]
    rows += [(f"memory, {phase}", megabytes(memory[phase])) for phase in ("loading", "training", "saving")]
    rows += [(f"  {name}", megabytes(value)) for name, value in costs["terms"].items() if value]
    rows += [("  free before the first", size(free))] if free < math.inf else []
    rows += [("a step", f"{costs['seconds_a_step']:.2f} s, by the second of two"),
             ("an hour", f"{an_hour:,.0f} steps, {an_hour / costs['steps_per_epoch']:.2g} times through the data"),
             ("all", f"{all_steps} steps, {duration(costs['seconds'])}, and evaluations"),
             ("what is written", megabytes(costs["artefact"])),
             ("the disk, at once", f"{size(sum(costs['disk'].values()))} with what --resume needs; free there "
              f"{size(costs['free_disk'])}")]
    return "\n".join(f"{name:<24}{text}" for name, text in rows)
