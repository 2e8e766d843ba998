"""Meta's params.json: what is inferred of the published models, what is written for any, refusals."""

from pathlib import Path

import pytest

from llama.config import PRESETS, preset
from llama.config_json import config_from_dict, config_to_dict
from weights.formats import meta_params
from weights.formats.plain_llama import Sizes

PLACE = Path("release")


def sizes_of(config):
    return Sizes(config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.num_attention_heads,
                 config.num_key_value_heads, config.vocab_size)


def read(values, sizes, *, tied):
    meta_params.check(PLACE, values)
    return config_from_dict(sizes.config(**meta_params.read_params(PLACE, values, sizes), tie_word_embeddings=tied))


def released(name):
    """params.json as published, in what matters here."""
    config = PRESETS[name]
    values = {"dim": config.hidden_size, "n_layers": config.num_hidden_layers, "n_heads": config.num_attention_heads,
              "norm_eps": config.rms_norm_eps, "vocab_size": -1}
    if name.startswith("llama-3"):
        values |= {"vocab_size": 128_256, "n_kv_heads": 8, "rope_theta": 500_000.0}
    elif name == "llama-2-70b":
        values |= {"n_kv_heads": 8}
    return values | ({"use_scaled_rope": True} if config.rope_scaling else {})


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("llama-")])
def test_worked_example_published_models(name):
    config, values, sizes = PRESETS[name], released(name), sizes_of(PRESETS[name])
    assert read(values, sizes, tied=config.tie_word_embeddings) == config
    told = " ".join(meta_params.inferred(values, sizes))
    assert ("rotary factor" in told) == bool(config.rope_scaling)
    assert f"context of {config.max_position_embeddings:,} positions" in told
    assert ("rope_theta 10,000" in told) == ("vocabulary of 32,000" in told) == (not name.startswith("llama-3"))

    ours = meta_params.write_params(config_to_dict(config), sizes)
    assert read(ours, sizes, tied=config.tie_word_embeddings) == config
    assert ours.keys() >= values.keys() and "rope_scaling_factor" not in ours
    assert meta_params.feed_forward_size(sizes.D, ours["multiple_of"], ours.get("ffn_dim_multiplier")) == sizes.F
    assert meta_params.unsaid(config_to_dict(config)) == []


def test_worked_example_what_meta_alone_knows():
    sizes = sizes_of(PRESETS["llama-3.2-1b"])
    values = released("llama-3.2-1b") | {"ffn_dim_multiplier": 1.5, "multiple_of": 256}
    assert meta_params.inferred(values, sizes) == [
        "rotary factor 32: params.json does not say it; the shape is that of Llama 3.2 1B",
        "context of 131,072 positions: params.json does not say it; positions are scaled, as in Llama 3.1 and later"]
    assert meta_params.read_params(PLACE, values, sizes)["rope_scaling"] == {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192}
    told = values | {"rope_scaling_factor": 8, "max_seq_len": 4096}
    assert meta_params.inferred(told, sizes) == []
    assert meta_params.read_params(PLACE, told, sizes)["rope_scaling"]["factor"] == 8.0
    assert meta_params.read_params(PLACE, told, sizes)["max_position_embeddings"] == 4096
    del values["rope_theta"]
    assert meta_params.read_params(PLACE, values, sizes)["rope_theta"] == 500_000.0
    code = {"dim": 4096, "n_layers": 32, "n_heads": 32, "norm_eps": 1e-5, "rope_theta": 1_000_000}
    assert meta_params.read_params(PLACE, code, sizes_of(PRESETS["llama-2-7b"]))["max_position_embeddings"] == 16_384


@pytest.mark.parametrize("D, multiple_of, multiplier, F", [
    (4096, 256, None, 11008), (8192, 4096, 1.3, 28672), (4096, 1024, 1.3, 14336), (16384, 4096, 1.2, 53248),
    (2048, 256, 1.5, 8192), (3072, 256, 1.0, 8192)])
def test_worked_example_feed_forward_sizes_as_published(D, multiple_of, multiplier, F):
    assert meta_params.feed_forward_size(D, multiple_of, multiplier) == F


def test_property_numbers_exist_for_every_feed_forward_size():
    for D in (32, 576, 4096):
        for F in (1, 7, 63, 64, 1000, 1536, 8191, 11007, 14336, 28671):
            numbers = meta_params.feed_forward_numbers(D, F)
            assert meta_params.feed_forward_size(D, numbers["multiple_of"], numbers.get("ffn_dim_multiplier")) == F


@pytest.mark.parametrize("scaling, sentence", [
    ({"rope_type": "linear", "factor": 2.0}, "rotary scaling linear with factor 2.0 cannot be said in params.json"),
    ({"rope_type": "llama3", "factor": 32.0}, "rotary scaling llama3 with factor 32.0 cannot be said"),
    ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 4096}, "cannot be said in params.json"),
])
def test_refusal_scalings_that_metas_code_has_not(scaling, sentence):
    config = preset("test")
    with pytest.raises(ValueError, match=sentence):
        values = config_to_dict(config) | {"rope_scaling": scaling, "rope_parameters": None}
        meta_params.write_params(values, sizes_of(config))


@pytest.mark.parametrize("change, sentence", [
    ({"n_layers": "1"}, "params.json: n_layers is '1'; it must be a whole number from 1 to 2,147,483,647"),
    ({"n_layers": None}, "params.json: n_layers is None"),
    ({"n_kv_heads": 0}, "params.json: n_kv_heads is 0"),
    ({"vocab_size": -2}, "params.json: vocab_size is -2"),
    ({"rope_theta": 0}, "params.json: rope_theta is 0; it must be a number above 0"),
    ({"norm_eps": "small"}, "params.json: norm_eps is 'small'"),
    ({"moe_args": {"num_experts": 8}}, "params.json says moe_args = .*, which is not built here"),
])  # fmt: skip
def test_refusal_of_senseless_and_of_other_models(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        meta_params.check(PLACE, released("llama-2-7b") | change)


def test_refusal_a_rotary_factor_that_nothing_tells():
    config = preset("test", rope_theta=500_000.0, rope_scaling=PRESETS["llama-3.1-8b"].rope_scaling)
    sizes = sizes_of(config)
    values = meta_params.write_params(config_to_dict(config), sizes)
    assert read(values, sizes, tied=True).rope_scaling == config.rope_scaling              # 8, the one of Meta's code
    del values["rope_scaling_factor"]
    with pytest.raises(ValueError, match="no published model has D 32, L 2, H 4; add \"rope_scaling_factor\""):
        meta_params.read_params(PLACE, values, sizes)


def test_worked_example_mistrals_keys():
    """hidden_dim and head_dim repeat what shapes say; the window is arithmetic."""
    params = {"dim": 4096, "n_layers": 32, "head_dim": 128, "hidden_dim": 14336, "n_heads": 32, "n_kv_heads": 8,
              "norm_eps": 1e-5, "sliding_window": 4096, "vocab_size": 32000}
    sizes = Sizes(4096, 14336, 32, 32, 8, 32000)
    read = meta_params.read_params(PLACE, params, sizes)
    assert (read["model_type"], read["sliding_window"], read["max_position_embeddings"]) == ("mistral", 4096, 32768)
    assert "model_type" not in meta_params.read_params(PLACE, params | {"sliding_window": None}, sizes)
