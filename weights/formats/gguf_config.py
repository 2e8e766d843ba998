"""What shapes a Llama, in GGUF's keys and in Hugging Face's, both ways.

    llama   Llamas and Mistrals: rotary pairs are (2i, 2i + 1), so gguf.py reorders rows of q and k; biases if any
    qwen2   Qwen 2: rotary pairs as in Hugging Face's files, q, k and v with biases
    qwen3, smollm3, granite, olmo2      each as Hugging Face's class of that name; SmolLM 3's every fourth block knows
            no positions, which llama.cpp does not ask the file about

Which class of Hugging Face's a file is, its biases and its window say, since all of these share one forward pass.
Rotary scaling is in keys (linear, YaRN), or, for Llama 3.1 and later, in a table of divisors among the tensors.

Try: in `_yarn_keys`, write `attention_factor` as it is; tests/test_gguf_config.py
(test_property_what_is_written_is_read_again) fails, and llama.cpp would scale the attention twice.
"""

from math import log, pi
from typing import Any

import numpy as np

from weights.formats.gguf_blocks import NAMED
from weights.formats.gguf_file import GGUF, blocks, get, shortest, size
from weights.formats.huggingface import DEFAULT_ROPE_THETA, for_all_readers

ROTARY_TABLE = "rope_freqs.weight"      # Llama 3.1's scaling: what each frequency is divided by
CLASSES = {"llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "qwen2": "Qwen2ForCausalLM",
           "qwen3": "Qwen3ForCausalLM", "smollm3": "SmolLM3ForCausalLM", "granite": "GraniteForCausalLM",
           "olmo2": "Olmo2ForCausalLM"}
SIBLINGS = ("qwen3", "smollm3", "granite", "olmo2")                 # whose architecture has the name of their class
ARCHITECTURES = ("llama", "qwen2", *SIBLINGS)
REORDERED = ("llama", "smollm3", "granite")                         # whose rotary pairs are (2i, 2i + 1)
SCALES = {"embedding_multiplier": "embedding_scale", "residual_multiplier": "residual_scale",
          "attention_multiplier": "attention.scale", "logits_scaling": "logit_scale"}          # Granite's


def config(gguf: GGUF) -> dict[str, Any]:
    """The metadata under Hugging Face's keys.

    Raises ValueError, naming file and key, for another architecture, for what its arithmetic has and ours has not
    (experts, partial rotation, other rotary scalings), and for missing or senseless sizes.
    """
    of = architecture(gguf)
    if get(gguf, f"{of}.expert_count", int, 0):
        raise ValueError(f"{gguf.path}: a mixture of experts ({of}.expert_count), which is not built here")
    D, H = size(gguf, f"{of}.embedding_length"), size(gguf, f"{of}.attention.head_count")
    K = size(gguf, f"{of}.attention.key_length", D // H)
    for key in (f"{of}.attention.value_length", f"{of}.rope.dimension_count"):
        if size(gguf, key, K) != K:
            raise ValueError(f"{gguf.path}: {key} is {gguf.metadata[key]}, but queries and keys are {K} wide; "
                             "heads of two widths and partly rotated ones are not built here")
    context = size(gguf, f"{of}.context_length")
    return {
        **(_sibling(gguf, of, K) if of in SIBLINGS else
           _class(gguf, get(gguf, f"{of}.attention.sliding_window", int, 0), uneven=D % H > 0)),
        "vocab_size": _vocabulary_size(gguf),
        "hidden_size": D,
        "intermediate_size": size(gguf, f"{of}.feed_forward_length"),
        "num_hidden_layers": size(gguf, f"{of}.block_count"),
        "num_attention_heads": H,
        "num_key_value_heads": size(gguf, f"{of}.attention.head_count_kv", H),
        "head_dim": K,
        "max_position_embeddings": context,
        "rms_norm_eps": shortest(get(gguf, f"{of}.attention.layer_norm_rms_epsilon", float)),
        "rope_theta": shortest(get(gguf, f"{of}.rope.freq_base", float, DEFAULT_ROPE_THETA)),
        "rope_scaling": _scaling(gguf, of, K, context),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "hidden_act": "silu",
    }


def metadata(config: dict[str, Any], biased: set[str]) -> tuple[dict[str, Any], np.ndarray | None]:
    """The inverse of `config`: GGUF's keys, and the rotary table if the scaling is Llama 3.1's.

    biased  which linear parts of a block have biases: q_proj, k_proj …

    Raises ValueError, naming the field, for what a GGUF cannot say or llama.cpp does not compute.
    """
    of = config.get("model_type")
    if of not in SIBLINGS:
        of = "qwen2" if biased == {"q_proj", "k_proj", "v_proj"} else "llama"
    elif biased and of != "granite":
        raise ValueError(f"{', '.join(sorted(biased))} have biases, for which a GGUF of architecture {of} has no place")
    D, H = _needed(config, "hidden_size"), _needed(config, "num_attention_heads")
    K, context = config.get("head_dim") or D // H, _needed(config, "max_position_embeddings")
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act is {config['hidden_act']!r}; a GGUF's {of} computes silu")
    if of == "qwen2" and H * K != D:
        raise ValueError(f"head_dim is {K}, but heads of llama.cpp's qwen2 have hidden_size / num_attention_heads = "
                         f"{D / H:g} features; such a model cannot be written as GGUF")
    window = config.get("sliding_window") or 0
    if window and config.get("use_sliding_window", True) and window < context:
        raise ValueError(f"sliding_window is {window:,}, but llama.cpp's {of} sees all of the context, {context:,}; "
                         f"set max_position_embeddings to {window:,}, up to which both are the same")
    if of == "smollm3" and config.get("no_rope_layers") not in (None, _every_fourth(config["num_hidden_layers"])):
        raise ValueError(f"no_rope_layers is {config['no_rope_layers']}, but llama.cpp's smollm3 knows no positions in "
                         "every fourth block alone; such a model cannot be written as GGUF")
    scales = {f"{of}.{key}": float(config.get(name) or 1.0) for name, key in SCALES.items()} if of == "granite" else {}
    rope, table = _rope(config, of, K, context)
    return {
        "general.architecture": of,
        f"{of}.vocab_size": _needed(config, "vocab_size"),
        f"{of}.context_length": context,
        f"{of}.embedding_length": D,
        f"{of}.block_count": _needed(config, "num_hidden_layers"),
        f"{of}.feed_forward_length": _needed(config, "intermediate_size"),
        f"{of}.attention.head_count": H,
        f"{of}.attention.head_count_kv": config.get("num_key_value_heads") or H,
        f"{of}.attention.key_length": K,
        f"{of}.attention.value_length": K,
        f"{of}.attention.layer_norm_rms_epsilon": float(_needed(config, "rms_norm_eps")),
        f"{of}.rope.dimension_count": K,
        **{f"{of}.rope.{key}": value for key, value in rope.items()},
        **scales,
    }, table


def architecture(gguf: GGUF) -> str:
    found = gguf.metadata.get("general.architecture")
    if found not in ARCHITECTURES:
        raise ValueError(f"{gguf.path}: its architecture is '{found}'; read here are {' and '.join(ARCHITECTURES)}")
    return found


def _class(gguf: GGUF, window: int, *, uneven: bool) -> dict[str, Any]:
    """The fields that Hugging Face's classes differ in; its Llama asks for a hidden size that the heads divide."""
    parts = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    biased = tuple(f"blk.0.{part}.bias" in gguf.tensors for part in parts)
    qkv, o, mlp = biased[:3], biased[3], biased[4:]
    if len(set(qkv)) > 1 or len(set(mlp)) > 1 or (o and not qkv[0]):
        raise ValueError(f"{gguf.path}: only {', '.join(p for p, b in zip(parts, biased, strict=True) if b)} have "
                         "biases; built here are those on q, k, v, with or without output, and on the whole MLP")
    kind = "qwen2" if qkv[0] and not o else "mistral" if window or uneven else "llama"
    if kind != "llama" and (o or mlp[0]):
        raise ValueError(f"{gguf.path}: its biases ask for Hugging Face's Llama, its window or its head size for "
                         "another class; both together are not built here")
    own = {"llama": {"attention_bias": o, "mlp_bias": mlp[0]}, "mistral": {"sliding_window": window or None},
           "qwen2": {"use_sliding_window": window > 0, "sliding_window": window or None,
                     "max_window_layers": 0 if window else size(gguf, f"{architecture(gguf)}.block_count")}}
    return {"architectures": [CLASSES[kind]], "model_type": kind, **own[kind]}


def _every_fourth(layers: int) -> list[int]:
    """SmolLM 3's no_rope_layers, in which 0 is a block that knows no positions."""
    return [int((i + 1) % 4 > 0) for i in range(layers)]


def _sibling(gguf: GGUF, of: str, K: int) -> dict[str, Any]:
    """The fields that such a class has beside a Llama's."""
    biased = {part for part in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
              if f"blk.0.{part}.bias" in gguf.tensors}
    attention, mlp = {part for part in biased if part.startswith("attn")}, {part for part in biased if part[0] == "f"}
    if len(attention) not in (0, 4) or len(mlp) not in (0, 3):
        raise ValueError(f"{gguf.path}: only {', '.join(sorted(biased))} have biases; built here are those of all of "
                         "the attention, or of all of the MLP")
    own: dict[str, Any] = {"architectures": [CLASSES[of]], "model_type": of, "attention_bias": bool(attention)}
    if mlp:
        own["mlp_bias"] = True
    if of == "smollm3":
        own["no_rope_layers"] = _every_fourth(size(gguf, f"{of}.block_count"))
    if of == "granite":
        own |= {name: shortest(get(gguf, f"{of}.{key}", float, K**-0.5 if name == "attention_multiplier" else 1.0))
                for name, key in SCALES.items()}
    return own


def _vocabulary_size(gguf: GGUF) -> int:
    """Rows of the embedding: the one size that cannot differ from what is stored."""
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ValueError(f"{gguf.path}: has no token_embd.weight of two axes; fetch or copy it again")
    return embedding.shape[0]


def _needed(config: dict[str, Any], name: str) -> Any:
    if config.get(name) is None:
        raise ValueError(f"the config has no {name}; a GGUF cannot be written without")
    return config[name]


# ---- rotary scaling --------------------------------------------------------------------------------------------------

_YARN_AS_BUILT = {"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True}          # in llama.cpp


def _scaling(gguf: GGUF, of: str, K: int, context: int) -> dict[str, Any] | None:
    if ROTARY_TABLE in gguf.tensors:
        table = blocks(gguf, ROTARY_TABLE)
        if gguf.tensors[ROTARY_TABLE].format.name != "F32":
            raise ValueError(f"{gguf.path}: {ROTARY_TABLE} must hold float32 numbers; fetch or copy it again")
        theta = shortest(get(gguf, f"{of}.rope.freq_base", float, DEFAULT_ROPE_THETA))
        original = size(gguf, f"{of}.rope.scaling.original_context_length", 8192)
        divisors = NAMED["F32"].unpack(table).numpy().ravel()
        return _llama3_numbers(divisors, theta, original, K, f"{gguf.path}: {ROTARY_TABLE}")
    kind = get(gguf, f"{of}.rope.scaling.type", str, "linear")
    factor = get(gguf, f"{of}.rope.scaling.factor", float, get(gguf, f"{of}.rope.scale_linear", float, 0.0))
    if kind == "none" or factor in (0.0, 1.0):
        return None
    factor = shortest(factor)
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind != "yarn":
        raise ValueError(f"{gguf.path}: rotary scaling '{kind}' is not built here; known are linear, yarn and llama3")
    attention = get(gguf, f"{of}.rope.scaling.attn_factor", float, 1.0)
    more = {} if attention == 1.0 else {"attention_factor": shortest(attention * _yarn_attention(factor))}
    return {"rope_type": "yarn", "factor": factor, **more,
            "original_max_position_embeddings": size(gguf, f"{of}.rope.scaling.original_context_length", context)}


def _rope(config: dict[str, Any], of: str, K: int, context: int) -> tuple[dict[str, Any], np.ndarray | None]:
    """The keys below rope., and the table."""
    values = for_all_readers(config)
    theta, scaling = float(values["rope_theta"]), values["rope_scaling"] or {"rope_type": "default"}
    kind, factor = scaling["rope_type"], float(scaling.get("factor") or 1.0)
    original = int(scaling.get("original_max_position_embeddings") or context)
    if kind == "default":
        return {"freq_base": theta}, None
    if kind == "ntk":                   # is nothing but a larger base
        return {"freq_base": theta * factor ** (K / (K - 2))}, None
    if kind == "linear":
        return {"freq_base": theta, "scaling.type": "linear", "scaling.factor": factor}, None
    if kind == "yarn":
        return {"freq_base": theta, "scaling.type": "yarn", "scaling.factor": factor,
                "scaling.original_context_length": original, **_yarn_keys(scaling, factor)}, None
    if kind == "llama3" and of in REORDERED:
        numbers = {"rope_type": kind, "factor": factor, "low_freq_factor": float(_needed(scaling, "low_freq_factor")),
                   "high_freq_factor": float(_needed(scaling, "high_freq_factor")),
                   "original_max_position_embeddings": original}
        table = _llama3_table(numbers, theta, K)
        if _llama3_numbers(table, theta, original, K, "the config's rotary scaling") != numbers:
            raise ValueError(f"rotary scaling llama3 with {numbers}: a GGUF keeps a table, and these numbers "
                             "are not to be had from it again")
        return {"freq_base": theta, "scaling.original_context_length": original}, table
    raise ValueError(f"rotary scaling '{kind}' cannot be said in a GGUF of architecture {of}")


def _yarn_keys(scaling: dict[str, Any], factor: float) -> dict[str, Any]:
    """llama.cpp multiplies rotated vectors by 1 + 0.1 ln(factor) of its own accord, so its key holds what is beyond."""
    for name, built in _YARN_AS_BUILT.items():
        if scaling.get(name) not in (None, built):
            raise ValueError(f"rotary scaling yarn: {name} is {scaling[name]}, but llama.cpp's is always {built}")
    attention = scaling.get("attention_factor")
    if attention is None and scaling.get("mscale") and scaling.get("mscale_all_dim"):
        attention = _yarn_attention(factor, scaling["mscale"]) / _yarn_attention(factor, scaling["mscale_all_dim"])
    return {} if attention is None else {"scaling.attn_factor": attention / _yarn_attention(factor)}


def _yarn_attention(factor: float, scale: float = 1.0) -> float:
    """What queries and keys are multiplied by each (arXiv:2309.00071, eq. 22)."""
    return 0.1 * scale * log(factor) + 1.0 if factor > 1 else 1.0


def _llama3_table(numbers: dict[str, Any], theta: float, K: int) -> np.ndarray:
    """What each frequency is divided by: factor for waves that turn seldom within the trained length, 1 for others."""
    low, high = numbers["low_freq_factor"], numbers["high_freq_factor"]
    turns = numbers["original_max_position_embeddings"] * theta ** -(np.arange(0, K, 2) / K) / (2 * pi)
    keep = ((turns - low) / (high - low)).clip(0, 1)
    return (1 / (keep + (1 - keep) / numbers["factor"])).astype(np.float32)


def _llama3_numbers(table: np.ndarray, theta: float, original: int, K: int, place: str) -> dict[str, Any] | None:
    """Recover the numbers of Llama 3.1's scaling from the table, which is all that GGUF keeps.

    The largest divisor is the factor; the rest is as Meta published it for all of 3.1 to 3.3. If the table computed
    from these numbers is not the one given, the scaling is another one and is refused.
    """
    if (table == 1).all():
        return None
    numbers = {"rope_type": "llama3", "factor": shortest(float(table.max())), "low_freq_factor": 1.0,
               "high_freq_factor": 4.0, "original_max_position_embeddings": original}
    computed = _llama3_table(numbers, theta, K)
    if table.shape != computed.shape or not np.allclose(table, computed, rtol=1e-4):
        raise ValueError(f"{place} is not the table of Llama 3.1's rotary scaling "
                         f"with factor {numbers['factor']:g}; other tables are not built here")
    return numbers
