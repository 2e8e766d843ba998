"""FSDP2: every process holds a shard of each parameter, of its gradient, and of the optimiser's state.

`fully_shard` on each block, then on the objective, which gets what is left: embeddings, norm, head. A block's matrices
are gathered while it computes and let go again, so a process needs its share of the whole and one block beside it.
Full tuning keeps float32 shards that are gathered in the dtype to compute in, and gradients are summed in float32:
what llama/training/optimizer.py's masters are to one process.

Try: leave `cast_forward_inputs` on; tests/test_distributed.py (test_property_rotary_tables_stay_exact) fails, since
rotary tables would reach the blocks in bfloat16.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from llama.checkpoint import PretrainedLlama
from llama.quantization.swap import is_quantized
from llama.runtime import distributed


def shard(objective: nn.Module, *, dtype: torch.dtype | None) -> None:
    """Shard `objective` over all processes, in place.

    dtype  to compute in, where parameters are float32; None: each parameter's own

    Raises ValueError where there are no processes, for a model in few bits, whose kernels keep matrices of their own,
    and on CPUs where torch cannot do it.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method  # half a second

    model = objective.model
    if not distributed.launched():
        raise ValueError("--parallel fsdp shards a model over processes, and this is the only one; start it with "
                         "torchrun --nproc-per-node N, or leave --parallel out")
    if is_quantized(model):
        raise ValueError("--parallel fsdp shards floats; a base in 8 or 4 bits is small enough for --parallel ddp")
    if model.device.type == "cpu" and not cpu_can_shard():
        raise ValueError(f"--parallel fsdp on CPUs needs torch 2.7, and this is {torch.__version__}; take --parallel "
                         "ddp, or update torch")
    dtype = dtype or next((p.dtype for p in model.parameters() if p.requires_grad and p.dtype != torch.float32), None)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    for layer in model.layers:
        fully_shard(layer, mp_policy=policy)
    fully_shard(objective, mp_policy=policy)
    register_fsdp_forward_method(objective, "scores")


def cpu_can_shard() -> bool:
    """Whether this torch can shard on CPUs, as those since 2.7 do."""
    return hasattr(torch.cpu.Stream, "record_event")


def is_sharded(objective: nn.Module) -> bool:
    return hasattr(objective, "reshard")


def reshard(objective: nn.Module) -> None:
    """Let go of what a forward pass without a backward one has left gathered; the next one gathers it again."""
    if is_sharded(objective):
        objective.reshard()


def unshard(objective: nn.Module) -> None:
    """Gather what the root of a sharded objective let go of in a gradient that was taken within its forward pass."""
    if is_sharded(objective):
        objective.unshard()


def is_shard(value: Tensor) -> bool:
    return hasattr(value, "full_tensor")


def full_tensor(value: Tensor) -> Tensor:
    """A sharded tensor put together, on every process; any other as it is."""
    return value.full_tensor() if is_shard(value) else value


def meta_copy(model: PretrainedLlama) -> PretrainedLlama:
    """A copy of a model without its numbers, on the meta device; to be made before it is sharded."""
    memo: dict[int, Any] = {id(model.tokenizer): model.tokenizer}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
    return copy.deepcopy(model, memo)


@torch.no_grad()
def gather_full_state(model: PretrainedLlama, outlined: Any) -> Any:
    """The whole of a sharded model, in the memory of rank 0; None on the others. All must call it.

    Tensor by tensor, so that no device ever holds more than one beside its shards.
    """
    result = meta_copy(outlined).eval() if distributed.is_rank0() else None
    places: dict[int, list[str]] = {}
    if result is not None:
        for name, parameter in result.named_parameters(remove_duplicate=False):
            places.setdefault(id(parameter), []).append(name)       # several where it is tied
    for name, parameter in model.named_parameters():
        tensor = full_tensor(parameter.detach())
        if result is not None:
            filled = nn.Parameter(tensor.cpu(), requires_grad=parameter.requires_grad)
            for place in places[id(result.get_parameter(name))]:
                owner, _, leaf = place.rpartition(".")
                setattr(result.get_submodule(owner), leaf, filled)
    return result
