"""Fewer and faster calls while generating: whole blocks with less between the products, and those of fused_linear.py.

    fuse(model)                          # for generating; no weight is there twice
    unfuse(model)                        # the readable modules again, with the same numbers

Try: let a FusedBlock turn v as well; tests/test_fused_block.py (test_two_ways_fused_equals_readable) fails.
"""

from typing import Any

import torch
from torch import Tensor, nn

from llama.cache import LayerCache
from llama.fast.custom_autograd import rotate
from llama.fast.fused_linear import (
    FusedLinear,
    PrepackedLinear,
    PrepackedSwiGLU,
    packs_bfloat16,
    stored_bytes,
)
from llama.model import PROJECTIONS, Block, Llama, RMSNorm


class FusedBlock(Block):
    """`Block` with one product for q, k and v, one rotation for q and k, and what follows a product left to it."""

    only_generates = True                                           # see heads.check_editable

    def __init__(self, plain: Block):
        nn.Module.__init__(self)
        self.input_layernorm, self.self_attn = plain.input_layernorm, plain.self_attn       # names stay what they were
        self.post_attention_layernorm, self.mlp = plain.post_attention_layernorm, plain.mlp
        self.plain = (plain,)
        self.norms = _layer_norm_form(self.input_layernorm), _layer_norm_form(self.post_attention_layernorm)
        self.K, self.H = self.self_attn.head_dim, self.self_attn.q_proj.out_features // self.self_attn.head_dim
        self.products = tuple(
            make(*(plain.get_submodule(name) for name in names))
            for make, names in ((_product, PROJECTIONS[:3]), (_product, PROJECTIONS[3:4]), (_gate, PROJECTIONS[4:6]),
                                (_product, PROJECTIONS[6:])))

    def _apply(self, *_: Any, **__: Any) -> Any:
        raise ValueError("this model is fused, and its products do not move with it; unfuse it first")

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        qkv_proj, o_proj, gate_up_proj, down_proj = self.products
        B, T, D = x.shape
        x = x.reshape(B * T, D)                                     # N = B * T rows
        qkv = qkv_proj(_rms_norm(x, *self.norms[0])).view(B, T, -1, self.K).transpose(1, 2)
        H, G = self.H, (qkv.shape[1] - self.H) // 2                 # qkv (B, H + 2 G, T, K)
        turned = rotate(qkv[:, : H + G], cos, sin)
        k, v = turned[:, H:], qkv[:, H + G :]
        if cache is not None:
            k, v = cache.update(k, v)                               # (B, G, S, K)
        seen = self.self_attn.attend(turned[:, :H], k, v, mask).transpose(1, 2).reshape(B * T, -1)
        x = o_proj.added(seen, to=x)
        gated = gate_up_proj.gated(_rms_norm(x, *self.norms[1]))
        return down_proj.added(gated, to=x).view(B, T, D)


def _product(*plain: nn.Linear) -> Any:
    return PrepackedLinear(*plain) if _packs(plain[0].weight) else FusedLinear(*plain)


def _gate(gate: nn.Linear, up: nn.Linear) -> Any:
    return PrepackedSwiGLU(gate, up) if _packs(gate.weight) else _product(gate, up)


def _packs(weight: Tensor) -> bool:
    return weight.dtype == torch.bfloat16 and weight.device.type == "cpu" and packs_bfloat16()


def _layer_norm_form(norm: RMSNorm) -> tuple[Tensor, Tensor, float]:
    return torch.stack([norm.weight, torch.zeros_like(norm.weight)]), norm.weight.new_tensor([[1.0], [-1.0]]), norm.eps


def _rms_norm(x: Tensor, weight: Tensor, signs: Tensor, eps: float) -> Tensor:
    """RMSNorm by one kernel, where torch's own is ten calls: LayerNorm of x and -x, whose mean is 0, but of -x nothing.

    x (N, D); weight (2, D) and signs (2, 1) as `_layer_norm_form` makes them
    """
    return torch.layer_norm(x.unsqueeze(1) * signs, weight.shape, weight, None, eps)[:, 0]


@torch.no_grad()
def fuse(model: Llama) -> None:
    """Swap the blocks and the head for faster ones, in place. For generating alone: no gradient reaches the parameters.

    Blocks under LoRA, or in few bits, stay as they are: merge or dequantize first.
    """
    for i, layer in enumerate(model.layers):
        if type(layer) is Block and all(isinstance(part, nn.Linear | RMSNorm) for part in layer.modules()
                                        if not _has_parts(part)):
            model.layers[i] = FusedBlock(layer)
    if type(model.lm_head) is nn.Linear:
        model.lm_head = FusedLinear(model.lm_head)


def unfuse(model: Llama) -> None:
    """The inverse of `fuse`."""
    for product in _products(model):
        product.restore()
    for i, layer in enumerate(model.layers):
        if isinstance(layer, FusedBlock):
            model.layers[i] = layer.plain[0]
    if isinstance(getattr(model, "lm_head", None), FusedLinear):
        model.lm_head = model.lm_head.plain[0]


def weight_bytes_per_token(model: Llama) -> int:
    """Bytes of all linear layers, as a single token reads them.

    The embedding is not read, but for one row, unless it is the head as well.
    """
    blocks = [layer for layer in model.layers if not isinstance(layer, FusedBlock)]
    plain = [part for block in (*blocks, model.head) for part in block.modules() if hasattr(part, "in_features")]
    return sum(product.nbytes for product in _products(model)) + sum(map(stored_bytes, plain))


def _products(model: Llama) -> list[Any]:
    return [product for layer in model.layers if isinstance(layer, FusedBlock) for product in layer.products]


def _has_parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None
