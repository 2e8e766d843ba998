"""GPT-2's and T5's folders: the names that tensors have in Hugging Face's classes, and matrices that lie on their side.

    GPT-2   h.0.attn.c_attn.weight (D, 3 D)        q_proj, k_proj, v_proj (D, D) each: columns cut, then transposed
            h.0.mlp.c_fc.weight (D, F)             mlp.up_proj (F, D): its Conv1D multiplies x W, a Linear x Wᵀ
    T5      decoder.block.0.layer.1.EncDecAttention.q.weight      layers.0.cross_attn.q_proj.weight

Each table is read in both directions, so that what is written is what was read.

Try: leave a matrix of GPT-2 on its side; tests/test_relatives.py (test_two_ways_saved_and_loaded) fails where F is not
D, and nothing but the numbers tells where it is.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from weights.formats.huggingface import Ledger
from weights.formats.tensor_files import StoredTensor

# Theirs -> ours; # stands for the number of a block. Of GPT-2 with whether the matrix lies on its side.
_GPT2 = {
    "wte": ("embed_tokens", False), "wpe": ("embed_positions", False), "ln_f": ("norm", False),
    "lm_head": ("lm_head", False),
    "h.#.ln_1": ("layers.#.input_layernorm", False), "h.#.ln_2": ("layers.#.post_attention_layernorm", False),
    "h.#.attn.c_proj": ("layers.#.self_attn.o_proj", True), "h.#.mlp.c_fc": ("layers.#.mlp.up_proj", True),
    "h.#.mlp.c_proj": ("layers.#.mlp.down_proj", True),
}
_JOINED, _PARTS = "h.#.attn.c_attn", tuple(f"layers.#.self_attn.{letter}_proj" for letter in "qkv")


def _t5_side(theirs: str, ours: str, *parts: tuple[str, str]) -> dict[str, str]:
    """One side's blocks: its parts by their numbers, each with a norm before it."""
    names = {f"{theirs}.final_layer_norm": f"{ours}norm",
             f"{theirs}.block.0.layer.0.SelfAttention.relative_attention_bias": f"{ours}relative_bias"}
    for number, (norm, part) in enumerate(parts):
        layer = f"{theirs}.block.#.layer.{number}"
        names[f"{layer}.layer_norm"] = f"{ours}layers.#.{norm}"
        inside = _T5_MLP if part == "mlp" else {f"{_T5_ATTENTION[part]}.{name}": f"{name}_proj" for name in "qkvo"}
        names |= {f"{layer}.{name}": f"{ours}layers.#.{part}.{called}" for name, called in inside.items()}
    return names


_T5_ATTENTION = {"self_attn": "SelfAttention", "cross_attn": "EncDecAttention"}
_T5_MLP = {"DenseReluDense.wi": "up_proj", "DenseReluDense.wi_0": "gate_proj", "DenseReluDense.wi_1": "up_proj",
           "DenseReluDense.wo": "down_proj"}                        # wi alone, or gated wi_0 and wi_1
_ATTENTION, _MLP = ("input_layernorm", "self_attn"), ("post_attention_layernorm", "mlp")
_T5 = {"shared": "embed_tokens", "lm_head": "lm_head", **_t5_side("encoder", "encoder.", _ATTENTION, _MLP),
       **_t5_side("decoder", "", _ATTENTION, ("cross_attention_layernorm", "cross_attn"), _MLP)}

# What older files hold beside: masks, copies of the embedding, and a bias that is never used.
_NOT_READ = {"gpt2": r"h\.\d+\.attn\.(masked_)?bias",
             "t5": r"(en|de)coder\.embed_tokens\.weight|decoder\.block\.0\.layer\.1\.EncDecAttention\."
                   r"relative_attention_bias\.weight"}
KINDS = {"gpt2": "gpt2", "gpt3": "gpt2", "t5": "t5"}                # model_type -> whose names


def to_memory(config: Mapping[str, Any], tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of a folder under the names of memory, upright; of other kinds as they are."""
    kind = KINDS.get(config.get("model_type", ""))
    if kind is None:
        return tensors
    found: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if re.fullmatch(_NOT_READ[kind], name):
            continue
        stem, _, leaf = name.rpartition(".")
        number = re.search(r"\.(\d+)\.", stem)
        pattern = stem if stem in _T5 else re.sub(r"\.\d+\.", ".#.", stem, count=1)
        block = number[1] if number else ""
        if kind == "gpt2" and pattern == _JOINED and tensor.shape[-1:] and not tensor.shape[-1] % 3:
            for i, part in enumerate(_PARTS):
                shape = (tensor.shape[-1] // 3, *tensor.shape[:-1])
                found[f"{part}.{leaf}".replace("#", block)] = replace(tensor, shape=shape, read=_third(tensor.read, i))
            continue
        ours, on_side = _GPT2.get(pattern, (stem, False)) if kind == "gpt2" else (_T5.get(pattern, stem), False)
        if on_side and len(tensor.shape) == 2:
            tensor = replace(tensor, shape=tensor.shape[::-1], read=_upright(tensor.read))
        found[f"{ours}.{leaf}".replace("#", block)] = tensor
    return found


def to_disk(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[Ledger, Iterator[tuple[str, Tensor]]]:
    """The inverse: what a folder of this kind holds, and the tensors one at a time; of other kinds as they are."""
    kind = KINDS.get(config.get("model_type", ""))
    stored: dict[str, tuple[tuple[int, ...], torch.dtype, Callable[[], Tensor]]] = {}
    gated = any(".gate_proj." in name for name in tensors)
    for name, tensor in tensors.items():
        stem, _, leaf = name.rpartition(".")
        number = re.search(r"layers\.(\d+)\.", stem)
        pattern, block = re.sub(r"layers\.\d+\.", "layers.#.", stem), number[1] if number else ""
        if kind == "gpt2" and pattern in _PARTS:
            if pattern == _PARTS[0]:
                parts = [tensors[f"{part}.{leaf}".replace("#", block)] for part in _PARTS]
                stored[f"{_JOINED}.{leaf}".replace("#", block)] = (
                    (*tensor.shape[1:], 3 * tensor.shape[0]), tensor.dtype, _joined(parts))
            continue
        theirs, on_side = stem, False
        if kind == "gpt2":
            theirs, on_side = next(((name, side) for name, (ours, side) in _GPT2.items() if ours == pattern),
                                   (stem, False))
        elif kind == "t5":
            theirs = next((name for name, ours in _T5.items() if ours == pattern and not (
                name.endswith(".wi") and gated)), stem)
        whole = tensor.t() if on_side and tensor.dim() == 2 else tensor
        stored[f"{theirs}.{leaf}".replace("#", block)] = (tuple(whole.shape), whole.dtype, lambda x=whole: x)
    ledger = [(name, shape, dtype) for name, (shape, dtype, _) in stored.items()]
    return ledger, ((name, make()) for name, (_, _, make) in stored.items())


def _third(read: Callable[[], Tensor], number: int) -> Callable[[], Tensor]:
    return lambda: read().chunk(3, dim=-1)[number].t().contiguous()         # of a bias .t() is itself


def _upright(read: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return lambda: read().t().contiguous()


def _joined(parts: list[Tensor]) -> Callable[[], Tensor]:
    return lambda: torch.cat([part.t() for part in parts], dim=-1)
