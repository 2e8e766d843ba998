import json
import logging

import pytest

from llama.config import PRESETS, LlamaConfig, RopeScaling, preset, unknown_name
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


@pytest.mark.parametrize("name", PRESETS)
def test_two_ways_written_and_read_config_is_the_same(name):
    assert LlamaConfig.from_dict(json.loads(json.dumps(PRESETS[name].to_dict()))) == PRESETS[name]


def _minimal(**more):
    return {"vocab_size": 16, "hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1,
            "num_attention_heads": 2, **more}


def test_worked_example_yesterdays_and_todays_rope_keys_are_read_alike():
    llama3 = {"factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 8192}
    old = LlamaConfig.from_dict(_minimal(rope_theta=5e5, rope_scaling={"rope_type": "llama3", **llama3}))
    new = LlamaConfig.from_dict(_minimal(rope_parameters={"rope_type": "llama3", "rope_theta": 5e5, **llama3}))
    older = LlamaConfig.from_dict(_minimal(rope_theta=5e5, rope_scaling={"type": "linear", "factor": 2.0}))
    assert old == new and new.rope_theta == 5e5 and new.rope_scaling == RopeScaling("llama3", 32.0)
    assert older.rope_scaling == RopeScaling("linear", 2.0)


def test_worked_example_a_file_without_theta_gets_10000_and_a_line_that_says_so(caplog):
    with caplog.at_level(logging.WARNING):
        assert LlamaConfig.from_dict(_minimal()).rope_theta == 10_000
    assert "no rope_theta" in caplog.text


@pytest.mark.parametrize("fields, words", [
    ({"num_key_value_heads": 3}, "not a multiple of num_key_value_heads 3"),
    ({"num_attention_heads": 3}, "hidden_size 8 is not a multiple of num_attention_heads 3"),
    ({"hidden_size": 6}, "head_dim is 3"),
    ({"vocab_size": 0}, "vocab_size is 0"),
    ({"rms_norm_eps": -1.0}, "rms_norm_eps is -1.0"),
    ({"model_type": "mistral"}, "model_type 'mistral'"),
    ({"attention_bias": True}, "attention_bias = True"),
    ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rotary scaling 'yarn' is not known"),
    ({"rope_scaling": {"type": "linear"}}, "has no factor"),
    ({"rope_scaling": {"type": "linear", "factor": "2"}}, "factor is '2'; it must be a number"),
    ({"rope_scaling": "linear"}, "must be objects"),
    ({"rope_theta": "1e4"}, "rope_theta is '1e4'; it must be a number"),
    ({"tie_word_embeddings": "no"}, "must be true or false"),
])
def test_refusal_names_the_value(fields, words):
    with pytest.raises(ValueError, match=words):
        LlamaConfig.from_dict(_minimal(**fields))


def test_refusal_missing_fields_are_listed():
    with pytest.raises(ValueError, match="lacks vocab_size, intermediate_size"):
        LlamaConfig.from_dict({"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1})


def test_refusal_unknown_preset_lists_the_nearest_and_other_families_say_what_they_are():
    with pytest.raises(ValueError, match=r"nearest names are .*llama-3.2-1b"):
        preset("llama-3.2-1")
    for name, family in {"gpt3": "not a Llama", "t5": "encoder-decoder"}.items():
        assert family in unknown_name(name, list(PRESETS)) and "smollm2-135m-instruct" in unknown_name(name, [])
