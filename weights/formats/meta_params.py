"""Meta's params.json: what it says, and what it leaves to those who know the models by heart.

It does not say by what factor rotary positions are scaled (8 in Llama 3.1, 32 in 3.2), how long the context is, in
Llama 1 and 2 not even θ and the size of the vocabulary, and the feed-forward size only by a formula. What is missing is
inferred here from the models that Meta published, or refused, and always told (`inferred`).

Try: give Llama 3.2's shapes the factor 8 in PUBLISHED; tests/test_meta_params.py (test_worked_example_published_models)
fails, while answers to short questions would stay right, and long documents dissolve.
"""

from pathlib import Path
from typing import Any

from tokenizer.checked_json import ANYTHING, FLAG, check_value, either, number, one_of, record, whole
from weights.formats.huggingface import DEFAULT_ROPE_THETA, for_all_readers
from weights.formats.plain_llama import Sizes

PARAMS = "params.json"
SIZES = {"dim": whole(1), "n_layers": whole(1), "n_heads": whole(1)}
OPTIONS = {"n_kv_heads": whole(1), "vocab_size": either(whole(1), one_of(-1)), "multiple_of": whole(1),
           "ffn_dim_multiplier": number(above=0), "norm_eps": number(above=0), "rope_theta": number(above=0),
           "use_scaled_rope": FLAG, "rope_scaling_factor": number(above=0), "max_seq_len": whole(1),
           "max_batch_size": ANYTHING, "head_dim": whole(2), "hidden_dim": whole(1), "sliding_window": whole(1)}
FIELDS = record(SIZES, OPTIONS)
DEFAULT_EPS = 1e-5                      # of Meta's code, where the file has none

# The factor that the weights were trained with: (D, L, H) → which models, and by how much they scale.
PUBLISHED = {
    (4096, 32, 32): ("Llama 3.1 8B", 8.0),
    (8192, 80, 64): ("Llama 3.1 and 3.3 70B", 8.0),
    (16384, 126, 128): ("Llama 3.1 405B", 8.0),
    (2048, 16, 32): ("Llama 3.2 1B", 32.0),
    (3072, 28, 24): ("Llama 3.2 3B", 32.0),
}
SCALING = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
FACTOR_IN_METAS_CODE = 8.0
LLAMA_2 = ((4096, 32, 32, 32), (5120, 40, 40, 40), (8192, 80, 64, 8))              # D, L, H, G


# ---- reading ---------------------------------------------------------------------------------------------------------


def check(place: Path, params: dict[str, Any]) -> None:
    """Raise ValueError for keys that would change the arithmetic and are not built here, and for senseless numbers."""
    for key, value in params.items():
        if key not in SIZES | OPTIONS and value not in (None, False, -1):
            raise ValueError(f"{place}: {PARAMS} says {key} = {value!r}, which is not built here; only if it leaves "
                             "the arithmetic alone, delete it there")
    check_value(params, FIELDS, f"{place}: {PARAMS}")


def read_params(place: Path, params: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """What params.json says beside sizes, and what it leaves out, under Hugging Face's keys.

    Raises ValueError where the rotary factor can neither be read nor inferred.
    """
    window = {"model_type": "mistral", "architectures": ["MistralForCausalLM"],
              "sliding_window": params["sliding_window"]} if params.get("sliding_window") else {}
    return {**window, "max_position_embeddings": _context(params, sizes)[0],
            "rms_norm_eps": params.get("norm_eps") or DEFAULT_EPS,
            "rope_theta": _theta(params),
            "rope_scaling": _scaling(place, params, sizes)}


def _theta(params: dict[str, Any]) -> float:
    """Where it is not named, that of Meta's code: the code that scales positions is Llama 3's, and has another θ."""
    return params.get("rope_theta") or (500_000.0 if params.get("use_scaled_rope") else DEFAULT_ROPE_THETA)


def _scaling(place: Path, params: dict[str, Any], sizes: Sizes) -> dict[str, Any] | None:
    if not params.get("use_scaled_rope"):
        return None
    factor = params.get("rope_scaling_factor") or _published_factor(sizes)
    if factor is None:
        raise ValueError(f"{place}: positions are scaled (use_scaled_rope), but {PARAMS} does not say by how much, and "
                         f"no published model has D {sizes.D}, L {sizes.L}, H {sizes.H}; add \"rope_scaling_factor\" "
                         "to it: 8 as in Llama 3.1, 32 as in Llama 3.2")
    return {"rope_type": "llama3", "factor": float(factor), **SCALING}


def _published_factor(sizes: Sizes) -> float | None:
    return PUBLISHED.get((sizes.D, sizes.L, sizes.H), (None, None))[1]


def _context(params: dict[str, Any], sizes: Sizes) -> tuple[int, str]:
    """How many positions the model was trained for, and by what that was known."""
    theta = _theta(params)
    if params.get("max_seq_len"):
        return params["max_seq_len"], ""
    if params.get("hidden_dim"):
        return 32_768, "hidden_dim is a key of Mistral's files"
    if params.get("use_scaled_rope"):
        return 131_072, "positions are scaled, as in Llama 3.1 and later"
    if theta == 500_000:
        return 8192, "θ is 500,000, as in Llama 3"
    if theta == 1_000_000:
        return 16_384, "θ is 1,000,000, as in Code Llama"
    shape = (sizes.D, sizes.L, sizes.H, sizes.G)
    if theta == DEFAULT_ROPE_THETA and shape in LLAMA_2 and params.get("norm_eps") != 1e-6:
        return 4096, "shape and norm_eps are those of a Llama 2"
    return 2048, "no Llama after the first has this shape, θ and norm_eps"


def inferred(params: dict[str, Any], sizes: Sizes) -> list[str]:
    """A sentence for everything that params.json does not say."""
    told = []
    if params.get("use_scaled_rope") and not params.get("rope_scaling_factor"):
        models, factor = PUBLISHED[sizes.D, sizes.L, sizes.H]
        told.append(f"rotary factor {factor:g}: {PARAMS} does not say it; the shape is that of {models}")
    context, reason = _context(params, sizes)
    if reason:
        told.append(f"context of {context:,} positions: {PARAMS} does not say it; {reason}")
    if not params.get("rope_theta"):
        told.append(f"rope_theta {_theta(params):,.0f}: {PARAMS} names none; so has Meta's code")
    if params.get("vocab_size") in (None, -1):
        told.append(f"vocabulary of {sizes.V:,}: the rows of the embedding")
    formula = feed_forward_size(sizes.D, params.get("multiple_of") or 256, params.get("ffn_dim_multiplier"))
    if formula != sizes.F != params.get("hidden_dim"):
        told.append(f"feed-forward size {sizes.F:,}: the rows of w1; {PARAMS} means {formula:,}")
    return told


def feed_forward_size(D: int, multiple_of: int, multiplier: float | None) -> int:
    """F as Meta's code computes it: 2/3 of 4 D, times `multiplier`, up to the next multiple."""
    size = int(2 * (4 * D) / 3)
    if multiplier is not None:
        size = int(multiplier * size)
    return -(-size // multiple_of) * multiple_of


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_params(config: dict[str, Any], sizes: Sizes) -> dict[str, Any]:
    """params.json. θ is left out where it is the first Llamas', whose code knows no such key.

    Raises ValueError for rotary scalings that Meta's code has not.
    """
    rope = for_all_readers(config)
    theta, scaling = rope["rope_theta"], rope["rope_scaling"]
    params = {"dim": sizes.D, "n_layers": sizes.L, "n_heads": sizes.H, "n_kv_heads": sizes.G, "vocab_size": sizes.V,
              **feed_forward_numbers(sizes.D, sizes.F), "norm_eps": config["rms_norm_eps"]}
    if scaling is None:
        return params if theta == DEFAULT_ROPE_THETA else params | {"rope_theta": theta}
    published, factor = _published_factor(sizes), scaling.get("factor")
    others = {key: scaling.get(key, value) for key, value in SCALING.items()}
    if scaling["rope_type"] != "llama3" or others != SCALING or factor not in (published, FACTOR_IN_METAS_CODE):
        raise ValueError(f"rotary scaling {scaling['rope_type']} with factor {factor} cannot be said in {PARAMS}: Meta "
                         f"scales as Llama 3.1 does ({SCALING}), by {published or FACTOR_IN_METAS_CODE:g} for this "
                         "shape; write another format")
    params |= {"rope_theta": theta, "use_scaled_rope": True}
    return params if factor == published else params | {"rope_scaling_factor": factor}


def feed_forward_numbers(D: int, F: int) -> dict[str, Any]:
    """multiple_of, and the shortest ffn_dim_multiplier if one is needed, for which Meta's formula gives F."""
    multiples = [2**power for power in (8, 10, 12, *range(7, -1, -1)) if F % 2**power == 0]
    for multiple in multiples:
        if feed_forward_size(D, multiple, None) == F:
            return {"multiple_of": multiple}
    start = feed_forward_size(D, 1, None)
    for digits in range(1, 17):
        for multiple in multiples:
            multiplier = round((F + 1 - multiple / 2) / start, digits)             # the middle of all that would do
            if multiplier > 0 and feed_forward_size(D, multiple, multiplier) == F:
                return {"multiple_of": multiple, "ffn_dim_multiplier": multiplier}
    raise AssertionError((D, F))


def unsaid(config: dict[str, Any]) -> list[str]:
    """What of the config will read otherwise from params.json, in sentences."""
    H = config["num_attention_heads"]
    sizes = Sizes(config["hidden_size"], config["intermediate_size"], config["num_hidden_layers"], H,
                  config.get("num_key_value_heads") or H, config["vocab_size"])
    read, context = _context(write_params(config, sizes), sizes)[0], config.get("max_position_embeddings", 2048)
    if read == context:
        return []
    return [f"{PARAMS} has no key for the context of {context:,} positions; readers of this shape take {read:,}"]
