"""What --resume needs, beside a result, in OUTPUT.training: what was learned, optimiser, random numbers, the step.

    last-12.pt, best-8.pt   one process, or ddp: everything after that step, written by rank 0
    last-12/, best-8/       fsdp: learned parameters and optimiser, each process its shards in rank-N.safetensors; the
                            file of that name holds the rest, and the digest of each

Two states are kept, for a disk may damage one: what is read again is compared with its digest, and where it is another,
the state before it is taken. A folder of shards counts once its file is there, files appear whole or not at all, and
only then older ones go. metrics.jsonl lies beside them, a line a step.

Try: let `_is_whole` be true; tests/test_run_state.py (test_property_of_a_damaged_state_nothing_is_taken) fails: of 30
flipped bits in what was learned, 24 went on as other weights.
"""

import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llama.datasets.token_file import tokenizer_sha256
from llama.lora.swap import adapter_configs
from llama.model import Llama
from llama.runtime import distributed
from llama.tasks.task import Sample, Task
from llama.training.digest import digest, samples_digest
from llama.training.fsdp import is_shard
from llama.training.optimizer import TrainConfig
from weights.formats.atomic_write import atomic_file, sweep, sync
from weights.formats.huggingface import write_safetensors
from weights.formats.torch_file import load_torch_file, save_torch_file

State = dict[str, Any]

KEPT = 2                                                            # states

# What may be another when a run goes on: how long it lasts, what it writes, and how it computes the same.
RESUMABLE_SETTINGS = ("epochs", "max_steps", "minutes", "eval_every", "sample_texts", "patience", "save_every",
                      "save_epochs", "skip_nonfinite", "checkpoint_activations", "checkpoint_mlps", "pack", "compile")


class Damaged(ValueError):
    """A state that is not what was written."""


class RunFolder:
    """OUTPUT.training, where a run keeps its metrics and states. Without an output nothing is written."""

    def __init__(self, output: Path | None):
        self.output = output

    def path(self, name: str) -> Path:
        return Path(f"{self.output}.training") / name

    def last(self, step: int) -> Path:
        """The state after a step."""
        return self.path(f"last-{step}.pt")

    def best(self, step: int) -> Path:
        """What evaluated best, after that step."""
        return self.path(f"best-{step}.pt")

    def steps(self, kind: str) -> list[int]:
        """After which there is a state "last" or "best", the newest first."""
        found = (re.fullmatch(rf"{kind}-(\d+)\.pt", path.name) for path in self.path("").glob("*.pt"))
        return sorted((int(name[1]) for name in found if name), reverse=True)

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl."""
        if self.output and distributed.is_rank0():
            path = self.path("metrics.jsonl")
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            except OSError as error:
                error.filename = str(path)                          # of a full disk, write() does not say
                raise

    def newest(self, check: Callable[[Path, State], None], *, in_shards: bool) -> State:
        """The newest state that is whole, and so is the best that it knows of. All processes.

        Says so where it is not the newest of all. Raises ValueError where there is none.
        """
        damaged: list[str] = []
        remedy = ""
        for step in distributed.broadcast(self.steps("last")):
            try:
                state = read_state(self.last(step), check, in_shards=in_shards)
                best = state["best"][1]
                if best and distributed.broadcast(self.best(best).exists()):
                    remedy = remedy or f"delete {self.best(best)} to go on without it, or "
                    read_state(self.best(best), in_shards=in_shards)
            except Damaged as error:
                damaged += [str(error)] if str(error) not in damaged else []
                continue
            if damaged:
                print(f"{'; '.join(damaged)}; so the run goes on from the state after step {step}", file=sys.stderr)
            return state
        if not damaged:
            raise ValueError(f"{self.path('last-*.pt')}: there is nothing to resume here; start without --resume")
        raise ValueError(f"{'; '.join(damaged)}; no state is left to go on from: {remedy}start anew with "
                         "--overwrite")

    def begin_after(self, last: int) -> None:
        """Drop what comes again: states and metrics of steps after `last`; with 0, all of an older run of this name.

        With it goes what a killed run left half written. All processes go on when that is done.
        """
        distributed.barrier()                                       # all have read their state
        if distributed.is_rank0():
            self._drop_after(last)
        distributed.barrier()                                       # and none looks at what is about to go

    def _drop_after(self, last: int) -> None:
        sweep(self.output.parent, self.output.name)
        sweep(self.path(""), alone=True)                            # the run's lock is held
        for kind in ("last", "best"):
            for step in self.steps(kind):
                if step > last:
                    forget_state(self.path(f"{kind}-{step}.pt"))
        for folder in self.path("").glob("*-*"):
            if re.fullmatch(r"(last|best)-\d+", folder.name) and not folder.with_suffix(".pt").exists():
                shutil.rmtree(folder)                               # shards of a state that was never completed
        metrics = self.path("metrics.jsonl")
        if last and metrics.exists():
            _cut_metrics(metrics, last)
        else:
            metrics.unlink(missing_ok=True)
        self.prune()                                                # where a run was killed before it could

    def prune(self) -> None:
        """Delete all but the newest states and the bests that they know of. Once the newest is on the disk."""
        if distributed.is_rank0():
            last, best = self.steps("last"), self.steps("best")
            for step in last[KEPT:]:
                forget_state(self.last(step))
            known = {max((b for b in best if b <= step), default=0) for step in last[:KEPT]}
            for step in best[1:]:
                if step not in known:
                    forget_state(self.best(step))


def _cut_metrics(path: Path, last: int) -> None:
    """Keep the lines up to the step `last`, and say which could not be read."""
    kept, broken = [], []
    content = path.read_bytes()
    for number, line in enumerate(content.split(b"\n"), start=1):
        try:
            step = json.loads(line.decode())["step"]
            if isinstance(step, bool) or not isinstance(step, int):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError):   # UnicodeDecodeError is a ValueError too
            if line:
                broken.append(str(number))
        else:
            if step <= last:
                kept.append(line + b"\n")
    if broken:
        more = f" and {len(broken) - 10} more" if len(broken) > 10 else ""
        print(f"{path}: what stands in line {', '.join(broken[:10])}{more} cannot be read and was dropped",
              file=sys.stderr)
    if (whole := b"".join(kept)) != content:
        with atomic_file(path) as file:
            file.write(whole)


# ---- what must be the same -------------------------------------------------------------------------------------------


def settings_of(model: Llama, task: Task, samples: Sequence[Sample], eval_samples: Sequence[Sample] | None,
                config: TrainConfig, *, optimizer: str, dtype: torch.dtype | None,
                more: Mapping[str, Any]) -> dict[str, Any]:
    """What a resumed run must have in common with the one before, for the state does not hold it.

    Digests where it is too much to be shown: of every sample, and of every number that is not learned.
    """
    frozen = {name: value for name, value in chain(model.named_parameters(), model.named_buffers())
              if not value.requires_grad and ".adapters." not in name}
    changing = {name: value for name, value in asdict(config).items() if name not in RESUMABLE_SETTINGS}
    asked = {name: repr(value).encode() if isinstance(value, tuple) else value for name, value in vars(task).items()
             if not name.startswith("_") and (value is None or type(value) in (str, int, float, bool, tuple))}
    return asked | changing | dict(more) | {
        "processes": distributed.size(), "optimizer": optimizer, "task": type(task).__name__,
        "dtype": str(dtype or model.dtype).removeprefix("torch."),
        "number of samples": len(samples), "data": samples_digest(samples),
        "number of evaluation samples": len(eval_samples or ()), "evaluation data": samples_digest(eval_samples or ()),
        "tokenizer": tokenizer_sha256(model.tokenizer).encode(), "shape of the model": str(model.config).encode(),
        "frozen part of the model": digest(frozen), "adapter": str(adapter_configs(model)).encode(),
    }


def check_settings(path: Path, state: State, settings: dict[str, Any]) -> None:
    """Raise ValueError where the state in the file `path` is of a run with other settings, more or fewer of them."""
    before = state["settings"]

    def was(name: str) -> str:
        if before.get(name) is None:
            return f"no {name}"
        more = " and what is mixed in" if name == "data" else ""
        return f"the same {name}{more}" if isinstance(before[name], bytes) else f"{name} = {before[name]}"

    if changed := [name for name in settings | before if before.get(name) != settings.get(name)]:
        were = [was(name) for name in changed]
        raise ValueError(f"{path} is of a run with another {', '.join(changed)}; resume with {', '.join(were)}, or "
                         "start anew with --overwrite")


# ---- states on the disk ----------------------------------------------------------------------------------------------


def write_state(path: Path, state: State, learned: dict[str, Tensor], objective: nn.Module,
                optimizer: torch.optim.Optimizer | None = None) -> None:
    """`state` with what was learned, and of the optimiser, in the file `path` or in shards beside it. All processes."""
    if in_shards(learned):
        state = state | _write_shards(path.with_suffix(""), learned, objective, optimizer)
    else:
        state = state | {"learned": learned} | ({"optimizer": optimizer.state_dict()} if optimizer else {})
    distributed.barrier()
    if distributed.is_rank0():
        if (metrics := path.with_name("metrics.jsonl")).exists():
            sync(metrics)                                           # or a power cut leaves steps that no line tells of
        save_torch_file(path, state | {"digest": digest(state)})
    distributed.barrier()


def read_state(path: Path, check: Callable[[Path, State], None] = lambda path, state: None, *,
               in_shards: bool) -> State:
    """What was written, mapped, with this process's shards. All processes.

    check  looks at it once its file is known to be whole

    Raises Damaged on all of them where any finds something else than was written.
    """
    state: State = {}
    with _agreed():
        try:
            state |= load_torch_file(path, "training state")
        except PermissionError:
            raise
        except (ValueError, OSError, MemoryError):                  # a disk may also say itself that it cannot read
            raise Damaged(f"{path} is damaged") from None
        if not _is_whole(state, state.pop("digest", None)):
            raise Damaged(f"{path} is damaged")
    check(path, state)
    if in_shards:
        with _agreed():
            state["shard"] = _read_shard(path.with_suffix(""), state["shards"])
    return state


@torch.no_grad()
def restore(state: State, learned: dict[str, Tensor], objective: nn.Module,
            optimizer: torch.optim.Optimizer | None = None) -> None:
    """Fill `learned` and the optimiser from what `read_state` gave. Raises ValueError where others were learned."""
    if "shard" in state:
        of_optimizer = _optimizer_state(objective, optimizer)
        mine = {name: _local(tensor) for name, tensor in _flat(learned, of_optimizer).items()}
        found = state["shard"]
    else:
        mine, found = learned, state["learned"]
    if {name: tensor.shape for name, tensor in mine.items()} != {name: tensor.shape for name, tensor in found.items()}:
        raise ValueError(f"the state after step {state['step']} is of another choice of learned parameters; make the "
                         "same, or start anew with --overwrite")
    for name, tensor in mine.items():
        tensor.copy_(found[name])
    if optimizer and "shard" in state:
        from torch.distributed.checkpoint.state_dict import set_optimizer_state_dict

        set_optimizer_state_dict(objective, optimizer, of_optimizer | {"param_groups": state["param_groups"]})
    elif optimizer:
        optimizer.load_state_dict(state["optimizer"])
        for values in optimizer.state.values():                     # which would otherwise live in the mapped file
            values |= {name: value.clone() for name, value in values.items() if isinstance(value, Tensor)}


def forget_state(path: Path) -> None:
    path.unlink(missing_ok=True)
    shutil.rmtree(path.with_suffix(""), ignore_errors=True)


def in_shards(learned: dict[str, Tensor]) -> bool:
    return any(is_shard(tensor) for tensor in learned.values())


@contextmanager
def _agreed() -> Iterator[None]:
    """Damage that any process finds in the body is raised on all: they must go on from one state."""
    found = ""
    try:
        yield
    except Damaged as error:
        found = str(error)
    if found := next(filter(None, distributed.all_gather(found)), ""):
        raise Damaged(found)


def _is_whole(content: State, expected: bytes | None) -> bool:
    try:
        return digest(content) == expected
    except Exception:                                               # damaged bytes become values of any kind
        return False


def _write_shards(folder: Path, learned: dict[str, Tensor], objective: nn.Module,
                  optimizer: torch.optim.Optimizer | None) -> State:
    """This process's shards of what was learned and of the optimiser's state; what is the same for all is returned.

    As safetensors: torch's own sharded checkpoints are read by unpickling, and whoever packs a run's folder could have
    anything run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = _optimizer_state(objective, optimizer)
    tensors = {name: _local(tensor).detach().cpu().contiguous()
               for name, tensor in sorted(_flat(learned, state).items())}
    ledger = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()]
    write_safetensors(folder / f"rank-{distributed.rank()}.safetensors", ledger, tensors.items())
    return {"shards": distributed.all_gather(digest(tensors)), "param_groups": state.get("param_groups", [])}


def _read_shard(folder: Path, digests: list[bytes]) -> dict[str, Tensor]:
    path = folder / f"rank-{distributed.rank()}.safetensors"
    try:
        found = dict(sorted(load_file(path).items()))
    except PermissionError:
        raise
    except Exception:                                               # as in load_torch_file
        found = {}
    if not _is_whole(found, digests[distributed.rank()]):
        raise Damaged(f"{path} is damaged")
    return found


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
