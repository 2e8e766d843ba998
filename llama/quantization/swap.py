"""Models in 8 or 4 bits: every matrix swapped for whole numbers and scales, to read a quarter or less of the bytes.

The layers are in layers.py, how numbers are rounded in rounding.py. A scale belongs to 32 columns of a row, or with 8
bits to a whole row where its columns are no multiple of 32.

Try: round `EMBEDDING_AND_HEAD` to 4 bits as well; tests/test_quantize.py
(test_property_layers_under_adapters_are_rounded_as_without) fails.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from llama.config import require_llama
from llama.heads import check_editable
from llama.model import Llama
from llama.quantization.layers import PIECE, Quantized, QuantizedEmbedding, linear_of
from llama.quantization.rounding import to_int4, to_int8
from weights.formats.quantized_matrix import GROUP, QuantizedMatrix

EMBEDDING_AND_HEAD = ("embed_tokens", "lm_head")                                  # never rounded to 4 bits
BYTES = {8: 1.07, 4: 0.63}                                          # of a number, with its scale, at most


@torch.no_grad()
def quantize(model: Llama, *, bits: int, report: bool = True,
             to_int4: Callable[[Tensor], QuantizedMatrix] = to_int4) -> dict[str, float]:
    """Swap every linear layer, and the embedding, for one of 8 or 4 bits; layers under LoRA too. In place.

    With 4 bits, embedding and head are in 8. A layer at a time, so that there is never a second model.

    to_int4  which 4 bits
    ->       with `report`, the relative error ‖W - Ŵ‖ / ‖W‖ of each layer by its name

    Raises ValueError for other bits, a model that is quantised, and for 4 bits on columns no multiple of 32.
    """
    check_floats(model)
    return quantize_remaining(model, bits=bits, report=report, to_int4=to_int4)


def quantize_remaining(model: Llama, *, bits: int, report: bool = True,
                 to_int4: Callable[[Tensor], QuantizedMatrix] = to_int4) -> dict[str, float]:
    """`quantize` for the layers that still hold floats."""
    errors: dict[str, float] = {}
    made: dict[int, Quantized] = {}                                 # by weight, so that tied layers stay tied
    for path in _paths(model, nn.Linear | nn.Embedding):
        weight = model.get_submodule(path).weight
        tied = made.get(id(weight))
        packed = tied.packed if tied else quantize_weight(path, weight.detach(), bits, to_int4=to_int4)
        if report and not tied:
            errors[path] = relative_error(weight, packed)
        made[id(weight)] = replace_layer(model, path, packed, weight.dtype)
    return errors


@torch.no_grad()
def dequantize(model: Llama, *, dtype: torch.dtype | None = None) -> None:
    """The inverse swap: plain layers with the weights that the others stood for, in their dtype or in `dtype`."""
    made: dict[int, nn.Parameter] = {}
    for path in _paths(model, Quantized):
        layer = model.get_submodule(path)
        key = id(layer.weight)
        if key not in made:
            made[key] = nn.Parameter(layer.packed.dequantize(dtype or layer.dtype))
        if isinstance(layer, QuantizedEmbedding):
            plain: nn.Module = nn.Embedding(*layer.packed.shape, device="meta")
        else:
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
            if layer.bias is not None:
                plain.bias = nn.Parameter(layer.bias.data.to(dtype or layer.dtype))
        plain.weight = made[key]
        model.set_submodule(path, plain)


def check_floats(model: Llama) -> None:
    """Raise ValueError for a model that is quantised, or fused, or no Llama."""
    check_editable(model)
    check_llama(model)
    if is_quantized(model):
        raise ValueError("this model is quantised already; quantise the one that it was made from")


def check_llama(model: Llama) -> None:
    """Raise ValueError for a relative: what few bits do to its parts, nobody here has measured."""
    require_llama(model.config, "few bits are", "leave --quantize (bits) out")


def _paths(model: nn.Module, kind: Any) -> list[str]:
    """Of the layers to swap: names alone, since whoever holds the layers keeps the old model alive to the end."""
    return [path for path, module in model.named_modules() if isinstance(module, kind)]


def is_quantized(model: nn.Module) -> bool:
    return any(isinstance(module, Quantized) for module in model.modules())


def bits_of(model: nn.Module) -> int:
    """4 if any layer has 4 bits, else 8; 0 for a model that is not quantised."""
    return min((module.packed.bits for module in model.modules() if isinstance(module, Quantized)), default=0)


def quantize_weight(path: str, weight: Tensor, bits: int, *,
                    to_int4: Callable[[Tensor], QuantizedMatrix] = to_int4) -> QuantizedMatrix:
    """The matrix of the layer at `path`, in 8 or 4 bits. Raises ValueError as `quantize` does."""
    if bits not in (8, 4):
        raise ValueError(f"bits is {bits}; weights are quantised to 8 or 4")
    if bits == 4 and weight.shape[1] % GROUP:
        raise ValueError(f"{path} has {weight.shape[1]} columns, no multiple of {GROUP}; 4 bits need that, so take 8")
    try:
        if bits == 8 or _within(path, EMBEDDING_AND_HEAD):
            return to_int8(weight, grouped=not weight.shape[1] % GROUP)
        return to_int4(weight)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _within(path: str, names: Sequence[str]) -> bool:
    """Whether the layer has one of these names, also as the `base` under an adapter."""
    return any(part in names for part in path.split("."))


def replace_layer(model: Llama, path: str, packed: QuantizedMatrix, dtype: torch.dtype) -> Quantized:
    """Swap the linear layer or embedding at `path`; its bias, also one still to be loaded, comes along."""
    plain = model.get_submodule(path)
    if hasattr(plain, "num_embeddings"):
        layer: Quantized = QuantizedEmbedding(packed, dtype=dtype)
    else:
        layer = linear_of(packed, None if plain.bias is None else plain.bias.data, dtype=dtype)
    model.set_submodule(path, layer)
    return layer


def relative_error(weight: Tensor, packed: QuantizedMatrix) -> float:
    difference = norm = 0.0
    rows = max(1, PIECE // weight.shape[1])
    for start in range(0, weight.shape[0], rows):                   # of a piece at a time, so that no copy is made
        part = slice(start, start + rows)
        exact = weight[part].float()
        difference += (packed.rows(part).dequantize() - exact).square().sum().item()
        norm += exact.square().sum().item()
    return (difference / max(norm, 1e-30)) ** 0.5
