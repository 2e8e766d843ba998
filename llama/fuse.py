"""Fewer and faster calls while generating: whole blocks with less between the products, and those of products.py.

    fuse(model)                          # for generating; no weight is there twice
    unfuse(model)                        # the readable modules again, with the same numbers

Try: let a FusedBlock turn v as well; tests/test_fuse.py (test_two_ways_fused_equals_readable) fails.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llama.by_hand import turn
from llama.model import Block, LayerCache, Llama, RMSNorm, attention
from llama.products import FastLinear, PackedGate, PackedLinear, QuantizedProduct, stored_bytes
from llama.quantized_layers import Quantized


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
        self.products = (_product(attn.q_proj, attn.k_proj, attn.v_proj), _product(attn.o_proj),
                         _gate(mlp.gate_proj, mlp.up_proj), _product(mlp.down_proj))

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        qkv_proj, o_proj, gate_up_proj, down_proj = self.products
        B, T, D = x.shape
        x = x.reshape(B * T, D)                                     # N = B * T rows
        qkv = qkv_proj(_normed(x, *self.norms[0])).view(B, T, -1, self.K).transpose(1, 2)
        H, G = self.H, (qkv.shape[1] - self.H) // 2                 # qkv (B, H + 2 G, T, K)
        turned = turn(qkv[:, : H + G], cos, sin)
        k, v = turned[:, H:], qkv[:, H + G :]
        if cache is not None:
            k, v = cache.append(k, v)                               # (B, G, S, K)
        seen = attention(turned[:, :H], k, v, mask).transpose(1, 2).reshape(B * T, -1)
        x = o_proj.added(seen, to=x)
        gated = gate_up_proj.gated(_normed(x, *self.norms[1]))
        return down_proj.added(gated, to=x).view(B, T, D)


def _product(*plain: nn.Module) -> Any:
    if isinstance(plain[0], Quantized):
        return QuantizedProduct(*plain)
    return PackedLinear(*plain) if _packs(plain[0].weight) else FastLinear(*plain)


def _gate(gate: nn.Module, up: nn.Module) -> Any:
    packs = not isinstance(gate, Quantized) and _packs(gate.weight)
    return PackedGate(gate, up) if packs else _product(gate, up)


def _packs(weight: Tensor) -> bool:
    return (weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_reorder_linear_weight"))


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
    for i, layer in enumerate(model.layers):
        if isinstance(layer, FusedBlock):
            for product in layer.products:
                product.restore()
            model.layers[i] = layer.plain[0]
    if isinstance(model.lm_head, FastLinear):
        model.lm_head = model.lm_head.plain[0]


def bytes_read(model: Llama) -> int:
    """Bytes of all linear layers, as a single token reads them.

    The embedding is not read, but for one row, unless it is the head as well.
    """
    blocks = [layer for layer in model.layers if not isinstance(layer, FusedBlock)]
    products = [product for layer in model.layers if isinstance(layer, FusedBlock) for product in layer.products]
    plain = [part for block in (*blocks, model.head) for part in block.modules() if hasattr(part, "in_features")]
    return sum(product.nbytes for product in products) + sum(map(stored_bytes, plain))


def _has_parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None
