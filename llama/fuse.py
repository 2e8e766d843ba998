"""Fewer and faster calls while generating: whole blocks with less between the products, and faster products.

With one token at a time the arithmetic is nothing; the time goes into reading weights, and into the calls themselves.
torch's general product reads bfloat16 at little more than half the speed of its matrix-vector product, and every call
costs some microseconds, whatever it does. With many tokens, oneDNN multiplies a quarter faster by weights that it laid
out for itself («packed»), which serve single tokens as well, and adds, multiplies or bends what comes out on the way.

    fuse(model)                          # for generating; no weight is there twice
    unfuse(model)                        # the readable modules again, with the same numbers

The rows of q_proj, k_proj and v_proj are put below each other, and each parameter becomes a part of that; where they
are packed, it is empty meanwhile.

Try: join the rows in the order k, q, v; tests/test_fuse.py (test_two_ways_fused_equals_readable) fails.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from llama.by_hand import turn
from llama.model import Block, LayerCache, Llama, RMSNorm, attention
from llama.quantized_layers import Quantized

FEW_ROWS = 8                                                        # beyond, turning the result around takes too long


class Then:
    """What may follow a product at once."""

    def added(self, x: Tensor, *, to: Tensor) -> Tensor:
        return to + self(x)

    def silu(self, x: Tensor) -> Tensor:
        return functional.silu(self(x))

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        return self(x) * factor


class Product(Then):
    """A linear layer of any kind, or several on the same input with their outputs behind each other."""

    def __init__(self, *plain: nn.Module):
        self.plain = plain

    def __call__(self, x: Tensor) -> Tensor:
        return self.plain[0](x) if len(self.plain) == 1 else torch.cat([layer(x) for layer in self.plain], dim=-1)


class FastLinear(Then, nn.Linear):
    """Several linear layers on the same input as one; a single row goes through torch's matrix-vector product."""

    def __init__(self, *plain: nn.Linear):
        nn.Module.__init__(self)
        self.plain = plain                                          # in a tuple: no parts of this module
        self.in_features, self.out_features = plain[0].in_features, sum(layer.out_features for layer in plain)
        weight, self.bias = plain[0].weight, plain[0].bias
        if len(plain) > 1:
            weight = nn.Parameter(torch.cat([layer.weight for layer in plain]), requires_grad=False)
            self.bias = None if self.bias is None else nn.Parameter(torch.cat([layer.bias for layer in plain]))
        self.weight = weight
        self._hand_out(weight)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.numel() // self.in_features
        if rows > FEW_ROWS:
            return functional.linear(x, self.weight, self.bias)
        if rows == 1:
            y = torch.mv(self.weight, x.reshape(-1))
        else:                                                       # the large matrix first: it is read where it lies
            y = (self.weight @ x.reshape(rows, -1).t()).t().contiguous()
        return (y if self.bias is None else y + self.bias).view(*x.shape[:-1], -1)

    def restore(self) -> None:
        """Nothing to do: what the plain layers hold are parts of the joined weight."""

    def _hand_out(self, weight: Tensor) -> None:
        for layer, rows in zip(self.plain, weight.split([layer.out_features for layer in self.plain]), strict=True):
            layer.weight.data = rows


class PackedLinear(FastLinear):
    """The same on weights in oneDNN's own layout, bfloat16 on the CPU; the plain layers are empty meanwhile."""

    def __init__(self, *plain: nn.Linear):
        super().__init__(*plain)
        weight = self.weight.detach()
        del self.weight
        self.register_buffer("packed", torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), 1))
        for layer in plain:
            layer.weight.data = weight.new_empty(0)

    def forward(self, x: Tensor) -> Tensor:
        return self._then(x, "none")

    def silu(self, x: Tensor) -> Tensor:
        return self._then(x, "swish")

    def added(self, x: Tensor, *, to: Tensor) -> Tensor:
        if x.numel() == self.in_features:                           # of a single row, less than oneDNN's preparations
            return to + self._then(x, "none")
        return self._with(x, to, "add")

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        return self._with(x, factor, "mul")

    def restore(self) -> None:
        self._hand_out(self.packed.to_dense())

    def _then(self, x: Tensor, function: str) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.default(x, self.packed, self.bias, function, [], "")

    def _with(self, x: Tensor, other: Tensor, operation: str) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise.binary(x, other, self.packed, self.bias, operation)


def _fast(*plain: nn.Module) -> Product | FastLinear:
    weight = plain[0].weight
    if isinstance(plain[0], Quantized):
        return Product(*plain)
    packs = weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    return (PackedLinear if packs and hasattr(torch.ops.mkldnn, "_reorder_linear_weight") else FastLinear)(*plain)


class FusedBlock(Block):
    """`Block` with one product for q, k and v, one rotation for q and k, and what follows a product left to it."""

    def __init__(self, plain: Block):
        nn.Module.__init__(self)
        self.input_layernorm, self.self_attn = plain.input_layernorm, plain.self_attn       # names stay what they were
        self.post_attention_layernorm, self.mlp = plain.post_attention_layernorm, plain.mlp
        self.plain = (plain,)
        attn, mlp = plain.self_attn, plain.mlp
        self.norms = _doubled(self.input_layernorm), _doubled(self.post_attention_layernorm)
        self.K, self.H = attn.head_dim, attn.q_proj.out_features // attn.head_dim
        self.products = (_fast(attn.q_proj, attn.k_proj, attn.v_proj), _fast(attn.o_proj), _fast(mlp.gate_proj),
                         _fast(mlp.up_proj), _fast(mlp.down_proj))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        qkv_proj, o_proj, gate_proj, up_proj, down_proj = self.products
        qkv = qkv_proj(_normed(x, *self.norms[0])).unflatten(-1, (-1, self.K)).transpose(1, 2)
        H, G = self.H, (qkv.shape[1] - self.H) // 2                 # qkv (B, H + 2 G, T, K)
        turned = turn(qkv[:, : H + G], cos[..., : self.K // 2], sin[..., : self.K // 2])
        q, k, v = turned[:, :H], turned[:, H:], qkv[:, H + G :]
        if cache is not None:
            k, v = cache.append(k, v)                               # (B, G, S, K)
        x = o_proj.added(attention(q, k, v, mask).transpose(1, 2).flatten(2), to=x)
        normed = _normed(x, *self.norms[1])
        return down_proj.added(up_proj.times(normed, gate_proj.silu(normed)), to=x)


def _doubled(norm: RMSNorm) -> tuple[Tensor, float]:
    return torch.cat([norm.weight, torch.zeros_like(norm.weight)]), norm.eps


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm by one kernel, where torch's own is ten calls: LayerNorm of x and -x, whose mean is 0, but of -x nothing.

    weight  (2 D,) as `_doubled` makes it
    """
    return functional.layer_norm(torch.cat([x, -x], dim=-1), weight.shape, weight, None, eps)[..., : x.shape[-1]]


@torch.no_grad()
def fuse(model: Llama) -> None:
    """Swap the blocks and the head for faster ones, in place. For generating alone: no gradient reaches the parameters.

    Blocks under LoRA stay as they are: merge first.
    """
    for i, layer in enumerate(model.layers):
        if all(isinstance(part, nn.Linear | Quantized | RMSNorm) for part in layer.modules() if not _has_parts(part)):
            model.layers[i] = FusedBlock(layer)
    if type(model.lm_head) is nn.Linear:
        model.lm_head = FastLinear(model.lm_head)


def unfuse(model: Llama) -> None:
    """The inverse of `fuse`."""
    for linear in joined(model):
        linear.restore()
    for i, layer in enumerate(model.layers):
        if isinstance(layer, FusedBlock):
            model.layers[i] = layer.plain[0]
    if isinstance(model.lm_head, FastLinear):
        model.lm_head = model.lm_head.plain[0]


def joined(model: Llama) -> list[FastLinear]:
    """The layers that compute in place of the plain ones, where `fuse` put any."""
    blocks = [product for layer in model.layers if isinstance(layer, FusedBlock) for product in layer.products]
    return [linear for linear in (model.lm_head, *blocks) if isinstance(linear, FastLinear)]


def _has_parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None
