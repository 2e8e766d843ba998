"""Matrices in 8 or 4 bits: whole numbers q, and what turns them back into weights.

    int8, a scale a row          w = scale q               q in -128 … 127
    int8, groups of 32           w = scale q               GGUF's Q8_0, and Q5_0 with q in -16 … 15
    int4, groups of 32           w = scale q + minimum     q in 0 … 15, two a byte; GGUF's Q4_1 and Q4_0

Groups lie along the columns. A model folder in 8 or 4 bits is one of Hugging Face's form whose matrices are stored in
parts, `NAME.weight`, `NAME.scale` and, of 4 bits, `NAME.minimum`; config.json says so under `quantization_config`. Its
`method` is on purpose not called `quant_method`: without that, other programs refuse the folder. An unknown one is only
warned about by transformers, which then takes the whole numbers for weights.

Try: in `unpack_nibbles`, take the upper halves of the bytes first; tests/test_quantized_matrix.py
(test_two_ways_blocks_of_a_gguf_equal_their_unpacking) fails.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from weights.formats.gguf_blocks import Format
from weights.formats.huggingface import Ledger

GROUP = 32
METHODS = {8: "int8-with-scales", 4: "int4-in-groups"}             # by bits
PARTS = ("weight", "scale", "minimum")


@dataclass(frozen=True)
class QuantizedMatrix:
    """One matrix of R rows and C columns.

    weight   (R, C) int8; or (R, C / 2) uint8, whose byte i of a group holds q i low and q i + 16 high, as in GGUF
    scale    (R,) float32, or (R, groups) float16
    minimum  (R, groups) float16, with uint8 alone
    """

    weight: Tensor
    scale: Tensor
    minimum: Tensor | None = None

    @property
    def bits(self) -> int:
        return 8 if self.minimum is None else 4

    @property
    def shape(self) -> tuple[int, int]:
        return self.weight.shape[0], self.weight.shape[1] * 8 // self.bits

    def tensors(self) -> dict[str, Tensor]:
        """The parts that there are, by name."""
        return {part: tensor for part in PARTS if (tensor := getattr(self, part)) is not None}

    def map(self, change: Callable[[Tensor], Tensor]) -> "QuantizedMatrix":
        """The same with each part changed, as to lie elsewhere."""
        return QuantizedMatrix(**{part: change(tensor) for part, tensor in self.tensors().items()})

    def rows(self, rows: Any) -> "QuantizedMatrix":
        """Some of the rows: a slice, or their numbers."""
        return QuantizedMatrix(**{part: tensor[rows] for part, tensor in self.tensors().items()})

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The weights that this stands for, (R, C): computed in float32 and rounded once."""
        widened = _widened_int8(self.weight, self.scale) if self.minimum is None else \
            _widened_int4(self.weight, self.scale, self.minimum)
        return widened.to(dtype)


def _widened_int8(weight: Tensor, scale: Tensor) -> Tensor:
    if scale.dim() == 1:
        return weight.float() * scale[:, None].float()
    grouped = weight.float().unflatten(-1, (scale.shape[-1], -1))  # (R, groups, 32)
    return grouped.mul_(scale.float().unsqueeze(-1)).flatten(-2)


def _widened_int4(weight: Tensor, scale: Tensor, minimum: Tensor) -> Tensor:
    q = unpack_nibbles(weight).float()                             # (R, groups, 32)
    return q.mul_(scale.float().unsqueeze(-1)).add_(minimum.float().unsqueeze(-1)).flatten(-2)


def pack_nibbles(q: Tensor) -> Tensor:
    """Whole numbers 0 … 15, (R, groups, 32), as `QuantizedMatrix` has them: (R, groups · 16) uint8."""
    first, second = q.to(torch.uint8).chunk(2, dim=-1)
    return (first | second << 4).flatten(-2)


def unpack_nibbles(weight: Tensor) -> Tensor:
    """The inverse, uint8 again."""
    halves = weight.unflatten(-1, (-1, GROUP // 2))                # (R, groups, 16)
    return torch.cat([halves & 15, halves >> 4], dim=-1)


# ---- GGUF's blocks ---------------------------------------------------------------------------------------------------


def from_blocks(form: Format, blocks: Tensor) -> QuantizedMatrix | None:
    """What a GGUF stores, without a detour through numbers; None for a format that has no such parts.

    blocks  (R, groups, bytes of a block) uint8, as `gguf.packed` gives them
    """
    def half(start: int) -> Tensor:
        return blocks[..., start : start + 2].contiguous().view(torch.float16).squeeze(-1)

    if form.name == "Q8_0":                                             # d, 32 q
        return QuantizedMatrix(blocks[..., 2:].contiguous().view(torch.int8).flatten(-2), half(0))
    if form.name == "Q4_1":                                             # d, m, 16 bytes of two q each
        return QuantizedMatrix(blocks[..., 4:].flatten(-2), half(0), half(2))
    if form.name == "Q4_0":                                             # d, 16 bytes; float16 holds 8 d as well as d
        return QuantizedMatrix(blocks[..., 2:].flatten(-2), half(0), -8 * half(0))
    if form.name == "Q5_0":                                             # d, 4 bytes of fifth bits, 16 of two q each
        fifth = blocks[..., 2:6].unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8) & 1
        q = unpack_nibbles(blocks[..., 6:].flatten(-2)) | fifth.flatten(-2) << 4
        return QuantizedMatrix((q.to(torch.int8) - 16).flatten(-2), half(0))
    return None


# ---- folders ---------------------------------------------------------------------------------------------------------


def quantization_config(bits: int, dtype: torch.dtype, fingerprint: str) -> dict[str, Any]:
    """config.json's `quantization_config`.

    dtype        of activations, norms and biases
    fingerprint  of the model that was rounded: adapters that were learned on it fit this one, too
    """
    return {"method": METHODS[bits], "bits": bits, "dtype": str(dtype).removeprefix("torch."),
            "fingerprint": fingerprint}


def dtype_of(values: Any, place: Any) -> torch.dtype:
    """That of an entry. Raises ValueError, with its method, for one that is not ours."""
    values = values if isinstance(values, dict) else {"method": values}
    method, name, bits = values.get("method") or values.get("quant_method"), values.get("dtype"), values.get("bits")
    if bits not in (8, 4) or method != METHODS[bits] or name not in ("float32", "bfloat16", "float16"):
        raise ValueError(f"{place}: the tensors are quantised in a way not known here ({method}); known are "
                         f"{' and '.join(METHODS.values())}; take the model that they were made from")
    return getattr(torch, name)


def open_quantized(stored: Ledger, read: Callable[[str], Tensor], dtype: torch.dtype, place: Any) -> \
        tuple[Ledger, Callable[[str], Tensor], Callable[[str], QuantizedMatrix | None]]:
    """A folder's tensors as those of a plain model: ledger, reader of numbers in `dtype`, and reader of what is packed.

    Raises ValueError for parts that do not belong together.
    """
    found = {name: (shape, kind) for name, shape, kind in stored}
    ledger: Ledger = []
    for name, shape, kind in stored:
        stem, _, part = name.rpartition(".")
        if part in PARTS[1:]:
            if f"{stem}.weight" not in found:
                raise ValueError(f"{place}: {name} belongs to no {stem}.weight; fetch or convert it again")
        elif kind in (torch.int8, torch.uint8):
            if not name.endswith(f".{PARTS[0]}"):
                raise ValueError(f"{place}: {name} holds whole numbers of few bits, and only a .weight may; fetch or "
                                 "convert it again")
            _check_parts(place, stem, {part: found.get(f"{stem}.{part}") for part in PARTS})
            ledger.append((name, (shape[0], shape[1] * (2 if kind == torch.uint8 else 1)), dtype))
        else:
            ledger.append((name, shape, kind))
    whole = {name for name, _, kind in ledger if found[name][1] == kind}

    def packed(name: str) -> QuantizedMatrix | None:
        stem = name.removesuffix(".weight")
        return None if name in whole else QuantizedMatrix(
            **{part: read(f"{stem}.{part}") for part in PARTS if f"{stem}.{part}" in found})

    def numbers(name: str) -> Tensor:
        return read(name) if name in whole else packed(name).dequantize(dtype)

    return ledger, numbers, packed


def _check_parts(place: Any, stem: str, parts: dict[str, tuple[tuple[int, ...], torch.dtype] | None]) -> None:
    shape, kind = parts["weight"]
    half = torch.float16
    allowed: list[tuple] = []
    if len(shape) == 2 and kind == torch.int8:
        allowed = [(((shape[0],), torch.float32), None), (((shape[0], shape[1] // GROUP), half), None)]
    elif len(shape) == 2 and not shape[1] % (GROUP // 2):
        allowed = [(((shape[0], 2 * shape[1] // GROUP), half),) * 2]
    if (parts["scale"], parts["minimum"]) not in allowed:
        raise ValueError(f"{place}: the scales of {stem}.weight are missing or do not fit it; "
                         "fetch or convert it again")
