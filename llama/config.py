"""What shapes a Llama: one frozen record with Hugging Face's field names, and the published models, one a line.

Letters used everywhere in this project:

    B batch · T query positions · S key positions · D hidden size · H query heads · G key-value heads · K head dim
    F feed-forward size · V vocabulary · L layers · N rows of a loss · C classes · R LoRA rank

Try: set `num_key_value_heads` of the preset "test" to 3; tests/test_config.py says why no model can be built from it.
"""

import difflib
import logging
import math
from dataclasses import dataclass, fields, replace
from typing import Any

log = logging.getLogger(__name__)

DEFAULT_ROPE_THETA = 10_000.0  # the first Llamas' files do not write their θ down


# Which fields, beside `factor`, each kind of rotary scaling reads.
ROPE_SCALING_FIELDS = {
    "linear": (),
    "ntk": (),
    "dynamic": (),
    "llama3": ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow", "mscale",
             "mscale_all_dim", "truncate"),
}


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched to positions beyond those of pre-training.

    kind    "linear"   every frequency / factor (position interpolation, arXiv:2306.15595)
            "ntk"      another θ: θ · factor^(K/(K-2)), which divides the lowest frequency by `factor` and keeps the
                       highest (static NTK; LlamaConfig makes it part of its θ)
            "dynamic"  the same, with a factor that grows with the text once it is longer than max_position_embeddings
            "llama3"   long waves / factor, short ones kept, a ramp between (Llama 3.1)
            "yarn"     the same with a ramp over the pairs, and attention sharpened (arXiv:2309.00071)
    """

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position_embeddings: int = 8192
    attention_factor: float | None = None   # of queries and of keys; None: as the paper recommends for `factor`
    beta_fast: float = 32.0                 # pairs with more turns over the original context are kept
    beta_slow: float = 1.0                  # those with fewer are divided by `factor`
    mscale: float | None = None             # both or none: the recommendation for `factor`, weighted (DeepSeek's YaRN)
    mscale_all_dim: float | None = None
    truncate: bool = True                   # the ramp begins and ends at whole pairs

    def __post_init__(self) -> None:
        if self.kind not in ROPE_SCALING_FIELDS:
            raise ValueError(f"rotary scaling '{self.kind}' is not known here; known are: "
                             f"{', '.join(ROPE_SCALING_FIELDS)}")
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if value != field.default and field.name != "factor" and field.name not in ROPE_SCALING_FIELDS[self.kind]:
                raise ValueError(f"rotary scaling '{self.kind}' has no {field.name}, {value!r} was given; leave it out")
            if field.name == "truncate":
                if not isinstance(value, bool):
                    raise ValueError(f"rotary scaling: truncate is {value!r}; it must be true or false")
            elif not (_is_number(value) or value is None is field.default):
                raise ValueError(f"rotary scaling: {field.name} is {value!r}; it must be a number")
        if self.factor < 1:
            raise ValueError(f"rotary scaling factor is {self.factor}; a factor below 1 would shorten the context")
        if self.kind == "llama3" and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError(f"rotary scaling: high_freq_factor {self.high_freq_factor} must exceed "
                             f"low_freq_factor {self.low_freq_factor}")
        if self.kind == "yarn" and not self.beta_fast > self.beta_slow > 0:
            raise ValueError(f"rotary scaling: beta_fast {self.beta_fast} must exceed beta_slow {self.beta_slow}, "
                             "and both 0")
        if self.attention_factor is not None and self.attention_factor <= 0:
            raise ValueError(f"rotary scaling: attention_factor is {self.attention_factor}; it must be above 0")
        if self.original_max_position_embeddings < 1:
            raise ValueError("rotary scaling: original_max_position_embeddings is "
                             f"{self.original_max_position_embeddings}; it must be at least 1")
        for name in ("factor", *ROPE_SCALING_FIELDS[self.kind]):
            if type(value := getattr(self, name)) is int and name != "original_max_position_embeddings":
                object.__setattr__(self, name, float(value))        # torch takes no whole number beyond 64 bits

    @property
    def attention_scaling(self) -> float:
        """What queries and keys are multiplied by, so that attention's temperature fits the context.

        YaRN's is √(1/t) = 0.1 ln(factor) + 1 (arXiv:2309.00071, eq. 22); the other kinds leave 1.
        """
        def recommended(weight: float) -> float:
            return 0.1 * weight * math.log(self.factor) + 1

        if self.kind != "yarn":
            return 1.0
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return recommended(self.mscale) / recommended(self.mscale_all_dim)
        return recommended(1)


# Beyond these no file could hold a model, and shapes would be larger than numbers of 64 bits count.
_MOST = {"vocab_size": 2**31, "hidden_size": 2**24, "intermediate_size": 2**28, "num_hidden_layers": 2**20,
         "num_attention_heads": 2**16, "num_key_value_heads": 2**16, "max_position_embeddings": 2**40,
         "head_dim": 2**16, "sliding_window": 2**40}


@dataclass(frozen=True)
class LlamaConfig:
    """Everything that decides the shapes and the arithmetic of a model, and nothing else."""

    vocab_size: int                         # V
    hidden_size: int                        # D
    intermediate_size: int                  # F
    num_hidden_layers: int                  # L
    num_attention_heads: int                # H
    num_key_value_heads: int                # G: H = multi-head, 1 = multi-query, between = grouped-query attention
    max_position_embeddings: int = 2048
    rms_norm_eps: float = 1e-5
    rope_theta: float = DEFAULT_ROPE_THETA
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    head_dim: int = 0                       # K; 0 means D / H
    initializer_range: float = 0.02
    attention_bias: bool = False            # q, k, v and o add a bias
    qkv_bias: bool = False                  # q, k and v alone do (Qwen 2)
    mlp_bias: bool = False
    sliding_window: int = 0                 # keys that a query sees, itself among them (Mistral); 0 means all
    # Parts of Llama's siblings; siblings.py has them:
    qk_norm: str = ""                       # queries and keys normed: each "head" by itself (Qwen 3), "all" (OLMo 2)
    norm_after: bool = False                # norms behind attention and feed-forward part, not before (OLMo 2)
    no_rope_layers: tuple[int, ...] = ()    # blocks that know no positions (SmolLM 3)
    embedding_multiplier: float = 1.0       # Granite's four
    residual_multiplier: float = 1.0
    attention_multiplier: float = 0.0       # of the scores; 0 means 1 / √K
    logits_scaling: float = 1.0             # what the logits are divided by

    def __post_init__(self) -> None:
        for name, most in _MOST.items():
            value, least = getattr(self, name), name not in ("head_dim", "sliding_window")          # those may be 0
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise ValueError(f"{name} is {value!r}; it must be a whole number from {least:d} to {most:,}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                             f"num_key_value_heads {self.num_key_value_heads}; each group shares one key-value head")
        if not self.head_dim:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of "
                                 f"num_attention_heads {self.num_attention_heads}; change one or give head_dim")
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary embedding turns pairs, so it must be even")
        for name in ("rms_norm_eps", "rope_theta", "embedding_multiplier", "residual_multiplier", "logits_scaling",
                     "attention_multiplier", "initializer_range"):
            value, may_be_0 = getattr(self, name), name in ("attention_multiplier", "initializer_range")
            if not _is_number(value) or not (value > 0 or value == 0 and may_be_0):
                raise ValueError(f"{name} is {value!r}; it must be a number {'of at least' if may_be_0 else 'above'} 0")
            object.__setattr__(self, name, float(value))            # torch takes no whole number beyond 64 bits
        for name in ("tie_word_embeddings", "attention_bias", "qkv_bias", "mlp_bias", "norm_after"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be true or false")
        if self.qk_norm not in ("", "head", "all"):
            raise ValueError(f"qk_norm is {self.qk_norm!r}; it must be 'head', 'all', or empty for none")
        if not all(number in range(self.num_hidden_layers) for number in self.no_rope_layers):
            raise ValueError(f"no_rope_layers is {self.no_rope_layers!r:.80}; the blocks are 0 to "
                             f"{self.num_hidden_layers - 1}")
        if self.rope_scaling and self.rope_scaling.kind in ("ntk", "dynamic"):
            if self.head_dim == 2:
                raise ValueError(f"rotary scaling '{self.rope_scaling.kind}' stretches the lowest frequency more than "
                                 "the highest; head_dim is 2, which has one alone")
            if self.rope_scaling.kind == "ntk":
                theta = self.rope_theta * self.rope_scaling.factor ** (self.head_dim / (self.head_dim - 2))
                object.__setattr__(self, "rope_theta", theta)       # that is all there is to it, for every reader
                object.__setattr__(self, "rope_scaling", None)

    @property
    def is_plain(self) -> bool:
        """Whether model.py alone says what is computed, without a part of siblings.py."""
        return not (self.qk_norm or self.norm_after or self.no_rope_layers or self.attention_multiplier
                    or (self.embedding_multiplier, self.residual_multiplier, self.logits_scaling) != (1, 1, 1))

    @property
    def context(self) -> int:
        """How many tokens a text may have, what is generated included.

        Files with dynamic NTK keep the trained length in max_position_embeddings, files with YaRN often do; the context
        is then `factor` times the trained length.
        """
        scaling, longest = self.rope_scaling, self.max_position_embeddings
        if scaling and scaling.kind == "dynamic":
            return int(scaling.factor * longest)
        if scaling and scaling.kind == "yarn":
            return max(longest, int(scaling.factor * scaling.original_max_position_embeddings))
        return longest

    @property
    def rope_stable_length(self) -> int:
        """How long a text may grow before its first tokens are rotated otherwise than when they were read."""
        dynamic = self.rope_scaling and self.rope_scaling.kind == "dynamic"
        return self.max_position_embeddings if dynamic else self.context


def require_llama(config: Any, what: str, remedy: str) -> None:
    """Raise ValueError for a relative's config, where something is built for Llamas and their siblings alone."""
    if not isinstance(config, LlamaConfig):
        raise ValueError(f"{what} built for Llamas, and this model is shaped by a {type(config).__name__}; {remedy}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 3.4e38   # as float32 has it


def _llama(D: int, L: int, H: int, G: int, F: int, V: int = 32_000, context: int = 2048, **more: Any) -> LlamaConfig:
    return LlamaConfig(V, D, F, L, H, G, max_position_embeddings=context, **more)


_llama3 = {"V": 128_256, "context": 8192, "rope_theta": 500_000.0}
_llama31 = _llama3 | {"context": 131_072, "rope_scaling": RopeScaling("llama3", factor=8.0)}
_llama32 = _llama31 | {"rope_scaling": RopeScaling("llama3", factor=32.0), "tie_word_embeddings": True}
_smollm2 = {"V": 49_152, "context": 8192, "rope_theta": 100_000.0, "tie_word_embeddings": True}
_tiny = {"V": 4096, "context": 1024, "tie_word_embeddings": True, "initializer_range": 0.05}  # ≈ 1/√D, as D is small

PRESETS: dict[str, LlamaConfig] = {
    #                          D    L    H    G      F
    "llama-1-7b":     _llama( 4096,  32,  32,  32, 11008, rms_norm_eps=1e-6),
    "llama-1-13b":    _llama( 5120,  40,  40,  40, 13824, rms_norm_eps=1e-6),
    "llama-1-30b":    _llama( 6656,  60,  52,  52, 17920, rms_norm_eps=1e-6),
    "llama-1-65b":    _llama( 8192,  80,  64,  64, 22016),
    "llama-2-7b":     _llama( 4096,  32,  32,  32, 11008, context=4096),
    "llama-2-13b":    _llama( 5120,  40,  40,  40, 13824, context=4096),
    "llama-2-70b":    _llama( 8192,  80,  64,   8, 28672, context=4096),
    "llama-3-8b":     _llama( 4096,  32,  32,   8, 14336, **_llama3),
    "llama-3-70b":    _llama( 8192,  80,  64,   8, 28672, **_llama3),
    "llama-3.1-8b":   _llama( 4096,  32,  32,   8, 14336, **_llama31),
    "llama-3.1-70b":  _llama( 8192,  80,  64,   8, 28672, **_llama31),
    "llama-3.1-405b": _llama(16384, 126, 128,   8, 53248, **_llama31),
    "llama-3.2-1b":   _llama( 2048,  16,  32,   8,  8192, **_llama32),
    "llama-3.2-3b":   _llama( 3072,  28,  24,   8,  8192, **_llama32),
    "llama-3.3-70b":  _llama( 8192,  80,  64,   8, 28672, **_llama31),
    "tinyllama-1.1b": _llama( 2048,  22,  32,   4,  5632),
    "smollm2-135m":   _llama(  576,  30,   9,   3,  1536, **_smollm2),
    "smollm2-360m":   _llama(  960,  32,  15,   5,  2560, **_smollm2),
    "smollm2-1.7b":   _llama( 2048,  24,  32,  32,  8192, **_smollm2 | {"rope_theta": 130_000.0}),
    "tiny-15m":       _llama(  384,   8,   6,   2,  1024, **_tiny),
    "tiny-7m":        _llama(  288,   6,   6,   3,   768, **_tiny),
    "tiny-3m":        _llama(  192,   4,   6,   2,   512, **_tiny | {"tie_word_embeddings": False}),
    "tiny-1m":        _llama(  128,   4,   4,   2,   384, **_tiny),
    "test":           _llama(   32,   2,   4,   2,    64, **_tiny | {"V": 512, "context": 256}),
}  # fmt: skip

_NOT_LLAMAS = {
    "bert": "BERT reads both ways and writes no text",
    "bloom": "BLOOM has ALiBi positions and LayerNorm",
}


def preset(name: str, **changes: Any) -> LlamaConfig:
    """A published shape by name, fields replaced by keyword. Raises ValueError with the nearest names."""
    if name not in PRESETS:
        raise ValueError(unknown_name(name, list(PRESETS)))
    if changes.keys() & {"hidden_size", "num_attention_heads"}:
        changes = {"head_dim": 0} | changes                         # K follows the new D / H
    return replace(PRESETS[name], **changes)


def unknown_name(name: str, known: list[str]) -> str:
    """The sentence for a model that is none of ours: another family's name, or the nearest names that exist."""
    lowered = name.lower()
    for family, why in _NOT_LLAMAS.items():
        if lowered.startswith(family):
            return f"'{name}' is not a Llama ({why}); use a Llama instead: smollm2-135m-instruct or llama-3.2-1b"
    near = difflib.get_close_matches(lowered, known, n=3, cutoff=0.3) or known[-3:]
    return f"no model folder and no preset is called '{name}'; the nearest names are {', '.join(near)}"
