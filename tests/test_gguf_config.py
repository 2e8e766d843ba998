from dataclasses import replace

import numpy as np
import pytest
from test_gguf import F32, METADATA, Array, D, F, G, H, K, L, V, changed, llama_tensors, save

from llama.config import LlamaConfig, RopeScaling
from llama.config_json import config_from_dict, config_to_dict
from weights.formats import gguf_config
from weights.formats.gguf import config, read_tensors, tensor_ledger
from weights.formats.gguf_file import open_gguf, write_file


def test_worked_example_config(tmp_path):
    assert config(open_gguf(save(tmp_path / "file"))) == {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": V, "hidden_size": D,
        "intermediate_size": F, "num_hidden_layers": L, "num_attention_heads": H, "num_key_value_heads": G,
        "head_dim": K, "max_position_embeddings": 256, "rms_norm_eps": 1e-5, "rope_theta": 500_000.0,
        "rope_scaling": None, "tie_word_embeddings": False, "hidden_act": "silu", "attention_bias": False,
        "mlp_bias": False}  # fmt: skip
    tied = open_gguf(save(tmp_path / "tied", tensors=llama_tensors(tied=True)))
    assert config(tied)["tie_word_embeddings"] is True
    bare = changed(llama__attention__head_count_kv=None, llama__rope__freq_base=None, llama__rope__dimension_count=None)
    values = config(open_gguf(save(tmp_path / "bare", bare)))
    assert (values["num_key_value_heads"], values["rope_theta"], values["head_dim"]) == (H, 10_000.0, K)


@pytest.mark.parametrize("keys", ["llama.rope.scaling.factor", "llama.rope.scale_linear"])
def test_worked_example_linear_scaling(tmp_path, keys):
    values = config(open_gguf(save(tmp_path / "file", METADATA | {keys: 4.0})))
    assert values["rope_scaling"] == {"rope_type": "linear", "factor": 4.0}


def llama3_factors(factor, original=8192, theta=500_000.0, high=4.0):
    """The divisors of the frequencies, frequency by frequency, as the definition of Llama 3.1's scaling has it."""
    divisors = []
    for i in range(K // 2):
        wavelength = 2 * np.pi * theta ** (2 * i / K)
        if wavelength < original / high:
            divisors.append(1.0)
        elif wavelength > original / 1.0:
            divisors.append(factor)
        else:
            smooth = (original / wavelength - 1.0) / (high - 1.0)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return {"rope_freqs.weight": ((K // 2,), F32, np.array(divisors, "<f4").tobytes())}


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_two_ways_llama3_scaling_is_recovered_from_its_table(tmp_path, factor):
    file = open_gguf(save(tmp_path / "file", tensors=llama_tensors() | llama3_factors(factor)))
    assert config(file)["rope_scaling"] == {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0,
                                            "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
    assert "rope_freqs.weight" not in dict(read_tensors(file)) and len(tensor_ledger(file)) == 9 * L + 3


def test_refusal_of_other_rotary_scalings(tmp_path):
    with pytest.raises(ValueError, match="rope_freqs.weight is not the table of Llama 3.1's"):
        config(open_gguf(save(tmp_path / "file", tensors=llama_tensors() | llama3_factors(8.0, high=2.0))))
    longrope = METADATA | {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 4.0}
    with pytest.raises(ValueError, match="rotary scaling 'longrope' is not built here"):
        config(open_gguf(save(tmp_path / "file", longrope)))


def test_worked_example_yarn(tmp_path):
    """llama.cpp multiplies by 1 + 0.1 ln 4 and by the file's factor."""
    yarn = METADATA | {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0,
                       "llama.rope.scaling.original_context_length": 64}
    expected = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    assert config(open_gguf(save(tmp_path / "file", yarn)))["rope_scaling"] == expected
    values = config(open_gguf(save(tmp_path / "file", yarn | {"llama.rope.scaling.attn_factor": 2.0})))
    assert values["rope_scaling"].pop("attention_factor") == pytest.approx(2 * (1 + 0.1 * np.log(4)))


BIASES = {"qkv": ("attn_q", "attn_k", "attn_v"), "attention": ("attn_q", "attn_k", "attn_v", "attn_output"),
          "mlp": ("ffn_gate", "ffn_up", "ffn_down")}  # fmt: skip


def bias(parts):
    return {f"blk.{n}.{part}.bias": ((1,), F32, b"\0" * 4) for n in range(L) for part in parts}


@pytest.mark.parametrize("parts, changes, expected", [
    ((), {}, {"model_type": "llama", "attention_bias": False, "mlp_bias": False}),
    (BIASES["attention"] + BIASES["mlp"], {}, {"model_type": "llama", "attention_bias": True, "mlp_bias": True}),
    (BIASES["qkv"], {}, {"model_type": "qwen2", "use_sliding_window": False, "max_window_layers": L}),
    ((), {"llama.attention.sliding_window": 32}, {"model_type": "mistral", "sliding_window": 32}),
    ((), {"llama.attention.head_count": 3, "llama.attention.head_count_kv": 3, "llama.attention.key_length": K},
     {"model_type": "mistral", "sliding_window": None, "head_dim": K}),
], ids=["llama", "biases", "qwen2", "mistral", "D no multiple of H"])  # fmt: skip
def test_worked_example_class(tmp_path, parts, changes, expected):
    values = config(open_gguf(save(tmp_path / "file", METADATA | changes, llama_tensors() | bias(parts))))
    assert expected.items() <= values.items()
    config_from_dict(values)


def test_refusal_of_other_biases(tmp_path):
    for parts in (("attn_q",), ("attn_output",), ("ffn_up",)):
        with pytest.raises(ValueError, match=f"only {parts[0]} have biases"):
            config(open_gguf(save(tmp_path / "file", tensors=llama_tensors() | bias(parts))))
    with pytest.raises(ValueError, match="both together are not built here"):
        config(open_gguf(save(tmp_path / "file", METADATA | {"llama.attention.sliding_window": 32},
                              llama_tensors() | bias(BIASES["attention"]))))


YARN = {"kind": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
SHAPE = LlamaConfig(V, D, F, L, H, G, max_position_embeddings=256)


def written(tmp_path, config, biased=(), tensors=None):
    """The config as a file says it again."""
    metadata, table = gguf_config.metadata(config_to_dict(config), set(biased))
    extra = {} if table is None else {"rope_freqs.weight": (table.shape, F32, table.tobytes())}
    write_file(tmp_path / "keys", metadata, [], [])
    metadata = open_gguf(tmp_path / "keys").metadata
    stored = {f"blk.{n}.{part}.bias": ((1,), F32, b"\0" * 4) for n in range(L) for part in biased}
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output",
             "gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    stored = {key.replace(part, names[part]): value for key, value in stored.items() for part in names if part in key}
    tensors = llama_tensors(tied=config.tie_word_embeddings) | extra | stored
    return config_from_dict(gguf_config.config(open_gguf(save(tmp_path / "file", metadata, tensors))))


@pytest.mark.parametrize("changes, biased", [
    ({}, ()),
    ({"tie_word_embeddings": True, "num_key_value_heads": 1, "rms_norm_eps": 3e-6, "rope_theta": 1234567.0}, ()),
    ({"head_dim": 32}, ()),
    ({"attention_bias": True}, ("q_proj", "k_proj", "v_proj", "o_proj")),
    ({"mlp_bias": True}, ("gate_proj", "up_proj", "down_proj")),
    ({"qkv_bias": True}, ("q_proj", "k_proj", "v_proj")),
    ({"rope_scaling": RopeScaling("linear", 4.0)}, ()),
    ({"rope_scaling": RopeScaling("llama3", 8.0, original_max_position_embeddings=64)}, ()),
    ({"rope_scaling": RopeScaling(**YARN)}, ()),
    ({"rope_scaling": RopeScaling(**YARN, attention_factor=1.5)}, ()),
    ({"rope_scaling": RopeScaling("ntk", 4.0)}, ()),
    ({"qk_norm": "head", "head_dim": 32}, ()),
    ({"qk_norm": "all", "norm_after": True}, ()),
    ({"num_hidden_layers": 9, "no_rope_layers": (3, 7)}, ()),
    ({"embedding_multiplier": 12.0, "residual_multiplier": 0.25, "attention_multiplier": 0.125, "logits_scaling": 8.0,
      "attention_bias": True}, ("q_proj", "k_proj", "v_proj", "o_proj")),
], ids=str)  # fmt: skip
def test_property_what_is_written_is_read_again(tmp_path, changes, biased):
    before = replace(SHAPE, head_dim=0, **changes) if "head_dim" not in changes else replace(SHAPE, **changes)
    after = written(tmp_path, before, biased)
    assert replace(after, rope_theta=1.0) == replace(before, rope_theta=1.0)
    assert after.rope_theta == pytest.approx(before.rope_theta, rel=1e-6)               # GGUF has it in float32


def test_two_ways_mscale_and_the_attention_factor_it_stands_for(tmp_path):
    before = replace(SHAPE, rope_scaling=RopeScaling(**YARN, mscale=2.0, mscale_all_dim=0.7))
    after = written(tmp_path, before)
    assert after.rope_scaling.attention_scaling == pytest.approx(before.rope_scaling.attention_scaling, rel=1e-6)


@pytest.mark.parametrize("changes, biased, words", [
    ({"no_rope_layers": (1,)}, (), "no_rope_layers is .*, but llama.cpp's smollm3 knows no positions in every fourth"),
    ({"qk_norm": "head", "attention_bias": True}, ("q_proj", "k_proj", "v_proj", "o_proj"),
     "k_proj, o_proj, q_proj, v_proj have biases, for which a GGUF of architecture qwen3 has no place"),
    ({"sliding_window": 32}, (), "sliding_window is 32, but llama.cpp's llama sees all of the context, 256"),
    ({"rope_scaling": RopeScaling("dynamic", 4.0)}, (), "rotary scaling 'dynamic' cannot be said in a GGUF"),
    ({"rope_scaling": RopeScaling("llama3", 8.0), "qkv_bias": True}, ("q_proj", "k_proj", "v_proj"),
     "rotary scaling 'llama3' cannot be said in a GGUF of architecture qwen2"),
    ({"rope_scaling": RopeScaling("llama3", 8.0, low_freq_factor=2.0)}, (), "is not the table of Llama 3.1's"),
    ({"rope_scaling": RopeScaling(**YARN, beta_fast=16.0)}, (), "beta_fast is 16.0, but llama.cpp's is always 32.0"),
    ({"rope_scaling": RopeScaling(**YARN, truncate=False)}, (), "truncate is False, but llama.cpp's is always True"),
    ({"qkv_bias": True, "head_dim": 32}, ("q_proj", "k_proj", "v_proj"), "head_dim is 32, but heads of llama.cpp's"),
], ids=["smollm3", "qwen3 biases", "window", "dynamic", "qwen2 llama3", "low_freq_factor", "beta_fast", "truncate",
        "qwen2 head_dim"])  # fmt: skip
def test_refusal_to_write_what_llama_cpp_does_not_compute(changes, biased, words):
    with pytest.raises(ValueError, match=words):
        gguf_config.metadata(config_to_dict(replace(SHAPE, **changes)), set(biased))


def test_refusal_of_incomplete_configs():
    values = config_to_dict(SHAPE)
    for name in ("rms_norm_eps", "max_position_embeddings", "hidden_size"):
        with pytest.raises(ValueError, match=f"the config has no {name}"):
            gguf_config.metadata(values | {name: None}, set())
    with pytest.raises(ValueError, match="hidden_act is 'gelu'"):
        gguf_config.metadata(values | {"hidden_act": "gelu"}, set())


@pytest.mark.parametrize("change, words", [
    (dict(general__architecture="gemma3"), "its architecture is 'gemma3'; read here are llama and qwen2"),
    (dict(general__architecture=None), "its architecture is 'None'"),
    (dict(llama__expert_count=8), "a mixture of experts"),
    (dict(llama__block_count=None), "the metadata lacks llama.block_count"),
    (dict(llama__block_count=0), "llama.block_count is 0; it must be at least 1"),
    (dict(llama__block_count="two"), "llama.block_count is a str, but should be a int"),
    (dict(llama__rope__dimension_count=8), "llama.rope.dimension_count is 8, but queries and keys are 16 wide"),
    (dict(llama__attention__head_count_kv=Array(4, [2, 2])), "llama.attention.head_count_kv is a ndarray"),
], ids=lambda value: next(iter(value)) if isinstance(value, dict) else "")  # fmt: skip
def test_refusal_of_metadata(tmp_path, change, words):
    file = open_gguf(save(tmp_path / "model.gguf", changed(**change)))
    with pytest.raises(ValueError, match=f"model.gguf.*{words}"):
        config(file)
