"""What --resume needs, beside a result, in OUTPUT.training: what was learned, optimiser, random numbers, the step.

    last.pt, best.pt        one process, or ddp: everything, written by rank 0
    last-12/, best-12/      fsdp: learned parameters and optimiser, each process its shards in rank-N.safetensors, and
                            plan.json; last.pt names the folder

A folder of shards counts once the file that names it is there, and files appear whole or not at all. metrics.jsonl lies
beside them, a line a step.

Try: write the file before its shards; tests/test_run_state.py (test_property_a_write_broken_off_loses_nothing)
fails.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from llama.lora.swap import adapter_configs
from llama.model import Llama
from llama.runtime import distributed
from llama.tasks.task import Sample
from llama.training.fsdp import is_shard
from llama.training.optimizer import TrainConfig
from weights.formats.atomic_write import atomic_file
from weights.formats.huggingface import write_safetensors
from weights.formats.torch_file import load_torch_file, save_torch_file

State = dict[str, Any]

# What may be another when a run goes on: how long it lasts, and what it writes and evaluates.
RESUMABLE_SETTINGS = ("epochs", "max_steps", "minutes", "eval_every", "patience", "save_every", "save_epochs",
                      "checkpoint_activations", "checkpoint_mlps", "pack", "compile")


class RunFolder:
    """OUTPUT.training, where a run keeps its metrics and states. Without an output nothing is written."""

    def __init__(self, output: Path | None):
        self.output = output

    def path(self, name: str) -> Path:
        return Path(f"{self.output}.training") / name

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        if self.output and distributed.is_rank0():
            path = self.path("metrics.jsonl")
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")

    def forget_after(self, last: int) -> None:
        """Drop the metrics of steps after `last`, which come again; with 0, all of an older run under this name."""
        distributed.barrier()                                       # all have read their state
        if not distributed.is_rank0():
            return
        for name in ("last.pt", "best.pt"):
            if last == 0:
                forget_state(self.path(name))
        path = self.path("metrics.jsonl")
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
            path.write_text("".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= last),
                            encoding="utf-8")


def settings_of(model: Llama, samples: Sequence[Sample], config: TrainConfig, *, optimizer: str,
                dtype: torch.dtype | None) -> dict[str, Any]:
    """What a resumed run must have in common with the one before, for the state does not hold it.

    Of the data a thousand samples stand for all, of each frozen parameter its first numbers.
    """
    data, base = hashlib.sha256(), hashlib.sha256()
    for i in range(0, len(samples), max(1, len(samples) // 1000)):
        data.update(repr(replace(samples[i], place="")).encode())
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and ".adapters." not in name:
            start = parameter.detach().flatten()[:256].to(torch.bfloat16).float().cpu()
            base.update(name.encode() + start.numpy().tobytes())
    changing = {name: value for name, value in asdict(config).items() if name not in RESUMABLE_SETTINGS}
    return changing | {
        "processes": distributed.size(), "optimizer": optimizer, "dtype": str(dtype),
        "number of samples": len(samples), "data": data.digest(),
        "shape of the model": str(model.config).encode(),
        "frozen part of the model": base.digest(), "adapter": str(adapter_configs(model)).encode(),
    }


def check_settings(path: Path, state: State, settings: dict[str, Any]) -> None:
    """Raise ValueError where the state in the file `path` is of a run with other settings."""
    before = state.get("settings", {})
    if changed := [name for name, value in settings.items() if before.get(name) != value]:
        were = [f"{name} = {before[name]}" for name in changed if not isinstance(before.get(name), bytes | None)]
        raise ValueError(f"{path} is of a run with another {', '.join(changed)}; resume with "
                         f"{', '.join(were) or 'the same'}, or start anew with --overwrite")


def write_state(path: Path, state: State, learned: dict[str, Tensor], objective: nn.Module,
                optimizer: torch.optim.Optimizer | None = None) -> None:
    """`state` with what was learned, and of the optimiser, in the file `path` or in shards beside it. All processes."""
    shards = ""
    if _in_shards(learned):
        shards = f"{path.stem}-{state['step']}"
        while (path.parent / shards).exists():                      # of a run that broke off, or an epoch's end
            shards += "+"
        shards = distributed.broadcast(shards)
        _write_shards(path.parent / shards, learned, objective, optimizer)
        state = state | {"shards": shards}
    else:
        state = state | {"learned": learned} | ({"optimizer": optimizer.state_dict()} if optimizer else {})
    distributed.barrier()
    if distributed.is_rank0():
        save_torch_file(path, state)
        forget_shards(path, but=shards)
    distributed.barrier()


def read_state(path: Path, learned: dict[str, Tensor], objective: nn.Module,
               optimizer: torch.optim.Optimizer | None = None, check: Callable[[State], None] = lambda state: None
               ) -> State:
    """The inverse, once `check` has seen what there is: fills `learned` and the optimiser, and gives the state.

    Raises ValueError where other parameters were learned.
    """
    state = load_torch_file(path, "training state")
    check(state)
    if _in_shards(learned):
        _read_shards(path.parent / Path(str(state["shards"])).name, learned, objective, optimizer)
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


def _write_shards(folder: Path, learned: dict[str, Tensor], objective: nn.Module,
                  optimizer: torch.optim.Optimizer | None) -> None:
    """This process's shards of what was learned and of the optimiser's state; rank 0 adds what is the same for all.

    Tensors as safetensors and the rest as JSON: torch's own sharded checkpoints are read by unpickling, and whoever
    packs a run's folder could have anything run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = _optimizer_state(objective, optimizer)
    tensors = {name: _local(tensor).detach().cpu().contiguous() for name, tensor in _flat(learned, state).items()}
    ledger = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
    write_safetensors(folder / f"rank-{distributed.rank()}.safetensors", ledger, tensors.items())
    if distributed.is_rank0():
        plan = {"processes": distributed.size(), "param_groups": state.get("param_groups", [])}
        with atomic_file(folder / "plan.json") as file:
            file.write(json.dumps(plan).encode())


@torch.no_grad()
def _read_shards(folder: Path, learned: dict[str, Tensor], objective: nn.Module,
                 optimizer: torch.optim.Optimizer | None) -> None:
    """The inverse, in place. Raises ValueError where the folder holds another number of shards, or others."""
    from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

    try:
        plan = json.loads((folder / "plan.json").read_text(encoding="utf-8"))
        found = load_file(folder / f"rank-{distributed.rank()}.safetensors")
    except (OSError, ValueError, SafetensorError):
        raise ValueError(f"{folder} is damaged: its plan.json or rank-{distributed.rank()}.safetensors cannot be read; "
                         "start anew with --overwrite") from None
    state = _optimizer_state(objective, optimizer)
    tensors = _flat(learned, state)
    shapes = {name: _local(tensor).shape for name, tensor in tensors.items()}
    if plan.get("processes") != distributed.size() or shapes != {name: tensor.shape for name, tensor in found.items()}:
        raise ValueError(f"{folder} holds the state of another choice of learned parameters, or of another number of "
                         "processes")
    for name, tensor in tensors.items():
        _local(tensor).copy_(found[name])
    if optimizer:
        state["param_groups"] = plan["param_groups"]
        set_optimizer_state_dict(objective, optimizer, state)


def _optimizer_state(objective: nn.Module, optimizer: torch.optim.Optimizer | None) -> State:
    """By the names of parameters; nothing without an optimiser."""
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    return get_optimizer_state_dict(objective, optimizer) if optimizer else {}


def _flat(learned: dict[str, Tensor], optimizer_state: State) -> dict[str, Tensor]:
    tensors = {f"learned.{name}": tensor for name, tensor in learned.items()}
    for name, values in optimizer_state.get("state", {}).items():
        tensors |= {f"optimizer.{name}.{key}": value for key, value in values.items() if isinstance(value, Tensor)}
    return tensors


def _local(tensor: Tensor) -> Tensor:
    """A process's own part; the whole of a tensor that is not sharded."""
    return tensor.to_local() if is_shard(tensor) else tensor


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
