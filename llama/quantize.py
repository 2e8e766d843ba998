"""Models in 8 or 4 bits: every matrix swapped for whole numbers and scales, to read a quarter or less of the bytes.

    python -m llama.quantize --model weights/NAME --bits 8 --output weights/NAME-int8      # then --model, as any folder

The layers are in quantized_layers.py, how numbers are rounded in rounding.py. With 8 bits the matrices in `FINE`, for
which one scale a row costs most, have a scale for each 32 columns. With `fine` all have: the compiled step reads them
as fast, torch only from a second copy of the weights.

Try: leave `ENDS` out of `FINE`; tests/test_quantize.py (test_property_8_bits_are_fine_where_a_scale_a_row_costs_most)
fails.
"""

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from llama.interrupt import quiet_start

with quiet_start(__name__):
    import torch
    from torch import Tensor, nn

    from llama.fuse import check_unfused
    from llama.heads import NAMES as HEADS_OF_LABELS
    from llama.model import Llama
    from llama.quantized_layers import PIECE, Int4Linear, Int8Linear, Quantized, QuantizedEmbedding, linear_of
    from llama.rounding import exact_int4, to_int4, to_int8
    from weights.packed import GROUP, Packed
    from weights.sources import Source

__all__ = ["Int4Linear", "Int8Linear", "dequantize", "is_quantized", "quantize"]

ENDS = ("embed_tokens", "lm_head")                                  # never rounded to 4 bits
FINE = (*ENDS, "v_proj")                                            # of 8 bits, in groups where columns fill them


# ---- the swap --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def quantize(model: Llama, *, bits: int, fine: bool = False, report: bool = True,
             to_int4: Callable[[Tensor], Packed] = to_int4) -> dict[str, float]:
    """Swap every linear layer, and the embedding, for one of 8 or 4 bits; layers under LoRA too. In place.

    With 4 bits, embedding and head are in 8. A layer at a time, so that there is never a second model.

    fine     with 8 bits, all in groups of 32
    to_int4  which 4 bits
    ->       with `report`, the relative error ‖W - Ŵ‖ / ‖W‖ of each layer by its name

    Raises ValueError for other bits, a model that is quantised, and for 4 bits on columns no multiple of 32.
    """
    check_floats(model)
    return round_floats(model, bits=bits, fine=fine, report=report, to_int4=to_int4)


def round_floats(model: Llama, *, bits: int, fine: bool = False, report: bool = True,
                 to_int4: Callable[[Tensor], Packed] = to_int4) -> dict[str, float]:
    """`quantize` for the layers that still hold floats."""
    errors: dict[str, float] = {}
    made: dict[int, Quantized] = {}                                 # by weight, so that tied layers stay tied
    for path in _paths(model, nn.Linear | nn.Embedding):
        weight = model.get_submodule(path).weight
        tied = made.get(id(weight))
        packed = tied.packed if tied else rounded(path, weight.detach(), bits, fine=fine, to_int4=to_int4)
        if report and not tied:
            errors[path] = relative_error(weight, packed)
        made[id(weight)] = install(model, path, packed, weight.dtype)
    return errors


@torch.no_grad()
def dequantize(model: Llama, *, dtype: torch.dtype | None = None) -> None:
    """The inverse swap: plain layers with the weights that the others stood for, in their dtype or in `dtype`."""
    made: dict[int, nn.Parameter] = {}
    for path in _paths(model, Quantized):
        layer = model.get_submodule(path)
        key = id(layer.weight)
        if key not in made:
            made[key] = nn.Parameter(layer.packed.numbers(dtype or layer.dtype))
        if isinstance(layer, QuantizedEmbedding):
            plain: nn.Module = nn.Embedding(*layer.packed.shape, device="meta")
        else:
            plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
            if layer.bias is not None:
                plain.bias = nn.Parameter(layer.bias.data.to(dtype or layer.dtype))
        plain.weight = made[key]
        model.set_submodule(path, plain)


def check_floats(model: Llama) -> None:
    """Raise ValueError for a model that is quantised, or fused."""
    check_unfused(model)
    if is_quantized(model):
        raise ValueError("this model is quantised already; quantise the one that it was made from")


def _paths(model: nn.Module, kind: Any) -> list[str]:
    """Of the layers to swap: names alone, since whoever holds the layers keeps the old model alive to the end."""
    return [path for path, module in model.named_modules() if isinstance(module, kind)]


def is_quantized(model: nn.Module) -> bool:
    return any(isinstance(module, Quantized) for module in model.modules())


def bits_of(model: nn.Module) -> int:
    """4 if any layer has 4 bits, else 8; 0 for a model that is not quantised."""
    return min((module.packed.bits for module in model.modules() if isinstance(module, Quantized)), default=0)


def rounded(path: str, weight: Tensor, bits: int, *, fine: bool = False,
            to_int4: Callable[[Tensor], Packed] = to_int4) -> Packed:
    """The matrix of the layer at `path`, in 8 or 4 bits. Raises ValueError as `quantize` does."""
    if bits not in (8, 4):
        raise ValueError(f"bits is {bits}; weights are quantised to 8 or 4")
    if bits == 4 and weight.shape[1] % GROUP:
        raise ValueError(f"{path} has {weight.shape[1]} columns, no multiple of {GROUP}; 4 bits need that, so take 8")
    try:
        if bits == 8 or _within(path, ENDS):
            return to_int8(weight, grouped=(fine or _within(path, FINE)) and not weight.shape[1] % GROUP)
        return to_int4(weight)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _within(path: str, names: Sequence[str]) -> bool:
    """Whether the layer has one of these names, also as the `base` under an adapter."""
    return any(part in names for part in path.split("."))


def install(model: Llama, path: str, packed: Packed, dtype: torch.dtype) -> Quantized:
    """Swap the linear layer or embedding at `path`; its bias, also one still to be loaded, comes along."""
    plain = model.get_submodule(path)
    if hasattr(plain, "num_embeddings"):
        layer: Quantized = QuantizedEmbedding(packed, dtype=dtype)
    else:
        layer = linear_of(packed, None if plain.bias is None else plain.bias.data, dtype=dtype)
    model.set_submodule(path, layer)
    return layer


@torch.no_grad()
def matrices_packed(source: Source, bits: int, *, fine: bool = False, errors: dict[str, float] | None = None) -> \
        Iterator[tuple[str, Tensor | Packed]]:
    """The tensors of a source one at a time, its matrices in 8 or 4 bits.

    What the source holds in that many bits, or fewer, stays as it is: GGUF's Q8_0, Q4_0 and Q4_1. Embedding and head in
    8 bits stay as well.

    bits    0 takes what is packed in any way
    fine    as in `quantize`
    errors  gets those of what is rounded here, by layer
    """
    for name, shape, _ in source.ledger:
        path = name.removesuffix(".weight")
        packed = source.packed(name) if len(shape) == 2 else None
        if packed and (packed.bits == bits or not bits or (bits == 4 and path in ENDS)):
            yield name, packed
        elif len(shape) == 2 and bits and path not in HEADS_OF_LABELS:
            yield name, _read_rounded(source, name, bits, fine, {} if errors is None else errors)
        else:
            yield name, source.read(name)


@torch.no_grad()
def noting_4_bits(source: Source, tensors: Iterable[tuple[str, Tensor]], found: dict[str, Packed]) -> \
        Iterator[tuple[str, Tensor]]:
    """The tensors of a source as they are. `found` gets, by layer, the matrices that 4 bits hold without any loss."""
    for name, tensor in tensors:
        path = name.removesuffix(".weight")
        if tensor.dim() == 2 and path not in (*ENDS, *HEADS_OF_LABELS):
            packed = source.packed(name)
            if packed := packed if packed and packed.bits == 4 else exact_int4(tensor):
                found[path] = packed
        yield name, tensor


def _read_rounded(source: Source, name: str, bits: int, fine: bool, errors: dict[str, float]) -> Packed:
    path, weight = name.removesuffix(".weight"), source.read(name)
    packed = rounded(path, weight, bits, fine=fine)
    errors[path] = relative_error(weight, packed)
    return packed


def relative_error(weight: Tensor, packed: Packed) -> float:
    difference = norm = 0.0
    rows = max(1, PIECE // weight.shape[1])
    for start in range(0, weight.shape[0], rows):                   # of a piece at a time, so that no copy is made
        part = slice(start, start + rows)
        exact = weight[part].float()
        difference += (packed.rows(part).numbers() - exact).square().sum().item()
        norm += exact.square().sum().item()
    return (difference / max(norm, 1e-30)) ** 0.5


# ---- the command -----------------------------------------------------------------------------------------------------


def main() -> None:
    from llama import cli
    from llama.calibrate import quantize_for, read_ids
    from llama.checkpoint import get_model, save_model
    from llama.proof import prove_saved

    parser = cli.Parser("python -m llama.quantize", "Write a model in 8 or 4 bits, and report what it costs.")
    parser.add_argument("--model", default=cli.ModelFlags.model, metavar="TEXT",
                        help="a model folder or file, or a name to fetch")
    parser.add_argument("--bits", type=int, choices=(8, 4), required=True, help="of a weight")
    parser.add_argument("--fine", action="store_true",
                        help="8 bits with a scale for each 32 columns: more exact, and as fast with --compile")
    parser.add_argument("--data", nargs="+", metavar="FILE",
                        help="text, for 4 bits: round so that what the model makes of it changes least")
    parser.add_argument("--block-size", type=int, default=0, metavar="N",
                        help="tokens of --data that see each other, best as in training (default: 512)")
    parser.add_argument("--output", required=True, metavar="FOLDER", help="where the quantised model goes")
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it exists")
    parser.add_argument("--json", action="store_true", help="print the error of every layer as JSON on stdout")
    arguments = parser.parse_args()

    output = Path(arguments.output)
    cli.check_output(output, holds="config.json", overwrite=arguments.overwrite, resume=False)
    if arguments.data and arguments.bits == 8:
        raise ValueError("--data is for --bits 4; with 8 there is too little to lose for a text to matter")
    if arguments.fine and arguments.bits == 4:
        raise ValueError("--fine is for --bits 8; 4 bits always are in groups of 32")
    if arguments.block_size < 0 or (arguments.block_size and not arguments.data):
        raise ValueError(f"--block-size {arguments.block_size} divides a text: it is above 0, and beside --data")
    errors: dict[str, float] = {}
    if arguments.data:
        model = get_model(arguments.model)
        errors = quantize_for(model, read_ids(model, cli.data_files(arguments.data)), length=arguments.block_size)
    else:
        model = get_model(arguments.model, bits=arguments.bits, fine=arguments.fine, errors=errors)
    save_model(model, output)
    prove_saved(model, output)
    print(table(errors), file=sys.stderr)
    print(json.dumps({"output": str(output), "errors": errors}) if arguments.json else output)


def table(errors: dict[str, float]) -> str:
    """The relative errors ‖W - Ŵ‖ / ‖W‖ of a kind of layer a line: the mean, the largest, and the layer that has it."""
    kinds: dict[str, dict[str, float]] = {}
    for path, error in errors.items():
        kinds.setdefault(path.rpartition(".")[2], {})[path] = error
    lines = [f"{'layers':<12}  {'mean error':>10}  {'largest':>8}"]
    for kind, found in kinds.items():
        worst = max(found, key=found.__getitem__)
        lines.append(f"{kind:<12}  {sum(found.values()) / len(found):>10.3%}  {found[worst]:>8.3%}  {worst}")
    return "\n".join(lines) if errors else "every matrix is kept as it is stored: nothing was rounded"


if __name__ == "__main__":
    from llama.cli import run

    run(main)
