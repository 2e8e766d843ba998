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

FIRST_LLAMAS_THETA = 10_000.0  # the first Llamas' files do not write their θ down



@dataclass(frozen=True)
class Family:
    """A model_type of Hugging Face's files whose arithmetic is built here."""

    architecture: str
    always: frozenset[str]                  # parts that all its models have
    possible: frozenset[str]                # parts that they may have, beside
    defaults: dict[str, Any]                # what its class takes where a file is silent


FAMILIES = {
    "llama": Family("LlamaForCausalLM", frozenset(), frozenset({"attention_bias", "mlp_bias"}),
                    {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}),
    "mistral": Family("MistralForCausalLM", frozenset(), frozenset({"sliding_window"}),
                      {"rms_norm_eps": 1e-6, "max_position_embeddings": 131_072, "num_key_value_heads": 8,
                       "sliding_window": 4096}),
    "qwen2": Family("Qwen2ForCausalLM", frozenset({"qkv_bias"}), frozenset({"sliding_window"}),
                    {"rms_norm_eps": 1e-6, "max_position_embeddings": 32_768, "num_key_value_heads": 32,
                     "sliding_window": 4096, "max_window_layers": 28}),
}
PARTS = ("attention_bias", "qkv_bias", "mlp_bias", "sliding_window")

# Which fields, beside `factor`, each kind of rotary scaling reads.
SCALINGS = {
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
        if self.kind not in SCALINGS:
            raise ValueError(f"rotary scaling '{self.kind}' is not known here; known are: {', '.join(SCALINGS)}")
        for field in fields(self)[1:]:
            value = getattr(self, field.name)
            if value != field.default and field.name != "factor" and field.name not in SCALINGS[self.kind]:
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

    @property
    def magnitude(self) -> float:
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
    rope_theta: float = FIRST_LLAMAS_THETA
    rope_scaling: RopeScaling | None = None
    tie_word_embeddings: bool = False
    head_dim: int = 0                       # K; 0 means D / H
    initializer_range: float = 0.02
    attention_bias: bool = False            # q, k, v and o add a bias
    qkv_bias: bool = False                  # q, k and v alone do (Qwen 2)
    mlp_bias: bool = False
    sliding_window: int = 0                 # keys that a query sees, itself among them (Mistral); 0 means all

    def __post_init__(self) -> None:
        for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
                     "num_key_value_heads", "max_position_embeddings"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                             f"num_key_value_heads {self.num_key_value_heads}; each group shares one key-value head")
        if not self.head_dim:
            if self.hidden_size % self.num_attention_heads:
                raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of "
                                 f"num_attention_heads {self.num_attention_heads}; change one or give head_dim")
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        for name in ("head_dim", "sliding_window"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name} is {value!r}; it must be a whole number, or 0")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}; rotary embedding turns pairs, so it must be even")
        for name in ("rms_norm_eps", "rope_theta"):
            if not _is_number(getattr(self, name)) or not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a number above 0")
        for name in ("tie_word_embeddings", "attention_bias", "qkv_bias", "mlp_bias"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be true or false")
        if self.rope_scaling and self.rope_scaling.kind in ("ntk", "dynamic"):
            if self.head_dim == 2:
                raise ValueError(f"rotary scaling '{self.rope_scaling.kind}' stretches the lowest frequency more than "
                                 "the highest; head_dim is 2, which has one alone")
            if self.rope_scaling.kind == "ntk":
                theta = self.rope_theta * self.rope_scaling.factor ** (self.head_dim / (self.head_dim - 2))
                object.__setattr__(self, "rope_theta", theta)       # that is all there is to it, for every reader
                object.__setattr__(self, "rope_scaling", None)
        self._family()                                              # refuse before training what no file could hold

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
    def steady_context(self) -> int:
        """How long a text may grow before its first tokens are rotated otherwise than when they were read."""
        dynamic = self.rope_scaling and self.rope_scaling.kind == "dynamic"
        return self.max_position_embeddings if dynamic else self.context

    @staticmethod
    def from_dict(values: dict[str, Any]) -> "LlamaConfig":
        """Read a Hugging Face `config.json`, of yesterday (rope_theta, rope_scaling) or of today (rope_parameters).

        What a file leaves out is what the class of its model_type takes: llama, mistral or qwen2.

        Raises ValueError, naming the field, for anything that would change the arithmetic and is not built here.
        """
        _refuse_other_architectures(values)
        required = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
        if missing := [name for name in required if name not in values]:
            raise ValueError(f"config.json lacks {', '.join(missing)}; a Llama cannot be built without")
        kind = values.get("model_type", "llama")
        values = FAMILIES[kind].defaults | values
        optional = ("max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "head_dim", "initializer_range",
                    "attention_bias", "mlp_bias")
        theta, scaling = _read_rope(values)
        return LlamaConfig(
            **{name: values[name] for name in required},
            **{name: values[name] for name in optional if values.get(name) is not None},
            num_key_value_heads=values.get("num_key_value_heads") or values["num_attention_heads"],
            rope_theta=theta,
            rope_scaling=scaling,
            qkv_bias=kind == "qwen2",
            sliding_window=_read_window(kind, values),
        )

    def to_dict(self) -> dict[str, Any]:
        """The `config.json` that older and newer readers of Hugging Face folders both understand."""
        kind, scaling = self._family(), None
        if s := self.rope_scaling:
            scaling = {"rope_type": s.kind, "type": s.kind, "factor": s.factor}
            scaling |= {name: value for name in SCALINGS[s.kind] if (value := getattr(s, name)) is not None}
        own = {
            "llama": {"attention_bias": self.attention_bias, "mlp_bias": self.mlp_bias},
            "mistral": {"sliding_window": self.sliding_window or None},
            "qwen2": {"use_sliding_window": self.sliding_window > 0, "sliding_window": self.sliding_window or None,
                      "max_window_layers": 0 if self.sliding_window else self.num_hidden_layers},
        }
        return {
            "architectures": [FAMILIES[kind].architecture],
            "model_type": kind,
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.max_position_embeddings,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "rope_scaling": scaling,
            "rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": self.rope_theta},
            "tie_word_embeddings": self.tie_word_embeddings,
            "initializer_range": self.initializer_range,
            "hidden_act": "silu",
            **own[kind],
        }

    def _family(self) -> str:
        """The model_type of Hugging Face that has these parts. Raises ValueError where none has."""
        parts = {name for name in PARTS if getattr(self, name)}
        uneven = self.hidden_size % self.num_attention_heads        # which Hugging Face's Llama refuses to open
        for kind, family in FAMILIES.items():
            if family.always <= parts <= family.always | family.possible and not (uneven and kind == "llama"):
                return kind
        named = [name for name in PARTS if name in parts]
        named += [f"hidden_size {self.hidden_size} no multiple of num_attention_heads"] * bool(uneven)
        raise ValueError(f"no published class of models has {' and '.join(named)}, so nobody could open such a folder: "
                         "llama has attention_bias and mlp_bias, mistral sliding_window, qwen2 qkv_bias and "
                         "sliding_window; leave one out")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _refuse_other_architectures(values: dict[str, Any]) -> None:
    if (kind := values.get("model_type", "llama")) not in FAMILIES:
        raise ValueError(f"config.json says model_type '{kind}'; built here are {', '.join(FAMILIES)}")
    as_built = {"hidden_act": "silu", "partial_rotary_factor": 1.0}
    if kind == "llama":
        as_built |= {"sliding_window": None, "use_sliding_window": False}
    else:
        as_built |= {"attention_bias": False, "mlp_bias": False}
    for name, built in as_built.items():
        if values.get(name, built) not in (built, None):
            raise ValueError(f"config.json says {name} = {values[name]!r}; with model_type '{kind}' only {built!r} is "
                             "built here")


def _read_window(kind: str, values: dict[str, Any]) -> int:
    """The sliding window of all layers; 0 for none. Raises ValueError if layers differ."""
    window, layers = values.get("sliding_window") or 0, values["num_hidden_layers"]
    if kind == "qwen2" and not values.get("use_sliding_window"):
        return 0                                                    # such files name a window that is not used
    kinds = values.get("layer_types")
    if kind == "qwen2" and kinds is None:
        full = min(values["max_window_layers"], layers)             # the first so many layers see everything
        kinds = ["full_attention"] * full + ["sliding_attention"] * (layers - full)
    if kinds and len(set(kinds)) > 1:
        raise ValueError(f"config.json: layers differ in their attention ({', '.join(sorted(set(kinds)))}; see "
                         "layer_types, max_window_layers); only one kind for all layers is built here")
    return 0 if kinds and kinds[0] == "full_attention" else window


def _read_rope(values: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    new, old = values.get("rope_parameters") or {}, values.get("rope_scaling") or {}
    if not isinstance(new, dict) or not isinstance(old, dict):
        raise ValueError("config.json: rope_parameters and rope_scaling must be objects, or null")
    theta = new.get("rope_theta", values.get("rope_theta"))
    if theta is None:
        theta = FIRST_LLAMAS_THETA
        log.warning("config.json names no rope_theta; 10,000 is taken, as the first Llamas mean it")
    rope = new or old
    if rope.get("partial_rotary_factor") not in (None, 1):
        raise ValueError(f"config.json says partial_rotary_factor = {rope['partial_rotary_factor']!r}; only 1.0 is "
                         "built here")
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if rope.get("factor") is None:
        raise ValueError(f"config.json: rotary scaling '{kind}' has no factor")
    trained = "original_max_position_embeddings"
    rope = rope | {trained: values.get(trained) or rope.get(trained) or values["max_position_embeddings"]}
    return theta, RopeScaling(kind, rope["factor"], **{name: rope[name] for name in SCALINGS.get(kind, ())
                                                       if rope.get(name) is not None})


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
    "gpt": "GPT models have learned positions and LayerNorm",
    "t5": "T5 is an encoder-decoder with relative position biases",
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
