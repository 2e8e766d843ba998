"""Rounding: by hand, exact where weights were on a grid, never worse than to the nearest, refusals."""

import pytest
import torch

from llama.quantization.rounding import exact_int4, to_int4, to_int4_nearest, to_int8
from weights.formats.gguf_blocks import NAMED
from weights.formats.quantized_matrix import GROUP


def errors(weight, packed):
    """Squared, by group."""
    return (packed.dequantize() - weight.float()).unflatten(-1, (-1, GROUP)).square().sum(-1)


def test_worked_example_int8_rows():
    """127 steps reach 254; 3.0 is a step and a half, halves go to the even neighbour."""
    packed = to_int8(torch.tensor([[254.0, 3.0, -100.0], [0.0, 0.0, 0.0]]))
    assert packed.scale.tolist() == [2.0, 0.0]
    assert packed.weight.tolist() == [[127, 2, -50], [0, 0, 0]]


def test_property_a_rows_scale_is_one_that_bfloat16_holds_and_no_weight_is_cut_off():
    torch.manual_seed(0)
    weight = torch.randn(64, 96)
    packed = to_int8(weight)
    assert torch.equal(packed.scale.bfloat16().float(), packed.scale)
    assert ((packed.dequantize() - weight).abs() <= packed.scale[:, None] / 2 * 1.0001).all()
    assert (packed.scale <= weight.abs().amax(1) / 127 * (1 + 2**-7)).all()


def test_worked_example_int4_range_in_15_steps():
    weight = torch.arange(32.0)[None] % 16
    packed = to_int4(weight, rounds=0)
    assert (packed.scale.item(), packed.minimum.item()) == (1.0, 0.0)
    assert torch.equal(packed.dequantize(), weight)


@pytest.mark.parametrize("form, rounding", [
    ("Q4_1", to_int4), ("Q4_0", to_int4), ("Q8_0", lambda weight: to_int8(weight, grouped=True))], ids=str)
def test_property_what_came_from_4_bits_is_found_again(form, rounding):
    """And what came from GGUF's 8 bits: rounding the unpacked numbers loses nothing."""
    torch.manual_seed(0)
    blocks = NAMED[form].pack(torch.randn(64 * 4, GROUP).numpy() * 0.1)
    unpacked = NAMED[form].unpack(blocks).reshape(64, 128)
    assert torch.equal(rounding(unpacked).dequantize(), unpacked)


@pytest.mark.parametrize("form", ["Q4_1", "Q4_0"])
def test_property_4_bits_are_exact_or_none(form, monkeypatch):
    monkeypatch.setattr("llama.quantization.rounding.PIECE", 128 * 7)            # seven rows at a time
    torch.manual_seed(0)
    weight = NAMED[form].unpack(NAMED[form].pack(torch.randn(64 * 4, GROUP).numpy() * 0.1)).reshape(64, 128)
    assert torch.equal(exact_int4(weight).dequantize(), weight)
    for place in ((0, 0), (63, 127)):
        for value in (weight[place] * 1.001 + 1e-6, float("nan"), float("inf")):
            other = weight.clone()
            other[place] = value
            assert exact_int4(other) is None
    assert exact_int4(torch.randn(64, 128)) is None and exact_int4(weight[:, :100]) is None
    assert exact_int4(weight.bfloat16()) is None


def test_property_the_search_never_loses_and_mostly_gains():
    torch.manual_seed(0)
    weight = torch.distributions.StudentT(5.0).sample((64, 256)) * torch.rand(64, 1)
    nearest, searched = (errors(weight, to_int4(weight, rounds=rounds)) for rounds in (0, 8))
    assert (searched <= nearest).all()
    assert searched.sum() < 0.85 * nearest.sum()
    plain = NAMED["Q4_1"].unpack(NAMED["Q4_1"].pack(weight.reshape(-1, GROUP).numpy())).reshape(weight.shape)
    assert searched.sum() < 0.82 * (plain - weight).square().sum()


def test_property_groups_are_alone_with_their_error_and_pieces_do_not_show(monkeypatch):
    torch.manual_seed(0)
    weight = torch.randn(40, 64)
    whole = to_int4(weight), to_int8(weight)
    monkeypatch.setattr("llama.quantization.rounding.PIECE", 64 * 3)
    for first, other in zip(whole, (to_int4(weight), to_int8(weight)), strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first.tensors().values(), other.tensors().values(), strict=True))


@pytest.mark.parametrize("weight", [torch.zeros(2, 32), torch.full((1, 32), -0.37), torch.full((1, 32), 1e-9),
                                    torch.randn(2, 32).bfloat16()], ids=["zeros", "constant", "tiny", "bfloat16"])
def test_property_odd_groups_stay_finite_and_near(weight):
    for packed in (to_int4(weight), to_int8(weight), to_int8(weight, grouped=True)):
        assert (packed.dequantize() - weight.float()).abs().max() <= 0.11 * weight.float().abs().max() + 1e-8


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1e5])
def test_refusal_of_numbers_beyond_float16(number):
    weight = torch.ones(2, 32)
    weight[1, 3] = number
    for rounding in (to_int8, to_int4):
        with pytest.raises(ValueError, match="the largest weight is .*; what is rounded must be finite"):
            rounding(weight)


def test_worked_example_to_nearest_in_15_steps():
    """Steps of 0.25 from -1 on: 0.1 goes to 0, 0.2 to 0.25; the search does better, as its line fits all 32."""
    weight = torch.full((1, 32), -1.0)
    weight[0, :4] = torch.tensor([2.75, 0.1, 0.2, -0.6])
    packed = to_int4_nearest(weight)
    assert (packed.scale.item(), packed.minimum.item()) == (0.25, -1.0)
    assert packed.dequantize()[0, :5].tolist() == [2.75, 0.0, 0.25, -0.5, -1.0]
    assert errors(weight, to_int4(weight)).item() < errors(weight, packed).item()
