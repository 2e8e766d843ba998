"""The same Llama, short and slow, written from the papers: the oracle of the tests and of conversion certificates.

It shares no arithmetic with model.py: rotation is a complex product, heads and queries are loops, nothing is cached or
fused. Weights are asked for by name and let go before the next, so that a model larger than memory can be read: a 7B
takes its largest matrix in float32, half a gigabyte, and the states of the text. All is float32, or float64 for weights
of that dtype.

Try: rotate `v` as well; tests/test_model.py (test_two_ways_whole_model_equals_reference) fails at once.
"""

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from llama.config import LlamaConfig, RopeScaling

Weight = Callable[[str], Tensor]
Pairs = Literal["halves", "neighbours"]


def logits(config: LlamaConfig, weight: Weight, tokens: Tensor, *, pairs: Pairs = "halves") -> Tensor:
    """tokens (T,) int64 -> (T, V).

    weight  gives a parameter by its name in `Llama.state_dict()`
    pairs   which features are rotated together: (i, i + K/2), as in Hugging Face's files, or (2i, 2i + 1), as in Meta's
    """
    turns = rotations(config, len(tokens))
    x = _wide(weight("embed_tokens.weight")[tokens]) * config.embedding_multiplier
    for i in range(config.num_hidden_layers):
        here = f"layers.{i}."

        def norm(name: str, x: Tensor, here: str = here) -> Tensor:
            return rms_norm(x, _wide(weight(f"{here}{name}.weight")), config.rms_norm_eps)

        def attend(x: Tensor, here: str = here, still: bool = i in config.no_rope_layers) -> Tensor:
            return attention(config, weight, here + "self_attn.", None if still else turns, pairs, x)

        def feed_forward(x: Tensor, here: str = here) -> Tensor:
            return swiglu(weight, here + "mlp.", config.mlp_bias, x)

        if config.norm_after:
            x = x + config.residual_multiplier * norm("post_attention_layernorm", attend(x))
            x = x + config.residual_multiplier * norm("post_feedforward_layernorm", feed_forward(x))
        else:
            x = x + config.residual_multiplier * attend(norm("input_layernorm", x))
            x = x + config.residual_multiplier * feed_forward(norm("post_attention_layernorm", x))
    x = rms_norm(x, _wide(weight("norm.weight")), config.rms_norm_eps)
    return linear(weight, "embed_tokens" if config.tie_word_embeddings else "lm_head", False, x) / config.logits_scaling


def linear(weight: Weight, name: str, bias: bool, x: Tensor) -> Tensor:
    y = x @ _wide(weight(name + ".weight")).T
    return y + _wide(weight(name + ".bias")) if bias else y


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """a_i / RMS(a) · g_i (arXiv:1910.07467, eq. 4)."""
    return torch.stack([row / math.sqrt((row @ row).item() / len(row) + eps) * gain for row in x])


def rotations(config: LlamaConfig, T: int) -> Tensor:
    """e^(i m θ_i) for position m and pair i (RoFormer, arXiv:2104.09864, eq. 12 to 15), (T, K/2) complex128."""
    frequencies = [frequency(config, i, T) for i in range(config.head_dim // 2)]
    angles = torch.tensor([[m * theta for theta in frequencies] for m in range(T)], dtype=torch.float64)
    return torch.polar(torch.ones_like(angles), angles)


def rotate(x: Tensor, turns: Tensor, pairs: Pairs) -> Tensor:
    """Each pair of features, read as a complex number, times its e^(i m θ_i).  x (T, K)."""
    K = x.shape[1]
    first, second = (range(K // 2), range(K // 2, K)) if pairs == "halves" else (range(0, K, 2), range(1, K, 2))
    turned = torch.complex(x[:, first].double(), x[:, second].double()) * turns
    out = torch.empty_like(x)
    out[:, first], out[:, second] = turned.real.to(x.dtype), turned.imag.to(x.dtype)
    return out


def frequency(config: LlamaConfig, i: int, T: int) -> float:
    """θ_i in a text of T tokens, with the scaling that the config asks for."""
    K, scaling, base = config.head_dim, config.rope_scaling, config.rope_theta
    theta = base ** (-2 * i / K)
    if scaling is None:
        return theta
    if scaling.kind == "linear":
        return theta / scaling.factor
    if scaling.kind == "dynamic":
        s, L = scaling.factor, config.max_position_embeddings
        stretch = s * max(T, L) / L - (s - 1)
        return (base * stretch ** (K / (K - 2))) ** (-2 * i / K)
    if scaling.kind == "llama3":
        return _llama3(theta, scaling)
    assert scaling.kind == "yarn", scaling.kind
    return _yarn(theta, i, base, K, scaling)


def _llama3(theta: float, scaling: RopeScaling) -> float:
    """Llama 3.1's three ranges of wavelengths."""
    wavelength = 2 * math.pi / theta
    context, low, high = scaling.original_max_position_embeddings, scaling.low_freq_factor, scaling.high_freq_factor
    if wavelength < context / high:
        return theta
    if wavelength > context / low:
        return theta / scaling.factor
    smooth = (context / wavelength - low) / (high - low)
    return (1 - smooth) * theta / scaling.factor + smooth * theta


def _yarn(theta: float, i: int, base: float, K: int, scaling: RopeScaling) -> float:
    """arXiv:2309.00071, eq. 16 to 18 with the ramp of the published code: between the pairs that turn beta_fast and
    beta_slow times in the original context."""
    low, high = (K / 2 * math.log(scaling.original_max_position_embeddings / (2 * math.pi * beta)) / math.log(base)
                 for beta in (scaling.beta_fast, scaling.beta_slow))
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, K - 1)
    if low == high:
        high += 0.001
    gamma = 1 - min(max((i - low) / (high - low), 0), 1)
    return (1 - gamma) * theta / scaling.factor + gamma * theta


def temperature(scaling: RopeScaling | None) -> float:
    """t, by which YaRN divides the scores: √(1/t) = 0.1 ln s + 1 (arXiv:2309.00071, eq. 21 and 22), if not given."""
    if scaling is None or scaling.kind != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return 1 / scaling.attention_factor**2
    stretch = 0.1 * math.log(scaling.factor)
    if scaling.mscale and scaling.mscale_all_dim:
        return ((stretch * scaling.mscale_all_dim + 1) / (stretch * scaling.mscale + 1)) ** 2
    return 1 / (stretch + 1) ** 2


def attention(config: LlamaConfig, weight: Weight, here: str, turns: Tensor | None, pairs: Pairs, x: Tensor) -> Tensor:
    """One head after the other, one query after the other (arXiv:1706.03762, eq. 1; arXiv:2305.13245).  x (T, D).

    With a sliding window of W, query t sees the keys from t - W + 1 on (arXiv:2310.06825, section 2).
    """
    K, group = config.head_dim, config.num_attention_heads // config.num_key_value_heads
    q, k, v = (linear(weight, here + name, config.attention_bias or config.qkv_bias, x)
               for name in ("q_proj", "k_proj", "v_proj"))
    if config.qk_norm == "all":
        q, k = (rms_norm(y, _wide(weight(f"{here}{name}.weight")), config.rms_norm_eps)
                for y, name in ((q, "q_norm"), (k, "k_norm")))
    scale = config.attention_multiplier or 1 / math.sqrt(K)
    if turns is not None:
        scale /= temperature(config.rope_scaling)
    heads = []
    for h in range(config.num_attention_heads):
        g = h // group
        q_h, k_h = q[:, h * K : (h + 1) * K], k[:, g * K : (g + 1) * K]
        if config.qk_norm == "head":
            q_h, k_h = (rms_norm(y, _wide(weight(f"{here}{name}.weight")), config.rms_norm_eps)
                        for y, name in ((q_h, "q_norm"), (k_h, "k_norm")))
        if turns is not None:
            q_h, k_h = rotate(q_h, turns, pairs), rotate(k_h, turns, pairs)
        v_h = v[:, g * K : (g + 1) * K]
        rows = []
        for t in range(len(x)):
            first = max(0, t - config.sliding_window + 1) if config.sliding_window else 0
            scores = k_h[first : t + 1] @ q_h[t] * scale
            weights = torch.exp(scores - scores.max())
            rows.append(weights / weights.sum() @ v_h[first : t + 1])
        heads.append(torch.stack(rows))
    return linear(weight, here + "o_proj", config.attention_bias, torch.cat(heads, dim=-1))


def swiglu(weight: Weight, here: str, bias: bool, x: Tensor) -> Tensor:
    """(Swish(x W) ⊙ x V) W₂ (arXiv:2002.05202, eq. 6)."""
    gate = linear(weight, here + "gate_proj", bias, x)
    gate = gate / (1 + torch.exp(-gate))
    return linear(weight, here + "down_proj", bias, gate * linear(weight, here + "up_proj", bias, x))
