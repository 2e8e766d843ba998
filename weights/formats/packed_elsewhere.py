"""Matrices that other programs packed, as the numbers that they stand for: AWQ and GPTQ in 4 bits, fp8 with its scales.

    GPTQ   qweight (C/8, R) int32, eight inputs a word, lowest bits first; qzeros (groups, R/8), less one; scales
           (groups, R); g_idx (C), the group of each input.      w[r, c] = scales[g, r] (q - zero - 1)
    AWQ    qweight (C, R/8) int32, eight outputs a word in the order 0 2 4 6 1 3 5 7; qzeros (groups, R/8), the same;
           scales (groups, R).                                   w[r, c] = scales[g, r] (q - zero)
    fp8    weight (R, C) float8; weight_scale_inv a block of rows and columns, or weight_scale a row or a matrix.
           Both are factors, whatever their names say.           w[r, c] = scale weight

(GPTQ: arXiv:2210.17323; AWQ: arXiv:2306.00978.) What comes out is a plain model, in the format of the scales.

Try: leave the one out that GPTQ's zeros lack; tests/test_packed_elsewhere.py
(test_worked_example_gptq) fails, and a real model would write babble.
"""

from typing import Any

import torch
from torch import Tensor

from tokenizer.checked_json import FLAG, TEXT, check_fields, listed, whole
from weights.formats.tensor_files import StoredTensor

METHODS = ("gptq", "awq", "fp8", "compressed-tensors")
FIELDS = {"quant_method": TEXT, "bits": whole(1), "group_size": whole(-1), "desc_act": FLAG, "checkpoint_format": TEXT,
          "version": TEXT, "weight_block_size": listed(whole(1)), "format": TEXT}
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)                                # which output lies in each four bits, lowest first
FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)

Parts = dict[str, StoredTensor]                                     # of one layer, by the last part of their names


def unpack(values: dict[str, Any], tensors: dict[str, StoredTensor], place: Any) -> dict[str, StoredTensor]:
    """The plain tensors of a folder whose config.json has these `quantization_config` values; read when asked for.

    Raises ValueError, naming the method, for what is not read here, and for parts that are missing or do not fit.
    """
    check_fields(values, FIELDS, f"{place}: config.json: quantization_config")
    method = values.get("quant_method")
    if method not in METHODS or (method in ("gptq", "awq") and values.get("bits") != 4) or \
            (method == "compressed-tensors" and values.get("format") != "float-quantized"):
        more = next((f" ({name} {values[name]})" for name in ("bits", "format") if values.get(name)), "")
        raise ValueError(f"{place}: its tensors were packed by {method}{more}; read here are AWQ and GPTQ in 4 bits "
                         "and fp8 with its scales; take the model that it was made from")
    layers: dict[str, Parts] = {}
    for name, tensor in tensors.items():
        stem, _, part = name.rpartition(".")
        layers.setdefault(stem, {})[part] = tensor
    found: dict[str, StoredTensor] = {}
    for stem, parts in layers.items():
        if "qweight" in parts:
            weight = (_gptq if method == "gptq" else _awq)(f"{place}: {stem}", parts, values)
        elif "weight" in parts and parts["weight"].dtype in FLOAT8:
            weight = _fp8(f"{place}: {stem}", parts, values)
        else:
            found |= {f"{stem}.{part}": tensor for part, tensor in parts.items()}
            continue
        found[f"{stem}.weight"] = weight
        if "bias" in parts:
            found[f"{stem}.bias"] = parts["bias"]
    return found


def _needed(stem: str, parts: Parts, shapes: dict[str, tuple[int, ...]]) -> None:
    for part, shape in shapes.items():
        if part not in parts:
            raise ValueError(f"{stem}.{part} is missing, without which its matrix cannot be unpacked; fetch it again")
        if parts[part].shape != shape:
            raise ValueError(f"{stem}.{part} has the shape {parts[part].shape}, but its matrix asks for {shape}; fetch "
                             "it again")


def _nibbles(words: Tensor, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """(…, N) int32 -> (…, 8 N) int32 of 0 … 15; `order` says which of eight each four bits are, lowest first."""
    shifts = torch.tensor([4 * order.index(i) for i in range(8)], dtype=torch.int32)
    return (words.unsqueeze(-1) >> shifts & 15).flatten(-2)


def _grouped(stem: str, parts: Parts, C: int, R: int) -> int:
    """The number of groups of inputs, by the scales that there are."""
    groups = parts["scales"].shape[0] if "scales" in parts and parts["scales"].shape else 0
    _needed(stem, parts, {"scales": (groups, R), "qzeros": (groups, R // 8)})
    if not groups or C % groups:
        raise ValueError(f"{stem}.scales has {groups} groups, which {C} inputs cannot share evenly; fetch it again")
    return groups


def _two_axes(stem: str, parts: Parts) -> tuple[int, int]:
    if len(shape := parts["qweight"].shape) != 2 or parts["qweight"].dtype != torch.int32:
        raise ValueError(f"{stem}.qweight has the shape {shape} of {parts['qweight'].dtype}; it must have two axes of "
                         "int32: fetch it again")
    return shape


def _gptq(stem: str, parts: Parts, values: dict[str, Any]) -> StoredTensor:
    eighth, R = _two_axes(stem, parts)
    C, one = 8 * eighth, 0 if values.get("checkpoint_format") == "gptq_v2" else 1
    groups = _grouped(stem, parts, C, R)
    if "g_idx" in parts:
        _needed(stem, parts, {"g_idx": (C,)})

    def read() -> Tensor:
        q = _nibbles(parts["qweight"].read().T)                     # (R, C)
        group = parts["g_idx"].read().long() if "g_idx" in parts else torch.arange(C) // (C // groups)
        if not 0 <= int(group.min()) <= int(group.max()) < groups:
            raise ValueError(f"{stem}.g_idx names groups beyond the {groups} that there are; fetch it again")
        zeros, scales = _nibbles(parts["qzeros"].read()) + one, parts["scales"].read()  # (groups, R)
        return ((q - zeros.T[:, group]) * scales.T[:, group].float()).to(scales.dtype)

    return StoredTensor(parts["qweight"].file, (R, C), parts["scales"].dtype, read)


def _awq(stem: str, parts: Parts, values: dict[str, Any]) -> StoredTensor:
    C, eighth = _two_axes(stem, parts)
    groups = _grouped(stem, parts, C, 8 * eighth)
    if (version := str(values.get("version") or "gemm").lower()) != "gemm":
        raise ValueError(f"{stem}: packed by AWQ in its version {version}; read here is gemm; take the model that it "
                         "was made from")

    def read() -> Tensor:
        q, zeros = (_nibbles(parts[part].read(), AWQ_ORDER) for part in ("qweight", "qzeros"))
        scales = parts["scales"].read()
        numbers = (q.unflatten(0, (groups, -1)) - zeros.unsqueeze(1)) * scales.float().unsqueeze(1)
        return numbers.flatten(0, 1).T.contiguous().to(scales.dtype)                    # (R, C)

    return StoredTensor(parts["qweight"].file, (8 * eighth, C), parts["scales"].dtype, read)


def _fp8(stem: str, parts: Parts, values: dict[str, Any]) -> StoredTensor:
    stored = parts["weight"]
    name = next((name for name in ("weight_scale_inv", "weight_scale") if name in parts), "")
    if not name or len(stored.shape) != 2:
        raise ValueError(f"{stem}.weight_scale_inv is missing, without which its matrix cannot be unpacked; fetch it "
                         "again")
    (R, C), scale = stored.shape, parts[name]
    rows, columns = (values.get("weight_block_size") or [1, 1])[:2] if name == "weight_scale_inv" else (1, C)
    blocks = (-(-R // rows), -(-C // columns))
    if scale.shape not in (blocks, (1,), (), (1, 1), (R, 1)):
        raise ValueError(f"{stem}.{name} has the shape {scale.shape}, but blocks of {rows} × {columns} ask for "
                         f"{blocks}; fetch it again")
    dtype = scale.dtype if scale.dtype in (torch.bfloat16, torch.float16) else torch.bfloat16

    def read() -> Tensor:
        factors = scale.read().float()
        if scale.shape == blocks:
            factors = factors.repeat_interleave(rows, 0)[:R].repeat_interleave(columns, 1)[:, :C]
        return (stored.read().float() * factors).to(dtype)

    return StoredTensor(stored.file, (R, C), dtype, read)


