"""LoftQ on a whole model: few bits, and where an adapter begins so that both together are near to the model in floats.

    --quantize int4                       W becomes its own 4 bits, and the adapter begins at nothing
    --quantize int4 --lora-init loftq     bits and adapter take turns (starts.py): what 4 bits lose, B A begins with

The bits are then not those that the model's files would be rounded to, so they are a model of their own: `finetune.py`
writes it beside the adapter, as OUTPUT-base, and the adapter names it as its base.

Try: let `quantize_around` quantise layers that are not adapted in turns, too, and drop their A and B; the residual of
tests/test_lora_starts.py (test_property_loftq_loses_less_than_few_bits_alone) grows past that of plain few bits.
"""

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from llama.lora.starts import loftq
from llama.lora.swap import adapted_modules, wrappers
from llama.lora.targets import TIED, LoRAConfig
from llama.model import Llama
from llama.quantization.swap import check_floats, quantize_remaining, quantize_weight, replace_layer


class Start(NamedTuple):
    """Of one layer; residuals: ‖W - Q - scale · B A‖ / ‖W‖, of W's own bits without B A first, then after each turn."""

    A: Tensor
    B: Tensor
    residuals: list[float]


@torch.no_grad()
def quantize_around(model: Llama, config: LoRAConfig, *, bits: int) -> dict[str, Start]:
    """Swap every matrix for one of few bits, in place, and say where the adapter of `config` is to begin.

    Raises ValueError as `quantize` and `add_lora` do, and for a head or an embedding among the targets.
    """
    check_floats(model)
    adapted, _ = adapted_modules(model, config, tied=model.config.tie_word_embeddings)
    if heads := adapted.keys() & set(TIED):
        raise ValueError(f"--lora-init loftq begins at layers of blocks, and {min(heads)} is a target; leave it out")
    found = {}
    for path in adapted:
        weight = model.get_submodule(path).weight.detach()
        bits_of = partial(quantize_weight, path, bits=bits)
        packed, *start = loftq(weight, config.rank_of(path), config.scale_of(path), bits_of)
        found[path] = Start(*start)
        replace_layer(model, path, packed, weight.dtype)
    quantize_remaining(model, bits=bits, report=False)
    return found


@torch.no_grad()
def begin_at(model: Llama, starts: dict[str, Start], *, name: str = "default") -> None:
    """Let the adapter `name`, which is on the model, begin so."""
    placed = wrappers(model)
    for path, start in starts.items():
        part = placed[path].adapters[name]
        part.lora_A.copy_(start.A)
        part.lora_B.copy_(start.B)


def summary(starts: dict[str, Start]) -> str:
    """The residuals' means over all layers, for people."""
    every = [start.residuals for start in starts.values()]
    alone, *turns = (sum(each) / len(every) for each in zip(*every, strict=True))
    return (f"what few bits lose of {len(every)} matrices, ‖W - Q - BA‖ / ‖W‖ in the mean: {alone:.4f} alone, then "
            f"after each turn {', '.join(f'{turn:.4f}' for turn in turns)}; the best turn of each is taken")
