"""Siblings of Llama that differ in how their matrices are stored alone: read as the Llamas that they are.

    Phi-3       qkv_proj is q_proj, k_proj and v_proj, gate_up_proj gate_proj and up_proj, one below the other
    InternLM 2  wqkv holds, for each key-value head, its queries' rows, its key's and its value's; names are its own

Rows are taken out of what is stored as they are asked for; nothing is there twice.

Try: let InternLM 2's rows be cut like Phi-3's; tests/test_joined.py (test_two_ways_cut_equals_the_model_it_was_made_of)
fails, and the model would write nonsense.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from tokenizer.checked_json import check_fields, whole
from weights.formats.tensor_files import StoredTensor

Cut = Callable[[Tensor], Tensor]
KINDS = ("phi3", "internlm2")
_SIZES = {name: whole(1) for name in ("hidden_size", "num_attention_heads", "num_key_value_heads",
                                      "max_position_embeddings", "sliding_window")}
_INTERNLM2 = {"attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w3": "mlp.up_proj",
              "feed_forward.w2": "mlp.down_proj", "attention_norm": "input_layernorm",
              "ffn_norm": "post_attention_layernorm"}


def take_apart(config: dict[str, Any], tensors: dict[str, StoredTensor], place: Any) -> \
        tuple[dict[str, Any], dict[str, StoredTensor]]:
    """Config and tensors of the Llama, or Mistral, that a folder of one of the KINDS holds; of others as they are.

    Raises ValueError, naming what differs, where the arithmetic is another one as well.
    """
    kind = config.get("model_type")
    if kind not in KINDS:
        return config, tensors
    check_fields(config, _SIZES, f"{place}: config.json")
    if missing := [name for name in ("hidden_size", "num_attention_heads") if not config.get(name)]:
        raise ValueError(f"{place}: config.json lacks {', '.join(missing)}")
    if config.get("bias"):
        raise ValueError(f"{place}: config.json says bias = {config['bias']!r}; an InternLM 2 with biases is not built "
                         "here")
    H = config["num_attention_heads"]
    G, K = config.get("num_key_value_heads") or H, config["hidden_size"] // H
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        for part, cut, rows in (_phi3 if kind == "phi3" else _internlm2)(name, H, G, K, tensor.shape):
            shape = tensor.shape if rows is None else (rows, *tensor.shape[1:])
            found[part] = replace(tensor, shape=shape, read=_read(tensor.read, cut))
    window = config.get("sliding_window") if kind == "phi3" else None
    as_what = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": window} if window \
        and window < config.get("max_position_embeddings", window) else {
            "model_type": "llama", "architectures": ["LlamaForCausalLM"], "sliding_window": None}
    return {name: value for name, value in config.items() if name not in ("bias", "auto_map")} | as_what, found


def _read(read: Callable[[], Tensor], cut: Cut | None) -> Callable[[], Tensor]:
    return read if cut is None else lambda: cut(read()).clone()     # a view would keep all of what it was cut from


Parts = list[tuple[str, Cut | None, int | None]]                    # name, its rows out of what is stored, how many


def _phi3(name: str, H: int, G: int, K: int, shape: tuple[int, ...]) -> Parts:
    stem, _, last = name.removesuffix(".weight").rpartition(".")
    if last == "qkv_proj":
        sizes, parts = [H * K, G * K, G * K], ("q_proj", "k_proj", "v_proj")
    elif last == "gate_up_proj":
        sizes, parts = [sum(shape[:1]) // 2] * 2, ("gate_proj", "up_proj")
    else:
        return [(name, None, None)]
    _check_rows(name, shape, sum(sizes))
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    return [(f"{stem}.{part}.weight", lambda rows, a=end - size, b=end: rows[a:b], size)
            for part, size, end in zip(parts, sizes, ends, strict=True)]


def _internlm2(name: str, H: int, G: int, K: int, shape: tuple[int, ...]) -> Parts:
    for theirs, ours in (("tok_embeddings.", "embed_tokens."), ("output.", "lm_head.")):
        if name.startswith(theirs):
            return [(ours + name.removeprefix(theirs), None, None)]
    block = re.fullmatch(r"(layers\.\d+\.)(.+)\.weight", name)
    if block is None:
        return [(name, None, None)]
    if block[2] in _INTERNLM2:
        return [(f"{block[1]}{_INTERNLM2[block[2]]}.weight", None, None)]
    if block[2] != "attention.wqkv":
        return [(name, None, None)]
    _check_rows(name, shape, (H + 2 * G) * K)
    per_group = H // G                                              # queries to a key

    def of_group(first: int, last: int) -> Cut:
        return lambda rows: rows.unflatten(0, (G, per_group + 2, K))[:, first:last].flatten(0, 2)

    parts = (("q_proj", 0, per_group), ("k_proj", per_group, per_group + 1), ("v_proj", per_group + 1, per_group + 2))
    return [(f"{block[1]}self_attn.{part}.weight", of_group(first, last), (last - first) * G * K)
            for part, first, last in parts]


def _check_rows(name: str, shape: tuple[int, ...], rows: int) -> None:
    if shape[:1] != (rows,):
        raise ValueError(f"{name} has {' × '.join(map(str, shape))} numbers, but heads and sizes of config.json ask "
                         f"for {rows} rows; the file is of another model")
