"""T5's forward pass, whole: an encoder that reads, a decoder that writes, distances as a bias (arXiv:1910.10683).

    the source        «translate: that is good </s>»        every position sees all of it
    the target  «<start> das ist gut» -> «das ist gut </s>» each position sees the target so far, and all of the source

What it does otherwise than Llama: positions are buckets of distances, each with a number per head that is added to the
scores, learned once and shared by all layers of a side; scores are not divided by √K, which the first weights make up
for; each side ends with an RMSNorm; a tied head sees its states times D^-0.5. Version 1.1 gates its feed-forward part
with GELU (arXiv:2002.05202) and has a head of its own.

A row of a batch holds source and target one behind the other, as every task here lays texts out: `mask` says how much
of it is given (`Prefix`), the encoder reads that, and the decoder starts in the place of its last token:

    row      s1 s2 s3 t1 t2        Prefix(3)
    encoder  s1 s2 s3 </s>
    decoder        ▶  t1 t2        states in slots 2, 3, 4, which predict t1, t2, t3

Try: let the decoder's buckets look both ways; tests/test_relatives.py (test_worked_example_buckets_of_a_decoder) fails.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llama.cache import KVCache, LayerCache
from llama.masks import Prefix, additive_mask, bidirectional_mask, causal_mask, padding_mask
from llama.model import RMSNorm, attention
from llama.relatives.language_model import LanguageModel, RelativeConfig
from llama.relatives.text_to_text import TextToTextDecoder


@dataclass(frozen=True)
class T5Config(RelativeConfig):
    """What shapes a T5."""

    vocab_size: int                         # V
    hidden_size: int                        # D
    intermediate_size: int                  # F
    num_hidden_layers: int                  # L of the decoder
    num_encoder_layers: int
    num_attention_heads: int                # H
    head_dim: int                           # K; H K need not be D
    gated: bool = False                     # gelu(gate x) ⊙ up x (v1.1), not relu(up x)
    tie_word_embeddings: bool = True
    scale_decoder_outputs: bool = True      # states times D^-0.5 before the head: where it was tied
    relative_attention_num_buckets: int = 32
    relative_attention_max_distance: int = 128
    layer_norm_eps: float = 1e-6
    eos_token_id: int = 1                   # closes every source
    decoder_start_token_id: int = 0         # what the decoder begins with; T5 takes its padding

    def __post_init__(self) -> None:
        self.check_sizes("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_encoder_layers",
                         "num_attention_heads", "head_dim", "relative_attention_num_buckets",
                         "relative_attention_max_distance")
        if self.relative_attention_num_buckets % 4 or \
                self.relative_attention_max_distance <= self.relative_attention_num_buckets // 2:
            raise ValueError(f"relative_attention_num_buckets is {self.relative_attention_num_buckets} and "
                             f"relative_attention_max_distance {self.relative_attention_max_distance}; a multiple of 4 "
                             "is needed, and a distance of more than half as many")
        for name in ("eos_token_id", "decoder_start_token_id"):
            if getattr(self, name) not in range(self.vocab_size):
                raise ValueError(f"{name} is {getattr(self, name)!r}; the model has rows 0 to {self.vocab_size - 1}")

    @property
    def context(self) -> int:
        """Distances beyond the last bucket are all alike, so no text is too long for the arithmetic."""
        return 2**20

    def to_dict(self) -> dict[str, Any]:
        """The config.json that Hugging Face's T5 reads."""
        return {"architectures": ["T5ForConditionalGeneration"], "model_type": "t5", "is_encoder_decoder": True,
                "feed_forward_proj": "gated-gelu" if self.gated else "relu",
                } | {theirs: getattr(self, ours) for theirs, ours in _FIELDS.items()} | {
                    "pad_token_id": self.decoder_start_token_id}

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "T5Config":
        """Read a T5's config.json. Raises ValueError, naming the field, for arithmetic that is not built here."""
        if (kind := values.get("feed_forward_proj", "relu")) not in ("relu", "gated-gelu"):
            raise ValueError(f"config.json says feed_forward_proj = {kind!r}; of a T5 'relu' and 'gated-gelu' are "
                             "built here")
        found = {ours: values[theirs] for theirs, ours in _FIELDS.items() if values.get(theirs) is not None}
        found = {"num_encoder_layers": values.get("num_layers")} | found
        found = {"num_hidden_layers": found["num_encoder_layers"], "vocab_size": 32_128,
                 "scale_decoder_outputs": values.get("tie_word_embeddings", True)} | found
        if missing := [name for name in ("d_model", "d_ff", "num_layers", "num_heads", "d_kv") if not values.get(name)]:
            raise ValueError(f"config.json lacks {', '.join(missing)}; a T5 cannot be built without")
        return T5Config(**found, gated=kind == "gated-gelu")


# Hugging Face's field -> ours
_FIELDS = {"vocab_size": "vocab_size", "d_model": "hidden_size", "d_ff": "intermediate_size",
           "num_layers": "num_encoder_layers", "num_decoder_layers": "num_hidden_layers",
           "num_heads": "num_attention_heads", "d_kv": "head_dim", "layer_norm_epsilon": "layer_norm_eps",
           "tie_word_embeddings": "tie_word_embeddings", "scale_decoder_outputs": "scale_decoder_outputs",
           "relative_attention_num_buckets": "relative_attention_num_buckets",
           "relative_attention_max_distance": "relative_attention_max_distance",
           "eos_token_id": "eos_token_id", "decoder_start_token_id": "decoder_start_token_id"}


def _t5(D: int, F: int, L: int, H: int, K: int = 64, *, newer: bool = False) -> T5Config:
    return T5Config(32_128, D, F, L, L, H, K, gated=newer, tie_word_embeddings=not newer,
                    scale_decoder_outputs=not newer)


PRESETS = {
    #                        D      F   L    H    K
    "t5-tiny":         _t5(  256,  1024,  4,   4),                  # arXiv:2109.10686: 15.6M; trainable on a laptop
    "t5-small":        _t5(  512,  2048,  6,   8),
    "t5-base":         _t5(  768,  3072, 12,  12),
    "t5-large":        _t5( 1024,  4096, 24,  16),
    "t5-3b":           _t5( 1024, 16384, 24,  32, 128),
    "t5-11b":          _t5( 1024, 65536, 24, 128, 128),
    "t5-v1.1-small":   _t5(  512,  1024,  8,   6, newer=True),
    "t5-v1.1-base":    _t5(  768,  2048, 12,  12, newer=True),
    "t5-v1.1-large":   _t5( 1024,  2816, 24,  16, newer=True),
    "t5-v1.1-xl":      _t5( 2048,  5120, 24,  32, newer=True),
    "t5-v1.1-xxl":     _t5( 4096, 10240, 24,  64, newer=True),
}  # fmt: skip


def relative_bucket(distance: Tensor, *, both_ways: bool, buckets: int, max_distance: int) -> Tensor:
    """Which bucket a distance falls into: near ones have one each, farther ones share them in steps that grow as powers
    (section 2.1). From `max_distance` on all are the last.

    distance   any shape, int64: the key's position less the query's, below 0 for what lies before
    both_ways  an encoder's: half of the buckets are for what lies behind; a decoder's are all for what lies before
    """
    if both_ways:
        buckets //= 2
        behind = (distance > 0) * buckets
        distance = distance.abs()
    else:
        behind, distance = 0, (-distance).clamp(min=0)
    near = buckets // 2
    share = (distance.clamp(min=1).float() / near).log() / math.log(max_distance / near)
    far = (near + (share * (buckets - near)).long()).clamp(max=buckets - 1)
    return behind + torch.where(distance < near, distance, far)


class RelativeBias(nn.Module):
    """A number for each head and bucket, added to the scores of all layers of a side."""

    def __init__(self, config: T5Config, *, both_ways: bool):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(config.relative_attention_num_buckets, config.num_attention_heads))
        self.kind = {"both_ways": both_ways, "buckets": config.relative_attention_num_buckets,
                     "max_distance": config.relative_attention_max_distance}

    def forward(self, T: int, S: int) -> Tensor:
        """(1, H, T, S) for queries that are the last T of S positions."""
        slots = torch.arange(S, device=self.weight.device)
        bucket = relative_bucket(slots - slots[S - T :, None], **self.kind)             # (T, S)
        return self.weight[bucket].permute(2, 0, 1)[None]


class T5Attention(nn.Module):
    """softmax(q kᵀ + bias) v: nothing divides the scores."""

    attend = staticmethod(attention)
    takes_documents = False

    def __init__(self, config: T5Config):
        super().__init__()
        D, H, K = config.hidden_size, config.num_attention_heads, config.head_dim
        self.head_dim = K
        self.q_proj = nn.Linear(D, H * K, bias=False)
        self.k_proj = nn.Linear(D, H * K, bias=False)
        self.v_proj = nn.Linear(D, H * K, bias=False)
        self.o_proj = nn.Linear(H * K, D, bias=False)

    def forward(self, x: Tensor, mask: Tensor, cache: LayerCache | None = None) -> Tensor:
        """Of x (B, T, D) on itself; `mask` holds the bias, and -inf where nobody may look."""
        k, v = self.keys_and_values(x)
        if cache is not None:
            k, v = cache.update(k, v)
        return self.look(x, k, v, mask)

    def keys_and_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._heads(self.k_proj(x)), self._heads(self.v_proj(x))                 # (B, H, S, K)

    def look(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        q = self._heads(self.q_proj(x)) * self.head_dim**0.5        # which `attention` divides by
        out = self.attend(q, k, v, mask)
        return self.o_proj(out.transpose(1, 2).flatten(2))          # (B, T, D)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)


class ReLUMLP(nn.Module):
    """down(relu(up x)) (arXiv:1706.03762, eq. 2, without biases)."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.up_proj(x).relu())


class GatedGELUMLP(nn.Module):
    """down(gelu(gate x) ⊙ up x) (arXiv:2002.05202, eq. 6: GEGLU; Llama's has SiLU for GELU)."""

    def __init__(self, config: T5Config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(functional.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class EncoderBlock(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = T5Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = (GatedGELUMLP if config.gated else ReLUMLP)(config)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), mask)
        return x + self.mlp(self.post_attention_layernorm(x))


class DecoderBlock(EncoderBlock):
    """A block that also looks at the source, between attention to itself and the feed-forward part."""

    def __init__(self, config: T5Config):
        super().__init__(config)
        self.cross_attn = T5Attention(config)
        self.cross_attention_layernorm = RMSNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor, mask: Tensor, source: tuple[Tensor, Tensor], seen: Tensor,
                cache: LayerCache | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), mask, cache)
        x = x + self.cross_attn.look(self.cross_attention_layernorm(x), *source, seen)
        return x + self.mlp(self.post_attention_layernorm(x))


class Encoder(nn.Module):
    def __init__(self, config: T5Config):
        super().__init__()
        self.relative_bias = RelativeBias(config, both_ways=True)
        self.layers = nn.ModuleList(EncoderBlock(config) for _ in range(config.num_encoder_layers))
        self.norm = RMSNorm(config.hidden_size, config.layer_norm_eps)

    def forward(self, x: Tensor, seen: Tensor) -> Tensor:
        mask = self.relative_bias(x.shape[1], x.shape[1]) + seen    # (B, H, S, S)
        for layer in self.layers:
            x = layer(x, mask)
        return self.norm(x)


Source = tuple[list[tuple[Tensor, Tensor]], Tensor]                 # keys and values of each decoder layer; who is seen


class T5(LanguageModel):
    """An encoder and a decoder. `layers` and `norm` are the decoder's."""

    takes_prefix = True

    def __init__(self, config: T5Config):
        super().__init__(config)
        self.encoder = Encoder(config)
        self.relative_bias = RelativeBias(config, both_ways=False)
        self.layers = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.layer_norm_eps)
        self.init_weights()

    @torch.no_grad()
    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Normal weights by the width that a matrix reads, and of queries by √K less: that is where scores are divided.

        As in the paper's code (mesh-tensorflow's): with √K in the scores instead, Adam's steps on q would be √K larger.
        """
        if self.embed_tokens.weight.is_meta:
            return
        for name, parameter in self.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1.0)
            elif name in ("embed_tokens.weight", "lm_head.weight"):
                parameter.normal_(0.0, 1.0, generator=generator)
            else:
                reads = self.config.hidden_size if "relative_bias" in name else parameter.shape[1]
                reads *= self.config.head_dim if name.endswith("q_proj.weight") else 1
                parameter.normal_(0.0, reads**-0.5, generator=generator)

    def hidden(self, tokens: Tensor, *, positions: Tensor | None = None, mask: Prefix | None = None,
               cache: KVCache | None = None) -> Tensor:
        """The decoder's states in the slots of the rest of each row, the last of the source included; none before them.

        tokens  (B, T) int64: source and target one behind the other;  mask  how much is source; None: the first token

        No cache goes here, since what an encoder reads is no beginning of what the decoder writes: see `decode`.
        """
        assert cache is None, "generation.require_decoder"
        T = tokens.shape[1]
        given = mask.lengths if mask else tokens.new_ones(len(tokens))
        source = self.read(tokens[:, : int(given.max())], given)
        starts = given - 1                                          # (B,), the slot where a row's decoder starts
        first = int(starts.min())
        slots = torch.arange(T, device=tokens.device)
        written = tokens.where(slots != starts[:, None], self.config.decoder_start_token_id)[:, first:]
        states = self.decode(written, source, mask=padding_mask(starts - first, T - first, T - first))
        return functional.pad(states, (0, 0, first, 0))             # (B, T, D)

    def encode(self, source: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's states of sources (B, S), right-padded and each closed by its end, and who of them is seen.

        lengths  (B,);  ->  (B, S + 1, D) and an additive mask (B, 1, 1, S + 1)
        """
        end = self.config.eos_token_id
        is_open = source.gather(1, lengths[:, None] - 1)[:, 0] != end
        source = functional.pad(source, (0, 1))
        slots = torch.arange(source.shape[1], device=source.device)
        source = source.where((slots != lengths[:, None]) | ~is_open[:, None], end)
        x = self.embed_tokens(source)
        seen = additive_mask(bidirectional_mask(lengths + is_open, len(slots)), x.dtype)
        return self.encoder(x, seen), seen

    def read(self, source: Tensor, lengths: Tensor) -> Source:
        """`encode`, and what each layer of the decoder looks at: the source is read once, whatever is written."""
        states, seen = self.encode(source, lengths)
        return [layer.cross_attn.keys_and_values(states) for layer in self.layers], seen

    def decode(self, tokens: Tensor, source: Source, *, mask: Tensor | None = None,
               cache: KVCache | None = None) -> Tensor:
        """States of what is written (B, T), behind what the cache holds: (B, T, D). `mask` None: causal."""
        remembered, seen = source
        T, S = tokens.shape[1], (cache.length if cache else 0) + tokens.shape[1]
        past: Any = [None] * len(self.layers)
        if cache:
            past = cache.prepare(tokens, torch.arange(S - T, S, device=tokens.device))[3]
        x = self.embed_tokens(tokens)
        mask = causal_mask(T, S, tokens.device) if mask is None else mask
        mask = self.relative_bias(T, S) + additive_mask(mask, x.dtype)                  # (B, H, T, S)
        for layer, kept, layer_cache in zip(self.layers, remembered, past, strict=True):
            x = layer(x, mask, kept, seen, layer_cache)
        x = self.norm(x)
        return x * self.config.hidden_size**-0.5 if self.config.scale_decoder_outputs else x

    def prompt_reader(self, prompts: Sequence[Sequence[int]], *, vocab_size: int, cache_dtype: torch.dtype | None,
                      chunk: int) -> Callable[..., tuple[TextToTextDecoder, Tensor]]:
        """What `generation.generate` reads prompts with, in place of its own (a decoder's)."""
        return lambda some, slots: TextToTextDecoder.read(self, some, slots, vocab_size=vocab_size,
                                                          cache_dtype=cache_dtype)
