from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from weights.formats.gguf_blocks import FORMATS, NAMED

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
], ids=lambda value: value if isinstance(value, str) else "")  # fmt: skip
def test_worked_example_of_each_format(name, raw, numbers):
    tensor = NAMED[name].unpack(np.frombuffer(raw * 3, np.uint8).reshape(3, -1))
    assert tensor.tolist() == [numbers] * 3
    assert tensor.dtype == NAMED[name].dtype == {"F16": torch.float16, "BF16": torch.bfloat16}.get(name, torch.float32)


@pytest.mark.parametrize("format", [format for format in FORMATS.values() if format.numbers > 1], ids=lambda f: f.name)
def test_two_ways_blocks_unpacked_here_and_by_the_gguf_library(format):
    ours, theirs = format.unpack(FIXTURE[f"{format.name}.blocks"].numpy()), FIXTURE[f"{format.name}.numbers"]
    assert torch.equal(ours.view(torch.int32), theirs.view(torch.int32))


@pytest.mark.parametrize("format", [format for format in FORMATS.values() if format.pack], ids=lambda f: f.name)
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


@pytest.mark.parametrize("name", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_two_ways_numbers_packed_here_stay_as_they_are_when_packed_again(name):
    """What this rounding has made has a q of 127 (Q8_0), of 0 (Q4_0), of 0 and 15 (Q4_1) in every block."""
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


@pytest.mark.parametrize("name, value", [("F16", 70_000), ("F16", float("nan")), ("Q8_0", 1e30), ("Q4_0", 600_000),
                                         ("Q4_1", float("inf")), ("Q4_1", -70_000)])
def test_refusal_of_what_no_scale_can_hold(name, value):
    x = np.full((1, NAMED[name].numbers), value, np.float32)
    with pytest.raises(ValueError, match="infinite, not a number, or too large for float16"), np.errstate(all="ignore"):
        NAMED[name].pack(x)
