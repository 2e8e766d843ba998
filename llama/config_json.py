"""A LlamaConfig as Hugging Face's config.json, and back: what each model_type calls its parts, what a file may omit.

Try: let mistral have no `sliding_window` by default; tests/test_config_json.py says whose files would read otherwise.
"""

import logging
from dataclasses import dataclass
from typing import Any

from llama.config import DEFAULT_ROPE_THETA, ROPE_SCALING_FIELDS, LlamaConfig, RopeScaling
from tokenizer.checked_json import FLAG, TEXT, check_fields, listed, number, record, whole

log = logging.getLogger(__name__)


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
# Of what is looked at before LlamaConfig and RopeScaling ask their own fields.
_ROPE = record({}, {"rope_theta": number(above=0), "rope_type": TEXT, "type": TEXT, "factor": number(),
                    "original_max_position_embeddings": whole(1), "partial_rotary_factor": number()})
FIELDS = {"model_type": TEXT, "num_hidden_layers": whole(1), "num_attention_heads": whole(1),
          "max_position_embeddings": whole(1), "original_max_position_embeddings": whole(1),
          "rope_theta": number(above=0), "rope_parameters": _ROPE, "rope_scaling": _ROPE, "sliding_window": whole(),
          "use_sliding_window": FLAG, "max_window_layers": whole(), "layer_types": listed(TEXT),
          "architectures": listed(TEXT)}
FEATURES = ("attention_bias", "qkv_bias", "mlp_bias", "sliding_window")


def config_from_dict(values: dict[str, Any]) -> LlamaConfig:
    """Read a Hugging Face `config.json`, of yesterday (rope_theta, rope_scaling) or of today (rope_parameters).

    What a file leaves out is what the class of its model_type takes: llama, mistral or qwen2.

    Raises ValueError, naming the field, for anything that would change the arithmetic and is not built here.
    """
    check_fields(values, FIELDS, "config.json")
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


def config_to_dict(config: LlamaConfig) -> dict[str, Any]:
    """The `config.json` that older and newer readers of Hugging Face folders both understand."""
    kind, scaling = family(config), None
    if s := config.rope_scaling:
        scaling = {"rope_type": s.kind, "type": s.kind, "factor": s.factor}
        scaling |= {name: value for name in ROPE_SCALING_FIELDS[s.kind] if (value := getattr(s, name)) is not None}
    own = {
        "llama": {"attention_bias": config.attention_bias, "mlp_bias": config.mlp_bias},
        "mistral": {"sliding_window": config.sliding_window or None},
        "qwen2": {"use_sliding_window": config.sliding_window > 0, "sliding_window": config.sliding_window or None,
                  "max_window_layers": 0 if config.sliding_window else config.num_hidden_layers},
    }
    return {
        "architectures": [FAMILIES[kind].architecture],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_type": "default", **(scaling or {}), "rope_theta": config.rope_theta},
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "hidden_act": "silu",
        **own[kind],
    }


def family(config: LlamaConfig) -> str:
    """The model_type of Hugging Face that has these parts. Raises ValueError where none has."""
    parts = {name for name in FEATURES if getattr(config, name)}
    uneven = config.hidden_size % config.num_attention_heads        # which Hugging Face's Llama refuses to open
    for kind, each in FAMILIES.items():
        if each.always <= parts <= each.always | each.possible and not (uneven and kind == "llama"):
            return kind
    named = [name for name in FEATURES if name in parts]
    named += [f"hidden_size {config.hidden_size} no multiple of num_attention_heads"] * bool(uneven)
    raise ValueError(f"no published class of models has {' and '.join(named)}, so nobody could open such a folder: "
                     "llama has attention_bias and mlp_bias, mistral sliding_window, qwen2 qkv_bias and "
                     "sliding_window; leave one out")


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


def _kind_of_rope(rope: dict[str, Any]) -> str:
    return rope.get("rope_type") or rope.get("type") or "default"


def _read_rope(values: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    new, old = values.get("rope_parameters") or {}, values.get("rope_scaling") or {}
    theta = (old.get("rope_theta") or new.get("rope_theta") or values.get("rope_theta"))
    if theta is None:
        theta = DEFAULT_ROPE_THETA
        log.warning("config.json names no rope_theta; 10,000 is taken, as the first Llamas mean it")
    rope = old or new                                               # both: what somebody added to a newer file by hand
    if old and new and _kind_of_rope(old) != _kind_of_rope(new):
        log.warning("config.json scales positions in two ways, rope_scaling by %s and rope_parameters by %s; the first "
                    "is taken", _kind_of_rope(old), _kind_of_rope(new))
    if rope.get("partial_rotary_factor") not in (None, 1):
        raise ValueError(f"config.json says partial_rotary_factor = {rope['partial_rotary_factor']!r}; only 1.0 is "
                         "built here")
    kind = _kind_of_rope(rope)
    if kind == "default":
        return theta, None
    if rope.get("factor") is None:
        raise ValueError(f"config.json: rotary scaling '{kind}' has no factor")
    trained = "original_max_position_embeddings"
    rope = rope | {trained: values.get(trained) or rope.get(trained) or values["max_position_embeddings"]}
    return theta, RopeScaling(kind, rope["factor"], **{name: rope[name] for name in ROPE_SCALING_FIELDS.get(kind, ())
                                                       if rope.get(name) is not None})
