"""Training on several processes, on torch's own engine: `torchrun --nproc-per-node N train.py …`.

    ddp    every process has the whole model and a part of each batch; gradients are averaged (arXiv:2006.15704)
    fsdp   every process has a shard of every matrix as well (arXiv:2304.11277): llama/training/fsdp.py

Alone, every function here does nothing, or gives back what it got, so that one loop serves all. A process is known by
its rank; the first, rank 0, writes and speaks. Whatever decides how the run goes on (the clock, Ctrl-C, a loss that is
not finite) must be agreed on: a process that leaves the loop earlier leaves the others waiting for ever.

Try: let `all_reduce_sum` give back what it got; tests/test_distributed.py
(test_two_ways_gradients_and_ten_steps_equal_one_process) fails, since parts of a batch have different numbers of
targets.
"""

import contextlib
import os
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

PATIENCE = timedelta(hours=2)                                       # while one process tokenises, or saves
LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "NCCL communicator was aborted")
SAID_ONCE = 1.0                                                     # s before another rank says what the first may say

Value = TypeVar("Value")


def launched() -> bool:
    """Whether torchrun, or whatever sets the same variables, has started this process."""
    return all(name in os.environ for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"))


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def is_rank0() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


# ---- coming and going ------------------------------------------------------------------------------------------------


def init_process_group(device: torch.device) -> torch.device:
    """Meet the other processes, if there are any, and give the device of this one. Ranks above 0 fall silent.

    Raises ValueError for a device that processes cannot share.
    """
    if not launched():
        return device
    backend = {"cuda": "nccl", "cpu": "gloo"}.get(device.type)
    if backend is None:
        raise ValueError(f"processes of torchrun cannot meet on {device.type}; give --device cpu, or leave torchrun "
                         "out")
    options = {}
    if device.type == "cuda":
        here, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if here >= there:
            raise ValueError(f"this machine has {there} GPUs and torchrun started a process for number {here + 1}; "
                             f"give --nproc-per-node {there}")
        device = torch.device("cuda", here)
        torch.cuda.set_device(device)
        options["device_id"] = device
    dist.init_process_group(backend, timeout=PATIENCE, **options)
    if is_rank0():
        print(f"{size()} processes on {device.type} ({backend}); rank 0 writes and speaks for all", file=sys.stderr)
    else:
        silence = open(os.devnull, "w", encoding="utf-8")           # noqa: SIM115 (as long as the process)
        silence.voice = sys.stdout, sys.stderr
        sys.stdout = sys.stderr = silence
    return device


def destroy_process_group() -> None:
    """Part from the others once all are done: whoever goes earlier may abort those that still send."""
    if dist.is_initialized():
        barrier()
        dist.destroy_process_group()


def complain(text: str) -> None:
    """Say on stderr why this process fails, also one that was silent.

    What all refuse is said once: the others wait a moment, in which torchrun ends them because the first has ended.
    """
    hear()
    if launched() and (number := int(os.environ["RANK"])):
        time.sleep(SAID_ONCE)
        text = f"rank {number}: {text}"
    print(text, file=sys.stderr, flush=True)


def hear() -> None:
    """Give a silent rank its voice back."""
    sys.stdout, sys.stderr = getattr(sys.stderr, "voice", (sys.stdout, sys.stderr))


def lost(error: Exception) -> bool:
    """Whether an error says no more than that another process cannot be reached any longer."""
    return isinstance(error, RuntimeError) and size() > 1 and any(words in str(error) for words in LOST)


def barrier() -> None:
    """Go on once all processes have come here."""
    if dist.is_initialized():
        dist.barrier()


@contextlib.contextmanager
def first_goes_first() -> Iterator[None]:
    """The body on rank 0, then on the others, which find what it wrote; all go on together."""
    if not is_rank0():
        barrier()
    yield
    if is_rank0():
        barrier()
    barrier()


# ---- sharing ---------------------------------------------------------------------------------------------------------


def shard(items: Sequence[Value]) -> Sequence[Value]:
    """This process's share, every size-th: together all, none twice, none more than one longer than another's."""
    return items[rank() :: size()]


def longest_shard(items: Sequence[Any]) -> int:
    """How many items the largest share has, that of rank 0."""
    return -(-len(items) // size())


def all_reduce_sum(*numbers: float) -> list[float]:
    """Each number summed over all processes."""
    return _reduced(numbers, dist.ReduceOp.SUM)


def all_reduce_max(*numbers: float) -> list[float]:
    """The largest that any process has, of each number."""
    return _reduced(numbers, dist.ReduceOp.MAX)


def _reduced(numbers: Sequence[float], operation: Any) -> list[float]:
    if size() == 1:
        return list(numbers)
    tensor = torch.tensor(numbers, dtype=torch.float64, device=_device())
    dist.all_reduce(tensor, operation)
    return tensor.tolist()


def broadcast(value: Value) -> Value:
    """What rank 0 has."""
    values = [value]
    if size() > 1:
        dist.broadcast_object_list(values, src=0)
    return values[0]


def all_gather(value: Value) -> list[Value]:
    """What each process has, by rank; on every process."""
    values = [value]
    if size() > 1:
        values = [None] * size()
        dist.all_gather_object(values, value)
    return values


def _device() -> torch.device:
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")


# ---- the whole model in every process --------------------------------------------------------------------------------


def wrap_ddp(objective: nn.Module) -> nn.Module:
    """`objective` as it is called from now on: backward passes leave the mean of all processes' gradients.

    What does not learn is neither sent nor compared.
    """
    if not dist.is_initialized():
        return objective
    device = next(objective.parameters()).device
    return nn.parallel.DistributedDataParallel(objective, device_ids=[device] if device.type == "cuda" else None)


def no_sync(wrapped: nn.Module, *, stay: bool) -> contextlib.AbstractContextManager[Any]:
    """In the body, gradients add up in this process; the next backward pass outside sends them all."""
    replicas = isinstance(wrapped, nn.parallel.DistributedDataParallel)
    return wrapped.no_sync() if replicas and stay else contextlib.nullcontext()
