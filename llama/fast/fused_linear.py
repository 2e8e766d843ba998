"""Faster products for generating: linear layers that share an input as one, in the form that is read fastest.

With one token at a time the arithmetic is nothing; the time goes into reading weights, and into the calls themselves.
torch's general product reads bfloat16 at little more than half the speed of its matrix-vector product, and every call
costs some microseconds, whatever it does. With many tokens, oneDNN multiplies a quarter faster by weights that it laid
out for itself («packed»), which serve single tokens as well, and adds to, multiplies or bends what comes out.

The rows of q_proj, k_proj and v_proj are put below each other, as are those of gate_proj and up_proj unless they are
packed, and each parameter becomes a part of that; where they are packed, it is empty meanwhile. fused_block.py says
what is swapped for what.

Try: let `Then.gated` bend the other half; tests/test_fused_block.py (test_two_ways_fused_equals_readable) fails.
"""

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional

FEW_ROWS = 8                                                        # beyond, turning a result around takes too long


@cache
def packs_bfloat16() -> bool:
    """Whether oneDNN multiplies by bfloat16 weights that it laid out for itself, on this processor: found by trying."""
    weight = torch.eye(32, dtype=torch.bfloat16)
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        return torch.equal(torch.ops.mkldnn._linear_pointwise.default(weight, packed, None, "none", [], ""), weight)
    except (AttributeError, RuntimeError):
        return False


class Epilogue:
    """What may follow a product at once. x (N, C)."""

    def added(self, x: Tensor, *, to: Tensor) -> Tensor:
        return self(x).add_(to)

    def gated(self, x: Tensor) -> Tensor:
        """Of gate_proj and up_proj as one: silu(gate(x)) * up(x)."""
        gate, up = self(x).chunk(2, dim=-1)
        return functional.silu(gate).mul_(up)

    def restore(self) -> None:
        """Give the plain layers their weights back; nothing to do where these are parts of the joined one."""

    @property
    def nbytes(self) -> int:
        """What is read of memory for a single row."""
        return stored_bytes(self)


def stored_bytes(layer: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*layer.parameters(recurse=False), *layer.buffers(recurse=False)))


def _join(parameters: list[nn.Parameter], sizes: list[int]) -> Tensor:
    """Their rows below each other, of which each becomes a part."""
    whole = torch.cat([parameter.data for parameter in parameters])
    for parameter, rows in zip(parameters, whole.split(sizes), strict=True):
        parameter.data = rows
    return whole


class FusedLinear(Epilogue, nn.Linear):
    """Several linear layers on the same input as one; a single row goes through torch's matrix-vector product."""

    def __init__(self, *plain: nn.Linear):
        nn.Module.__init__(self)
        self.plain = plain                                          # in a tuple: no parts of this module
        self.in_features, self.out_features = plain[0].in_features, sum(layer.out_features for layer in plain)
        self.weight, self.bias = plain[0].weight, plain[0].bias
        if len(plain) > 1:
            sizes = [layer.out_features for layer in plain]
            weight = _join([layer.weight for layer in plain], sizes)
            self.weight = nn.Parameter(weight, requires_grad=False)
            self.bias = None if self.bias is None else nn.Parameter(torch.cat([layer.bias for layer in plain]))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        if rows > FEW_ROWS:
            return functional.linear(x, self.weight, self.bias)
        if rows == 1:
            y = torch.mv(self.weight, x.reshape(-1))
        else:                                                       # the large matrix first: it is read where it lies
            y = (self.weight @ x.reshape(rows, -1).t()).t().contiguous()
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], -1)


class PrepackedLinear(FusedLinear):
    """The same on weights in oneDNN's own layout, bfloat16 on the CPU; the plain layers are empty meanwhile."""

    def __init__(self, *plain: nn.Linear):
        super().__init__(*plain)
        weight = self.weight.detach()
        del self.weight
        self.register_buffer("packed", torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1))
        for layer in plain:
            layer.weight.data = weight.new_empty(0)

    def forward(self, x: Tensor) -> Tensor:
        return self.then(x, "none")

    def added(self, x: Tensor, *, to: Tensor) -> Tensor:
        if x.numel() == self.in_features:                           # of a single row, less than oneDNN's preparations
            return self.then(x, "none").add_(to)
        return self.combined(x, to, "add")

    def restore(self) -> None:
        weights = self.packed.to_dense().split([layer.out_features for layer in self.plain])
        for layer, weight in zip(self.plain, weights, strict=True):
            layer.weight.data = weight

    def then(self, x: Tensor, function: str) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.default(x, self.packed, self.bias, function, [], "")

    def combined(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, self.bias, operation)


class PrepackedSwiGLU:
    """gate_proj and up_proj packed, each by itself: what `gated` does is then done inside the two products."""

    def __init__(self, gate: nn.Linear, up: nn.Linear):
        self.layers = PrepackedLinear(gate), PrepackedLinear(up)

    def gated(self, x: Tensor) -> Tensor:
        gate, up = self.layers
        return up.combined(x, gate.then(x, "swish"), "mul")

    def restore(self) -> None:
        for layer in self.layers:
            layer.restore()

    @property
    def nbytes(self) -> int:
        return sum(layer.nbytes for layer in self.layers)
