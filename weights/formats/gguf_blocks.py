"""The number formats of llama.cpp: what a block of bytes means, and how numbers are rounded into one.

(Into a K format: gguf_rounding.py.)

A tensor is rows, a row is blocks, a block is `numbers` numbers in `bytes` bytes: a few whole numbers of 2 to 8 bits,
called q here, and what turns them back into x. Q4_1 says x = d q + m; the K formats have 256 numbers in a block, in
groups of 16 or 32 with scales s and minima m of their own, which are small whole numbers times d. In IQ4 and MXFP4 q
is the place of a level in a table; in TQ it is -1, 0 or 1.

Try: in `_planes`, let the parts of a byte follow each other; tests/test_gguf_blocks.py
(test_worked_example_of_each_format) fails. Nothing else would: shapes, means and spreads stay right, and the model
writes noise.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from weights.formats.gguf_rounding import Rounded, with_minima, without_minima


class Format(NamedTuple):
    name: str
    code: int                           # its number in files
    numbers: int                        # in a block
    bytes: int                          # of a block
    dtype: torch.dtype                  # what `unpack` gives
    unpack: Callable[[np.ndarray], Tensor]                          # uint8 (…, bytes) -> (…, numbers)
    pack: Callable[[np.ndarray], np.ndarray] | None = None          # float32 (…, numbers) -> uint8 (…, bytes)


# ---- one number a block ----------------------------------------------------------------------------------------------


def _f32(blocks: np.ndarray) -> Tensor:
    """4 bytes: one float32."""
    return torch.from_numpy(blocks.view("<f4").astype(np.float32))


def _pack_f32(x: np.ndarray) -> np.ndarray:
    return x.astype("<f4").view(np.uint8)


def _f16(blocks: np.ndarray) -> Tensor:
    """2 bytes: one float16, kept as it is."""
    return torch.from_numpy(blocks.view("<f2").astype(np.float16))


def _pack_f16(x: np.ndarray) -> np.ndarray:
    return _half(x).view(np.uint8)


def _bf16(blocks: np.ndarray) -> Tensor:
    """2 bytes: one bfloat16, the upper half of a float32, kept as it is."""
    return torch.from_numpy(blocks.view("<i2").astype(np.int16)).view(torch.bfloat16)


def _pack_bf16(x: np.ndarray) -> np.ndarray:
    """To the nearest, halves to even."""
    rounded = torch.from_numpy(np.ascontiguousarray(x)).to(torch.bfloat16).view(torch.int16)
    return rounded.numpy().astype("<i2").view(np.uint8)


# ---- 32 numbers a block ----------------------------------------------------------------------------------------------

Q8_0 = np.dtype([("d", "<f2"), ("q", "i1", 32)])
Q4_0 = np.dtype([("d", "<f2"), ("q", "u1", 16)])
Q4_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("q", "u1", 16)])
Q5_0 = np.dtype([("d", "<f2"), ("fifth", "u1", 4), ("q", "u1", 16)])
Q5_1 = np.dtype([("d", "<f2"), ("m", "<f2"), ("fifth", "u1", 4), ("q", "u1", 16)])


def _q8_0(blocks: np.ndarray) -> Tensor:
    """34 bytes: a scale d (float16) and 32 q (int8); x = d q."""
    fields = blocks.view(Q8_0)[..., 0]
    return _scaled(fields["q"], fields["d"])


def _pack_q8_0(x: np.ndarray) -> np.ndarray:
    """d is the largest |x| / 127; q to the nearest, halves away from zero."""
    blocks, d = np.empty(x.shape[:-1], Q8_0), np.abs(x).max(-1) / np.float32(127)
    q = x * _inverse(d)
    whole = np.trunc(q)
    blocks["d"], blocks["q"] = _half(d), whole + np.trunc(2 * (q - whole))
    return _bytes(blocks)


def _q4_0(blocks: np.ndarray) -> Tensor:
    """18 bytes: a scale d and 32 q of 4 bits, the lower halves of all bytes first; x = d (q - 8)."""
    fields = blocks.view(Q4_0)[..., 0]
    return _scaled(_flat(_planes(fields["q"], 4)), fields["d"], less=8)


def _pack_q4_0(x: np.ndarray) -> np.ndarray:
    """d is the x of largest |x| / -8, sign and all, so that this x has q = 0; the others to the nearest."""
    blocks = np.empty(x.shape[:-1], Q4_0)
    d = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)[..., 0] / np.float32(-8)
    blocks["d"], blocks["q"] = _half(d), _nibbles(x * _inverse(d) + np.float32(8.5))
    return _bytes(blocks)


def _q4_1(blocks: np.ndarray) -> Tensor:
    """20 bytes: a scale d, a minimum m and 32 q of 4 bits, as in Q4_0; x = d q + m."""
    fields = blocks.view(Q4_1)[..., 0]
    return _scaled(_flat(_planes(fields["q"], 4)), fields["d"], plus=fields["m"])


def _pack_q4_1(x: np.ndarray) -> np.ndarray:
    """m is the smallest x, with q = 0, and d such that the largest has q = 15; the others to the nearest."""
    blocks, m = np.empty(x.shape[:-1], Q4_1), x.min(-1)
    d = (x.max(-1) - m) / np.float32(15)
    blocks["d"], blocks["m"] = _half(d), _half(m)
    blocks["q"] = _nibbles((x - m[..., None]) * _inverse(d) + np.float32(0.5))
    return _bytes(blocks)


def _q5_0(blocks: np.ndarray) -> Tensor:
    """22 bytes: as Q4_0, with 4 bytes for the fifth bit of each q, lowest bits first; x = d (q - 16)."""
    fields = blocks.view(Q5_0)[..., 0]
    return _scaled(_five_bits(fields), fields["d"], less=16)


def _q5_1(blocks: np.ndarray) -> Tensor:
    """24 bytes: as Q4_1, with 4 bytes for the fifth bit of each q, lowest bits first; x = d q + m."""
    fields = blocks.view(Q5_1)[..., 0]
    return _scaled(_five_bits(fields), fields["d"], plus=fields["m"])


def _pack_q5_0(x: np.ndarray) -> np.ndarray:
    """As `_pack_q4_0`, in 32 steps."""
    blocks = np.empty(x.shape[:-1], Q5_0)
    d = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)[..., 0] / np.float32(-16)
    blocks["d"] = _half(d)
    blocks["fifth"], blocks["q"] = _fives(x * _inverse(d) + np.float32(16.5))
    return _bytes(blocks)


def _pack_q5_1(x: np.ndarray) -> np.ndarray:
    """As `_pack_q4_1`, in 31 steps."""
    blocks, m = np.empty(x.shape[:-1], Q5_1), x.min(-1)
    d = (x.max(-1) - m) / np.float32(31)
    blocks["d"], blocks["m"] = _half(d), _half(m)
    blocks["fifth"], blocks["q"] = _fives((x - m[..., None]) * _inverse(d) + np.float32(0.5))
    return _bytes(blocks)


# Levels of q that lie closer near 0, where most weights are (IQ4), and those of a float of 4 bits, times 2 (MXFP4).
IQ4 = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8)
E2M1 = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)
MXFP4 = np.dtype([("e", "u1"), ("q", "u1", 16)])


def _iq4_nl(blocks: np.ndarray) -> Tensor:
    """18 bytes: as Q4_0, with x = d IQ4[q]."""
    fields = blocks.view(Q4_0)[..., 0]
    return _scaled(IQ4[_flat(_planes(fields["q"], 4))], fields["d"])


def _mxfp4(blocks: np.ndarray) -> Tensor:
    """17 bytes: e, and 32 q of 4 bits in the order of Q4_0; x = 2^(e - 128) E2M1[q] (OCP Microscaling Formats 1.0)."""
    fields = blocks.view(MXFP4)[..., 0]
    d = np.ldexp(np.float32(1), fields["e"].astype(np.int32) - 128)
    return _scaled(E2M1[_flat(_planes(fields["q"], 4))], d)


def _five_bits(fields: np.ndarray) -> np.ndarray:
    return _flat(_planes(fields["q"], 4)) | np.unpackbits(fields["fifth"], axis=-1, bitorder="little") << 4


# ---- 256 numbers a block ---------------------------------------------------------------------------------------------

Q2_K = np.dtype([("sm", "u1", 16), ("q", "u1", (2, 32)), ("d", "<f2"), ("dm", "<f2")])
Q3_K = np.dtype([("third", "u1", 32), ("q", "u1", (2, 32)), ("s", "u1", 12), ("d", "<f2")])
Q4_K = np.dtype([("d", "<f2"), ("dm", "<f2"), ("sm", "u1", 12), ("q", "u1", (4, 32))])
Q5_K = np.dtype([("d", "<f2"), ("dm", "<f2"), ("sm", "u1", 12), ("fifth", "u1", 32), ("q", "u1", (4, 32))])
Q6_K = np.dtype([("low", "u1", (2, 64)), ("high", "u1", (2, 32)), ("s", "i1", 16), ("d", "<f2")])
IQ4_XS = np.dtype([("d", "<f2"), ("high", "u1", 2), ("low", "u1", 4), ("q", "u1", (8, 16))])
TQ1_0 = np.dtype([("five", "u1", 48), ("four", "u1", 4), ("d", "<f2")])
TQ2_0 = np.dtype([("q", "u1", (2, 32)), ("d", "<f2")])


def _q2_k(blocks: np.ndarray) -> Tensor:
    """84 bytes: 16 groups of 16; s and m of 4 bits, lower and upper half of a byte; x = d s q - dm m, q of 2 bits."""
    fields = blocks.view(Q2_K)[..., 0]
    s, m = _product(fields["d"], fields["sm"] & 15), _product(fields["dm"], fields["sm"] >> 4)
    return _grouped(_planes(fields["q"], 2), s, less=m)


def _q3_k(blocks: np.ndarray) -> Tensor:
    """110 bytes: 16 groups of 16; x = d (s - 32) (q - 4), q of 3 bits, s of 6.

    Of the 12 bytes of s, the first 8 hold the lower four bits (of s0 and s8, s1 and s9 …), the last 4 the upper two
    (of s0, s4, s8 and s12, …). The third bits of q are 8 planes of 32 bits.
    """
    fields = blocks.view(Q3_K)[..., 0]
    s = _flat(_planes(fields["s"][..., :8], 4)) | _flat(_planes(fields["s"][..., 8:], 2)) << 4
    third = _planes(fields["third"], 1)
    q = _planes(fields["q"], 2) | third.reshape(*third.shape[:-2], 2, 4, 32) << 2
    return _grouped(q.view(np.int8) - np.int8(4), _product(fields["d"], s.view(np.int8) - np.int8(32)))


def _q4_k(blocks: np.ndarray) -> Tensor:
    """144 bytes: 8 groups of 32; x = d s q - dm m, q of 4 bits, s and m of 6 (see `_scales_and_minima`)."""
    fields = blocks.view(Q4_K)[..., 0]
    s, m = _scales_and_minima(fields["sm"])
    return _grouped(_planes(fields["q"], 4), _product(fields["d"], s), less=_product(fields["dm"], m))


def _pack_q4_k(x: np.ndarray) -> np.ndarray:
    rounded = with_minima(torch.from_numpy(x).reshape(-1, 8, 32), 4)
    blocks, q = _blocks_with_minima(rounded, Q4_K)
    blocks["q"] = _joined(q.reshape(-1, 4, 2, 32), 4)
    return _bytes(blocks).reshape(*x.shape[:-1], -1)


def _q5_k(blocks: np.ndarray) -> Tensor:
    """176 bytes: as Q4_K, with q of 5 bits, whose fifth bits are 8 planes of 32 bits, one for each group."""
    fields = blocks.view(Q5_K)[..., 0]
    s, m = _scales_and_minima(fields["sm"])
    fifth = _planes(fields["fifth"], 1)
    q = _planes(fields["q"], 4) | fifth.reshape(*fifth.shape[:-2], 4, 2, 32) << 4
    return _grouped(q, _product(fields["d"], s), less=_product(fields["dm"], m))


def _pack_q5_k(x: np.ndarray) -> np.ndarray:
    rounded = with_minima(torch.from_numpy(x).reshape(-1, 8, 32), 5)
    blocks, q = _blocks_with_minima(rounded, Q5_K)
    blocks["q"], blocks["fifth"] = _joined(q.reshape(-1, 4, 2, 32) & 15, 4), _joined(q >> 4, 1)
    return _bytes(blocks).reshape(*x.shape[:-1], -1)


def _blocks_with_minima(rounded: Rounded, fields: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Blocks with everything but q in them, and q as bytes."""
    blocks = np.empty(len(rounded.d), fields)
    blocks["d"], blocks["dm"] = _half(rounded.d.numpy()), _half(rounded.dm.numpy())
    blocks["sm"] = _packed_scales_and_minima(_whole(rounded.s), _whole(rounded.m))
    return blocks, _whole(rounded.q)


def _q6_k(blocks: np.ndarray) -> Tensor:
    """210 bytes: 16 groups of 16; x = d s (q - 32), q of 6 bits (lower four, upper two), s int8."""
    fields = blocks.view(Q6_K)[..., 0]
    low, high = _planes(fields["low"], 4), _planes(fields["high"], 2)
    q = low.reshape(high.shape) | high << 4
    return _grouped(q.view(np.int8) - np.int8(32), _product(fields["d"], fields["s"]))


def _iq4_xs(blocks: np.ndarray) -> Tensor:
    """136 bytes: 8 groups of 32; x = d (s - 32) IQ4[q], s of 6 bits: two bits in `high`, four in `low`, in order."""
    fields = blocks.view(IQ4_XS)[..., 0]
    s = _in_order(fields["low"], 4) | _in_order(fields["high"], 2) << 4
    return _grouped(IQ4[_planes(fields["q"], 4)], _product(fields["d"], s.view(np.int8) - np.int8(32)))


def _tq1_0(blocks: np.ndarray) -> Tensor:
    """54 bytes: x = d (q - 1), and a byte holds 5 q (the last 4 bytes: 4 q) as the fraction 0.q q q q q of base 3.

    Times 3, the fraction's whole part is its first digit, and the rest has the others. Bytes 0 to 31 hold the first 160
    numbers, 32 to 47 the next 80, each digit of all bytes together.
    """
    fields = blocks.view(TQ1_0)[..., 0]
    q = [_flat(_digits(bytes, count)) for bytes, count in (
        (fields["five"][..., :32], 5), (fields["five"][..., 32:], 5), (fields["four"], 4))]
    return _scaled(np.concatenate(q, -1), fields["d"], less=1)


def _digits(fractions: np.ndarray, count: int) -> np.ndarray:
    """Bytes (…, n) that are 256ths -> (…, count, n): their digits in base 3."""
    rest = fractions[..., None, :] * 3 ** np.arange(count, dtype=np.uint8)[:, None]            # modulo 256
    return (rest.astype(np.uint16) * 3 >> 8).astype(np.uint8)


def _tq2_0(blocks: np.ndarray) -> Tensor:
    """66 bytes: x = d (q - 1), q of 2 bits in the order of Q2_K."""
    fields = blocks.view(TQ2_0)[..., 0]
    return _scaled(_planes(fields["q"], 2).reshape(*fields.shape, 256), fields["d"], less=1)


def _pack_q6_k(x: np.ndarray) -> np.ndarray:
    rounded = without_minima(torch.from_numpy(x).reshape(-1, 16, 16))
    blocks = np.empty(len(rounded.d), Q6_K)
    blocks["d"] = _half(rounded.d.numpy())
    blocks["s"], q = rounded.s.numpy(), _whole(rounded.q + 32).reshape(-1, 2, 4, 32)
    blocks["low"], blocks["high"] = _joined((q & 15).reshape(-1, 2, 2, 64), 4), _joined(q >> 4, 2)
    return _bytes(blocks).reshape(*x.shape[:-1], -1)


def _scales_and_minima(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """12 bytes a b c, four each -> 8 s and 8 m of 6 bits.

    The lower six bits of a are s0 to s3, those of b are m0 to m3. The lower four bits of s4 to s7 and of m4 to m7 are
    the lower and upper halves of c, their upper two bits are the upper two bits of a and b.
    """
    a, b, c = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    return (np.concatenate([a & 63, c & 15 | a >> 6 << 4], -1),
            np.concatenate([b & 63, c >> 4 | b >> 6 << 4], -1))


def _packed_scales_and_minima(s: np.ndarray, m: np.ndarray) -> np.ndarray:
    a, b = (each[..., :4] | each[..., 4:] >> 4 << 6 for each in (s, m))
    return np.concatenate([a, b, s[..., 4:] & 15 | m[..., 4:] << 4], -1)


# ---- parts -----------------------------------------------------------------------------------------------------------


def _planes(packed: np.ndarray, bits: int) -> np.ndarray:
    """Bytes (…, n) -> (…, 8 / bits, n): the lowest bits of all bytes, then the next ones of all bytes."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return packed[..., None, :] >> shifts & (2**bits - 1)


def _joined(planes: np.ndarray, bits: int) -> np.ndarray:
    """The inverse of `_planes`."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return np.bitwise_or.reduce(planes << shifts, axis=-2)


def _in_order(packed: np.ndarray, bits: int) -> np.ndarray:
    """Bytes (…, n) -> (…, 8 n / bits): the bits of the first byte, lowest first, then those of the next."""
    return _flat(_planes(packed, bits).swapaxes(-1, -2))


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(*x.shape[:-2], -1)


def _scaled(q: np.ndarray, d: np.ndarray, *, less: int = 0, plus: np.ndarray | None = None) -> Tensor:
    """d (q - less) + plus, in float32."""
    x = q.astype(np.float32)
    x -= less
    x *= d.astype(np.float32)[..., None]
    if plus is not None:
        x += plus.astype(np.float32)[..., None]
    return torch.from_numpy(x)


def _product(d: np.ndarray, s: np.ndarray) -> np.ndarray:
    """The scale of a block times the small whole numbers of its groups, rounded to float32 once, as llama.cpp does."""
    return d.astype(np.float32)[..., None] * s.astype(np.float32)


def _grouped(q: np.ndarray, s: np.ndarray, *, less: np.ndarray | None = None) -> Tensor:
    """s q - less, in float32; s and less (…, groups), q (…, 256) in whatever axes."""
    x = q.astype(np.float32).reshape(*s.shape, 256 // s.shape[-1])
    x *= s[..., None]
    if less is not None:
        x -= less[..., None]
    return torch.from_numpy(x.reshape(*s.shape[:-1], 256))


def _half(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        half = x.astype("<f2")
    if not np.isfinite(half).all():
        raise ValueError("it holds numbers that are infinite, not a number, or too large for float16")
    return half


def _inverse(d: np.ndarray) -> np.ndarray:
    """1 / d for each block, and 0 where that overflows: such a d is 0 in float16, and so is every x of the block."""
    with np.errstate(divide="ignore", over="ignore"):
        inverse = 1 / d
    return np.where(np.isfinite(inverse), inverse, np.float32(0))[..., None]


def _nibbles(q: np.ndarray) -> np.ndarray:
    """32 numbers from 0 to 16, cut to whole ones of at most 15 -> 16 bytes."""
    return _joined(np.minimum(q.astype(np.uint8), 15).reshape(*q.shape[:-1], 2, 16), 4)


def _fives(q: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """32 numbers from 0 to 32, cut to whole ones of at most 31 -> the 4 bytes of their fifth bits, and 16 bytes."""
    q = np.minimum(q.astype(np.uint8), 31)
    return np.packbits(q >> 4, axis=-1, bitorder="little"), _nibbles(q & 15)


def _whole(x: Tensor) -> np.ndarray:
    return x.to(torch.uint8).numpy()


def _bytes(blocks: np.ndarray) -> np.ndarray:
    return blocks[..., None].view(np.uint8)


# ---- the table -------------------------------------------------------------------------------------------------------

_32 = torch.float32
FORMATS = {format.code: format for format in (
    Format("F32", 0, 1, 4, _32, _f32, _pack_f32),
    Format("F16", 1, 1, 2, torch.float16, _f16, _pack_f16),
    Format("BF16", 30, 1, 2, torch.bfloat16, _bf16, _pack_bf16),
    Format("Q8_0", 8, 32, 34, _32, _q8_0, _pack_q8_0),
    Format("Q4_0", 2, 32, 18, _32, _q4_0, _pack_q4_0),
    Format("Q4_1", 3, 32, 20, _32, _q4_1, _pack_q4_1),
    Format("Q5_0", 6, 32, 22, _32, _q5_0, _pack_q5_0),
    Format("Q5_1", 7, 32, 24, _32, _q5_1, _pack_q5_1),
    Format("Q2_K", 10, 256, 84, _32, _q2_k),
    Format("Q3_K", 11, 256, 110, _32, _q3_k),
    Format("Q4_K", 12, 256, 144, _32, _q4_k, _pack_q4_k),
    Format("Q5_K", 13, 256, 176, _32, _q5_k, _pack_q5_k),
    Format("Q6_K", 14, 256, 210, _32, _q6_k, _pack_q6_k),
    Format("IQ4_NL", 20, 32, 18, _32, _iq4_nl),
    Format("IQ4_XS", 23, 256, 136, _32, _iq4_xs),
    Format("MXFP4", 39, 32, 17, _32, _mxfp4),
    Format("TQ1_0", 34, 256, 54, _32, _tq1_0),
    Format("TQ2_0", 35, 256, 66, _32, _tq2_0),
)}  # fmt: skip
NAMED = {format.name: format for format in FORMATS.values()}

OTHER_FORMATS = {
    9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S", 21: "IQ3_S", 22: "IQ2_S",
    24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64", 29: "IQ1_M", 40: "NVFP4", 41: "Q1_0", 42: "Q2_0",
}  # fmt: skip
