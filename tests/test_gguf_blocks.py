from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from weights.formats.gguf_blocks import FORMATS, NAMED, Q4_K, Q5_K, Q6_K

IQ4 = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
E2M1 = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12]            # times 1/2: 0 0.5 1 1.5 2 3 4 6

# What the gguf library makes of random blocks and of random numbers; tests/parity/formats.py writes it.
FIXTURE = load_file(Path(__file__).parent / "fixtures" / "gguf_blocks.safetensors")


def blocks(*parts):
    return b"".join(np.asarray(values, code).tobytes() for code, values in parts)


NIBBLES = [16 * (15 - i) + i for i in range(16)]                   # lower halves 0…15, upper halves 15…0
UP_AND_DOWN = [*range(16), *range(15, -1, -1)]
CRUMBS = [0b11100100] * 32 + [0b00011011] * 32                     # q is 0 1 2 3 for 32 numbers each, then 3 2 1 0
SIX_BITS = [128, 137, 210, 219, 127, 118, 45, 36, 180, 45, 150, 15]            # s = 0 9 18 … 63, m = 63 54 45 … 0
PAIRS = [16 * (15 - i) + i for i in range(4) for _ in range(32)]   # q is 0 15 1 14 2 13 3 12 for 32 numbers each


def crumb(n):
    return n // 32 if n < 128 else 7 - n // 32


def pair(n):
    return n // 64 if n // 32 % 2 == 0 else 15 - n // 64


@pytest.mark.parametrize("name, raw, numbers", [
    ("F32", blocks(("<f4", [-2.0])), [-2.0]),
    ("F16", blocks(("<f2", [-2.0])), [-2.0]),
    ("BF16", b"\xc0\x3f", [1.5]),
    ("Q8_0", blocks(("<f2", [0.25]), ("i1", range(-128, 128, 8))), [0.25 * q for q in range(-128, 128, 8)]),
    ("Q4_0", blocks(("<f2", [0.5]), ("u1", NIBBLES)), [0.5 * (q - 8) for q in UP_AND_DOWN]),
    ("Q4_1", blocks(("<f2", [0.5, -3.0]), ("u1", NIBBLES)), [0.5 * q - 3 for q in UP_AND_DOWN]),
    ("Q5_0", blocks(("<f2", [0.5]), ("u1", [255, 255, 0, 0]), ("u1", NIBBLES)),         # the first 16 have a fifth bit
     [0.5 * (q - 16 + 16 * (i < 16)) for i, q in enumerate(UP_AND_DOWN)]),
    ("Q5_1", blocks(("<f2", [0.5, -3.0]), ("u1", [255, 255, 0, 0]), ("u1", NIBBLES)),
     [0.5 * (q + 16 * (i < 16)) - 3 for i, q in enumerate(UP_AND_DOWN)]),
    ("Q2_K", blocks(("u1", [g + 16 * (15 - g) for g in range(16)]), ("u1", CRUMBS), ("<f2", [0.5, 0.25])),
     [0.5 * (n // 16) * crumb(n) - 0.25 * (15 - n // 16) for n in range(256)]),
    ("Q3_K", blocks(("u1", [0b10101010] * 32), ("u1", CRUMBS),                          # s = 0 4 8 … 60
                    ("u1", [0, 68, 136, 204, 0, 68, 136, 204] + [0b11100100] * 4), ("<f2", [0.5])),
     [0.5 * (4 * (n // 16) - 32) * (crumb(n) - 4 * (n // 32 % 2 == 0)) for n in range(256)]),
    ("Q4_K", blocks(("<f2", [0.5, 0.25]), ("u1", SIX_BITS), ("u1", PAIRS)),
     [0.5 * 9 * (n // 32) * pair(n) - 0.25 * (63 - 9 * (n // 32)) for n in range(256)]),
    ("Q5_K", blocks(("<f2", [0.5, 0.25]), ("u1", SIX_BITS), ("u1", [0b00001111] * 32), ("u1", PAIRS)),
     [0.5 * 9 * (n // 32) * (pair(n) + 16 * (n < 128)) - 0.25 * (63 - 9 * (n // 32)) for n in range(256)]),
    ("Q6_K", blocks(("u1", ([0x31] * 32 + [0x42] * 32) * 2), ("u1", [0b11100100] * 64), ("i1", range(-8, 8)),
                    ("<f2", [0.5])),
     [0.5 * (n // 16 - 8) * (n // 32 % 4 + 1 + 16 * (n // 32 % 4) - 32) for n in range(256)]),
    ("IQ4_NL", blocks(("<f2", [0.5]), ("u1", NIBBLES)), [0.5 * IQ4[q] for q in UP_AND_DOWN]),
    ("IQ4_XS", blocks(("<f2", [0.5]), ("u1", [0b11100100] * 2), ("u1", [0x10, 0x32, 0x54, 0x76]), ("u1", NIBBLES * 8)),
     [0.5 * (n // 32 + 16 * (n // 32 % 4) - 32) * IQ4[UP_AND_DOWN[n % 32]] for n in range(256)]),
    ("MXFP4", blocks(("u1", [129]), ("u1", NIBBLES)), [2 * E2M1[q] for q in UP_AND_DOWN]),
    ("MXFP4", blocks(("u1", [0]), ("u1", NIBBLES)), [2.0**-128 * E2M1[q] for q in UP_AND_DOWN]),
    # 0.21021 in base 3 is 196 / 243, which 206.5 / 256 would be, rounded up; 0.2102 is 65 / 81, and 205.4 / 256
    ("TQ1_0", blocks(("u1", [207] * 48 + [206] * 4), ("<f2", [0.5])),
     [0.5 * (digit - 1) for count in (32, 16) for digit in (2, 1, 0, 2, 1) for _ in range(count)]
     + [0.5 * (digit - 1) for digit in (2, 1, 0, 2) for _ in range(4)]),
    ("TQ2_0", blocks(("u1", [0b10010010] * 64), ("<f2", [0.5])),
     [0.5 * ([2, 0, 1, 2][n // 32 % 4] - 1) for n in range(256)]),
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_worked_example_of_each_format(name, raw, numbers):
    tensor = NAMED[name].unpack(np.frombuffer(raw * 3, np.uint8).reshape(3, -1))
    assert tensor.tolist() == [numbers] * 3
    assert tensor.dtype == NAMED[name].dtype == {"F16": torch.float16, "BF16": torch.bfloat16}.get(name, torch.float32)


@pytest.mark.parametrize("format", [format for format in FORMATS.values() if format.numbers > 1], ids=lambda f: f.name)
def test_two_ways_blocks_unpacked_here_and_by_the_gguf_library(format):
    ours, theirs = format.unpack(FIXTURE[f"{format.name}.blocks"].numpy()), FIXTURE[f"{format.name}.numbers"]
    assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))


ROUNDED_ALIKE = [format for format in FORMATS.values() if format.pack and format.numbers < 256]      # not the K formats


@pytest.mark.parametrize("format", ROUNDED_ALIKE, ids=lambda f: f.name)
def test_two_ways_numbers_packed_here_and_by_the_gguf_library(format):
    ours = format.pack(FIXTURE["x"].numpy().reshape(-1, format.numbers))
    assert torch.equal(torch.from_numpy(ours).flatten(), FIXTURE[f"{format.name}.packed"].flatten())


def test_worked_example_rounding():
    """To the nearest whole number of d; of two that are as near, Q8_0 takes the one farther from zero."""
    x = np.zeros((1, 32), np.float32)
    x[0, :6] = 127, 0.5, -0.5, 1.5, -2.5, 0.49
    assert NAMED["Q8_0"].pack(x)[0, 2:8].view("i1").tolist() == [127, 1, -1, 2, -3, 0]
    x[0, :6] = -8, 7.4, 0.5, -0.5, 0.49, 7.9                        # d = 1, as -8 has q = 0
    assert (NAMED["Q4_0"].pack(x)[0, 2:8] & 15).tolist() == [0, 15, 9, 8, 8, 15]
    x[0, :6] = 15, 0.5, 0.49, 1.5, 14.6, 0                          # d = 1, m = 0
    assert (NAMED["Q4_1"].pack(x)[0, 4:10] & 15).tolist() == [15, 1, 0, 2, 15, 0]


@pytest.mark.parametrize("name", [format.name for format in ROUNDED_ALIKE])
def test_two_ways_numbers_packed_here_stay_as_they_are_when_packed_again(name):
    """What this rounding has made has a q of 127 (Q8_0), of 0 (Q4_0, Q5_0), of 0 and the largest in every block."""
    x = np.random.default_rng(0).standard_normal((500, 32)).astype(np.float32) * 0.03
    x[0] = 0
    once = NAMED[name].pack(x.reshape(-1, NAMED[name].numbers))
    numbers = NAMED[name].unpack(once).float().numpy()              # a block of zeros may lose the sign of its d
    assert np.array_equal(NAMED[name].unpack(NAMED[name].pack(numbers)).float().numpy().ravel(), numbers.ravel())


@pytest.mark.parametrize("name, raw", [
    ("Q8_0", blocks(("<f2", [0.1]), ("i1", range(-16, 16)))),      # its largest q is 16
    ("Q8_0", blocks(("<f2", [0.1]), ("i1", [-128] * 16 + [1] * 16))),
    ("Q4_0", blocks(("<f2", [0.1]), ("u1", [0x95] * 16))),         # no q is 0
    ("Q4_1", blocks(("<f2", [0.1, 0.5]), ("u1", [0xE0] * 16))),    # the largest q is 14
])  # fmt: skip
def test_property_blocks_of_another_rounding_may_change_when_packed_again(name, raw):
    numbers = NAMED[name].unpack(np.frombuffer(raw, np.uint8).reshape(1, -1)).numpy()
    again = NAMED[name].unpack(NAMED[name].pack(numbers)).numpy()
    assert not np.array_equal(numbers, again) and np.allclose(numbers, again, atol=0.1)


@pytest.mark.parametrize("name", ["Q4_K", "Q5_K", "Q6_K"])
def test_two_ways_k_blocks_are_found_again(name):
    """Blocks whose groups have a largest s and m, and every q: nothing else stands for these numbers as well."""
    random, format = np.random.default_rng(0), NAMED[name]
    fields, count = {"Q4_K": Q4_K, "Q5_K": Q5_K, "Q6_K": Q6_K}[name], 50
    raw = np.frombuffer(random.bytes(count * format.bytes), fields).copy()
    raw["d"] = random.uniform(0.01, 0.02, count)
    if name == "Q6_K":
        raw["s"][:, 0] = -128
        raw["low"][:, :, ::16], raw["high"][:, :, ::16] = 0, 0      # -32 in every group
    else:
        raw["dm"] = random.uniform(0.01, 0.02, count)
        raw["sm"][:, 0], raw["sm"][:, 4] = 63, 63
        raw["q"][..., 0], raw["q"][..., 1] = 0, 255                 # the least and the largest of every group
        if name == "Q5_K":
            raw["fifth"][..., 0], raw["fifth"][..., 1] = 0, 255
    numbers = format.unpack(raw[:, None].view(np.uint8)).numpy()
    again = format.unpack(format.pack(numbers)).numpy()
    found = (numbers == again).all(-1)
    assert found.mean() > 0.9 and np.abs(numbers - again).max() < 0.02 * np.abs(numbers).max(), found.mean()


@pytest.mark.parametrize("name, value", [("F16", 70_000), ("F16", float("nan")), ("Q8_0", 1e30), ("Q4_0", 600_000),
                                         ("Q4_1", float("inf")), ("Q4_1", -70_000), ("Q5_0", 2e6), ("Q5_1", -70_000),
                                         *((name, value) for name in ("Q4_K", "Q5_K", "Q6_K")
                                           for value in (1e30, -1e30, float("inf"), float("nan")))])
def test_refusal_of_what_no_scale_can_hold(name, value):
    x = np.full((1, NAMED[name].numbers), value, np.float32)
    with pytest.raises(ValueError, match="infinite, not a number, or too large for float16"), np.errstate(all="ignore"):
        NAMED[name].pack(x)
