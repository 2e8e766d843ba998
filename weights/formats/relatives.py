"""GPT-2's and T5's folders: the names that tensors have in Hugging Face's classes, and matrices that lie on their side.

    GPT-2   h.0.attn.c_attn.weight (D, 3 D)        q_proj, k_proj, v_proj (D, D) each: columns cut, then transposed
            h.0.mlp.c_fc.weight (D, F)             mlp.up_proj (F, D): its Conv1D multiplies x W, a Linear x Wᵀ
    T5      decoder.block.0.layer.1.EncDecAttention.q.weight      layers.0.cross_attn.q_proj.weight

Each table is read in both directions, so that what is written is what was read.

Try: leave a matrix of GPT-2 on its side; tests/test_relatives.py (test_two_ways_saved_and_loaded) fails where F is not
D, and nothing but the numbers tells where it is.
"""

import re
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from weights.formats.huggingface import Ledger
from weights.formats.tensor_files import StoredTensor

# Theirs -> ours, and whether the matrix lies on its side; # stands for the number of a block.
Table = dict[str, tuple[str, bool]]
_GPT2: Table = {
    "wte": ("embed_tokens", False), "wpe": ("embed_positions", False), "ln_f": ("norm", False),
    "lm_head": ("lm_head", False),
    "h.#.ln_1": ("layers.#.input_layernorm", False), "h.#.ln_2": ("layers.#.post_attention_layernorm", False),
    "h.#.attn.c_proj": ("layers.#.self_attn.o_proj", True), "h.#.mlp.c_fc": ("layers.#.mlp.up_proj", True),
    "h.#.mlp.c_proj": ("layers.#.mlp.down_proj", True),
}
_JOINED, _PARTS = "h.#.attn.c_attn", tuple(f"layers.#.self_attn.{letter}_proj" for letter in "qkv")


def _t5(*, gated: bool) -> Table:
    mlp = {"wi_0": "gate_proj", "wi_1": "up_proj", "wo": "down_proj"} if gated else {"wi": "up_proj", "wo": "down_proj"}
    attention = {letter: f"{letter}_proj" for letter in "qkvo"}
    parts = {"self_attn": ("SelfAttention", attention, "input_layernorm"),
             "cross_attn": ("EncDecAttention", attention, "cross_attention_layernorm"),
             "mlp": ("DenseReluDense", mlp, "post_attention_layernorm")}
    names = {"shared": "embed_tokens", "lm_head": "lm_head"}
    for side, ours, order in (("encoder", "encoder.", ("self_attn", "mlp")),
                              ("decoder", "", ("self_attn", "cross_attn", "mlp"))):
        names[f"{side}.final_layer_norm"] = f"{ours}norm"
        names[f"{side}.block.0.layer.0.SelfAttention.relative_attention_bias"] = f"{ours}relative_bias"
        for number, part in enumerate(order):                       # each is a layer of its block, behind its own norm
            called, inside, norm = parts[part]
            names[f"{side}.block.#.layer.{number}.layer_norm"] = f"{ours}layers.#.{norm}"
            for theirs, matrix in inside.items():
                names[f"{side}.block.#.layer.{number}.{called}.{theirs}"] = f"{ours}layers.#.{part}.{matrix}"
    return {theirs: (ours, False) for theirs, ours in names.items()}


# What older files hold beside: masks, copies of the embedding, and a bias that is never used.
_NOT_READ = re.compile(r"h\.\d+\.attn\.(masked_)?bias|(en|de)coder\.embed_tokens\.weight|"
                       r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight")


def _table(config: Mapping[str, Any]) -> Table | None:
    """The names of a config.json's kind; None of those whose names are memory's own."""
    if config.get("model_type") in ("gpt2", "gpt3"):
        return _GPT2
    if config.get("model_type") == "t5":
        return _t5(gated=str(config.get("feed_forward_proj")).startswith("gated"))
    return None


def _numbered(stem: str, known: Container[str]) -> tuple[str, str]:
    """A name with # for the number of its block, and that number; one that is known as it is has none."""
    number = re.search(r"\.(\d+)\.", stem)
    if number is None or stem in known:
        return stem, ""
    return re.sub(r"\.\d+\.", ".#.", stem, count=1), number[1]


def to_memory(config: Mapping[str, Any], tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of a folder under the names of memory, upright; of other kinds, and unknown ones, as they are."""
    if (table := _table(config)) is None:
        return tensors
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if _NOT_READ.fullmatch(name):
            continue
        stem, _, leaf = name.rpartition(".")
        pattern, block = _numbered(stem, table)
        if pattern == _JOINED and tensor.shape and not tensor.shape[-1] % 3:
            shape = (tensor.shape[-1] // 3, *tensor.shape[:-1])
            for i, part in enumerate(_PARTS):
                found[f"{part.replace('#', block)}.{leaf}"] = replace(tensor, shape=shape, read=_third(tensor.read, i))
            continue
        ours, on_side = table.get(pattern, (stem, False))
        if on_side and len(tensor.shape) == 2:
            tensor = replace(tensor, shape=tensor.shape[::-1], read=_upright(tensor.read))
        found[f"{ours.replace('#', block)}.{leaf}"] = tensor
    return found


def to_disk(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[Ledger, Iterator[tuple[str, Tensor]]]:
    """The inverse: what a folder of this kind holds, and the tensors one at a time; of other kinds as they are."""
    if (table := _table(config)) is None:
        return [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()], iter(tensors.items())
    inverse = {ours: (theirs, on_side) for theirs, (ours, on_side) in table.items()}
    joins = "embed_positions" in inverse                            # GPT-2's q, k and v
    stored: dict[str, list[Tensor]] = {}                            # what is joined, side by side
    for name, tensor in tensors.items():
        stem, _, leaf = name.rpartition(".")
        pattern, block = _numbered(stem, inverse)
        if joins and pattern in _PARTS:
            stored.setdefault(f"{_JOINED.replace('#', block)}.{leaf}", []).append(tensor.t())
            continue
        theirs, on_side = inverse.get(pattern, (stem, False))
        stored[f"{theirs.replace('#', block)}.{leaf}"] = [tensor.t() if on_side else tensor]
    ledger = [(name, (*parts[0].shape[:-1], sum(part.shape[-1] for part in parts)), parts[0].dtype)
              for name, parts in stored.items()]
    return ledger, ((name, torch.cat(parts, dim=-1) if parts[1:] else parts[0]) for name, parts in stored.items())


def _third(read: Callable[[], Tensor], number: int) -> Callable[[], Tensor]:
    return lambda: read().chunk(3, dim=-1)[number].t().contiguous()         # of a bias too


def _upright(read: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return lambda: read().t().contiguous()
