import pytest
import torch

from llama.checkpoint import load_model, save_model
from llama.config import preset
from llama.methods.cut import cut, spread
from tests.conftest import TEXT

TOKENS = torch.arange(3, 43).view(2, 20)


def test_worked_example_which_blocks_are_spread_evenly():
    assert spread(2, 4) == (1, 3) and spread(3, 10) == (2, 5, 9) and spread(4, 4) == (0, 1, 2, 3)


def test_two_ways_nothing_cut_is_the_model_itself_and_blocks_are_left_out(tiny_model):
    whole = cut(tiny_model, layers=(0, 1))
    assert torch.equal(whole(TOKENS), tiny_model(TOKENS))
    student = cut(tiny_model, layers=(1,))
    del tiny_model.layers[0]
    torch.testing.assert_close(student(TOKENS), tiny_model(TOKENS))


def test_property_what_never_mattered_can_be_cut_off(tiny_model):
    """Dimensions, features and groups that are 0: without them the model says the same, but for the norms' mean."""
    config, K = tiny_model.config, tiny_model.config.head_dim
    D, F = config.hidden_size, config.intermediate_size
    d, f = torch.arange(0, D, 2), torch.arange(0, F, 2)             # every second is silent
    with torch.no_grad():
        tiny_model.embed_tokens.weight[:, d] = 0
        for layer in tiny_model.layers:
            layer.self_attn.o_proj.weight[d] = 0
            layer.mlp.down_proj.weight[d] = 0
            layer.mlp.up_proj.weight[f] = 0
            layer.self_attn.v_proj.weight[K:] = 0                   # the groups behind the first
    student = cut(tiny_model, hidden=D - len(d), intermediate=F - len(f), groups=1)
    for norm in (each for name, each in student.named_modules() if name.endswith("norm")):
        norm.weight.data *= 2**0.5                                  # the mean is over half as many numbers,
        norm.eps = norm.eps * 2                                     # all of them there
    torch.testing.assert_close(student(TOKENS), tiny_model(TOKENS), rtol=1e-4, atol=1e-5)
    assert student.config.num_attention_heads == config.num_attention_heads // config.num_key_value_heads


def test_two_ways_a_student_is_saved_and_loaded(tiny_model, tmp_path):
    student = cut(tiny_model, layers=(1,), hidden=16, intermediate=24)
    save_model(student, tmp_path / "student")
    loaded = load_model(tmp_path / "student")
    assert torch.equal(loaded(TOKENS), student(TOKENS)) and loaded.tokenizer.encode(TEXT[0])
    assert loaded.config.head_dim == preset("test").head_dim


def test_refusals_of_sizes_that_the_model_does_not_have(tiny_model):
    with pytest.raises(ValueError, match="hidden_size 4096 is not between 1 and the model's 32; a student is cut"):
        cut(tiny_model, hidden=4096)
    with pytest.raises(ValueError, match="the model has blocks 0 to 1, and 2 is asked for"):
        cut(tiny_model, layers=(0, 2))
