"""The Llama forward pass, whole: norm, rotary embedding, grouped-query attention with a cache, SwiGLU, block, model.

Llama (arXiv:2302.13971) is the decoder of «Attention Is All You Need» (arXiv:1706.03762) with RMSNorm before each
part, rotary positions inside attention, a gated feed-forward part, and no biases. Its siblings differ little: Mistral
looks through a sliding window, Qwen 2 adds biases to q, k and v, and siblings.py has parts of others. Parameters are
named as in Hugging Face checkpoints without the leading `model.`. The letters of the shapes are explained in config.py.
reference.py holds the same mathematics, short and slow.

Try: in `apply_rotary`, pair neighbours (x[..., 0::2], x[..., 1::2]) as Meta's files do; tests/test_model.py
(test_two_ways_whole_model_equals_reference) fails, while the first words of generated text still look fine.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llama.cache import KVCache, LayerCache
from llama.config import LlamaConfig
from llama.masks import additive_mask, causal_mask, clip_to_window
from llama.rope_scaling import ROPE_SCALING


class RMSNorm(nn.Module):
    """x / rms(x) * weight, over the last axis (arXiv:1910.07467, eq. 4), in float32 whatever the dtype of `x`.

    Squares of bfloat16 activations lose too much: without float32 here, logits drift by whole units in deep models.
    """

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * x32.to(x.dtype)


def rotary_frequencies(config: LlamaConfig, device: torch.device | str = "cpu", *,
                       length: Tensor | None = None) -> Tensor:
    """Radians per position for each rotary pair, θ^(-2i/K) (RoFormer, arXiv:2104.09864, eq. 15), scaled if asked.

    length  of the text in positions, (1,) or (B, 1): dynamic scaling depends on it; None is one that was trained
    ->      (K/2,) float32; with dynamic scaling (1, K/2) or (B, 1, K/2)
    """
    exponents = torch.arange(0, config.head_dim, 2, device=device).float() / config.head_dim
    if config.rope_scaling is None:
        return 1 / config.rope_theta**exponents
    length = torch.ones(1, device=device) if length is None else length
    return ROPE_SCALING[config.rope_scaling.kind](exponents, config, length)


def rotary_tables(positions: Tensor, config: LlamaConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines that `apply_rotary` turns by; computed once a forward pass and shared by all layers.

    YaRN makes queries and keys longer too, by a factor that is put in here.

    positions  (T,) or (B, T); the largest is taken for the text's last, for the sake of dynamic scaling
    ->         two of (T, K) or (B, 1, T, K), float32; the second half of K repeats the first
    """
    length = positions.amax(-1, keepdim=True) + 1
    angles = positions.unsqueeze(-1).float() * rotary_frequencies(config, positions.device, length=length)
    angles = torch.cat([angles, angles], dim=-1)
    if positions.dim() == 2:
        angles = angles.unsqueeze(1)                                # one axis for the heads
    scaling = config.rope_scaling.attention_scaling if config.rope_scaling else 1.0
    return angles.cos() * scaling, angles.sin() * scaling


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair of features by an angle proportional to its position (RoFormer, arXiv:2104.09864, eq. 34).

    Pairs are (i, i + K/2), the layout of Hugging Face checkpoints; Meta's are (2i, 2i + 1), so files in that layout are
    reordered on the way in (`weights/`). Getting this wrong reads as fluent text that decays after some 20 tokens.

    x         (B, H, T, K)  queries or keys, any float dtype
    cos, sin  (T, K) or (B, 1, T, K), float32
    ->        (B, H, T, K)  in the dtype of `x`; norms are kept, but for YaRN's factor in the tables

    Raises ValueError if `cos` does not fit the last two axes of `x`.
    """
    if cos.shape[-2:] != x.shape[-2:]:
        raise ValueError(f"rotary tables are for {tuple(cos.shape[-2:])} positions and features, "
                         f"x has {tuple(x.shape[-2:])}")
    x32 = x.float()
    first, second = x32.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)                    # each pair a quarter turn ahead
    return (x32 * cos + turned * sin).to(x.dtype)


def naive_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q kᵀ / √K) v (arXiv:1706.03762, eq. 1) with H/G query heads to a key-value head (arXiv:2305.13245).

    The definition of `attention`, which is the same through torch's fused kernel.

    q  (B, H, T, K);  k, v  (B, G, S, K);  mask  bool, broadcastable to (B, 1, T, S), None for causal, or as
    `additive_mask` makes it;  ->  as q
    """
    H, T, K = q.shape[1:]
    G, S = k.shape[1:3]
    k = k.repeat_interleave(H // G, dim=1)                          # (B, H, S, K): query heads 0..H/G-1 share head 0
    v = v.repeat_interleave(H // G, dim=1)
    scores = q.float() @ k.float().transpose(-2, -1) * K**-0.5      # (B, H, T, S)
    scores = scores + additive_mask(causal_mask(T, S, q.device) if mask is None else mask, scores.dtype)
    return (scores.softmax(dim=-1) @ v.float()).to(q.dtype)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """`naive_attention` without ever holding the (T, S) scores of all heads; `mask` also as `additive_mask` makes it.

    torch's `is_causal` aligns the triangle to the upper left corner, ours is aligned to the lower right: they agree
    for T = S only, and a single query sees everything. Taking one for the other breaks chunked prefill alone.
    """
    B, H, T, K = q.shape
    G, S = k.shape[1:3]
    if T == 1:          # query heads of one key-value head become its queries: its keys are read once, not H/G times
        return functional.scaled_dot_product_attention(q.view(B, G, H // G, K), k, v, attn_mask=mask).view(B, H, 1, K)
    if mask is None and 1 < T < S:
        mask = causal_mask(T, S, q.device)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=True)


class Attention(nn.Module):
    attend = staticmethod(attention)                                # `naive_attention` where the two differ
    takes_documents = False                                         # whether `mask` may be masks.Documents

    def __init__(self, config: LlamaConfig):
        super().__init__()
        D, H, G, K = config.hidden_size, config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.head_dim = K
        bias = config.attention_bias or config.qkv_bias
        self.q_proj = nn.Linear(D, H * K, bias=bias)
        self.k_proj = nn.Linear(D, G * K, bias=bias)
        self.v_proj = nn.Linear(D, G * K, bias=bias)
        self.o_proj = nn.Linear(H * K, D, bias=config.attention_bias)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        q, k, v = self.project(x)
        q = apply_rotary(q, cos, sin)
        k = apply_rotary(k, cos, sin)
        if cache is not None:
            k, v = cache.update(k, v)                               # (B, G, S, K)
        out = self.attend(q, k, v, mask)
        return self.o_proj(out.transpose(1, 2).flatten(2))          # (B, T, D)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q = self._heads(self.q_proj(x))                             # (B, H, T, K)
        k = self._heads(self.k_proj(x))                             # (B, G, T, K)
        v = self._heads(self.v_proj(x))
        return q, k, v

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)) (arXiv:2002.05202, eq. 6)."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        D, F = config.hidden_size, config.intermediate_size
        self.gate_proj = nn.Linear(D, F, bias=config.mlp_bias)
        self.up_proj = nn.Linear(D, F, bias=config.mlp_bias)
        self.down_proj = nn.Linear(F, D, bias=config.mlp_bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.silu(self.gate_proj(x)) * self.up_proj(x))


PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
               "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")    # the matrices of a Block


class Block(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """A decoder-only transformer. `hidden` runs the blocks; `forward` applies the head to the rows asked for.

    One that was loaded, and carries its tokenizer along, is a `PretrainedLlama` (checkpoint.py).
    """

    def __init__(self, config: LlamaConfig):
        super().__init__()
        if not config.is_plain and type(self) is Llama:
            raise ValueError("this config asks for parts of a sibling of Llama, which llama.checkpoint.PretrainedLlama "
                             "puts in (see llama/siblings.py); build that")
        self.config = config
        # Not drawn here, since `init_weights` draws: on the meta device that would cost every load a second of imports.
        embedding = torch.empty(config.vocab_size, config.hidden_size)
        self.embed_tokens = nn.Embedding.from_pretrained(embedding, freeze=False)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.head_name = "lm_head"
        self.tie_weights()
        self.init_weights()

    def tie_weights(self) -> None:
        """Make the head the embedding's own parameter, if the config says so (again after loading onto `meta`)."""
        if self.config.tie_word_embeddings:
            for name, parameter in self.embed_tokens.named_parameters(recurse=False):   # several where it is quantised
                setattr(self.lm_head, name, parameter)

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Normal weights, no bias; o_proj and down_proj, which add to the residual stream 2 L times, smaller by √(2 L).

        So the stream's variance does not grow with depth (GPT-2's report, section 2.3). On the meta device a no-op.
        """
        if self.embed_tokens.weight.is_meta:
            return
        std = self.config.initializer_range
        residual_std = std / math.sqrt(2 * self.config.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif name.endswith("bias"):
                parameter.zero_()
            elif name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.normal_(0.0, residual_std, generator=generator)
            else:
                parameter.normal_(0.0, std, generator=generator)

    def hidden(self, tokens: Tensor, *, positions: Tensor | None = None, mask: Tensor | None = None,
               cache: KVCache | None = None) -> Tensor:
        """The last layer's normalised states.

        tokens     (B, T) int64
        positions  (T,) or (B, T); default cache.length + 0, 1, … Rows padded on the left need their own
        mask       bool, True = may look, broadcastable to (B, 1, T, S) with S = cache.length + T; default causal. A
                   sliding window narrows it
        cache      grows by T slots
        ->         (B, T, D)

        Raises ValueError when the cache or the model's context has no room for T more positions.
        """
        T, start = tokens.shape[1], cache.length if cache else 0
        if start + T > self.config.context:
            raise ValueError(f"{start + T} positions exceed the model's context of {self.config.context}; "
                             "shorten the text")
        if positions is None:
            positions = torch.arange(start, start + T, device=tokens.device)
        past: Sequence[LayerCache | None] = [None] * len(self.layers)
        if cache:
            tokens, positions, mask, past = cache.prepare(tokens, positions, mask)
        mask = clip_to_window(mask, tokens.shape[1], start + T, self.config.sliding_window, tokens.device)
        cos, sin = rotary_tables(positions, self.config)
        x = self.embed_tokens(tokens)                               # (B, T, D)
        mask = additive_mask(mask, x.dtype)
        for layer, layer_cache in zip(self.layers, past, strict=True):
            x = layer(x, cos, sin, mask, layer_cache)
        return self.norm(x[:, -T:])

    def forward(self, tokens: Tensor, *, positions: Tensor | None = None, mask: Tensor | None = None,
                cache: KVCache | None = None, rows: Any = None) -> Tensor:
        """Logits (B, T, V), or (N, V) for `rows`: anything that indexes (B, T), such as `(slice(None), -1)`.

        With large vocabularies the head is most of the memory and much of the time: ask only for what is used.
        """
        hidden = self.hidden(tokens, positions=positions, mask=mask, cache=cache)
        return self.head(hidden if rows is None else hidden[rows])

    @property
    def head(self) -> nn.Module:
        """What turns states into scores: `lm_head`, or what heads.py has put in its place."""
        return getattr(self, self.head_name)

    @property
    def device(self) -> torch.device:
        return self.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.norm.weight.dtype                               # never quantised
