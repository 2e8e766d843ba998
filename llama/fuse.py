"""Fewer and faster calls while generating: q, k and v as one product, gate and up as one, single rows by `torch.mv`.

With one token at a time the arithmetic is nothing; the time goes into reading weights, and into the calls themselves.
torch's general product reads bfloat16 at little more than half the speed of its matrix-vector product, and every call
costs some microseconds, whatever it does. With many tokens, oneDNN multiplies a quarter faster by weights that it laid
out for itself («packed»), which serve single tokens as well.

    fuse(model)                          # for generating; no weight is there twice
    unfuse(model)                        # the readable modules again, with the same numbers

The rows of q_proj, k_proj and v_proj are put below each other, and each parameter becomes a part of that; where they
are packed, it is empty meanwhile.

Try: join the rows in the order k, q, v; tests/test_fuse.py (test_two_ways_fused_equals_readable) fails.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from llama.model import MLP, Attention, LayerCache, Llama, apply_rotary, attention


class FastLinear(nn.Linear):
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
        if x.numel() != self.in_features:
            return functional.linear(x, self.weight, self.bias)
        y = torch.mv(self.weight, x.reshape(-1))
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
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")

    def restore(self) -> None:
        self._hand_out(self.packed.to_dense())


def _fast(*plain: nn.Linear) -> FastLinear:
    weight = plain[0].weight
    packs = weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
    return (PackedLinear if packs and hasattr(torch.ops.mkldnn, "_reorder_linear_weight") else FastLinear)(*plain)


class FusedAttention(Attention):
    """`Attention` with one product for q, k and v, and one rotation for q and k."""

    def __init__(self, plain: Attention):
        nn.Module.__init__(self)
        self.head_dim = plain.head_dim
        self.q_proj, self.k_proj, self.v_proj = plain.q_proj, plain.k_proj, plain.v_proj
        self.o_proj = _fast(plain.o_proj)
        self.heads = plain.q_proj.out_features // plain.head_dim    # H
        self.plain = (plain,)
        self.qkv = (_fast(plain.q_proj, plain.k_proj, plain.v_proj),)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        qkv = self._heads(self.qkv[0](x))                           # (B, H + 2 G, T, K)
        H, G = self.heads, (qkv.shape[1] - self.heads) // 2
        turned = apply_rotary(qkv[:, : H + G], cos, sin)
        q, k, v = turned[:, :H], turned[:, H:], qkv[:, H + G :]
        if cache is not None:
            k, v = cache.append(k, v)                               # (B, G, S, K)
        return self.o_proj(attention(q, k, v, mask).transpose(1, 2).flatten(2))


class FusedMLP(MLP):
    """`MLP` with one product for gate and up."""

    def __init__(self, plain: MLP):
        nn.Module.__init__(self)
        self.gate_proj, self.up_proj = plain.gate_proj, plain.up_proj
        self.down_proj = _fast(plain.down_proj)
        self.plain = (plain,)
        self.gate_up = (_fast(plain.gate_proj, plain.up_proj),)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up[0](x).chunk(2, dim=-1)
        return self.down_proj(functional.silu(gate).mul_(up))


@torch.no_grad()
def fuse(model: Llama) -> None:
    """Swap parts of the model for faster ones, in place. For generating alone: no gradient reaches the parameters.

    A part with layers other than `nn.Linear` (under LoRA, or quantised) stays as it is.
    """
    for layer in model.layers:
        if _all_linear(layer.self_attn):
            layer.self_attn = FusedAttention(layer.self_attn)
        if _all_linear(layer.mlp):
            layer.mlp = FusedMLP(layer.mlp)
    if type(model.lm_head) is nn.Linear:
        model.lm_head = FastLinear(model.lm_head)


def unfuse(model: Llama) -> None:
    """The inverse of `fuse`."""
    for linear in joined(model):
        linear.restore()
    for layer in model.layers:
        if isinstance(layer.self_attn, FusedAttention):
            layer.self_attn = layer.self_attn.plain[0]
        if isinstance(layer.mlp, FusedMLP):
            layer.mlp = layer.mlp.plain[0]
    if isinstance(model.lm_head, FastLinear):
        model.lm_head = model.lm_head.plain[0]


def joined(model: Llama) -> list[FastLinear]:
    """The layers that compute in place of the plain ones, where `fuse` put any."""
    found = [model.lm_head]
    for layer in model.layers:
        if isinstance(layer.self_attn, FusedAttention):
            found += [layer.self_attn.qkv[0], layer.self_attn.o_proj]
        if isinstance(layer.mlp, FusedMLP):
            found += [layer.mlp.gate_up[0], layer.mlp.down_proj]
    return [linear for linear in found if isinstance(linear, FastLinear)]


def _all_linear(part: nn.Module) -> bool:
    return all(type(child) is nn.Linear for child in part.children())
