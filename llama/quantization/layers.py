"""Linear layers and embeddings in 8 or 4 bits: whole numbers and scales, with the face of `nn.Linear`, `nn.Embedding`.

What a layer stands for is in weights/formats/quantized_matrix.py. A product is that of the weights that it stands for:
some of its rows at a time are made numbers, so every call makes all of them anew. With many rows of activations that
is little beside the product; a single token is read from the whole numbers themselves by compiled_step.py.

Activations stay floats. Such a layer does not learn; LoRA may sit on top of it. swap.py puts them in.

Try: in `Quantized._apply`, leave out what restores the scales; tests/test_quantization_layers.py
(test_property_another_dtype_leaves_the_weights_alone) fails: `model.to(torch.bfloat16)` would change every weight.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from weights.formats.quantized_matrix import PARTS, QuantizedMatrix

PIECE = 1 << 20                                                     # weights at a time: the numbers stay in the cache


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

    def forward(self, x: Tensor) -> Tensor:
        learns = x.requires_grad and torch.is_grad_enabled()
        y = _FrozenMatmul.apply(x, self) if learns else self.matmul(x)
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
            yield self.unpacked(start, min(start + self._rows, self.out_features), dtype)

    def unpacked(self, start: int, end: int, dtype: torch.dtype) -> Tensor:
        """The weights of these rows; compiled_step.py has a faster way, and puts it in this one's place."""
        return self.packed.rows(slice(start, end)).dequantize(dtype)


class Int8Linear(QuantizedLinear):
    """weight (R, C) int8; scale (R,) float32."""


class GroupedInt8Linear(Int8Linear):
    """weight (R, C) int8; scale (R, C / 32) float16."""


class Int4Linear(QuantizedLinear):
    """weight (R, C / 2) uint8; scale and minimum (R, C / 32) float16."""


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
