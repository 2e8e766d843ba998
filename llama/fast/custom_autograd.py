"""Training steps on the CPU in fewer passes over memory: parts of the model with gradients written by hand.

torch keeps what every small operation needs for the backward pass, and goes through memory once for each. Here a whole
part is one operation that keeps its inputs, and whose gradient is a formula. The modules stay what they are, with the
same parameters: only their class is another one, whose forward pass falls back to the readable one wherever no gradient
is asked for.

    use_custom_autograd(model)           # for training; `Documents` may then be given as mask
    restore_autograd(model)              # the readable classes again

What is gained where, and what failed, is in docs/experiments.md.

Try: give the rows of `_gradients` delta instead of -delta; tests/test_custom_autograd.py
(test_two_ways_gradients_equal_autograd) fails.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llama.cache import LayerCache
from llama.lora.layers import LoRALinear, LoRAPart
from llama.masks import Documents
from llama.model import MLP, Attention, Llama, RMSNorm

QUERY_BLOCK = 128                                                          # queries at a time in the backward pass
Saved = Any


# ---- RMSNorm ---------------------------------------------------------------------------------------------------------


class _Norm(torch.autograd.Function):
    """y = w n with n = x / rms(x); dx = (w dy - n mean(w dy n)) / rms(x)."""

    @staticmethod
    def forward(ctx: Saved, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        x32 = x.float()
        squares = torch.linalg.vector_norm(x32, dim=-1, keepdim=True).square_()         # a third of the time of a mean
        factor = squares.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, factor)
        return weight * (x32 * factor).to(x.dtype)

    @staticmethod
    def backward(ctx: Saved, dy: Tensor) -> tuple[Tensor, Tensor | None, None]:
        x, weight, factor = ctx.saved_tensors
        n = x.to(torch.float32, copy=True).mul_(factor)             # x itself may be needed by a second backward pass
        dweight = (dy.float() * n).flatten(0, -2).sum(0).to(weight.dtype) if ctx.needs_input_grad[1] else None
        dn = (dy * weight).float()
        mean = torch.linalg.vecdot(dn, n).div_(x.shape[-1])[..., None]
        return dn.addcmul_(n, mean, value=-1).mul_(factor).to(x.dtype), dweight, None


class FusedRMSNorm(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return _Norm.apply(x, self.weight, self.eps) if torch.is_grad_enabled() else super().forward(x)


# ---- attention -------------------------------------------------------------------------------------------------------


def rotate(x: Tensor, cos: Tensor, sin: Tensor, *, back: bool = False) -> Tensor:
    """`apply_rotary`, or its inverse, without the copies that turning pairs takes."""
    x32 = x.float()
    out = x32 * cos
    first, second = x32.chunk(2, dim=-1)
    first_out, second_out = out.chunk(2, dim=-1)
    sin = sin[..., : sin.shape[-1] // 2]
    sign = -1 if back else 1
    first_out.addcmul_(second, sin, value=-sign)
    second_out.addcmul_(first, sin, value=sign)
    return out.to(x.dtype)


def _before_heads(cos: Tensor) -> Tensor:
    """(T, K) or (B, 1, T, K) -> (T, 1, K) or (B, T, 1, K)."""
    return cos.transpose(-2, -3) if cos.dim() == 4 else cos[:, None]


class _Attention(torch.autograd.Function):
    """Rotary positions and attention, causal in each document or both ways in each row; the probabilities are computed
    again for the gradient.

    With q scaled by 1/√K (as its tables are), P = softmax(q kᵀ) and y = P v:  dv = Pᵀ dy,  dS = P ⊙ (dy vᵀ - delta),
    delta = sum(dy ⊙ y) of a query,  dq = dS k,  dk = dSᵀ q. The H/G queries that share a key are rows of one product.
    All that is (T, T) is in the dtype of q: rounded once a pass, as in torch's own kernel before its products.
    """

    @staticmethod
    def forward(ctx: Saved, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor,
                lengths: tuple[int, ...] | None, added: Tensor | None) -> Tensor:
        """q (B, T, H, K); k, v (B, T, G, K); cos, sin by `_before_heads`; -> (B, T, H, K). lengths: if B = 1.

        added  (B, 1, 1, T) to the scores of every query, which then sees what is behind it, too
        """
        scale = q.shape[-1] ** -0.5
        q, k = rotate(q, cos * scale, sin * scale), rotate(k, cos, sin)
        y = torch.empty_like(q)
        for part in _parts(q, lengths):
            some_q, some_k, some_v = (x[:, part].transpose(1, 2) for x in (q, k, v))
            y[:, part] = functional.scaled_dot_product_attention(
                some_q, some_k, some_v, attn_mask=added, is_causal=added is None, enable_gqa=True, scale=1.0
            ).transpose(1, 2)
        ctx.save_for_backward(q, k, v, y, cos, sin, added)
        ctx.lengths = lengths
        return y

    @staticmethod
    def backward(ctx: Saved, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, y, cos, sin, added = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        delta = torch.linalg.vecdot(dy.float(), y.float())[..., None].to(q.dtype)      # (B, T, H, 1)
        for part in _parts(q, ctx.lengths):
            found = _gradients(*(x[:, part] for x in (q, k, v, dy, delta)), added)
            for gradient, whole in zip(found, (dq, dk, dv), strict=True):
                whole[:, part] = gradient
        scale = q.shape[-1] ** -0.5
        dq, dk = rotate(dq, cos * scale, sin * scale, back=True), rotate(dk, cos, sin, back=True)
        return dq, dk, dv, None, None, None, None


def _parts(q: Tensor, lengths: tuple[int, ...] | None) -> list[slice]:
    if lengths is None:
        return [slice(None)]
    ends = torch.tensor(lengths).cumsum(0).tolist()
    return [slice(end - length, end) for length, end in zip(lengths, ends, strict=True)]


def _gradients(q: Tensor, k: Tensor, v: Tensor, dy: Tensor, delta: Tensor, added: Tensor | None
               ) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv of one document, or of several of one length; shapes as in `_Attention`, delta (B, T, H, 1)."""
    B, T, H, K = q.shape
    G = k.shape[2]
    rows = [x.view(B, T, G, H // G, -1).permute(0, 2, 3, 1, 4) for x in (q, dy, -delta)]    # (B, G, H/G, T, …)
    k, v = (x.transpose(1, 2).reshape(B * G, T, K) for x in (k, v))
    dq = q.new_empty(B, G, H // G, T, K)
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    future = q.new_full((min(QUERY_BLOCK, T), T), float("-inf"))
    for start in range(0, T, QUERY_BLOCK):
        end = min(start + QUERY_BLOCK, T)
        some_q, some_dy, some_delta = (x[:, :, :, start:end].reshape(B * G, -1, x.shape[-1]) for x in rows)
        if added is None:                                           # keys behind the last query count for nothing
            seen, unseen = end, future[: end - start, :end].triu(start + 1).repeat(H // G, 1)
        else:
            seen, unseen = T, added.expand(B, G, 1, T).reshape(B * G, 1, T)
        keys, values = k[:, :seen], v[:, :seen]
        P = torch.baddbmm(unseen, some_q, keys.transpose(1, 2)).softmax(-1)             # (B G, H/G rows, seen)
        dS = torch.baddbmm(some_delta, some_dy, values.transpose(1, 2)).mul_(P)
        dv[:, :seen] += P.transpose(1, 2) @ some_dy
        dk[:, :seen] += dS.transpose(1, 2) @ some_q
        dq[:, :, :, start:end] = (dS @ keys).view(B, G, H // G, end - start, K)
    back = [x.view(B, G, T, K).transpose(1, 2) for x in (dk, dv)]
    return dq.permute(0, 3, 1, 2, 4).reshape(B, T, H, K), *back


def fused_attention(q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, mask: Documents | Tensor | None
                    ) -> Tensor:
    """As `_Attention.forward` says, with the tables as the model has them."""
    lengths, added = (mask.lengths, None) if isinstance(mask, Documents) else (None, mask)
    return _Attention.apply(q, k, v, _before_heads(cos), _before_heads(sin), lengths, added)


def _both_ways(x: Tensor, mask: Any) -> bool:
    """Whether every query of a row sees the same keys, in few bits: there torch's own backward pass takes up to four
    times as long, while in float32 it is the faster one.
    """
    one_row = isinstance(mask, Tensor) and mask.shape[:-1] == (len(x), 1, 1) and mask.is_floating_point()
    return one_row and x.shape[1] > 1 and x.dtype != torch.float32 and torch.is_grad_enabled()


class FusedAttention(Attention):
    takes_documents = True

    quick_attend = staticmethod(fused_attention)                    # compile_blocks leaves it out

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | Documents | None,
                cache: LayerCache | None) -> Tensor:
        asked = isinstance(mask, Documents) or mask is None and torch.is_grad_enabled() or _both_ways(x, mask)
        if not asked or cache is not None:
            return super().forward(x, cos, sin, mask, cache)
        q, k, v = (proj(x).unflatten(-1, (-1, self.head_dim)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        return self.o_proj(self.quick_attend(q, k, v, cos, sin, mask).flatten(2))


# ---- SwiGLU ----------------------------------------------------------------------------------------------------------


class _Gated(torch.autograd.Function):
    """y = silu(gate) up; of torch's three kept tensors two remain."""

    @staticmethod
    def forward(ctx: Saved, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Saved, dy: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(dy * up, gate), functional.silu(gate).mul_(dy)


class FusedMLP(MLP):
    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return super().forward(x)
        return self.down_proj(_Gated.apply(self.gate_proj(x), self.up_proj(x)))


# ---- LoRA ------------------------------------------------------------------------------------------------------------


class _LowRank(torch.autograd.Function):
    """y = W x + scale · B A x with W frozen, added in place."""

    @staticmethod
    def forward(ctx: Saved, x: Tensor, A: Tensor, B: Tensor, base: nn.Module, scale: float) -> Tensor:
        rows, A, B = x.flatten(0, -2), A.to(x.dtype), (B * scale).to(x.dtype)
        y = base(rows)
        inner = rows @ A.t()                                        # (N, R)
        ctx.save_for_backward(x, A, B, inner)
        ctx.base, ctx.scale = base, scale
        return y.addmm_(inner, B.t()).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Saved, dy: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        x, A, B, inner = ctx.saved_tensors
        rows, dy = x.flatten(0, -2), dy.flatten(0, -2)
        dinner = dy @ B                                             # (N, R)
        dA, dB = dinner.t() @ rows, (inner.t() @ dy).t()
        dx = None
        if ctx.needs_input_grad[0]:
            dx = ctx.base.grad_input(dy) if hasattr(ctx.base, "grad_input") else dy @ ctx.base.weight
            dx = dx.addmm_(dinner, A).view(x.shape)
        return dx, dA.float(), dB.float().mul_(ctx.scale), None, None


class FusedLoRALinear(LoRALinear):
    def forward(self, x: Tensor) -> Tensor:
        part = self.adapters[self.active[0]] if len(self.active) == 1 else None
        frozen = not any(parameter.requires_grad for parameter in self.base.parameters())
        if type(part) is not LoRAPart or part.dropout.p and self.training or not frozen or not torch.is_grad_enabled():
            return super().forward(x)
        return _LowRank.apply(x, *part.factors(), self.base, part.scale)


# ---- the swap --------------------------------------------------------------------------------------------------------


FUSED = {RMSNorm: FusedRMSNorm, Attention: FusedAttention, MLP: FusedMLP, LoRALinear: FusedLoRALinear}
PLAIN = {quick: plain for plain, quick in FUSED.items()}


def use_custom_autograd(model: Llama) -> None:
    """Give the parts of the model their quick classes, in place. On other devices than the CPU nothing changes: there
    torch's own kernels are faster; nor does attention through a sliding window."""
    if model.device.type != "cpu":
        return
    # The clever step: a module changes its class and keeps its parameters, so no optimiser, hook or name notices.
    for module in model.modules():
        if type(module) in FUSED and not (type(module) is Attention and model.config.sliding_window):
            module.__class__ = FUSED[type(module)]


def restore_autograd(model: nn.Module) -> None:
    """The inverse of `use_custom_autograd`."""
    for module in model.modules():
        module.__class__ = PLAIN.get(type(module), type(module))
