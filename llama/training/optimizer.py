"""How to train: the settings, optimisers by name, float32 masters, and the learning rate's course.

Try: let `MasterWeights` update the bfloat16 weights themselves; tests/test_optimizer.py shows small updates rounded
away.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from llama.runtime.ranges import FACTORS, MANY, SEEDS, Range, check_ranges

OPTIMIZERS = ("adamw", "adam", "sgd")


@dataclass(frozen=True)
class TrainConfig:
    """How to train."""

    epochs: Annotated[int, "times through the data", Range(1, 10**6)] = 1
    max_steps: Annotated[int, "stop after so many updates; 0 for no limit", Range(0, MANY)] = 0
    minutes: Annotated[float, "stop after so many minutes; 0 for no limit", Range(1e-6, 1e7, off=True)] = 0.0
    batch_size: Annotated[int, "samples that go through the model at once, in each process", Range(1, 65_536)] = 8
    accumulate: Annotated[int, "micro-batches that make one update", Range(1, 65_536)] = 1
    lr: Annotated[float, "peak learning rate", Range(1e-12, 1e3)] = 2e-4
    schedule: Annotated[Literal["cosine", "linear", "constant"], "course of the learning rate"] = "cosine"
    warmup: Annotated[float, "part of the run in which the rate rises", Range(0.0, 1.0)] = 0.05
    weight_decay: Annotated[float, "pull of matrices towards 0", Range(0.0, 1e3)] = 0.0
    lora_plus: Annotated[float, "how many times faster than A the B of an adapter learns; 0 for as fast", FACTORS] = 0.0
    clip: Annotated[float, "largest norm of the gradient; 0 for no limit", FACTORS] = 1.0
    word_dropout: Annotated[float, "part of the tokens that are hidden from the model while it learns",
                            Range(0.0, 0.5)] = 0.0
    eval_every: Annotated[int, "evaluate every so many updates; 0 for the end of each epoch", Range(0, MANY)] = 0
    sample_texts: Annotated[int, "let the model write so many texts whenever it is evaluated, or would be: to look at",
                            Range(0, 64)] = 0
    patience: Annotated[int, "stop after so many evaluations without a better loss; 0 for never", Range(0, MANY)] = 0
    save_every: Annotated[int, "save what --resume needs every so many updates; 0 for the end of each epoch",
                          Range(0, MANY)] = 0
    save_epochs: Annotated[bool, "keep the result of every epoch, as OUTPUT_epoch1 and so on"] = False
    skip_nonfinite: Annotated[int, "leave out so many updates at most whose loss or gradient is not finite; 0 stops at "
                              "the first", Range(0, MANY)] = 0
    checkpoint_activations: Annotated[bool, "recompute blocks in the backward pass: less memory, more time"] = False
    checkpoint_mlps: Annotated[bool, "recompute the feed-forward parts only: half of that, for less time"] = False
    pack: Annotated[Literal["auto", "on", "off"], "lay samples end to end instead of padding them, each seeing only "
                    "itself; auto: on the CPU"] = "auto"
    compile: Annotated[bool, "compile the blocks: half a minute at the start, then faster steps"] = False
    parallel: Annotated[Literal["ddp", "fsdp"], "of torchrun's processes each has the whole model, or a shard"] = "ddp"
    seed: Annotated[int, "seed of the order of samples and of dropout", SEEDS] = 0

    def __post_init__(self) -> None:
        check_ranges(self)


class MasterWeights:
    """Float32 originals behind parameters that compute in `dtype`; the optimiser sees the originals.

    bfloat16 keeps 8 bits: an update below 1/256 of a weight is lost when added to it, so pure bfloat16 training stalls.
    Learned originals are updated and cast a step; frozen ones wait untouched, so that saving gives them back exactly.

    dtype  None: that of the parameters, which get masters if what is learned is stored in less than float32
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype | None):
        learned = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.model = model
        self.dtype = dtype or next((p.dtype for _, p in learned if p.dtype != torch.float32), None)
        self.originals: list[tuple[nn.Parameter, Tensor]] = []      # what is cast, beside its float32 values
        if self.dtype is not None:
            self.originals = [(p, p.data.float()) for p in model.parameters()
                              if p.requires_grad or p.dtype != self.dtype]
        masters = {id(parameter): nn.Parameter(original) for parameter, original in self.originals}
        self.learned = {name: masters.get(id(parameter), parameter) for name, parameter in learned}
        self.copies = [(p, masters[id(p)]) for _, p in learned if id(p) in masters]
        self.cast_down()

    def bytes(self) -> int:
        """What the originals hold beside the parameters that compute."""
        return sum(original.nbytes for parameter, original in self.originals if parameter.dtype != original.dtype)

    def cast_down(self) -> None:
        """Let the model compute in `dtype`."""
        if self.dtype is not None:
            self.restore_fp32()
            for parameter in self.model.parameters():
                parameter.data = parameter.data.to(self.dtype)

    def restore_fp32(self) -> None:
        """Give the model its float32 parameters, learned ones as they are now; the inverse of `lower`."""
        if self.dtype is not None:
            for parameter, original in self.originals:
                parameter.data, parameter.grad = original, None
            for parameter in self.model.parameters():
                parameter.data = parameter.data.float()             # stored in `dtype`: nothing is lost on the way back

    def accumulate_grads(self) -> None:
        """After a backward pass: add its gradients to the masters', so that micro-batches add up in float32."""
        for parameter, master in self.copies:
            if parameter.grad is not None:
                gradient = parameter.grad.float()
                master.grad = gradient if master.grad is None else master.grad.add_(gradient)
                parameter.grad = None

    @torch.no_grad()
    def copy_to_model(self) -> None:
        """After an update: cast the masters to the parameters that compute."""
        for parameter, master in self.copies:
            parameter.copy_(master)


def make_optimizer(name: str, parameters: Iterable[nn.Parameter], *, lr: float, weight_decay: float,
                   faster: Iterable[nn.Parameter] = (), ratio: float = 1.0) -> torch.optim.Optimizer:
    """AdamW (arXiv:1711.05101), Adam (arXiv:1412.6980) or SGD; matrices decay, gains do not.

    Decay pulls a weight to 0; for the gain of a norm, 0 is no neutral place to be pulled to.

    faster  of these matrices, those that learn `ratio` times as fast (LoRA+, arXiv:2402.12354, eq. 4: B of an adapter).
            Each group says its own under "ratio", for whoever changes rates: `set_rate`

    Raises ValueError for another name, or where nothing is to be learned.
    """
    parameters = list(parameters)
    if not parameters:
        raise ValueError("every parameter is frozen: there is nothing to learn")
    ahead = {id(parameter) for parameter in faster}
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2 and id(p) not in ahead], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    if ahead:
        groups.append({"params": [p for p in parameters if id(p) in ahead], "weight_decay": weight_decay,
                       "lr": lr * ratio, "ratio": ratio})
    fused = all(p.device.type in ("cpu", "cuda") for p in parameters)
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=fused)
    if name == "adam":
        return torch.optim.Adam(groups, lr=lr, fused=fused)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=lr, fused=fused)
    raise ValueError(f"optimizer '{name}' is not known; known are {', '.join(OPTIMIZERS)}")


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Of each group, as many times `rate` as it learns faster."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("ratio", 1.0)


def learning_rate(done: float, *, peak: float, warmup: float, schedule: str) -> float:
    """The rate when the fraction `done` of the run lies behind: a rise over the first `warmup`, then the schedule.

    The fall, from 1 to 0: cosine (1 + cos πx)/2 (SGDR, arXiv:1608.03983, eq. 5), linear 1 - x, constant none.
    It ends at a tenth of the peak (Llama, arXiv:2302.13971, section 2.3).
    """
    if done < warmup:
        return peak * done / warmup
    x = min((done - warmup) / (1 - warmup), 1.0) if warmup < 1 else 1.0
    fall = {"cosine": (1 + math.cos(math.pi * x)) / 2, "linear": 1 - x, "constant": 1.0}[schedule]
    return peak * (0.1 + 0.9 * fall)
