"""Linear layers and embeddings in 8 or 4 bits: whole numbers and scales, with the face of `nn.Linear`, `nn.Embedding`.

What a layer stands for is in weights/formats/quantized_matrix.py. A product is defined as that of the weights that it
stands for. Where torch has a kernel that reads the whole numbers themselves, and computes the same, that is taken: call
by call, since it serves a few rows of bfloat16 and no others. compiled_step.py has its own.

Activations stay floats. Such a layer does not learn; LoRA may sit on top of it. swap.py puts them in.

Try: in `Quantized._apply`, leave out what restores the scales; tests/test_quantization_layers.py
(test_property_another_dtype_leaves_the_weights_alone) fails: `model.to(torch.bfloat16)` would change every weight.
"""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llama.quantization.rounding import to_int4, to_int8
from weights.formats.quantized_matrix import GROUP, PARTS, QuantizedMatrix, unpack_nibbles

KERNEL_ROWS = 16                                                    # beyond, it pays to make numbers of weights first
PIECE = 1 << 20                                                     # weights at a time: the numbers stay in the cache
BLOCK = 64                                                          # rows that torch's kernel of 4 bits packs together

Kernel = Callable[[Tensor], Tensor]


class Quantized(nn.Module):
    """Whole numbers that keep their type, and scales that keep their precision, wherever the model goes.

    Two layers made from the `packed` of one share their memory, as tied ones must. `dtype` is what comes out of an
    embedding, and the type of a linear layer's bias.
    """

    def __init__(self, packed: QuantizedMatrix, *, dtype: torch.dtype):
        super().__init__()
        for part, tensor in packed.tensors().items():
            shared = isinstance(tensor, nn.Parameter)
            setattr(self, part, tensor if shared else nn.Parameter(tensor, requires_grad=False))
        self.dtype = dtype

    @property
    def packed(self) -> QuantizedMatrix:
        return QuantizedMatrix(**{part: getattr(self, part, None) for part in PARTS})

    def dequantized(self) -> Tensor:
        """The weights that this layer stands for, in its dtype."""
        return self.packed.dequantize(self.dtype)

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

    def __init__(self, packed: QuantizedMatrix, bias: Tensor | None = None, *, dtype: torch.dtype):
        super().__init__(packed, dtype=dtype)
        self.out_features, self.in_features = packed.shape
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)
        self._fits = not (self.out_features % 16 or self.in_features % 32)      # kernels read beyond others' ends
        self._kernel: Kernel | None = None                          # made when it is first needed

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad and torch.is_grad_enabled():
            return self._biased(_FrozenMatmul.apply(x, self))
        if not self._has_kernel(x):
            return self.definition(x)
        if x.dim() == 2:                                            # nothing but the call: what is left costs time
            return self._biased(self.kernel(x.contiguous()))
        return self._biased(self.kernel(x.reshape(-1, self.in_features).contiguous()).view(*x.shape[:-1], -1))

    def definition(self, x: Tensor) -> Tensor:
        """As `forward`, without a kernel, which keeps a second copy of the weights."""
        return self._biased(self.matmul(x))

    def _biased(self, y: Tensor) -> Tensor:
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def matmul(self, x: Tensor) -> Tensor:
        """W x, the definition: some rows of W at a time are made numbers of the dtype of `x`."""
        y, start = x.new_empty(*x.shape[:-1], self.out_features), 0
        for weight in self._pieces(x.dtype):
            y[..., start : start + len(weight)] = functional.linear(x, weight)
            start += len(weight)
        return y

    def grad_input(self, y: Tensor) -> Tensor:
        """Wᵀ y, of which the gradient of `product` consists."""
        parts = zip(y.split(self._rows, dim=-1), self._pieces(y.dtype), strict=True)
        return sum(part @ weight for part, weight in parts)

    @property
    def _rows(self) -> int:
        return max(1, PIECE // self.in_features)

    def _pieces(self, dtype: torch.dtype) -> Iterator[Tensor]:
        for start in range(0, self.out_features, self._rows):
            yield self.packed.rows(slice(start, start + self._rows)).dequantize(dtype)

    def _has_kernel(self, x: Tensor) -> bool:
        """torch's kernels are fast for few rows of bfloat16."""
        return (x.dtype == torch.bfloat16 and x.numel() <= KERNEL_ROWS * self.in_features and x.device.type == "cpu"
                and self.has_kernel)

    runs_definition = False                                         # no kernel, even where there is one

    @property
    def has_kernel(self) -> bool:
        """For rows of bfloat16 on the CPU."""
        return self._fits and not self.runs_definition and kernel_available(type(self))

    @property
    def kernel(self) -> Kernel:
        """torch's, with all that it reads: (N, C) bfloat16, contiguous, few rows -> (N, R), without the bias."""
        if self._kernel is None:
            self._kernel = self._make_kernel()
        return self._kernel

    def drop_kernel(self) -> None:
        """And the copies that it may hold; it is made anew when it is needed."""
        self._kernel = None

    def _make_kernel(self) -> Kernel:
        raise NotImplementedError

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Quantized":
        self.drop_kernel()
        return super()._apply(fn, recurse)


class Int8Linear(QuantizedLinear):
    """weight (R, C) int8; scale (R,) float32."""

    def _make_kernel(self) -> Kernel:
        return partial(torch._weight_int8pack_mm, mat2=self.weight.data, scales=self.scale.to(torch.bfloat16))


class _Groupwise(QuantizedLinear):
    """Groups of 32 columns, for torch's kernel of 4 bits.

    That has an order of its own, so a second copy of the whole numbers is made when it is first used, and it takes
    scale and middle of each group in bfloat16: weights differ as much as those do that are rounded to bfloat16.
    """

    def _kernel_of(self, take: Callable[[Tensor], Tensor], scale: Tensor, minimum: Tensor) -> Kernel:
        """take  from rows of the stored weight, some blocks at a time, their q (rows, C) in 0 … 15

        scale, minimum (R, groups)
        """
        parts = self.weight.data.split(max(1, self._rows // BLOCK) * BLOCK)
        weight = torch.cat([torch._convert_weight_to_int4pack_for_cpu(take(part).int(), 1) for part in parts])
        line = torch.stack([scale, minimum + 8 * scale], dim=-1)    # the kernel's is scale (q - 8) + middle
        line = line.to(torch.bfloat16).transpose(0, 1).contiguous()                     # (groups, R, 2)
        return partial(torch._weight_int4pack_mm_for_cpu, mat2=weight, qGroupSize=GROUP, qScaleAndZeros=line)


class GroupedInt8Linear(_Groupwise, Int8Linear):
    """weight (R, C) int8; scale (R, C / 32) float16. To the kernel it is two matrices, q = 16 · high + low."""

    def _make_kernel(self) -> Kernel:
        scale = self.scale.data.float()
        high = self._kernel_of(lambda q: (q >> 4) + 8, 16 * scale, -128 * scale)
        return partial(_sum, high, self._kernel_of(lambda q: q & 15, scale, torch.zeros_like(scale)))


def _sum(first: Kernel, second: Kernel, x: Tensor) -> Tensor:
    return first(x).add_(second(x))


class Int4Linear(_Groupwise):
    """weight (R, C / 2) uint8; scale and minimum (R, C / 32) float16."""

    def _make_kernel(self) -> Kernel:
        return self._kernel_of(lambda part: unpack_nibbles(part).flatten(-2), self.scale.data.float(),
                               self.minimum.data.float())


def linear_of(packed: QuantizedMatrix, bias: Tensor | None = None, *, dtype: torch.dtype) -> QuantizedLinear:
    """The layer for a matrix in these parts."""
    grouped = packed.scale.dim() == 2
    kind = Int4Linear if packed.bits == 4 else GroupedInt8Linear if grouped else Int8Linear
    return kind(packed, bias, dtype=dtype)


class QuantizedEmbedding(Quantized):
    """`nn.Embedding` on whole numbers: the rows asked for become numbers, no others."""

    def __init__(self, packed: QuantizedMatrix, *, dtype: torch.dtype):
        super().__init__(packed, dtype=dtype)
        self.num_embeddings, self.embedding_dim = packed.shape

    def forward(self, tokens: Tensor) -> Tensor:
        return self.packed.rows(tokens.flatten()).dequantize(self.dtype).view(*tokens.shape, -1)


class _FrozenMatmul(torch.autograd.Function):
    """`product` under a gradient. torch would keep the numbers of each layer until the backward pass: a whole model."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedLinear) -> Tensor:
        ctx.layer = layer
        return layer.matmul(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.grad_input(gradient), None


@cache
def kernel_available(kind: type[QuantizedLinear]) -> bool:
    """Whether this torch has the kernel, and it computes what is meant: its name is private and may change."""
    numbers = torch.arange(16 * 64).reshape(16, 64).sin()
    packed = (to_int8(numbers), to_int8(numbers, grouped=True), to_int4(numbers))
    layer = next(layer for each in packed if type(layer := linear_of(each, dtype=torch.bfloat16)) is kind)
    x = numbers[3:5].to(torch.bfloat16)
    try:
        return torch.allclose(layer.kernel(x).float(), layer.matmul(x).float(), atol=0.5, rtol=0.0)
    except (AttributeError, RuntimeError, TypeError):
        return False
