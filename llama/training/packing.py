"""The samples of one step as micro-batches with little or no padding. What is learned stays the same.

    padded   [a b c d]      packed   [a b c d e f g h i]     one row, without gaps
             [e f . .]      lengths   4       2   3
             [g h i .]      positions 0 1 2 3 0 1 0 1 2

A step's loss is summed over its targets, so neither the order of its samples nor their layout changes the update. They
are sorted by length first: micro-batches of neighbours need less padding. Packed, they lie behind each other in a row;
each sees only itself (`document_mask`), at positions of its own.

Try: leave the mask out; tests/test_packing.py (test_two_ways_packed_equals_padded) fails. (Let positions run on, and
only the worked example does: rotary attention sees distances alone.)
"""

from collections.abc import Sequence

import torch

from llama.masks import Documents, Prefix, document_mask
from llama.model import Llama
from llama.tasks.task import IGNORE_INDEX, Batch, Sample, Task


def micro_batches(samples: Sequence[Sample], size: int) -> list[list[Sample]]:
    """At most `size` samples each, neighbours in length, longest first: memory runs out at once or never."""
    order = sorted(samples, key=lambda sample: -sample.reads)
    return [order[start : start + size] for start in range(0, len(order), size)]


def should_pack(model: Llama, task: Task, wish: str) -> bool:
    """Whether the samples of this task are to be packed: "on", "off", or "auto", which does so on the CPU.

    On a GPU a mask of documents takes its fastest attention away, so there it has to be asked for.

    Raises ValueError for "on" where a packed row would compute something else.
    """
    scaling = model.config.rope_scaling
    why = ""
    if getattr(task, "attention", "causal") == "full":
        why = "this task looks through whole texts (--attention full)"
    elif takes_prefix(model):
        why = "an encoder reads one text a row"
    elif getattr(task, "paired", False):
        why = "a pair of answers is two rows of a batch"
    elif scaling and scaling.kind == "dynamic":
        why = "dynamic scaling turns a row's positions by the longest text in it"
    if wish == "on" and why:
        raise ValueError(f"--pack: {why}; leave it out")
    return wish == "on" or wish == "auto" and not why and model.device.type == "cpu" and not model.config.sliding_window


def pack_or_pad(task: Task, samples: Sequence[Sample], room: int) -> Batch:
    """A micro-batch: packed, or padded where all samples have one length, or the row would exceed `room` positions.

    Always one batch, whatever the lengths: of several processes each must make as many.
    """
    return pack(task, samples) if in_one_row(samples, room) else task.collate(samples)


def in_one_row(samples: Sequence[Sample], room: int) -> bool:
    """Whether packing gains something, and does not exceed `room` positions."""
    lengths = [sample.reads for sample in samples]
    return len(set(lengths)) > 1 and sum(lengths) <= room


def pack(task: Task, samples: Sequence[Sample]) -> Batch:
    """One row (1, N) of all samples, as `collate` makes it of each, with "positions" and "lengths" (n,) int64."""
    batches = [task.collate([sample]) for sample in samples]
    lengths = [batch["tokens"].shape[1] for batch in batches]
    whole = task.joined(batches)
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    return whole | {"positions": positions, "lengths": torch.tensor(lengths)}


def takes_prefix(model: Llama) -> bool:
    """Whether an encoder reads what is given of each row, and a decoder writes the rest (llama/relatives/t5.py)."""
    return getattr(model, "takes_prefix", False)


def mask_of(model: Llama, batch: Batch) -> torch.Tensor | Documents | Prefix | None:
    """The mask of a batch, as the model's attention takes it."""
    if takes_prefix(model):                                         # given is all before the first target
        return Prefix((batch["targets"] != IGNORE_INDEX).int().argmax(-1) + 1)
    if "lengths" not in batch:
        return batch.get("mask")
    takes = model.layers[0].self_attn.takes_documents
    return Documents(tuple(batch["lengths"].tolist())) if takes else document_mask(batch["lengths"])


def sample_of_position(batch: Batch) -> torch.Tensor:
    """To which sample of a batch, by its number, each position belongs: (B, T) int64."""
    B, T = batch["tokens"].shape
    numbers = torch.arange(B, device=batch["tokens"].device)
    if "lengths" not in batch:
        return numbers[:, None].expand(B, T)
    lengths = batch["lengths"]
    return torch.arange(len(lengths), device=lengths.device).repeat_interleave(lengths)[None]
