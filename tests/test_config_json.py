import json
import logging

import pytest

from llama.config import PRESETS, RopeScaling, preset
from llama.config_json import config_from_dict, config_to_dict, family

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
VARIANTS = {
    "llama": [{}, {"attention_bias": True}, {"mlp_bias": True}, {"attention_bias": True, "mlp_bias": True},
              {"head_dim": 16}, *({"rope_scaling": scaling} for scaling in (
                  RopeScaling("linear", 2.0), RopeScaling("ntk", 3.0), RopeScaling("dynamic", 2.0),
                  RopeScaling("llama3", 8.0, 2.0, 5.0, 64), RopeScaling("yarn", 4.0, attention_factor=1.2),
                  RopeScaling("yarn", 4.0, original_max_position_embeddings=64, beta_fast=16.0, beta_slow=2.0,
                              mscale=1.0, mscale_all_dim=0.5, truncate=False)))],
    "mistral": [{"sliding_window": 16}, {"hidden_size": 34, "head_dim": 8}],
    "qwen3": [{"qk_norm": "head", "head_dim": 16}, {"qk_norm": "head", "attention_bias": True, "sliding_window": 16}],
    "smollm3": [{"no_rope_layers": (1,)}, {"no_rope_layers": (0, 1), "mlp_bias": True}],
    "granite": [{"embedding_multiplier": 12.0, "residual_multiplier": 0.2, "attention_multiplier": 0.1,
                 "logits_scaling": 8.0, "attention_bias": True}],
    "olmo2": [{"qk_norm": "all", "norm_after": True}],
    "qwen2": [{"qkv_bias": True}, {"qkv_bias": True, "sliding_window": 16},
              {"qkv_bias": True, "hidden_size": 34, "head_dim": 8}],
}


@pytest.mark.parametrize("name", PRESETS)
def test_two_ways_written_and_read_config_is_the_same(name):
    assert config_from_dict(json.loads(json.dumps(config_to_dict(PRESETS[name])))) == PRESETS[name]


def _minimal(**more):
    return {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, **more}


def test_worked_example_yesterdays_and_todays_rope_keys_are_read_alike():
    llama3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 8192}
    old = config_from_dict(_minimal(rope_theta=5e5, rope_scaling={"rope_type": "llama3", **llama3}))
    new = config_from_dict(_minimal(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **llama3}))
    older = config_from_dict(_minimal(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0}))
    assert old == new and new.rope_theta == 5e5 and new.rope_scaling == RopeScaling("llama3", 32.0)
    assert older.rope_scaling == RopeScaling("linear", 2.0)


def test_worked_example_a_file_without_theta_gets_10000_and_a_line_that_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        assert config_from_dict(_minimal()).rope_theta == 10_000
    assert "no rope_theta" in caplog.text


@pytest.mark.parametrize("kind, changes", [(kind, changes) for kind, several in VARIANTS.items()
                                           for changes in several])
def test_two_ways_a_variant_written_as_the_class_that_has_it_and_read_is_the_same(kind, changes):
    config = preset("test", **changes)
    values = json.loads(json.dumps(config_to_dict(config)))
    assert values["model_type"] == kind and config_from_dict(values) == config
    older = {name: value for name, value in values.items() if name != "rope_parameters"}
    newer = {name: value for name, value in values.items() if name not in ("rope_theta", "rope_scaling")}
    assert config_from_dict(older) == config_from_dict(newer) == config


@pytest.mark.parametrize("more, expected", [
    ({}, 0),                                                        # names a window as the class does, and uses none
    ({"use_sliding_window": True, "max_window_layers": 0}, 4096),
    ({"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 32}, 32),
    ({"use_sliding_window": True}, 0),                              # the first 28 layers see everything: all of these
    ({"use_sliding_window": True, "layer_types": ["sliding_attention"] * 2, "sliding_window": 8}, 8),
])
def test_worked_example_qwen2s_window(more, expected):
    config = config_from_dict(_minimal(model_type="qwen2", num_key_value_heads=2, num_hidden_layers=2) | more)
    assert config.sliding_window == expected and config.qkv_bias and not config.attention_bias


def test_worked_example_what_a_file_leaves_out_is_what_its_class_takes():
    llama, mistral, qwen2 = (config_from_dict(_minimal(model_type=kind) | more) for kind, more in (
        ("llama", {}), ("mistral", {"num_attention_heads": 8, "hidden_size": 16}),
        ("qwen2", {"num_key_value_heads": None})))
    assert (llama.rms_norm_eps, llama.max_position_embeddings, llama.num_key_value_heads) == (1e-6, 2048, 2)
    assert (mistral.sliding_window, mistral.max_position_embeddings, mistral.num_key_value_heads) == (4096, 131072, 8)
    assert (qwen2.sliding_window, qwen2.max_position_embeddings, qwen2.num_key_value_heads) == (0, 32768, 2)
    none = config_from_dict(_minimal(model_type="mistral", num_key_value_heads=2, sliding_window=None))
    assert none.sliding_window == 0
    yarn = config_from_dict(_minimal(max_position_embeddings=512, rope_scaling={"type": "yarn", "factor": 2.0}))
    assert yarn.rope_scaling.original_max_position_embeddings == 512


def test_worked_example_the_context_under_each_scaling():
    def context(**fields):
        return config_from_dict(_minimal(**fields)).context
    assert context(max_position_embeddings=64) == 64
    assert context(max_position_embeddings=64, rope_scaling={"type": "dynamic", "factor": 2.5}) == 160
    assert context(max_position_embeddings=64, rope_scaling=YARN) == 256            # as Qwen's files write it
    assert context(max_position_embeddings=300, rope_scaling=YARN) == 300           # as others do
    assert context(max_position_embeddings=256, rope_scaling={"type": "linear", "factor": 4.0}) == 256


@pytest.mark.parametrize("fields, words", [
    ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads 3"),
    ({"num_attention_heads": 3}, "hidden_size 8 is not a multiple of num_attention_heads 3"),
    ({"hidden_size": 6}, "head_dim is 3"),
    ({"vocab_size": 0}, "vocab_size is 0"),
    ({"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0"),
    ({"model_type": "mixtral"}, "model_type 'mixtral'; built here are llama, mistral, qwen2, qwen3"),
    ({"attention_bias": "yes"}, "attention_bias is 'yes'; it must be true or false"),
    ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
    ({"model_type": "mistral", "num_key_value_heads": 2, "attention_bias": True}, "attention_bias = True; with"),
    ({"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": -1}, "sliding_window is -1"),
    ({"model_type": "qwen2", "num_key_value_heads": 2, "num_hidden_layers": 2, "use_sliding_window": True,
      "max_window_layers": 1}, "full_attention, sliding_attention; see layer_types, max_window_layers"),
    ({"model_type": "mistral", "num_key_value_heads": 2, "layer_types": ["full_attention", "sliding_attention"]},
     "layers differ in their attention"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
    ({"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "partial_rotary_factor = 0.5"),
    ({"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rotary scaling 'longrope' is not known"),
    ({"rope_scaling": YARN | {"beta_fast": 1, "beta_slow": 2}}, "beta_fast 1 must exceed beta_slow 2"),
    ({"rope_scaling": YARN | {"attention_factor": 0}}, "attention_factor is 0; it must be above 0"),
    ({"rope_scaling": YARN | {"truncate": 1}}, "truncate is 1; it must be true or false"),
    ({"rope_scaling": YARN | {"mscale": "1"}}, "mscale is '1'; it must be a number"),
    ({"hidden_size": 4, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "head_dim is 2, which has one alone"),
    ({"rope_scaling": {"type": "linear"}}, "has no factor"),
    ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor is '2'; it must be a number"),
    ({"rope_scaling": "linear"}, "rope_scaling is 'linear'; it must be an object"),
    ({"rope_theta": "1e4"}, "rope_theta is '1e4'; it must be a number"),
    ({"tie_word_embeddings": "no"}, "must be true or false"),
])
def test_refusal_names_the_value(fields, words):
    with pytest.raises(ValueError, match=words):
        config_from_dict(_minimal(**fields))


@pytest.mark.parametrize("changes, words", [
    ({"attention_bias": True, "qkv_bias": True}, "has attention_bias and qkv_bias, so nobody could open"),
    ({"qk_norm": "head", "norm_after": True}, "has norm_after and qk_norm=head, so nobody"),
    ({"mlp_bias": True, "sliding_window": 8}, "has mlp_bias and sliding_window"),
    ({"attention_bias": True, "hidden_size": 34, "head_dim": 8}, "hidden_size 34 no multiple"),
])
def test_refusal_of_parts_that_no_class_has_together(changes, words):
    with pytest.raises(ValueError, match=words):
        family(preset("test", **changes))


def test_refusal_missing_fields_are_listed():
    with pytest.raises(ValueError, match="lacks vocab_size, intermediate_size"):
        config_from_dict({"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1})


def test_worked_example_scaling_added_by_hand_to_a_newer_file(caplog):
    """transformers 5 takes rope_scaling where both are there: that is what somebody edited."""
    values = config_to_dict(preset("test", rope_theta=500.0)) | {"rope_scaling": {"type": "linear", "factor": 4.0}}
    config = config_from_dict(values)
    assert config.rope_scaling == RopeScaling("linear", 4.0) and config.rope_theta == 500.0
    assert "rope_scaling by linear and rope_parameters by default; the first is taken" in caplog.text
    parted = config_from_dict(values | {"rope_theta": 700.0})       # beside it, the theta of the same spelling
    assert parted.rope_theta == 700.0
    assert config_from_dict({name: value for name, value in values.items() if name != "rope_theta"}).rope_theta == 500.0


def test_worked_example_a_window_that_a_llama_has_no_use_for(caplog):
    """transformers' Llama has no window, whatever its file names; that is said where the text could be longer."""
    config = config_from_dict(_minimal(sliding_window=512, use_sliding_window=True, max_position_embeddings=4096))
    assert config.sliding_window == 0 and "names a sliding window of 512" in caplog.text


def test_worked_example_siblings_as_their_classes_read_a_silent_file():
    qwen3 = config_from_dict(_minimal(model_type="qwen3", num_key_value_heads=2))
    assert (qwen3.qk_norm, qwen3.head_dim, qwen3.attention_bias) == ("head", 128, False)
    smollm3 = config_from_dict(_minimal(model_type="smollm3", num_key_value_heads=2) | {"num_hidden_layers": 9})
    assert smollm3.no_rope_layers == (3, 7) and smollm3.rope_theta == 2e6 and smollm3.tie_word_embeddings
    listed = _minimal(model_type="smollm3", num_key_value_heads=2, no_rope_layers=[0, 1, 0]) | {"num_hidden_layers": 3}
    assert config_from_dict(listed).no_rope_layers == (0, 2)
    granite = config_from_dict(_minimal(model_type="granite", logits_scaling=4))
    assert (granite.attention_multiplier, granite.logits_scaling, granite.residual_multiplier) == (1.0, 4.0, 1.0)
    olmo2 = config_from_dict(_minimal(model_type="olmo2"))
    assert (olmo2.qk_norm, olmo2.norm_after, olmo2.rms_norm_eps) == ("all", True, 1e-5)


def test_refusal_of_a_window_in_some_layers():
    with pytest.raises(ValueError, match="use_sliding_window: some layers of it would see a window"):
        config_from_dict(_minimal(model_type="smollm3", num_key_value_heads=2, use_sliding_window=True))
