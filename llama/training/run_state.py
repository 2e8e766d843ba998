"""What --resume needs, beside a result, in OUTPUT.training: what was learned, optimiser, random numbers, the step.

    last.pt, best.pt        one process, or ddp: everything, written by rank 0
    last-12/, best-12/      fsdp: learned parameters and optimiser, each process its shards; last.pt names the folder

A folder of shards counts once the file that names it is there, and files appear whole or not at all.

Try: write the file before its shards; tests/test_run_state.py (test_property_a_write_broken_off_loses_nothing)
fails.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from llama.runtime import distributed
from llama.training.fsdp import is_shard
from weights.formats.single_file import read_whole, write_whole

State = dict[str, Any]


def write_state(path: Path, state: State, learned: dict[str, Tensor], objective: nn.Module,
                optimizer: torch.optim.Optimizer | None = None) -> None:
    """`state` with what was learned, and of the optimiser, in the file `path` or in shards beside it. All processes."""
    shards = ""
    if _in_shards(learned):
        shards = f"{path.stem}-{state['step']}"
        while (path.parent / shards).exists():                      # of a run that broke off, or an epoch's end
            shards += "+"
        shards = distributed.agreed(shards)
        from torch.distributed import checkpoint

        checkpoint.save(_sharded(learned, objective, optimizer), checkpoint_id=str(path.parent / shards))
        state = state | {"shards": shards}
    else:
        state = state | {"learned": learned} | ({"optimizer": optimizer.state_dict()} if optimizer else {})
    distributed.wait()
    if distributed.first():
        write_whole(path, state)
        forget_shards(path, but=shards)
    distributed.wait()


def read_state(path: Path, learned: dict[str, Tensor], objective: nn.Module,
               optimizer: torch.optim.Optimizer | None = None, check: Callable[[State], None] = lambda state: None
               ) -> State:
    """The inverse, once `check` has seen what there is: fills `learned` and the optimiser, and gives the state.

    Raises ValueError where other parameters were learned.
    """
    state = read_whole(path, "training state")
    check(state)
    if _in_shards(learned):
        from torch.distributed import checkpoint
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        tensors = _sharded(learned, objective, optimizer)
        checkpoint.load(tensors, checkpoint_id=str(path.parent / state["shards"]))
        if optimizer:
            set_optimizer_state_dict(objective, optimizer, tensors["optimizer"])
        return state
    if {name: tensor.shape for name, tensor in state["learned"].items()} != \
            {name: tensor.shape for name, tensor in learned.items()}:
        raise ValueError(f"{path} holds the state of another choice of learned parameters")
    with torch.no_grad():
        for name, tensor in learned.items():
            tensor.copy_(state["learned"][name])
    if optimizer:
        optimizer.load_state_dict(state["optimizer"])
    return state


def forget_state(path: Path) -> None:
    path.unlink(missing_ok=True)
    forget_shards(path)


def forget_shards(path: Path, *, but: str = "") -> None:
    """Delete the folders that a state file named before; `but` is the one that it names now."""
    for folder in path.parent.glob(f"{path.stem}-*/"):
        if folder.name != but:
            shutil.rmtree(folder)


def _in_shards(learned: dict[str, Tensor]) -> bool:
    return any(is_shard(tensor) for tensor in learned.values())


def _sharded(learned: dict[str, Tensor], objective: nn.Module, optimizer: torch.optim.Optimizer | None) -> State:
    """What torch's checkpoints read and write: a process its own shards, in place."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    return {"learned": learned} | ({"optimizer": get_optimizer_state_dict(objective, optimizer)} if optimizer else {})


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Of this process's generators: the CPU's, and that of the device that it computes on."""
    state = {"cpu": torch.get_rng_state()}
    if device.type in ("cuda", "mps"):
        state[device.type] = getattr(torch, device.type).get_rng_state()
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """The inverse; a device that the run was not on before keeps its own."""
    torch.set_rng_state(state["cpu"])
    if device.type != "cpu" and device.type in state:
        getattr(torch, device.type).set_rng_state(state[device.type])
