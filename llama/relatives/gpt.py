"""GPT-2's and GPT-3's forward pass, whole: LayerNorm, learned positions, attention with biases, GELU, block, model.

                Llama                                   GPT-3 (arXiv:2005.14165, section 2.1)
    norm        x / rms(x) · g                          (x - mean) / std · g + b
    positions   queries and keys are rotated            a learned vector is added to each token's
    attention   H/G queries share a key                 every query head has its own; q, k, v and o have biases
                every layer sees all, or a window       dense in even layers, banded in odd ones (arXiv:1904.10509)
    forward     down(silu(gate x) ⊙ up x)               down(gelu(up x + b)) + b
    head        its own matrix, or tied                 tied to the embedding

GPT-2 (Radford et al. 2019) is the same with every layer dense. Parameters are named as in Llama; the names, and the
matrices lying on their side, of Hugging Face's files are in weights/formats/relatives.py. Letters: llama/config.py.

Try: leave the mean in (`LayerNorm` becomes RMSNorm with a bias); tests/test_relatives.py
(test_worked_example_layer_norm) fails.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llama.cache import KVCache, LayerCache
from llama.masks import additive_mask, sliding_window_mask
from llama.model import attention
from llama.relatives.language_model import Embedding, LanguageModel, RelativeConfig


@dataclass(frozen=True)
class GPTConfig(RelativeConfig):
    """What shapes a GPT-2 or a GPT-3."""

    vocab_size: int                         # V
    hidden_size: int                        # D
    intermediate_size: int                  # F, 4 D in all that were published
    num_hidden_layers: int                  # L
    num_attention_heads: int                # H
    max_position_embeddings: int = 1024     # learned positions: there are no others
    attention_window: int = 0               # keys that a query of an odd layer sees, itself among them; 0 means all
    layer_norm_eps: float = 1e-5
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        self.check_sizes("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                         "max_position_embeddings")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                             f"{self.num_attention_heads}; change one")
        if not isinstance(self.attention_window, int) or self.attention_window < 0:
            raise ValueError(f"attention_window is {self.attention_window!r}; it must be a whole number, 0 for none")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def to_dict(self) -> dict[str, Any]:
        """config.json: that of a GPT-2, or with banded layers one of our own, which other programs refuse to open."""
        kind = ({"architectures": ["GPT3LMHeadModel"], "model_type": "gpt3", "attention_window": self.attention_window}
                if self.attention_window else {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"})
        return kind | {"vocab_size": self.vocab_size, "n_embd": self.hidden_size, "n_inner": self.intermediate_size,
                       "n_layer": self.num_hidden_layers, "n_head": self.num_attention_heads,
                       "n_positions": self.max_position_embeddings, "n_ctx": self.max_position_embeddings,
                       "layer_norm_epsilon": self.layer_norm_eps, "tie_word_embeddings": self.tie_word_embeddings,
                       "initializer_range": self.initializer_range} | AS_BUILT

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "GPTConfig":
        """Read a GPT-2's config.json. Raises ValueError, naming the field, for arithmetic that is not built here."""
        for name, built in AS_BUILT.items():
            if values.get(name, built) != built:
                raise ValueError(f"config.json says {name} = {values[name]!r}; of a GPT only {built!r} is built here")
        if missing := [name for name in ("vocab_size", "n_embd", "n_layer", "n_head") if name not in values]:
            raise ValueError(f"config.json lacks {', '.join(missing)}; a GPT cannot be built without")
        return GPTConfig(values["vocab_size"], values["n_embd"], values.get("n_inner") or 4 * values["n_embd"],
                         values["n_layer"], values["n_head"], values.get("n_positions", 1024),
                         values.get("attention_window", 0), values.get("layer_norm_epsilon", 1e-5),
                         values.get("tie_word_embeddings", True), values.get("initializer_range", 0.02))


AS_BUILT = {"activation_function": "gelu_new", "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False}


def _gpt(D: int, L: int, H: int, context: int = 2048, V: int = 50_257, **more: Any) -> GPTConfig:
    return GPTConfig(V, D, 4 * D, L, H, context, **more)


PRESETS = {
    #                        D    L    H          GPT-3's table 2.1; how wide its bands are, the paper does not say
    "gpt3-small":     _gpt(  768, 12, 12),                          # 125M
    "gpt3-medium":    _gpt( 1024, 24, 16),                          # 350M
    "gpt3-large":     _gpt( 1536, 24, 16),                          # 760M
    "gpt3-xl":        _gpt( 2048, 24, 16),                          # 1.3B; the table says 24 heads of 128: 3072
    "gpt3-2.7b":      _gpt( 2560, 32, 32),
    "gpt3-6.7b":      _gpt( 4096, 32, 32),
    "gpt3-13b":       _gpt( 5120, 40, 40),                          # the table says D = 5140, no multiple of 40
    "gpt3-175b":      _gpt(12288, 96, 96),
    "gpt2":           _gpt(  768, 12, 12, 1024),
    "gpt2-medium":    _gpt( 1024, 24, 16, 1024),
    "gpt2-large":     _gpt( 1280, 36, 20, 1024),
    "gpt2-xl":        _gpt( 1600, 48, 25, 1024),
    "gpt3-tiny":      _gpt(  192,  4,  6, 1024, 4096, initializer_range=0.05),          # ours, to train on a laptop
}  # fmt: skip


class LayerNorm(nn.LayerNorm):
    """(x - mean) / √(variance + ε) · weight + bias, over the last axis (arXiv:1607.06450, eq. 4), in float32."""

    def forward(self, x: Tensor) -> Tensor:
        x32 = x.float()
        x32 = x32 - x32.mean(-1, keepdim=True)
        x32 = x32 * torch.rsqrt(x32.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * x32.to(x.dtype) + self.bias


class GPTAttention(nn.Module):
    """softmax(q kᵀ / √K) v with a key for every query head; nothing in it knows positions."""

    attend = staticmethod(attention)
    takes_documents = False

    def __init__(self, config: GPTConfig):
        super().__init__()
        D = config.hidden_size
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(D, D)
        self.k_proj = nn.Linear(D, D)
        self.v_proj = nn.Linear(D, D)
        self.o_proj = nn.Linear(D, D)

    def forward(self, x: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        q = self._heads(self.q_proj(x))                             # (B, H, T, K)
        k = self._heads(self.k_proj(x))
        v = self._heads(self.v_proj(x))
        if cache is not None:
            k, v = cache.update(k, v)                               # (B, H, S, K)
        out = self.attend(q, k, v, mask)
        return self.o_proj(out.transpose(1, 2).flatten(2))          # (B, T, D)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class GPTMLP(nn.Module):
    """down(gelu(up x)), GELU by its tanh (arXiv:1606.08415, section 2), as GPT-2 has it."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.gelu(self.up_proj(x), approximate="tanh"))


class GPTBlock(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.input_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = GPTAttention(config)
        self.post_attention_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = GPTMLP(config)

    def forward(self, x: Tensor, mask: Tensor | None, cache: LayerCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


def banded(mask: Tensor | None, T: int, S: int, window: int, device: torch.device | str = "cpu") -> Tensor:
    """`mask` (None: causal) with a band's width of keys for each query: (…, T, S), all S of them, for nothing is gone.

    In a banded layer a query sees `window` keys, itself among them; over the dense layers between, the news travels.
    """
    near = sliding_window_mask(T, S, window, device)
    return near if mask is None else mask & near


class GPT(LanguageModel):
    """A decoder-only transformer before Llama."""

    def __init__(self, config: GPTConfig):
        super().__init__(config)
        self.embed_positions = Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(GPTBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Normal weights, no bias; o_proj and down_proj smaller by √(2 L) (GPT-2's report, section 2.3)."""
        if self.embed_tokens.weight.is_meta:
            return
        std = self.config.initializer_range
        residual_std = std / math.sqrt(2 * self.config.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif name.endswith("bias"):
                parameter.zero_()
            else:
                ends = name.endswith(("o_proj.weight", "down_proj.weight"))
                parameter.normal_(0.0, residual_std if ends else std, generator=generator)

    def hidden(self, tokens: Tensor, *, positions: Tensor | None = None, mask: Tensor | None = None,
               cache: KVCache | None = None) -> Tensor:
        """As `Llama.hidden`. Positions are rows of a table, so no text may be longer than the table."""
        T, start = tokens.shape[1], cache.length if cache else 0
        if start + T > self.config.context:
            raise ValueError(f"{start + T} positions exceed the model's context of {self.config.context}; "
                             "shorten the text")
        if positions is None:
            positions = torch.arange(start, start + T, device=tokens.device)
        past: Any = [None] * len(self.layers)
        if cache:
            tokens, positions, mask, past = cache.prepare(tokens, positions, mask)
        masks = self._masks(mask, tokens.shape[1], start + T, tokens.device)
        x = self.embed_tokens(tokens) + self.embed_positions(positions)                 # (B, T, D)
        dense, narrow = (additive_mask(each, x.dtype) for each in masks)
        for number, (layer, layer_cache) in enumerate(zip(self.layers, past, strict=True)):
            x = layer(x, narrow if number % 2 else dense, layer_cache)
        return self.norm(x[:, -T:])

    def _masks(self, mask: Tensor | None, T: int, S: int, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
        """Of the even layers, and of the odd ones."""
        window = self.config.attention_window
        return mask, banded(mask, T, S, window, device) if window and window < S else mask
