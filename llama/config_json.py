"""A LlamaConfig as Hugging Face's config.json, and back: what each model_type calls its parts, what a file may omit.

Try: let mistral have no `sliding_window` by default; tests/test_config_json.py says whose files would read otherwise.
"""

import logging
from dataclasses import dataclass, fields
from typing import Any

from llama.config import DEFAULT_ROPE_THETA, ROPE_SCALING_FIELDS, LlamaConfig, RopeScaling
from tokenizer.checked_json import check_fields
from weights.formats.huggingface import CONFIG_FIELDS, SCALES

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """A model_type of Hugging Face's files whose arithmetic is built here."""

    architecture: str
    always: frozenset[str]                  # parts that all its models have, as `parts_of` names them
    possible: frozenset[str]                # parts that they may have, beside
    defaults: dict[str, Any]                # what its class takes where a file is silent


def _family(architecture: str, always: str = "", possible: str = "", context: int = 2048, **defaults: Any) -> Family:
    return Family(architecture, frozenset(always.split()), frozenset(possible.split()),
                  {"rms_norm_eps": 1e-6, "max_position_embeddings": context} | defaults)


_BIASES = "attention_bias mlp_bias"
_QWEN_WINDOW = {"sliding_window": 4096, "max_window_layers": 28}
FAMILIES = {
    "llama": _family("LlamaForCausalLM", possible=_BIASES),
    "mistral": _family("MistralForCausalLM", possible="sliding_window", context=131_072, num_key_value_heads=8,
                       sliding_window=4096),
    "qwen2": _family("Qwen2ForCausalLM", "qkv_bias", "sliding_window", 32_768, num_key_value_heads=32, **_QWEN_WINDOW),
    "qwen3": _family("Qwen3ForCausalLM", "qk_norm=head", "sliding_window attention_bias", 32_768,
                     num_key_value_heads=32, head_dim=128, **_QWEN_WINDOW),
    "smollm3": _family("SmolLM3ForCausalLM", "no_rope_layers", _BIASES, 32_768, num_key_value_heads=4,
                       rope_theta=2e6, tie_word_embeddings=True, no_rope_layer_interval=4),
    "granite": _family("GraniteForCausalLM", possible=f"{_BIASES} embedding_multiplier residual_multiplier "
                       "attention_multiplier logits_scaling", attention_multiplier=1.0),
    "olmo2": _family("Olmo2ForCausalLM", "qk_norm=all norm_after", "attention_bias", rms_norm_eps=1e-5),
}
PARTS = ("attention_bias", "qkv_bias", "mlp_bias", "sliding_window", "qk_norm", "norm_after", "no_rope_layers",
         "embedding_multiplier", "residual_multiplier", "attention_multiplier", "logits_scaling")
_UNEVEN = ("mistral", "qwen2", "qwen3")                             # open where D is no multiple of H; Llama's refuses
_WINDOWED = ("qwen2", "qwen3")                                      # which name a window, and whether it is used


def parts_of(config: LlamaConfig) -> set[str]:
    """Names of the fields by which a config differs from a plain Llama's; of qk_norm with its kind."""
    plain = {field.name: field.default for field in fields(LlamaConfig)}
    differing = {name for name in PARTS if getattr(config, name) != plain[name]}
    return {f"qk_norm={config.qk_norm}" if name == "qk_norm" else name for name in differing}


def config_from_dict(values: dict[str, Any]) -> LlamaConfig:
    """Read a Hugging Face `config.json`, of yesterday (rope_theta, rope_scaling) or of today (rope_parameters).

    What a file leaves out is what the class of its model_type takes: llama, mistral or qwen2.

    Raises ValueError, naming the field, for anything that would change the arithmetic and is not built here.
    """
    check_fields(values, CONFIG_FIELDS, "config.json")
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
        sliding_window=_read_window(kind, values),
        **_read_parts(kind, values),
    )


def config_to_dict(config: LlamaConfig) -> dict[str, Any]:
    """The `config.json` that older and newer readers of Hugging Face folders both understand."""
    kind, scaling = family(config), None
    if s := config.rope_scaling:
        scaling = {"rope_type": s.kind, "type": s.kind, "factor": s.factor}
        scaling |= {name: value for name in ROPE_SCALING_FIELDS[s.kind] if (value := getattr(s, name)) is not None}
    own: dict[str, Any] = {name: getattr(config, name) for name in ("attention_bias", "mlp_bias")
                           if name in FAMILIES[kind].possible}
    if kind == "mistral":
        own["sliding_window"] = config.sliding_window or None
    elif kind in _WINDOWED:
        own |= {"use_sliding_window": config.sliding_window > 0, "sliding_window": config.sliding_window or None,
                "max_window_layers": 0 if config.sliding_window else config.num_hidden_layers}
    elif kind == "smollm3":
        own |= {"no_rope_layers": [int(i not in config.no_rope_layers) for i in range(config.num_hidden_layers)],
                "use_sliding_window": False}
    elif kind == "granite":
        own |= {name: getattr(config, name) for name in SCALES}
        own["attention_multiplier"] = config.attention_multiplier or config.head_dim**-0.5
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
        **own,
    }


def family(config: LlamaConfig) -> str:
    """The model_type of Hugging Face that has these parts. Raises ValueError where none has."""
    parts = parts_of(config)
    uneven = config.hidden_size % config.num_attention_heads
    for kind, each in FAMILIES.items():
        if each.always <= parts <= each.always | each.possible and not (uneven and kind not in _UNEVEN):
            return kind
    named = sorted(parts)
    named += [f"hidden_size {config.hidden_size} no multiple of num_attention_heads"] * bool(uneven)
    raise ValueError(f"no published class of models has {' and '.join(named)}, so nobody could open such a folder: "
                     + "; ".join(f"{kind} has {', '.join(sorted(each.always | each.possible))}"
                                 for kind, each in FAMILIES.items()) + "; leave one out")


def _refuse_other_architectures(values: dict[str, Any]) -> None:
    if (kind := values.get("model_type", "llama")) not in FAMILIES:
        raise ValueError(f"config.json says model_type '{kind}'; built here are {', '.join(FAMILIES)}")
    as_built = {"hidden_act": "silu", "partial_rotary_factor": 1.0}
    as_built |= {name: False for name in ("attention_bias", "mlp_bias") if name not in FAMILIES[kind].possible}
    for name, built in as_built.items():
        if values.get(name, built) not in (built, None):
            raise ValueError(f"config.json says {name} = {values[name]!r}; with model_type '{kind}' only {built!r} is "
                             "built here")


def _read_window(kind: str, values: dict[str, Any]) -> int:
    """The sliding window of all layers; 0 for none. Raises ValueError if layers differ."""
    window, layers = values.get("sliding_window") or 0, values["num_hidden_layers"]
    if "sliding_window" not in FAMILIES[kind].possible:
        if window and window < values["max_position_embeddings"] and kind != "smollm3":
            log.warning("config.json names a sliding window of %d, which the class of its model_type %s does not have: "
                        "every position sees all before it", window, kind)
        if kind == "smollm3" and values.get("use_sliding_window"):
            raise ValueError("config.json says use_sliding_window: some layers of it would see a window, others all; "
                             "only one kind for all layers is built here")
        return 0
    if kind in _WINDOWED and not values.get("use_sliding_window"):
        return 0                                                    # such files name a window that is not used
    kinds = values.get("layer_types")
    if kind in _WINDOWED and kinds is None:
        full = min(values["max_window_layers"], layers)             # the first so many layers see everything
        kinds = ["full_attention"] * full + ["sliding_attention"] * (layers - full)
    if kinds and len(set(kinds)) > 1:
        raise ValueError(f"config.json: layers differ in their attention ({', '.join(sorted(set(kinds)))}; see "
                         "layer_types, max_window_layers); only one kind for all layers is built here")
    return 0 if kinds and kinds[0] == "full_attention" else window


def _kind_of_rope(rope: dict[str, Any]) -> str:
    return rope.get("rope_type") or rope.get("type") or "default"


def _read_parts(kind: str, values: dict[str, Any]) -> dict[str, Any]:
    """The parts of a sibling, as fields of LlamaConfig."""
    always = FAMILIES[kind].always
    parts: dict[str, Any] = {"qkv_bias": "qkv_bias" in always, "norm_after": "norm_after" in always}
    parts["qk_norm"] = next((part.removeprefix("qk_norm=") for part in always if part.startswith("qk_norm=")), "")
    if kind == "smollm3":
        layers, interval = range(values["num_hidden_layers"]), values["no_rope_layer_interval"]
        turning = values.get("no_rope_layers") or [int((i + 1) % interval != 0) for i in layers]
        parts["no_rope_layers"] = tuple(i for i, turns in enumerate(turning) if not turns)
    if kind == "granite":
        parts |= {name: float(values[name]) for name in SCALES if values.get(name) is not None}
    return parts


def _read_rope(values: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    new, old = values.get("rope_parameters") or {}, values.get("rope_scaling") or {}
    thetas = [each.get("rope_theta") for each in ((old, values, new) if old else (new, values))]
    theta = next((each for each in thetas if each), None)           # beside rope_scaling, that of the older spelling
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
