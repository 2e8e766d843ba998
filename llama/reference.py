"""The same Llama, short and slow, written from the papers: the oracle of the tests and of conversion certificates.

It shares no arithmetic with model.py: rotation is a complex product, heads are loops, nothing is cached or fused, all
of it in float32 (or float64: the dtype of the weights it is given), with weights asked for by name, one at a time, so
that a model larger than memory can be read layer by layer.

Try: rotate `v` as well; tests/test_model.py (test_two_ways_whole_model_equals_reference) fails at once.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from llama.config import LlamaConfig


def logits(config: LlamaConfig, weight: Callable[[str], Tensor], tokens: Tensor) -> Tensor:
    """tokens (T,) int64 -> (T, V). `weight` gives a parameter by its name in `Llama.state_dict()`."""
    x = weight("embed_tokens.weight")[tokens]
    for i in range(config.num_hidden_layers):
        here = f"layers.{i}."
        normed = rms_norm(x, weight(here + "input_layernorm.weight"), config.rms_norm_eps)
        x = x + attention(config, lambda name, here=here: weight(f"{here}self_attn.{name}.weight"), normed)
        normed = rms_norm(x, weight(here + "post_attention_layernorm.weight"), config.rms_norm_eps)
        x = x + swiglu(lambda name, here=here: weight(f"{here}mlp.{name}.weight"), normed)
    x = rms_norm(x, weight("norm.weight"), config.rms_norm_eps)
    return x @ weight("embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight").T


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """a_i / RMS(a) · g_i (arXiv:1910.07467, eq. 4)."""
    return torch.stack([row / math.sqrt((row @ row).item() / len(row) + eps) * gain for row in x])


def rotate(x: Tensor, config: LlamaConfig) -> Tensor:
    """Feature pair i at position m times e^(i m θ_i) (RoFormer, arXiv:2104.09864, eq. 12 to 15).  x (T, K)."""
    T, K = x.shape
    pairs = torch.complex(x[:, : K // 2], x[:, K // 2 :])
    angles = torch.tensor([[m * frequency(config, i) for i in range(K // 2)] for m in range(T)], dtype=x.dtype)
    turned = pairs * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([turned.real, turned.imag], dim=-1)


def frequency(config: LlamaConfig, i: int) -> float:
    """θ_i, with the scaling that the config asks for: «linear» or Llama 3.1's three ranges of wavelengths."""
    theta = config.rope_theta ** (-2 * i / config.head_dim)
    scaling = config.rope_scaling
    if scaling is None:
        return theta
    if scaling.kind == "linear":
        return theta / scaling.factor
    wavelength = 2 * math.pi / theta
    context, low, high = scaling.original_max_position_embeddings, scaling.low_freq_factor, scaling.high_freq_factor
    if wavelength < context / high:
        return theta
    if wavelength > context / low:
        return theta / scaling.factor
    smooth = (context / wavelength - low) / (high - low)
    return (1 - smooth) * theta / scaling.factor + smooth * theta


def attention(config: LlamaConfig, weight: Callable[[str], Tensor], x: Tensor) -> Tensor:
    """One head after the other, one query after the other (arXiv:1706.03762, eq. 1; arXiv:2305.13245).  x (T, D)."""
    K = config.head_dim
    group = config.num_attention_heads // config.num_key_value_heads
    q, k, v = (x @ weight(name).T for name in ("q_proj", "k_proj", "v_proj"))
    heads = []
    for h in range(config.num_attention_heads):
        g = h // group
        q_h = rotate(q[:, h * K : (h + 1) * K], config)
        k_h = rotate(k[:, g * K : (g + 1) * K], config)
        v_h = v[:, g * K : (g + 1) * K]
        rows = []
        for t in range(len(x)):
            scores = k_h[: t + 1] @ q_h[t] / math.sqrt(K)
            weights = torch.exp(scores - scores.max())
            rows.append(weights / weights.sum() @ v_h[: t + 1])
        heads.append(torch.stack(rows))
    return torch.cat(heads, dim=-1) @ weight("o_proj").T


def swiglu(weight: Callable[[str], Tensor], x: Tensor) -> Tensor:
    """(Swish(x W) ⊙ x V) W₂ (arXiv:2002.05202, eq. 6)."""
    gate = x @ weight("gate_proj").T
    return (gate / (1 + torch.exp(-gate)) * (x @ weight("up_proj").T)) @ weight("down_proj").T
