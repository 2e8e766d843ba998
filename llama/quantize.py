"""Models in 8 or 4 bits: every matrix swapped for whole numbers and scales, to read a quarter or less of the bytes.

    python -m llama.quantize --model weights/NAME --bits 8 --output weights/NAME-int8      # then --model, as any folder

What a layer stands for is in weights/packed.py, how numbers are rounded in rounding.py. A product is defined as that of
the weights that it stands for. Where torch has a kernel that reads the whole numbers themselves, and computes the same,
that is taken; compiled.py has its own. Activations stay floats. Such a layer does not learn; LoRA may sit on top of it.

Try: in `Quantized._apply`, leave out what restores the scales; tests/test_quantize.py
(test_property_another_dtype_leaves_the_weights_alone) fails: `model.to(torch.bfloat16)` would change every weight.
"""

import json
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from llama.interrupt import quiet_start

with quiet_start(__name__):
    import torch
    from torch import Tensor, nn
    from torch.nn import functional

    from llama.heads import NAMES as HEADS_OF_LABELS
    from llama.model import Llama
    from llama.rounding import to_int4, to_int8
    from weights.packed import GROUP, PARTS, Packed
    from weights.sources import Source

FEW_ROWS = 16                                                       # beyond, it pays to make numbers of weights first
PIECE = 1 << 20                                                     # weights at a time: the numbers stay in the cache
ENDS = ("embed_tokens", "lm_head")                                  # read most precisely: never rounded to 4 bits


# ---- layers ----------------------------------------------------------------------------------------------------------


class Quantized(nn.Module):
    """Whole numbers that keep their type, and scales that keep their precision, wherever the model goes.

    Two layers made from the `packed` of one share their memory, as tied ones must. `dtype` is what comes out of an
    embedding, and the type of a linear layer's bias.
    """

    def __init__(self, packed: Packed, *, dtype: torch.dtype):
        super().__init__()
        for part, tensor in packed.tensors().items():
            shared = isinstance(tensor, nn.Parameter)
            setattr(self, part, tensor if shared else nn.Parameter(tensor, requires_grad=False))
        self.dtype = dtype

    @property
    def packed(self) -> Packed:
        return Packed(**{part: getattr(self, part, None) for part in PARTS})

    @property
    def group_size(self) -> int:
        """0 where whole rows share a scale."""
        return 0 if self.scale.dim() == 1 else GROUP

    def dequantized(self) -> Tensor:
        """The weights that this layer stands for, in its dtype."""
        return self.packed.numbers(self.dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Quantized":
        """`.to(...)` moves all and changes what comes out; scales in bfloat16 would be other weights by up to 0.4 %."""
        exact = {part: tensor.data for part, tensor in self.packed.tensors().items()}
        super()._apply(fn, recurse)
        for part, tensor in exact.items():
            parameter = getattr(self, part)
            parameter.data = tensor.to(parameter.device)
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return self


class QuantizedLinear(Quantized):
    """`nn.Linear` on whole numbers."""

    def __init__(self, packed: Packed, bias: Tensor | None = None, *, dtype: torch.dtype):
        super().__init__(packed, dtype=dtype)
        self.out_features, self.in_features = packed.shape
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self._prepared: tuple[Tensor, ...] | None = None            # what the kernel reads, once it has been asked

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            return self._biased(_Frozen.apply(x, self))
        return self._biased(self._by_kernel(x)) if self._has_kernel(x) else self.definition(x)

    def definition(self, x: Tensor) -> Tensor:
        """As `forward`, without a kernel, which keeps a second copy of the weights."""
        return self._biased(self.product(x))

    def _biased(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def product(self, x: Tensor) -> Tensor:
        """W x, the definition: some rows of W at a time are made numbers of the dtype of `x`."""
        y, start = x.new_empty(*x.shape[:-1], self.out_features), 0
        for weight in self._pieces(x.dtype):
            y[..., start : start + len(weight)] = functional.linear(x, weight)
            start += len(weight)
        return y

    def product_back(self, y: Tensor) -> Tensor:
        """Wᵀ y, of which the gradient of `product` consists."""
        parts = zip(y.split(self._rows, dim=-1), self._pieces(y.dtype), strict=True)
        return sum(part @ weight for part, weight in parts)

    @property
    def _rows(self) -> int:
        return max(1, PIECE // self.in_features)

    def _pieces(self, dtype: torch.dtype) -> Iterator[Tensor]:
        for start in range(0, self.out_features, self._rows):
            yield self.packed.rows(slice(start, start + self._rows)).numbers(dtype)

    def _has_kernel(self, x: Tensor) -> bool:
        """torch's kernels are fast for few rows of bfloat16, and read beyond the end of other shapes than these."""
        return (x.dtype == torch.bfloat16 and x.device.type == "cpu" and x.numel() <= FEW_ROWS * self.in_features
                and not (self.out_features % 16 or self.in_features % 32) and works(type(self)))

    def _by_kernel(self, x: Tensor) -> Tensor:
        if self._prepared is None:
            self._prepared = self._prepare()
        y = self._kernel(x.reshape(-1, self.in_features).contiguous(), *self._prepared)
        return y.view(*x.shape[:-1], -1)

    def _prepare(self) -> tuple[Tensor, ...]:
        raise NotImplementedError

    def _kernel(self, x: Tensor, *prepared: Tensor) -> Tensor:
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Quantized":
        self._prepared = None
        return super()._apply(fn, recurse)


class Int8Linear(QuantizedLinear):
    """weight (R, C) int8; scale (R,) float32, or (R, groups) float16, which torch's kernel does not know."""

    def _has_kernel(self, x: Tensor) -> bool:
        return not self.group_size and super()._has_kernel(x)

    def _prepare(self) -> tuple[Tensor, ...]:
        return self.weight.data, self.scale.to(torch.bfloat16)

    def _kernel(self, x: Tensor, *prepared: Tensor) -> Tensor:
        return torch._weight_int8pack_mm(x, *prepared)


class Int4Linear(QuantizedLinear):
    """weight (R, C / 2) uint8; scale and minimum (R, C / 32) float16.

    torch's kernel has an order of its own, so a second copy of the whole numbers is made when it is first used, and it
    takes scale and middle of each group in bfloat16: weights differ by 1/64 of a step at most, as much as weights do
    that are rounded to bfloat16.
    """

    def _prepare(self) -> tuple[Tensor, ...]:
        halves = self.weight.data.unflatten(-1, (-1, GROUP // 2))
        q = torch.cat([halves & 15, halves >> 4], dim=-1).flatten(-2)
        scale, minimum = self.scale.data.float(), self.minimum.data.float()
        line = torch.stack([scale, minimum + 8 * scale], dim=-1)   # the kernel's is scale (q - 8) + middle
        return (torch.ops.aten._convert_weight_to_int4pack_for_cpu(q.int(), 1),
                line.transpose(0, 1).contiguous().to(torch.bfloat16))                   # (groups, R, 2)

    def _kernel(self, x: Tensor, *prepared: Tensor) -> Tensor:
        weight, line = prepared
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x, weight, GROUP, line)


class QuantizedEmbedding(Quantized):
    """`nn.Embedding` on whole numbers: the rows asked for become numbers, no others."""

    def __init__(self, packed: Packed, *, dtype: torch.dtype):
        super().__init__(packed, dtype=dtype)
        self.num_embeddings, self.embedding_dim = packed.shape

    def forward(self, tokens: Tensor) -> Tensor:
        return self.packed.rows(tokens.flatten()).numbers(self.dtype).view(*tokens.shape, -1)


class _Frozen(torch.autograd.Function):
    """`product` under a gradient. torch would keep the numbers of each layer until the backward pass: a whole model."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return layer.product(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.product_back(gradient), None


@cache
def works(kind: type[QuantizedLinear]) -> bool:
    """Whether this torch has the kernel, and it computes what is meant: its name is private and may change."""
    numbers = torch.arange(16 * 64).reshape(16, 64).sin()
    layer = kind(to_int8(numbers) if kind is Int8Linear else to_int4(numbers), dtype=torch.bfloat16)
    x = numbers[3:5].to(torch.bfloat16)
    try:
        return torch.allclose(layer._by_kernel(x).float(), layer.product(x).float(), atol=0.5, rtol=0.0)
    except (AttributeError, RuntimeError, TypeError):
        return False


# ---- the swap --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def quantize(model: Llama, *, bits: int, report: bool = True, to_int4: Callable[[Tensor], Packed] = to_int4) -> \
        dict[str, float]:
    """Swap every linear layer, and the embedding, for one of 8 or 4 bits; layers under LoRA too. In place.

    With 4 bits, embedding and head are in 8, in groups of 32. A layer at a time, so that there is never a second model.

    to_int4  which 4 bits
    ->       with `report`, the relative error ‖W - Ŵ‖ / ‖W‖ of each layer by its name

    Raises ValueError for other bits, a model that is quantised, and for 4 bits on columns no multiple of 32.
    """
    check_floats(model)
    return round_floats(model, bits=bits, report=report, to_int4=to_int4)


def round_floats(model: Llama, *, bits: int, report: bool = True,
                 to_int4: Callable[[Tensor], Packed] = to_int4) -> dict[str, float]:
    """`quantize` for the layers that still hold floats."""
    errors: dict[str, float] = {}
    made: dict[int, Quantized] = {}                                 # by weight, so that tied layers stay tied
    for path in _paths(model, nn.Linear | nn.Embedding):
        weight = model.get_submodule(path).weight
        tied = made.get(id(weight))
        packed = tied.packed if tied else rounded(path, weight.detach(), bits, to_int4)
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
    """Raise ValueError for a model that is quantised."""
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


def rounded(path: str, weight: Tensor, bits: int, to_int4: Callable[[Tensor], Packed] = to_int4) -> Packed:
    """The matrix of the layer at `path`, in 8 or 4 bits. Raises ValueError as `quantize` does."""
    if bits not in (8, 4):
        raise ValueError(f"bits is {bits}; weights are quantised to 8 or 4")
    if bits == 4 and weight.shape[1] % GROUP:
        raise ValueError(f"{path} has {weight.shape[1]} columns, no multiple of {GROUP}; 4 bits need that, so take 8")
    try:
        if bits == 8:
            return to_int8(weight)
        return to_int8(weight, grouped=True) if path.startswith(ENDS) else to_int4(weight)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def install(model: Llama, path: str, packed: Packed, dtype: torch.dtype) -> Quantized:
    """Swap the linear layer or embedding at `path`; its bias, also one still to be loaded, comes along."""
    plain = model.get_submodule(path)
    if hasattr(plain, "num_embeddings"):
        layer: Quantized = QuantizedEmbedding(packed, dtype=dtype)
    else:
        kind = Int8Linear if packed.bits == 8 else Int4Linear
        layer = kind(packed, None if plain.bias is None else plain.bias.data, dtype=dtype)
    model.set_submodule(path, layer)
    return layer


@torch.no_grad()
def matrices_packed(source: Source, bits: int, errors: dict[str, float] | None = None) -> \
        Iterator[tuple[str, Tensor | Packed]]:
    """The tensors of a source one at a time, its matrices in 8 or 4 bits.

    What the source holds in that many bits, or fewer, stays as it is: GGUF's Q8_0, Q4_0 and Q4_1. Embedding and head in
    8 bits stay as well.

    bits    0 takes what is packed in any way
    errors  gets those of what is rounded here, by layer
    """
    for name, shape, _ in source.ledger:
        path = name.removesuffix(".weight")
        packed = source.packed(name) if len(shape) == 2 else None
        if packed and (packed.bits == bits or not bits or (bits == 4 and path in ENDS)):
            yield name, packed
        elif len(shape) == 2 and bits and path not in HEADS_OF_LABELS:
            yield name, _read_rounded(source, name, bits, {} if errors is None else errors)
        else:
            yield name, source.read(name)


def _read_rounded(source: Source, name: str, bits: int, errors: dict[str, float]) -> Packed:
    path, weight = name.removesuffix(".weight"), source.read(name)
    packed = rounded(path, weight, bits)
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
    if arguments.block_size < 0 or (arguments.block_size and not arguments.data):
        raise ValueError(f"--block-size {arguments.block_size} divides a text: it is above 0, and beside --data")
    errors: dict[str, float] = {}
    if arguments.data:
        model = get_model(arguments.model)
        errors = quantize_for(model, read_ids(model, cli.data_files(arguments.data)), length=arguments.block_size)
    else:
        model = get_model(arguments.model, bits=arguments.bits, errors=errors)
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
    from llama.quantize import main as command  # the module that the models' layers come from

    run(command)
