"""A Llama in a GGUF file, as Hugging Face's names and shapes, and its vocabulary. The container itself: gguf_file.py.

Two things differ from a Hugging Face folder and are undone here: the names, and the order of the rows of attn_q and
attn_k, whose rotary pairs are (2i, 2i + 1) as in Meta's code instead of (i, i + K/2).

Try: let `_halves_together` return its argument; tests/test_gguf.py (test_two_ways_reordered_rows_give_equal_attention)
fails, while a real model would go on writing fluent text for some 20 tokens.
"""

import re
from collections.abc import Iterator
from math import pi
from typing import Any

import numpy as np
import torch
from torch import Tensor

from weights.gguf_file import GGUF, get, open_gguf, shortest, size, unpack

__all__ = ["GGUF", "config", "open_gguf", "read_tensors", "tensor_ledger", "vocabulary"]

NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "output": "lm_head",
    "blk.N.attn_norm": "layers.N.input_layernorm",
    "blk.N.attn_q": "layers.N.self_attn.q_proj",
    "blk.N.attn_k": "layers.N.self_attn.k_proj",
    "blk.N.attn_v": "layers.N.self_attn.v_proj",
    "blk.N.attn_output": "layers.N.self_attn.o_proj",
    "blk.N.ffn_norm": "layers.N.post_attention_layernorm",
    "blk.N.ffn_gate": "layers.N.mlp.gate_proj",
    "blk.N.ffn_up": "layers.N.mlp.up_proj",
    "blk.N.ffn_down": "layers.N.mlp.down_proj",
}
ROTARY_FACTORS = "rope_freqs.weight"    # Llama 3.1's scaling as a table; it becomes `rope_scaling` of the config
FIRST_LLAMAS_THETA = 10_000.0           # where a file names none, as llama.cpp reads it


def config(gguf: GGUF) -> dict[str, Any]:
    """The metadata under Hugging Face's keys.

    Raises ValueError, naming file and key, for another architecture than Llama's, for what its arithmetic has and ours
    has not (experts, partial rotation, other rotary scalings), and for missing or senseless sizes.
    """
    architecture = gguf.metadata.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"{gguf.path}: its architecture is '{architecture}'; only 'llama' is read here")
    if get(gguf, "llama.expert_count", int, 0):
        raise ValueError(f"{gguf.path}: a mixture of experts (llama.expert_count), which is not built here")
    if get(gguf, "split.count", int, 1) > 1:
        raise ValueError(f"{gguf.path}: one part of several (split.count); join them with llama.cpp's gguf-split first")
    D, H = size(gguf, "llama.embedding_length"), size(gguf, "llama.attention.head_count")
    K = size(gguf, "llama.attention.key_length", D // H)
    for key in ("llama.attention.value_length", "llama.rope.dimension_count"):
        if size(gguf, key, K) != K:
            raise ValueError(f"{gguf.path}: {key} is {gguf.metadata[key]}, but queries and keys are {K} wide; "
                             "heads of two widths and partly rotated ones are not built here")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": _vocabulary_size(gguf),
        "hidden_size": D,
        "intermediate_size": size(gguf, "llama.feed_forward_length"),
        "num_hidden_layers": size(gguf, "llama.block_count"),
        "num_attention_heads": H,
        "num_key_value_heads": size(gguf, "llama.attention.head_count_kv", H),
        "head_dim": K,
        "max_position_embeddings": size(gguf, "llama.context_length"),
        "rms_norm_eps": shortest(get(gguf, "llama.attention.layer_norm_rms_epsilon", float)),
        **_rope(gguf, K),
        "tie_word_embeddings": "output.weight" not in gguf.tensors,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }


def tensor_ledger(gguf: GGUF) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    """Name in memory, shape and dtype after unpacking of every tensor, in the order of the file.

    Raises ValueError for a tensor that has no place in a Llama.
    """
    return [(_memory_name(gguf, name), info.shape, info.format.dtype)
            for name, info in gguf.tensors.items() if name != ROTARY_FACTORS]


def read_tensors(gguf: GGUF) -> Iterator[tuple[str, Tensor]]:
    """The tensors one at a time, in the ledger's order: unpacked, renamed, rotary pairs as Hugging Face has them."""
    values = config(gguf)
    heads = {"attn_q.weight": values["num_attention_heads"], "attn_k.weight": values["num_key_value_heads"]}
    for name in gguf.tensors:
        if name != ROTARY_FACTORS:
            part = name.split(".", 2)[-1]
            yield _memory_name(gguf, name), _read(gguf, name, heads.get(part, 0))


def _read(gguf: GGUF, name: str, heads: int) -> Tensor:
    tensor = unpack(gguf, name)
    if not heads:
        return tensor
    if tensor.dim() != 2 or tensor.shape[0] % (2 * heads):
        raise ValueError(f"{gguf.path}: {name} has {tensor.shape[0]} rows, which {heads} heads cannot share evenly")
    return _halves_together(tensor, heads)


def _halves_together(rows: Tensor, heads: int) -> Tensor:
    """Rows of each head from GGUF's order 0 K/2 1 K/2+1 2 … to 0 1 2 … K-1; `heads` is H for queries, G for keys."""
    return rows.view(heads, -1, 2, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def _memory_name(gguf: GGUF, name: str) -> str:
    stem, _, kind = name.rpartition(".")
    number = re.match(r"blk\.(0|[1-9]\d{0,5})\.", stem)
    pattern = stem.replace(number[0], "blk.N.", 1) if number else stem
    if kind != "weight" or pattern not in NAMES:
        raise ValueError(f"{gguf.path}: tensor {name} has no place in a Llama; the model is of a kind not built here")
    return NAMES[pattern].replace("N", number[1] if number else "") + ".weight"


def _rope(gguf: GGUF, K: int) -> dict[str, Any]:
    theta = shortest(get(gguf, "llama.rope.freq_base", float, FIRST_LLAMAS_THETA))
    if ROTARY_FACTORS in gguf.tensors:
        return {"rope_theta": theta, "rope_scaling": _llama3_scaling(gguf, theta, K)}
    kind = get(gguf, "llama.rope.scaling.type", str, "linear")
    factor = get(gguf, "llama.rope.scaling.factor", float, get(gguf, "llama.rope.scale_linear", float, 0.0))
    if kind == "none" or factor in (0.0, 1.0):
        return {"rope_theta": theta, "rope_scaling": None}
    if kind != "linear":
        raise ValueError(f"{gguf.path}: rotary scaling '{kind}' is not built here; known are linear and llama3")
    return {"rope_theta": theta, "rope_scaling": {"rope_type": "linear", "factor": shortest(factor)}}


def _llama3_scaling(gguf: GGUF, theta: float, K: int) -> dict[str, Any] | None:
    """Recover the numbers of Llama 3.1's scaling from the divisor of each frequency, which is all that GGUF keeps.

    The largest divisor is the factor; the rest is as Meta published it for all of 3.1 to 3.3. If the table computed
    from these numbers is not the one in the file, the file scales in another way and is refused.
    """
    stored = unpack(gguf, ROTARY_FACTORS).double()
    if bool((stored == 1).all()):
        return None
    numbers = {"factor": shortest(float(stored.max())), "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": size(gguf, "llama.rope.scaling.original_context_length", 8192)}
    turns = numbers["original_max_position_embeddings"] * theta ** -(torch.arange(0, K, 2).double() / K) / (2 * pi)
    keep = ((turns - 1.0) / (4.0 - 1.0)).clamp(0, 1)
    computed = 1 / (keep + (1 - keep) / numbers["factor"])
    if stored.shape != computed.shape or not torch.allclose(stored, computed, rtol=1e-4):
        raise ValueError(f"{gguf.path}: {ROTARY_FACTORS} is not the table of Llama 3.1's rotary scaling "
                         f"with factor {numbers['factor']:g}; other tables are not built here")
    return {"rope_type": "llama3"} | numbers


# ---- the vocabulary --------------------------------------------------------------------------------------------------

CONTROL = 3                             # the type of a token that is a sign between programs, not text
CLOSING = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "</s>")
STARTS_WITH_BOS = ("llama-bpe", "llama3", "llama-v3")              # split rules whose files may leave add_bos_token out


def vocabulary(gguf: GGUF) -> dict[str, Any]:
    """The tokenizer's part of the metadata as plain values, for `tokenizer/` to build from.

    model "gpt2" (byte-level BPE, with merges) or "llama" (SentencePiece, with scores); pre, the name of the split rule;
    tokens, types, scores, merges; ids (None where the file has none); add_bos, add_space_prefix; chat_template.
    eos_ids holds whatever ends a turn or a text: the file's own, then the control tokens known to do so. Files name one
    of them only, and a chat model that is not stopped by the other talks on to itself.

    Raises ValueError for a missing or unknown vocabulary and for arrays of different lengths.
    """
    model = get(gguf, "tokenizer.ggml.model", str)
    if model not in ("gpt2", "llama"):
        raise ValueError(f"{gguf.path}: its vocabulary is of kind '{model}'; known are 'gpt2' and 'llama'")
    pre = get(gguf, "tokenizer.ggml.pre", str, None)
    tokens = get(gguf, "tokenizer.ggml.tokens", list)
    types = _per_token(gguf, "tokenizer.ggml.token_type", len(tokens)) or [1] * len(tokens)
    ids = {name: _id(gguf, name, len(tokens)) for name in ("bos", "eos", "eot", "eom", "padding", "unknown")}
    known = [i for text in CLOSING for i, token in enumerate(tokens) if token == text and types[i] == CONTROL]
    ends = [ids[name] for name in ("eos", "eot", "eom") if ids[name] is not None]
    return {
        "model": model,
        "pre": pre,
        "tokens": tokens,
        "types": types,
        "scores": _per_token(gguf, "tokenizer.ggml.scores", len(tokens)),
        "merges": get(gguf, "tokenizer.ggml.merges", list, None),
        "bos_id": ids["bos"],
        "eos_ids": list(dict.fromkeys(ends + known)),
        "pad_id": ids["padding"],
        "unk_id": ids["unknown"],
        "add_bos": get(gguf, "tokenizer.ggml.add_bos_token", bool, model == "llama" or pre in STARTS_WITH_BOS),
        "add_space_prefix": get(gguf, "tokenizer.ggml.add_space_prefix", bool, model == "llama"),
        "chat_template": get(gguf, "tokenizer.chat_template", str, None),
    }


def _per_token(gguf: GGUF, key: str, count: int) -> list[int] | list[float] | None:
    values = get(gguf, key, np.ndarray, None)
    if values is not None and len(values) != count:
        raise ValueError(f"{gguf.path}: {key} has {len(values):,} entries for {count:,} tokens; fetch or copy it again")
    return None if values is None else values.tolist()


def _id(gguf: GGUF, name: str, count: int) -> int | None:
    value = get(gguf, f"tokenizer.ggml.{name}_token_id", int, None)
    if value is not None and not 0 <= value < count:
        raise ValueError(f"{gguf.path}: the {name} token is {value:,}, but the vocabulary has {count:,} tokens")
    return value


def _vocabulary_size(gguf: GGUF) -> int:
    """Rows of the embedding: the one size that cannot differ from what is stored."""
    embedding = gguf.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise ValueError(f"{gguf.path}: has no token_embd.weight of two axes; fetch or copy it again")
    return embedding.shape[0]
