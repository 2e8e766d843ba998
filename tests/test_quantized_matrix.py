"""What packed matrices mean: bytes by hand, GGUF's blocks against their own unpacking, folders that do not fit."""

import numpy as np
import pytest
import torch

from weights.formats.gguf_blocks import NAMED
from weights.formats.quantized_matrix import (
    QuantizedMatrix,
    dtype_of,
    from_blocks,
    open_quantized,
    pack_nibbles,
    quantization_config,
)


def test_worked_example_int8_rows():
    packed = QuantizedMatrix(torch.tensor([[127, -64], [1, 0]], dtype=torch.int8), torch.tensor([0.5, 2.0]))
    assert packed.dequantize().tolist() == [[63.5, -32.0], [2.0, 0.0]]
    assert (packed.bits, packed.shape) == (8, (2, 2))


def test_worked_example_int4_groups():
    """Byte 0 holds weight 0 low and weight 16 high."""
    weight = torch.zeros(1, 16, dtype=torch.uint8)
    weight[0, 0], weight[0, 15] = 0x5F, 0x30
    packed = QuantizedMatrix(weight, torch.tensor([[0.5]]).half(), torch.tensor([[-1.0]]).half())
    numbers = packed.dequantize()[0].tolist()
    assert (numbers[0], numbers[16], numbers[15], numbers[31], numbers[1]) == (6.5, 1.5, -1.0, 0.5, -1.0)
    assert (packed.bits, packed.shape) == (4, (1, 32))


def test_two_ways_packing_two_a_byte_and_widening():
    q = torch.randint(0, 16, (3, 2, 32))
    ones = torch.ones(3, 2).half()
    assert torch.equal(QuantizedMatrix(pack_nibbles(q), ones, 0 * ones).dequantize(), q.flatten(1).float())


@pytest.mark.parametrize("form", ["Q8_0", "Q4_0", "Q4_1"])
def test_two_ways_blocks_of_a_gguf_equal_their_unpacking(form):
    """To the last bit, any bytes: also scales that are negative, tiny or 0."""
    torch.manual_seed(0)
    blocks = torch.randint(0, 256, (6, 3, NAMED[form].bytes), dtype=torch.uint8)
    for start in (0, 2) if form == "Q4_1" else (0,):                # scales up to 1, or the random ones may be infinite
        half = (torch.rand(6, 3, 1) - 0.5).half()
        half[0] = 0
        blocks[..., start : start + 2] = half.view(torch.uint8)
    packed = from_blocks(NAMED[form], blocks)
    unpacked = NAMED[form].unpack(blocks.numpy()).reshape(6, 96)
    assert torch.equal(packed.dequantize(), unpacked) and packed.shape == (6, 96)
    assert torch.equal(packed.rows(torch.tensor([4, 4, 1])).dequantize(), unpacked[[4, 4, 1]])


def test_property_other_formats_are_not_packed():
    assert from_blocks(NAMED["F16"], torch.from_numpy(np.zeros((2, 32, 2), np.uint8))) is None


PARTS = {"a.weight": ((4, 64), torch.int8), "a.scale": ((4,), torch.float32), "norm.weight": ((64,), torch.float32),
         "b.weight": ((4, 32), torch.uint8), "b.scale": ((4, 2), torch.float16), "b.minimum": ((4, 2), torch.float16)}


def _open(parts):
    return open_quantized([(name, *rest) for name, rest in parts.items()], lambda name: torch.ones(parts[name][0]).to(
        parts[name][1]), torch.bfloat16, "here")


def test_worked_example_a_folder_seen_as_numbers_and_as_stored():
    ledger, read, packed = _open(PARTS)
    assert ledger == [("a.weight", (4, 64), torch.bfloat16), ("norm.weight", (64,), torch.float32),
                      ("b.weight", (4, 64), torch.bfloat16)]
    assert packed("norm.weight") is None and packed("b.weight").bits == 4
    assert read("a.weight").dtype == torch.bfloat16 and read("a.weight").eq(1).all()
    assert read("b.weight")[0].tolist() == ([2.0] * 16 + [1.0] * 16) * 2        # bytes of 1: q is 1, then 0


@pytest.mark.parametrize("change, words", [
    ({"a.scale": None}, "here: the scales of a.weight are missing or do not fit"),
    ({"a.scale": ((5,), torch.float32)}, "the scales of a.weight"),
    ({"a.minimum": ((4, 2), torch.float16)}, "the scales of a.weight"),
    ({"b.minimum": None}, "the scales of b.weight"),
    ({"b.weight": ((4, 30), torch.uint8)}, "the scales of b.weight"),
    ({"a.weight": None}, "a.scale belongs to no a.weight"),
    ({"a.wei": ((4, 64), torch.int8)}, "a.wei holds whole numbers of few bits, and only a .weight may"),
    ({"weight": ((4, 64), torch.int8)}, "weight holds whole numbers of few bits"),
], ids=str)  # fmt: skip
def test_refusal_of_parts_that_do_not_fit(change, words):
    with pytest.raises(ValueError, match=words):
        _open({name: value for name, value in (PARTS | change).items() if value})


def test_refusal_of_other_methods():
    assert dtype_of(quantization_config(8, torch.bfloat16, ""), "here") == torch.bfloat16
    for values in ({"quant_method": "gptq", "bits": 4}, {"bits": 4}, "gptq", quantization_config(4, torch.int8, "")):
        with pytest.raises(ValueError, match="here: the tensors are quantised in a way not known here"):
            dtype_of(values, "here")
