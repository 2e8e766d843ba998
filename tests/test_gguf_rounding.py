import numpy as np
import pytest
import torch
from test_gguf_blocks import FIXTURE

from weights.formats.gguf_blocks import NAMED
from weights.formats.gguf_rounding import with_minima, without_minima

K_FORMATS = ["Q4_K", "Q5_K", "Q6_K"]


def error(format, blocks, x):
    return (format.unpack(blocks) - x).square().mean().sqrt().item()


@pytest.mark.parametrize("name", K_FORMATS)
def test_two_ways_no_larger_error_than_that_of_llama_cpp(name):
    """tests/parity/formats.py compares many more numbers, and let llama.cpp's own quantiser pack these."""
    format, x = NAMED[name], FIXTURE["matrices"]
    assert error(format, format.pack(x.numpy()), x) < 1.01 * error(format, FIXTURE[f"{name}.packed"].numpy(), x)


def naive(x, bits):
    """Range of each group in 2^bits - 1 steps, scales of 6 bits, and the nearest."""
    low, high = x.amin(-1, keepdim=True).clamp(max=0), x.amax(-1, keepdim=True)
    s, m = (high - low) / (2**bits - 1), -low
    d, dm = s.amax(1, keepdim=True) / 63, m.amax(1, keepdim=True) / 63
    s, m = (s / d).round() * d, (m / dm).round() * dm
    return s * ((x + m) / s).round().clamp(0, 2**bits - 1) - m


@pytest.mark.parametrize("bits, gain", [(4, 0.92), (5, 0.93)])
def test_property_the_search_pays(bits, gain):
    x = torch.randn(200, 8, 32, generator=torch.Generator().manual_seed(0))
    rounded = with_minima(x, bits)
    found = (rounded.d[:, None] * rounded.s)[..., None] * rounded.q - (rounded.dm[:, None] * rounded.m)[..., None]
    assert (found - x).square().sum().sqrt() < gain * (naive(x, bits) - x).square().sum().sqrt()


def test_worked_example_whole_numbers_that_are_their_own():
    """x is d s q - dm m with d = dm = 1/4: s is 63 in the first group and 21 in the others, m = 63, q from 0 to 15."""
    q = torch.arange(32).float() // 2
    s = torch.tensor([63.0] + [21.0] * 7)
    x = (s[:, None] * q - 63) / 4
    rounded = with_minima(x[None], 4)
    assert rounded.d.item() == rounded.dm.item() == 0.25
    assert torch.equal(rounded.s[0], s) and (rounded.m == 63).all() and torch.equal(rounded.q[0], q.expand(8, 32))


def test_worked_example_scales_with_signs():
    """x is d s q with d = -1/4: the number of largest size is -32 in q, whichever sign it has in x."""
    q = torch.tensor([-32.0, *range(-15, 0), *range(1, 17)])[::2]
    s = torch.tensor([-128.0, 64.0] * 8)
    rounded = without_minima((s[:, None] * q / 4)[None])
    assert rounded.d.item() in (0.25, -0.25)
    assert torch.equal(rounded.d * rounded.s[0], s / 4) and torch.equal(rounded.q[0], q.expand(16, 16))


def test_property_16_levels_are_found_among_32():
    """What came from Q4_1 has 16 levels in each group, and every other level of Q5_K is one of them."""
    random = np.random.default_rng(0)
    x = random.standard_normal((400, 256)).astype(np.float32)
    x = NAMED["Q4_1"].unpack(NAMED["Q4_1"].pack(x.reshape(-1, 32))).reshape(-1, 256)
    four, five = (error(NAMED[name], NAMED[name].pack(x.numpy()), x) for name in ("Q4_K", "Q5_K"))
    assert five < 1.1 * four


@pytest.mark.parametrize("name", K_FORMATS)
@pytest.mark.parametrize("x", [np.zeros(256), np.full(256, 3.0), np.full(256, -3.0), np.full(256, 1e-20),
                               np.eye(1, 256, 40)[0] * 5, -np.eye(1, 256, 40)[0] * 5, np.full(256, 60_000.0)],
                         ids=["0", "3", "-3", "tiny", "one", "minus one", "large"])
def test_property_strange_blocks_stay_near(name, x):
    """Blocks of one number only, of almost none, and one that float16 cannot scale, which become 0."""
    x = x.astype(np.float32)[None]
    assert np.abs(NAMED[name].unpack(NAMED[name].pack(x)).numpy() - x).max() <= max(4e-3 * np.abs(x).max(), 1e-7)


@pytest.mark.parametrize("name", K_FORMATS)
def test_property_a_block_is_rounded_by_itself(name):
    """The certificate of a conversion packs a tensor in other pieces than the file's writer."""
    x = np.random.default_rng(0).standard_t(3, (301, 256)).astype(np.float32)
    whole = NAMED[name].pack(x)
    assert all(np.array_equal(NAMED[name].pack(x[i : i + 7]), whole[i : i + 7]) for i in range(0, 301, 7))
