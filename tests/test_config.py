from dataclasses import replace

import pytest

from llama.config import PRESETS, RopeScaling, preset, unknown_name
from llama.model import Llama


@pytest.mark.parametrize("name, millions", [
    ("llama-1-7b", 6738), ("llama-1-13b", 13016), ("llama-1-30b", 32529), ("llama-1-65b", 65286),
    ("llama-2-70b", 68977), ("llama-3-8b", 8030), ("llama-3.1-405b", 405853), ("llama-3.2-1b", 1236),
    ("llama-3.2-3b", 3213), ("tinyllama-1.1b", 1100), ("smollm2-135m", 135), ("smollm2-360m", 362),
    ("smollm2-1.7b", 1711),
])
def test_worked_example_presets_have_the_published_number_of_parameters(name, millions):
    import torch

    with torch.device("meta"):
        model = Llama(PRESETS[name])
    assert round(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions


def test_worked_example_static_ntk_is_a_larger_theta():
    """So it is for every reader of the folder; K = 8: the lowest frequency θ^(-6/8) is divided by just the factor."""
    config = preset("test", rope_scaling=RopeScaling("ntk", 16.0))
    assert config.rope_scaling is None and config.rope_theta == pytest.approx(10_000 * 16 ** (8 / 6))
    assert config.rope_theta ** -(6 / 8) == pytest.approx(10_000 ** -(6 / 8) / 16)
    assert replace(config, vocab_size=9).rope_theta == config.rope_theta            # stretched once


def test_worked_example_yarns_magnitude():
    assert RopeScaling("yarn", 4.0).attention_scaling == pytest.approx(1.13862944)          # 0.1 ln 4 + 1
    assert RopeScaling("yarn", 4.0, attention_factor=1.5).attention_scaling == 1.5
    weighted = RopeScaling("yarn", 4.0, mscale=2.0, mscale_all_dim=1.0)
    assert weighted.attention_scaling == pytest.approx(1.27725887 / 1.13862944)
    assert RopeScaling("yarn", 4.0, mscale=2.0).attention_scaling == RopeScaling("yarn", 4.0).attention_scaling
    assert RopeScaling("linear", 4.0).attention_scaling == RopeScaling("llama3", 4.0).attention_scaling == 1


@pytest.mark.parametrize("fields", [
    {"rms_norm_eps": 10**30}, {"rope_theta": 10**30}, {"logits_scaling": 10**30}, {"residual_multiplier": 10**30},
    {"rope_scaling": RopeScaling("linear", 10**30)}, {"rope_scaling": RopeScaling("dynamic", 10**30)},
    {"rope_scaling": RopeScaling("llama3", 10**30, high_freq_factor=10**30)},
    {"rope_scaling": RopeScaling("yarn", 10**30, attention_factor=10**30, beta_fast=10**30)}])
def test_property_a_whole_number_of_any_size_may_stand_for_a_float(fields):
    """JSON writes 10^30 without a point, and torch multiplies with no whole number beyond 64 bits."""
    import torch

    from llama.checkpoint import PretrainedLlama

    with torch.no_grad():
        assert PretrainedLlama(preset("test", vocab_size=8, **fields))(torch.tensor([[1, 2]])).shape == (1, 2, 8)


@pytest.mark.parametrize("value", ["0.02", None, float("nan"), float("inf"), -0.02, True, []])
def test_refusal_a_spread_of_first_weights_that_is_no_number(value):
    with pytest.raises(ValueError, match=r"initializer_range is .*; it must be a number of at least 0"):
        preset("test", initializer_range=value)


def test_refusal_of_a_scalings_field_that_its_kind_does_not_have():
    with pytest.raises(ValueError, match="'dynamic' has no original_max_position_embeddings, 64 was given"):
        RopeScaling("dynamic", 2.0, original_max_position_embeddings=64)


def test_refusal_unknown_preset_lists_the_nearest_and_other_families_say_what_they_are():
    with pytest.raises(ValueError, match=r"nearest names are .*llama-3.2-1b"):
        preset("llama-3.2-1")
    for name, family in {"bert-base": "not a Llama", "bloom": "ALiBi"}.items():
        assert family in unknown_name(name, list(PRESETS)) and "smollm2-135m-instruct" in unknown_name(name, [])
