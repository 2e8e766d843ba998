"""Where numbers stopped being finite: the first module, in the order of the forward pass, that gives NaN or infinity.

A run that is well pays nothing for it: only once a loss or a gradient is not finite, the same samples go through the
model once more, watched by hooks from outside, with dropout off.

Try: look at outputs alone, not at what goes in; tests/test_nonfinite.py
(test_worked_example_what_bursts_between_two_modules) fails: what the attention spoils would be said of o_proj.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llama.runtime import distributed
from llama.tasks.task import Batch
from llama.training.fsdp import is_shard, reshard


def where_it_began(objective: nn.Module, learned: Mapping[str, nn.Parameter], batches: Sequence[Batch],
                   loss: float) -> str:
    """A sentence's part on the samples that failed. All processes ask, and hear the same.

    It names the module, or where the loss is finite, the parameter whose gradient is the first in the backward pass
    not to be.
    """
    if math.isfinite(loss):
        places = [i for i, parameter in enumerate(learned.values()) if not _finite(parameter.grad)]
        last = max(distributed.all_gather(max(places, default=-1)))     # the backward pass begins at the end
        return f"the first gradient that is not finite is that of {list(learned)[last]}"
    found = next(filter(None, distributed.all_gather(first_module(objective, batches))), "")
    return f"it began {found}" if found else \
        "with dropout off the same samples give finite numbers, so it began in what dropout left"


@torch.no_grad()
def first_module(objective: nn.Module, batches: Sequence[Batch]) -> str:
    """«in layers.1.mlp.down_proj», «between layers.0 and layers.1», «in the head or the loss»; "" if all is finite."""
    found: list[str] = []
    ended = ["the embeddings"]                                      # the module that was finite before

    def before(name: str, inputs: tuple[Any, ...]) -> None:
        if not found and inputs and not _finite(inputs[0]):
            found.append(f"between {ended[0]} and {name}")

    def after(name: str, module: nn.Module, output: Any) -> None:
        if found:
            return
        if _finite(output):
            ended[0] = name
            return
        bad = [each for each, parameter in module.named_parameters(recurse=False) if not _finite(parameter)]
        found.append(f"in {name}" + (f", whose {bad[0]} holds NaN or infinity" if bad else ""))

    hooks = []
    for name, module in objective.model.named_modules():
        if name:
            hooks.append(module.register_forward_pre_hook(lambda _, inputs, name=name: before(name, inputs)))
            hooks.append(module.register_forward_hook(lambda module, _, output, name=name: after(name, module, output)))
    training = objective.training
    objective.eval()
    try:
        with torch.compiler.set_stance("force_eager"):              # compiled blocks would not see hooks
            for batch in batches:
                loss, _ = objective(batch)
                if not found and not math.isfinite(loss):
                    found.append("in the head or the loss, on finite states")
    finally:
        for hook in hooks:
            hook.remove()
        objective.train(training)
        reshard(objective)
    return found[0] if found else ""


def poisoned(learned: Mapping[str, Tensor]) -> str:
    """The first of what was learned that holds NaN or infinity, in any process; "" if there is none."""
    bad = next((name for name, tensor in learned.items() if not _finite(tensor)), "")
    return next(filter(None, distributed.all_gather(bad)), "")


def refuse_poisoned(learned: Mapping[str, Tensor], step: int) -> None:
    """Raise RuntimeError where that is so, rather than to save it."""
    if bad := poisoned(learned):
        raise RuntimeError(f"after step {step} {bad} holds NaN or infinity, so nothing of it is saved; earlier states "
                           "are kept: start anew with a lower --lr")


def told(trainer: Any, indices: Sequence[int], step: int, loss: float, norm: float) -> str:
    """Which step, with which samples, has which numbers."""
    places = ", ".join(trainer.samples[i].place or str(i) for i in indices)
    return f"step {step}: the loss is {loss} and its gradient {norm}, on samples {places}"


def _finite(value: Any) -> bool:
    """Of a tensor, also this process's shard of one; what is none says nothing against it."""
    if isinstance(value, tuple | list):
        return all(map(_finite, value))
    if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
        return True
    value = value.detach()
    return bool((value.to_local() if is_shard(value) else value).isfinite().all())
