"""llama2.c's .bin files, in and out: version 0 (float32, no magic number), 1 (float32) and 2 (int8 in groups).

    version 0   7 int32: D, F, L, H, G, V (negative: the head is stored), context                  little-endian
    1 and 2     "ak42" as a number · version · the same 7, V positive · 1 byte: the head is the embedding
                · version 2: group size, int32 · zeros up to byte 256
    tensors     kind by kind, each for all layers, in the order of `_order`; pairs of rows that rotate are neighbours
    version 2   norms in float32; of a matrix all its numbers in int8, then one float32 scale a group

θ is 10,000 and the norms' ε 1e-5, by llama2.c's code. Its tokenizer lies beside, as tokenizer.bin.

Try: let `_order` put up_proj before down_proj; tests/test_llama2c.py (test_worked_example_float32) fails, while going
there and back would not: both ways would be wrong together.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from weights.formats.atomic_write import atomic_file
from weights.formats.huggingface import DEFAULT_ROPE_THETA, Ledger, checked_bytes, for_all_readers
from weights.formats.plain_llama import HEAD, Sizes, plain_sizes, to_half_split, to_interleaved

MAGIC, HEADER = 0x616B3432, 256         # "ak42", and the bytes before the first tensor of versions 1 and 2
_MAGIC = struct.pack("<I", MAGIC)
EPS = 1e-5
CHUNK = 2**22                           # numbers packed at a time


@dataclass(frozen=True)
class Llama2C:
    path: Path
    version: int
    sizes: Sizes
    context: int                        # positions
    tied: bool
    group_size: int                     # 0 where numbers are float32

    @property
    def tokenizer(self) -> Path:
        """Where llama2.c's tokenizer lies, if there is one."""
        return self.path.parent / "tokenizer.bin"


# ---- the layout ------------------------------------------------------------------------------------------------------


def _order(version: int, L: int, *, tied: bool) -> list[str]:
    """Names in memory in the order of the file. Version 0's rotary tables come before the head, see `_offsets`."""
    def layers(*parts: str) -> list[str]:
        return [f"layers.{i}.{part}.weight" for part in parts for i in range(L)]

    attention = layers("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
    mlp = layers("mlp.gate_proj", "mlp.down_proj", "mlp.up_proj")
    before, between = layers("input_layernorm"), layers("post_attention_layernorm")
    if version == 0:
        names = ["embed_tokens.weight", *before, *attention, *between, *mlp, "norm.weight"]
    else:
        names = [*before, *between, "norm.weight", "embed_tokens.weight", *attention, *mlp]
    return names if tied else [*names, HEAD]


def _offsets(file: Llama2C) -> tuple[dict[str, int], int]:
    """Where each tensor starts, in bytes, and where the file ends."""
    places, position = {}, 28 if file.version == 0 else HEADER
    shapes = file.sizes.shapes()
    for name in _order(file.version, file.sizes.L, tied=file.tied):
        places[name] = position
        numbers = prod(shapes[name])
        position += numbers + numbers // file.group_size * 4 if _is_packed(file, name) else numbers * 4
        if file.version == 0 and name == "norm.weight":
            position += file.context * file.sizes.K * 4            # cosines, then sines, K/2 each a position
    return places, position


def _length(file: Llama2C) -> int:
    """Of the file, in bytes; at once, though a damaged header may claim billions of layers."""
    one, two = (_offsets(replace(file, sizes=file.sizes._replace(L=L)))[1] for L in (1, 2))
    return one + (file.sizes.L - 1) * (two - one)


def _is_packed(file: Llama2C, name: str) -> bool:
    return file.version == 2 and not name.endswith("norm.weight")


def _header(file: Llama2C) -> bytes:
    D, F, L, H, G, V = file.sizes
    if file.version == 0:
        return struct.pack("<7i", D, F, L, H, G, V if file.tied else -V, file.context)
    sizes = struct.pack("<Ii7iB", MAGIC, file.version, D, F, L, H, G, V, file.context, file.tied)
    return (sizes + (struct.pack("<i", file.group_size) if file.version == 2 else b"")).ljust(HEADER, b"\0")


# ---- reading ---------------------------------------------------------------------------------------------------------


def recognised(path: str | Path) -> bool:
    """Whether the file begins as a llama2.c file does; one of version 0 also has to have the length that it tells."""
    try:
        with open(path, "rb") as file:
            return file.read(4) == _MAGIC or bool(_read_header(Path(path)))
    except (ValueError, OSError):
        return False


def open_llama2c(path: str | Path) -> Llama2C:
    """Read the header, and no tensor yet.

    Raises FileNotFoundError, or ValueError for a file whose length or rotary tables contradict its header, and for
    other versions than 0, 1 and 2.
    """
    file = _read_header(Path(path))
    if file.version == 0:
        _check_tables(file)
    return file


def _read_header(path: Path) -> Llama2C:
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist or is no file")
    with open(path, "rb") as handle:
        start = handle.read(HEADER)
    if len(start) < (HEADER if start[:4] == _MAGIC else 28):
        raise ValueError(f"{path}: {len(start)} bytes are too few for the header of a llama2.c file")
    if start[:4] == _MAGIC:
        file = _versioned(path, start)
    else:
        D, F, L, H, G, V, context = struct.unpack("<7i", start[:28])
        file = Llama2C(path, 0, Sizes(D, F, L, H, G, abs(V)), context, V > 0, 0)
    if (reason := file.sizes.misfit()) or file.context < 1:
        raise ValueError(f"{path}: no llama2.c file, or a damaged one: {reason or f'a context of {file.context}'}")
    matrices = [prod(shape) for shape in file.sizes._replace(L=1).shapes().values() if len(shape) == 2]
    if file.version == 2 and (file.group_size < 1 or any(numbers % file.group_size for numbers in matrices)):
        raise ValueError(f"{path}: groups of {file.group_size} do not fill its matrices; fetch or copy it again")
    if (length := _length(file)) != (size := path.stat().st_size):
        raise ValueError(f"{path}: has {size:,} bytes, but its header asks for {length:,}; it is cut short or no "
                         "llama2.c file")
    return file


def _versioned(path: Path, start: bytes) -> Llama2C:
    version, D, F, L, H, G, V, context, tied = struct.unpack("<i7iB", start[4:37])
    if version not in (1, 2):
        raise ValueError(f"{path}: llama2.c's version {version} is not known here; known are 0, 1 and 2")
    group_size = struct.unpack("<i", start[37:41])[0] if version == 2 else 0
    return Llama2C(path, version, Sizes(D, F, L, H, G, V), context, bool(tied), group_size)


def _check_tables(file: Llama2C) -> None:
    """The angles of position 1 must be those of θ = 10,000, or not there; llama2.c itself reads no table any more."""
    if file.context < 2:
        return
    half = file.sizes.K // 2
    start = _offsets(file)[0]["norm.weight"] + file.sizes.D * 4
    places = [start + (table * file.context + 1) * half * 4 for table in (0, 1)]
    stored = np.concatenate([_numbers(file, "<f4", place, half) for place in places])
    expected = np.concatenate([table[1] for table in _rotary_tables(file.sizes.K, 2)])
    if stored.any() and not np.allclose(stored, expected, atol=1e-4):
        raise ValueError(f"{file.path}: its rotary tables are not those of θ = 10,000, the only θ that llama2.c knows; "
                         "convert the model it was made from")


def _rotary_tables(K: int, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines (context, K/2), computed in float64, so that every machine writes the same bytes."""
    angles = np.outer(np.arange(context), DEFAULT_ROPE_THETA ** -(np.arange(0, K, 2) / K))
    return np.cos(angles).astype("<f4"), np.sin(angles).astype("<f4")


def config(file: Llama2C) -> dict[str, Any]:
    """The header under Hugging Face's keys, with the θ and ε of llama2.c's code."""
    return file.sizes.config(max_position_embeddings=file.context, rms_norm_eps=EPS, rope_theta=DEFAULT_ROPE_THETA,
                             rope_scaling=None, tie_word_embeddings=file.tied)


def tensor_ledger(file: Llama2C) -> Ledger:
    """Name in memory, shape and dtype after unpacking of every tensor, in the order of the file."""
    shapes = file.sizes.shapes()
    return [(name, shapes[name], torch.float32) for name in _order(file.version, file.sizes.L, tied=file.tied)]


def read_tensors(file: Llama2C) -> Iterator[tuple[str, Tensor]]:
    """The tensors one at a time, in the ledger's order: unpacked, rotary pairs as Hugging Face has them."""
    return ((name, read_tensor(file, name)) for name, _, _ in tensor_ledger(file))


def read_tensor(file: Llama2C, name: str) -> Tensor:
    """One tensor by its name in memory, float32."""
    shape, place = file.sizes.shapes()[name], _offsets(file)[0][name]
    count = prod(shape)
    if _is_packed(file, name):
        numbers = _numbers(file, "i1", place, count).astype(np.float32).reshape(-1, file.group_size)
        numbers *= _numbers(file, "<f4", place + count, count // file.group_size)[:, None]
    else:
        numbers = _numbers(file, "<f4", place, count)
    tensor, heads = torch.from_numpy(numbers).reshape(shape), file.sizes.rotated_heads(name)
    return to_half_split(tensor, heads) if heads else tensor


def _numbers(file: Llama2C, code: str, place: int, count: int) -> np.ndarray:
    """A copy, so that the map is gone with this call."""
    return np.array(np.memmap(file.path, code, "r", place, (count,)), dtype=code.replace("<", "="))


def remarks(file: Llama2C) -> list[str]:
    """What reading makes of the file, in sentences."""
    packed = f"unpacked from int8 in groups of {file.group_size}" if file.version == 2 else "float32"
    return [f"llama2.c version {file.version}, {packed}; rows of q_proj and k_proj reordered from neighbouring rotary "
            "pairs (2i, 2i + 1) to (i, i + K/2)",
            "rope_theta 10,000 and rms_norm_eps 1e-5: the file names none, llama2.c's code has these"]


# ---- writing ---------------------------------------------------------------------------------------------------------


def write_llama2c(path: str | Path, config: dict[str, Any], ledger: Ledger, tensors: Iterable[tuple[str, Tensor]], *,
                  version: int = 0) -> None:
    """Write a file that llama2.c runs (version 0: run.c, 2: runq.c), whole or not at all, one tensor in memory.

    Raises ValueError for what llama2.c cannot hold (by name), for a version other than 0 and 2, for numbers that are
    not finite, and for tensors that are not those of the ledger.
    """
    path = Path(path)
    if version not in (0, 2):
        raise ValueError(f"version {version} of llama2.c is not written here; write 0 (float32) or 2 (int8)")
    sizes = plain_sizes(config, ledger, "llama2.c's files")
    _refuse_other_constants(config)
    file = Llama2C(path, version, sizes, config.get("max_position_embeddings", 2048),
                   bool(config.get("tie_word_embeddings")), group_size(sizes.D, sizes.F) if version == 2 else 0)
    places, end = _offsets(file)
    tensors = iter(tensors)
    with atomic_file(path) as handle:
        handle.write(_header(file))
        for name, shape, dtype in ledger:
            tensor = torch.frombuffer(checked_bytes(tensors, (name, shape, dtype)), dtype=dtype).float().reshape(shape)
            heads = sizes.rotated_heads(name)
            tensor = to_interleaved(tensor, heads) if heads else tensor
            handle.seek(places[name])
            if _is_packed(file, name):
                _write_packed(handle, name, tensor.reshape(-1, file.group_size).numpy())
            else:
                handle.write(tensor.contiguous().numpy().astype("<f4", copy=False))
            del tensor                                             # the next one is made before the name is bound anew
        if extra := next(tensors, None):
            raise ValueError(f"{extra[0]} comes after the ledger's last tensor; tensors must come as their ledger says")
        if version == 0:
            handle.seek(places["norm.weight"] + sizes.D * 4)
            for table in _rotary_tables(sizes.K, file.context):
                handle.write(table)
        handle.seek(0, os.SEEK_END)
        assert handle.tell() == end, (handle.tell(), end)


def _refuse_other_constants(config: dict[str, Any]) -> None:
    """llama2.c's code has one θ and one ε; a file for others would run, and write nonsense."""
    rope = for_all_readers(config)
    if rope["rope_scaling"]:
        raise ValueError(f"rope_scaling '{rope['rope_scaling']['rope_type']}' has no place in llama2.c's files; write "
                         "another format")
    for key, value, known in (("rope_theta", rope["rope_theta"], DEFAULT_ROPE_THETA),
                              ("rms_norm_eps", config["rms_norm_eps"], EPS)):
        if value != known:
            raise ValueError(f"{key} is {value:g}, and llama2.c knows {known:g} only; write another format")


def group_size(D: int, F: int) -> int:
    """The largest power of two, up to 64, that divides D and F.

    llama2.c's exporter looks at D alone; its matrix product would then leave out the end of each row of F.
    """
    return next(size for size in (64, 32, 16, 8, 4, 2, 1) if D % size == 0 and F % size == 0)


def quantise(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row as int8 from -127 to 127 and a scale: x ≈ scale · q with scale = max|x| / 127.

    Numbers that were packed so before come out as they went in: rounded to float32, 127 s / 127 is s for every s that
    is itself a 127th of a float32.

    groups  (rows, group size) float32, finite
    """
    scales = np.abs(groups).max(axis=1) / np.float32(127)
    divisors = np.where(scales > 0, scales, np.float32(1))                         # a row of zeros has the scale 0
    return np.rint(groups / divisors[:, None]).astype(np.int8), scales


def _write_packed(handle: BinaryIO, name: str, groups: np.ndarray) -> None:
    rows = max(1, CHUNK // groups.shape[1])
    scales = []
    for start in range(0, len(groups), rows):
        part = groups[start : start + rows]
        if not np.isfinite(part).all():
            raise ValueError(f"{name} holds numbers that are not finite, which int8 cannot; write version 0")
        q, scale = quantise(part)
        handle.write(q)
        scales.append(scale)
    handle.write(np.concatenate(scales).astype("<f4"))


def packed(tensor: Tensor, size: int) -> Tensor:
    """What a reader finds of a matrix that was packed in groups of `size`."""
    q, scales = quantise(tensor.float().reshape(-1, size).numpy())
    return torch.from_numpy(q.astype(np.float32) * scales[:, None]).reshape(tensor.shape)
