"""Sampling against distributions worked out by hand."""

import math

import pytest
import torch
from torch.testing import assert_close

from llama.sampling import SamplingConfig, min_p, probabilities, repetition_penalty, sample, top_k, top_p

OFF = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 0.0}
MASSES = [0.1, 0.5, 0.15, 0.25]


def logits(*masses):
    return torch.tensor(masses).log()


def after(**changes):
    return probabilities(logits(*MASSES), SamplingConfig(**OFF | changes))


def test_worked_example_everything_off_is_the_softmax():
    assert_close(after(), torch.tensor(MASSES))
    assert_close(after(top_p=1.0, repetition_penalty=1.0), torch.tensor(MASSES))


def test_worked_example_temperature_one_half_squares_the_odds():
    squares = torch.tensor(MASSES).square()
    assert_close(after(temperature=0.5), squares / squares.sum())


def test_worked_example_temperature_zero_takes_the_first_of_the_largest():
    greedy = SamplingConfig(**OFF | {"temperature": 0})
    assert probabilities(torch.tensor([1.0, 3.0, 3.0]), greedy).tolist() == [0, 1, 0]


@pytest.mark.parametrize("temperature", [1e-6, 1e6])
def test_property_no_temperature_overflows(temperature):
    assert_close(after(temperature=temperature).sum(), torch.tensor(1.0))


def test_worked_example_top_k():
    assert_close(after(top_k=2), torch.tensor([0, 2 / 3, 0, 1 / 3]))
    assert_close(after(top_k=99), torch.tensor(MASSES))             # more than there are


def test_worked_example_top_k_keeps_all_that_equal_the_kth():
    assert top_k(torch.tensor([2.0, 1.0, 1.0, 0.0]), 2).isfinite().tolist() == [True, True, True, False]


def test_worked_example_top_p_keeps_the_token_that_crosses():
    kept = top_p(logits(*MASSES), 0.6).isfinite().tolist()          # 0.5 < 0.6 <= 0.5 + 0.25
    assert kept == [False, True, False, True]
    for p in (0.01, 0.0):                                           # one always stays
        assert top_p(logits(*MASSES), p).isfinite().tolist() == [False, True, False, False]
    assert after(top_p=0.0).tolist() == [0, 1, 0, 0]
    halves = torch.zeros(2)                                         # a mass that reaches p exactly is enough
    assert top_p(halves, 0.5).isfinite().tolist() == [True, False]


def test_two_ways_top_p_sorts_few_or_all():
    generator = torch.Generator().manual_seed(2)
    raw = torch.randn(40, 2000, generator=generator) * torch.linspace(0.1, 8, 40)[:, None]      # flat to steep
    raw = (raw * 4).round() / 4                                     # with many equals
    for p in (0.1, 0.5, 0.9, 0.999):
        ordered, order = raw.sort(dim=-1, descending=True, stable=True)
        before = ordered.double().softmax(-1).cumsum(-1).roll(1, -1)
        before[:, 0] = 0
        apart = ((before - p).abs() > 1e-6).all(-1)                 # rows whose boundary rounding cannot move
        expected = torch.empty_like(raw, dtype=torch.bool).scatter(-1, order, before < p)
        assert apart.sum() > 20 and torch.equal(top_p(raw, p).isfinite()[apart], expected[apart])


def test_worked_example_min_p():
    assert min_p(logits(*MASSES), 0.4).isfinite().tolist() == [False, True, False, True]    # 0.4 * 0.5 = 0.2
    assert_close(after(min_p=0.4), torch.tensor([0, 2 / 3, 0, 1 / 3]))


def test_worked_example_repetition_penalty_never_rewards():
    seen = torch.tensor([True, True, False, False])
    assert repetition_penalty(torch.tensor([2.0, -2.0, 2.0, -2.0]), seen, 2.0).tolist() == [1.0, -4.0, 2.0, -2.0]


def test_worked_example_order_temperature_comes_before_top_p():
    hot = after(temperature=100.0, top_p=0.6)                       # nearly uniform: three tokens are needed
    assert (hot > 0).sum() == 3
    assert (after(top_p=0.6) > 0).sum() == 2


def test_property_every_result_is_a_distribution_over_a_part_of_the_tokens():
    generator = torch.Generator().manual_seed(0)
    raw = 5 * torch.randn(8, 300, generator=generator)
    seen = torch.rand(8, 300, generator=generator) < 0.1
    for config in (SamplingConfig(), SamplingConfig(1.3, 40, 0.95, 0.02, 1.2), SamplingConfig(0.2, 1, 0.1, 1.0, 1.5)):
        both = probabilities(raw, config, seen)
        assert_close(both.sum(-1), torch.ones(8))
        assert torch.equal(both[3], probabilities(raw[3], config, seen[3]))      # rows know nothing of each other
        assert both.argmax(-1).equal(probabilities(raw, SamplingConfig(**OFF | {
            "repetition_penalty": config.repetition_penalty}), seen).argmax(-1))  # the likeliest always stays


def test_property_bfloat16_is_added_up_in_float32():
    assert probabilities(torch.zeros(1000, dtype=torch.bfloat16), SamplingConfig(**OFF)).dtype == torch.float32


def test_two_ways_drawn_frequencies_equal_the_distribution():
    generator, count = torch.Generator().manual_seed(1), 20_000
    config = SamplingConfig(**OFF | {"top_k": 3})
    drawn = sample(logits(*MASSES).expand(count, 4), config, None, [generator] * count)
    frequencies = torch.bincount(drawn, minlength=4) / count
    expected = after(top_k=3)
    assert frequencies[0] == 0
    assert_close(frequencies, expected, atol=4 * math.sqrt(0.25 / count), rtol=0)   # four standard deviations


@pytest.mark.parametrize("config", [SamplingConfig(), SamplingConfig(1.3, 40, 0.95, 0.02, 1.2),
                                    SamplingConfig(1.0, top_p=1.0), SamplingConfig(2.0, top_p=0.3, min_p=0.01)])
def test_two_ways_drawn_among_few_or_all(config):
    generator = torch.Generator().manual_seed(3)
    raw = torch.randn(50, 2000, generator=generator) * torch.linspace(0.5, 4, 50)[:, None]
    seen = torch.rand(50, 2000, generator=generator) < 0.1
    drawn = sample(raw, config, seen, [torch.Generator().manual_seed(i) for i in range(50)])
    mass = probabilities(raw, config, seen).double().cumsum(-1)
    uniform = torch.stack([torch.rand((), generator=torch.Generator().manual_seed(i), dtype=torch.float64)
                           for i in range(50)])
    expected = torch.searchsorted(mass, (uniform * mass[:, -1])[:, None], right=True)[:, 0]
    assert torch.equal(drawn, expected) and len(set(drawn.tolist())) > 30


def test_property_a_row_draws_the_same_in_any_company():
    raw = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    together = sample(raw, SamplingConfig(), None, [torch.Generator().manual_seed(i) for i in (5, 6, 7)])
    alone = sample(raw[1:2], SamplingConfig(), None, [torch.Generator().manual_seed(6)])
    assert together[1] == alone[0]


@pytest.mark.parametrize("field, value, words", [
    ("temperature", -0.1, r"temperature is -0.1; it must be 0 \(off\) or from 1e-06 to 1e\+06"),
    ("temperature", math.inf, "temperature is inf"),
    ("temperature", math.nan, "temperature is nan"),
    ("temperature", 1e-320, "temperature is 1e-320"),      # 0 in float32: logits would be divided by it
    ("top_k", -1, "top_k is -1; it must be a whole number from 0"),
    ("top_p", 3.0, "top_p is 3.0; it must be from 0 to 1"),
    ("min_p", 1.5, "min_p is 1.5; it must be from 0 to 1"),
    ("repetition_penalty", -1.0, r"repetition_penalty is -1.0; it must be 0 \(off\)"),
])
def test_refusal_of_bad_values(field, value, words):
    with pytest.raises(ValueError, match=words):
        SamplingConfig(**{field: value})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_refusal_of_logits_that_are_not_finite(bad, temperature):
    with pytest.raises(RuntimeError, match="not finite.*float32"):
        sample(torch.tensor([[0.0, bad]]), SamplingConfig(temperature), None, [torch.Generator()])
