"""A Llama in a GGUF file, in and out: tensors by Hugging Face's names, shapes and order of rows.

    gguf_blocks.py       number formats
    gguf_file.py         the container
    gguf_config.py       what shapes the model
    gguf_vocabulary.py   its tokenizer

Two things differ from a Hugging Face folder: the names, and in files of the architectures REORDERED the order of the
rows of attn_q and attn_k, weights and biases, whose rotary pairs are (2i, 2i + 1) as in Meta's code instead of
(i, i + K/2).

Try: in `_heads`, forget attn_k; tests/test_gguf.py (test_two_ways_reordered_rows_give_equal_attention) fails, and a
real model would write nonsense.
"""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from weights.formats import gguf_config, gguf_vocabulary
from weights.formats.gguf_blocks import NAMED, Format
from weights.formats.gguf_config import REORDERED, ROTARY_TABLE, architecture, config
from weights.formats.gguf_file import GGUF, blocks, model_in, open_gguf, without_part, write_file
from weights.formats.gguf_vocabulary import vocabulary
from weights.formats.huggingface import Entry, Ledger
from weights.formats.plain_llama import to_half_split, to_interleaved

__all__ = ["ENCODINGS", "GGUF", "PACKED", "bytes_each", "config", "model_in", "open_gguf", "packed", "read_tensor",
           "read_tensors", "tensor_ledger", "vocabulary", "without_part", "write_gguf"]

NAMES = {
    "token_embd": "embed_tokens",
    "output_norm": "norm",
    "output": "lm_head",
    "blk.N.attn_norm": "layers.N.input_layernorm",
    "blk.N.attn_q": "layers.N.self_attn.q_proj",
    "blk.N.attn_k": "layers.N.self_attn.k_proj",
    "blk.N.attn_v": "layers.N.self_attn.v_proj",
    "blk.N.attn_output": "layers.N.self_attn.o_proj",
    "blk.N.attn_q_norm": "layers.N.self_attn.q_norm",               # of Qwen 3 and OLMo 2
    "blk.N.attn_k_norm": "layers.N.self_attn.k_norm",
    "blk.N.ffn_norm": "layers.N.post_attention_layernorm",
    "blk.N.ffn_gate": "layers.N.mlp.gate_proj",
    "blk.N.ffn_up": "layers.N.mlp.up_proj",
    "blk.N.ffn_down": "layers.N.mlp.down_proj",
}
NORMS_AFTER = {                         # in the place of attn_norm and ffn_norm: OLMo 2's, which stand behind
    "blk.N.post_attention_norm": "layers.N.post_attention_layernorm",
    "blk.N.post_ffw_norm": "layers.N.post_feedforward_layernorm",
}
HEAD = "lm_head.weight"


# ---- reading ---------------------------------------------------------------------------------------------------------


def tensor_ledger(gguf: GGUF) -> Ledger:
    """Name in memory, shape and dtype after unpacking of every tensor, in the order of the file.

    Raises ValueError for a tensor that has no place in a Llama.
    """
    infos = gguf.tensors
    return [(name, infos[stored].shape, infos[stored].format.dtype) for name, stored in _stored_names(gguf).items()]


def read_tensors(gguf: GGUF) -> Iterator[tuple[str, Tensor]]:
    """The tensors one at a time, in the ledger's order."""
    for name in _stored_names(gguf):
        yield name, read_tensor(gguf, name)


def read_tensor(gguf: GGUF, name: str) -> Tensor:
    """One tensor by its name in memory: unpacked, rotary pairs as Hugging Face has them.

    Raises ValueError for numbers that are infinite or none, which only damage brings into a file.
    """
    format, rows = _rows(gguf, name)
    with np.errstate(invalid="ignore", over="ignore"):
        tensor = format.unpack(rows).reshape(gguf.tensors[_stored_name(name, architecture(gguf))].shape)
    if not tensor.sum(dtype=torch.float64).isfinite():
        raise ValueError(f"{gguf.path}: {name} holds numbers that are not finite; fetch or copy it again")
    return tensor


def packed(gguf: GGUF, name: str) -> tuple[Format, Tensor]:
    """One tensor as it is stored, for layers that compute with packed weights: its format and its blocks.

    -> uint8 (rows, blocks in a row, bytes of a block), rows in Hugging Face's order; `format.unpack` makes numbers
    """
    format, rows = _rows(gguf, name)
    return format, torch.from_numpy(np.array(rows))


def _rows(gguf: GGUF, name: str) -> tuple[Format, np.ndarray]:
    """Blocks in Hugging Face's order of rows: a row's blocks go where the row goes; a bias has one number a row."""
    stored = _stored_name(name, architecture(gguf))
    rows, format, heads = blocks(gguf, stored), gguf.tensors[stored].format, _heads(gguf, stored)
    if not heads:
        return format, rows
    count = gguf.tensors[stored].shape[0]
    if count % (2 * heads):
        raise ValueError(f"{gguf.path}: {stored} has {count} rows, which {heads} heads cannot share evenly")
    together = to_half_split(torch.from_numpy(np.array(rows)).view(count, -1), heads)
    return format, together.numpy().reshape(rows.shape)


def _heads(gguf: GGUF, stored: str) -> int:
    """How many heads share the rows of a tensor whose rows are reordered, 0 for others."""
    if architecture(gguf) not in REORDERED:
        return 0
    keys = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
    key = keys.get(stored.split(".")[-2])
    return config(gguf)[key] if key else 0


def _names(of: str) -> dict[str, str]:
    """{name in the file: name in memory} of an architecture, without endings and numbers."""
    if of != "olmo2":
        return NAMES
    before = ("blk.N.attn_norm", "blk.N.ffn_norm")
    return NORMS_AFTER | {theirs: ours for theirs, ours in NAMES.items() if theirs not in before}


def _stored_names(gguf: GGUF) -> dict[str, str]:
    """{name in memory: name in the file}, in the order of the file."""
    return {_memory_name(gguf, stored): stored for stored in gguf.tensors if stored != ROTARY_TABLE}


def _memory_name(gguf: GGUF, stored: str) -> str:
    stem, _, kind = stored.rpartition(".")
    number = re.match(r"blk\.(0|[1-9]\d{0,5})\.", stem)
    name = _names(architecture(gguf)).get(stem.replace(number[0], "blk.N.", 1) if number else stem)
    if name is None or kind not in ("weight", "bias") or (kind == "bias" and not _may_be_biased(name)):
        raise ValueError(f"{gguf.path}: tensor {stored} has no place in a Llama; the model is of a kind not built here")
    return name.replace("N", number[1] if number else "") + "." + kind


def _may_be_biased(name: str) -> bool:
    return name.startswith("layers.N.") and name.endswith("_proj")


# ---- writing ---------------------------------------------------------------------------------------------------------



class Encoding(NamedTuple):
    """Which format the matrices of a file have."""

    code: int                           # its number as a kind of file
    most: str                           # of the matrices
    finer: str                          # of embedding and head, since what they lose is lost for every token


ENCODINGS = {"F32": Encoding(0, "F32", "F32"), "F16": Encoding(1, "F16", "F16"), "BF16": Encoding(32, "BF16", "BF16"),
             "Q8_0": Encoding(7, "Q8_0", "Q8_0"), "Q6_K": Encoding(18, "Q6_K", "Q6_K"),
             "Q5_1": Encoding(9, "Q5_1", "Q8_0"), "Q5_K_M": Encoding(17, "Q5_K", "Q6_K"),
             "Q5_0": Encoding(8, "Q5_0", "Q8_0"), "Q4_1": Encoding(3, "Q4_1", "Q8_0"),
             "Q4_K_M": Encoding(15, "Q4_K", "Q6_K"), "Q4_0": Encoding(2, "Q4_0", "Q8_0")}
PACKED = tuple(name for name, encoding in ENCODINGS.items() if NAMED[encoding.most].numbers > 1)
INSTEAD = {"Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}         # where 256 does not divide a row; else F16
PIECE = 1 << 18                         # numbers packed at a time, so that beside the tensor little memory is needed


def write_gguf(path: str | Path, config: dict[str, Any], vocabulary: dict[str, Any], ledger: Ledger,
               tensors: Iterable[tuple[str, Tensor]], *, encoding: str = "F32", name: str = "") -> list[str]:
    """Write a file that llama.cpp runs as it is, whole or not at all; each tensor is let go before the next comes.

    config      Hugging Face's keys, all of them, as config_to_dict gives them
    vocabulary  as `vocabulary` gives it
    ledger      and tensors, by names in memory
    encoding    a name in ENCODINGS, of matrices; `format_of` says which format each has
    name        general.name, what programs show to people
    ->          remarks: what a person should know of the choices made

    Raises ValueError, naming field or tensor, for what a GGUF cannot hold and for tensors that are not the ledger's.
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"GGUF encoding {encoding} is not written here; known are {', '.join(ENCODINGS)}")
    biased = {entry[0].split(".")[-2] for entry in ledger if entry[0].endswith(".bias")}
    values, table = gguf_config.metadata(config, biased)
    of = values["general.architecture"]
    heads = {"q_proj": values[f"{of}.attention.head_count"], "k_proj": values[f"{of}.attention.head_count_kv"]} \
        if of in REORDERED else {}
    tied = bool(config.get("tie_word_embeddings"))
    kept = {entry[0] for entry in ledger} - ({HEAD} if tied else set())
    if not tied and HEAD not in kept:                              # llama.cpp would take the embedding for it
        raise ValueError(f"there is no {HEAD}, and the config does not tie it to the embedding")
    layers = config["num_hidden_layers"]
    infos = [(_stored_name(name, of), shape, format_of(name, shape, encoding, layers)) for name, shape, _ in ledger
             if name in kept]
    remarks = [*_remarks([entry for entry in ledger if entry[0] in kept], encoding, layers,
                         reordered=of in REORDERED, tied=tied)]
    if table is not None:
        infos.insert(0, (ROTARY_TABLE, table.shape, NAMED["F32"]))
    general = {"general.type": "model", "general.file_type": ENCODINGS[encoding].code} \
        | ({"general.name": name} if name else {}) \
        | ({"general.quantization_version": 2} if encoding in PACKED else {})
    words = gguf_vocabulary.metadata(vocabulary, values[f"{of}.vocab_size"])

    def content() -> Iterator[Iterator[np.ndarray]]:
        if table is not None:
            yield iter([table])
        coming = iter(tensors)
        for entry in ledger:
            part, format = entry[0].split(".")[-2], format_of(entry[0], entry[1], encoding, layers)
            pieces = _pieces(_next(coming, entry), entry[0], format, heads.get(part, 0))
            if entry[0] in kept:
                yield pieces
        if extra := next(coming, None):
            raise ValueError(f"{extra[0]} comes after the ledger's last tensor; tensors must come as their ledger says")

    write_file(path, values | general | words, infos, content())
    if filler := len(words["tokenizer.ggml.tokens"]) - len(vocabulary["tokens"]):
        remarks.append(f"{filler} unused tokens fill the vocabulary up to the embedding's rows")
    return remarks


def format_of(name: str, shape: tuple[int, ...], encoding: str, layers: int) -> Format:
    """The number format of one tensor, by its name in memory, in a file of this encoding.

    Vectors are F32, which is what llama.cpp asks for. Embedding and head are finer than most; in the mixed kinds (_M)
    v_proj and down_proj, too, in half of the layers: the first and last eighth, and every third between. (v_proj is
    small where heads share it, down_proj sums what is largest, and errors of early layers go through all others.) Rows
    that a format's blocks do not divide get a wider one.
    """
    if len(shape) == 1:
        return NAMED["F32"]
    found = NAMED[_wanted(name, encoding, layers)]
    while shape[-1] % found.numbers:
        found = NAMED[INSTEAD.get(found.name, "F16")]
    return found


def bytes_each(encoding: str) -> float:
    """How many bytes most numbers have in a file of this encoding."""
    format = NAMED[ENCODINGS[encoding].most]
    return format.bytes / format.numbers


def _wanted(name: str, encoding: str, layers: int) -> str:
    _, most, finer = ENCODINGS[encoding]
    if name in ("embed_tokens.weight", HEAD):
        return finer
    if encoding.endswith("_M") and (layer := re.match(r"layers\.(\d+)\..*\.(v_proj|down_proj)\.", name)):
        n, eighth = int(layer[1]), layers // 8
        return finer if n < eighth or n >= 7 * layers // 8 or (n - eighth) % 3 == 2 else most
    return most


def _stored_name(name: str, of: str) -> str:
    stem, _, kind = name.rpartition(".")
    number = re.match(r"layers\.(\d+)\.", stem)
    pattern = stem.replace(number[0], "layers.N.", 1) if number else stem
    file_names = {ours: theirs for theirs, ours in _names(of).items()}
    if pattern not in file_names or kind not in ("weight", "bias") or (kind == "bias" and not _may_be_biased(pattern)):
        raise ValueError(f"{name} has no place in a GGUF of this architecture; take another format")
    return file_names[pattern].replace("N", number[1] if number else "") + "." + kind


def _next(tensors: Iterator[tuple[str, Tensor]], expected: Entry) -> Tensor:
    name, tensor = next(tensors, (None, torch.empty(0)))
    if (name, tuple(tensor.shape)) != expected[:2]:
        got = f"{name} {list(tensor.shape)}" if name else "nothing more"
        raise ValueError(f"expected {expected[0]} {list(expected[1])}, got {got}; "
                         "tensors must come as their ledger says")
    return tensor


def _pieces(tensor: Tensor, name: str, format: Format, heads: int) -> Iterator[np.ndarray]:
    tensor = tensor.detach().cpu()
    if heads:
        tensor = to_interleaved(tensor.reshape(tensor.shape[0], -1), heads)           # a bias is a column
    for piece in tensor.reshape(-1).split(PIECE):
        try:
            yield format.pack(piece.float().numpy().reshape(-1, format.numbers))
        except ValueError as error:
            raise ValueError(f"{name} cannot be written as {format.name}: {error}; take F32 or BF16") from None


def _remarks(ledger: Ledger, encoding: str, layers: int, *, reordered: bool, tied: bool) -> Iterator[str]:
    if reordered:
        yield "rows of q_proj and k_proj reordered to rotary pairs (2i, 2i + 1)"
    _, most, finer = ENCODINGS[encoding]
    if most != finer:
        yield f"embedding and head in {finer}" + ", so are half of v_proj and down_proj" * encoding.endswith("_M")
    wider: dict[str, list[str]] = {}
    for name, shape, _ in ledger:
        wanted, format = _wanted(name, encoding, layers), format_of(name, shape, encoding, layers)
        if len(shape) > 1 and format.name != wanted:
            wider.setdefault(f"in {format.name} and not {wanted}, because {NAMED[wanted].numbers}", []).append(name)
    for where, names in wider.items():
        yield f"{len(names)} tensor{'s' * (len(names) > 1)} {where} does not divide their rows: {names[0]} …"
    if tied:
        yield "the head is tied to the embedding and not written a second time"
