import math

import pytest
import torch
from test_trainer import EXAMPLES, _task

from llama.fast.custom_autograd import use_custom_autograd
from llama.lora import LoRAConfig, add_lora
from llama.training.nonfinite import first_module, poisoned, where_it_began
from llama.training.objective import Plain


@pytest.fixture
def looked_at(tiny_model):
    """The model, and what is said of it on one batch."""
    task = _task()
    samples = task.samples(EXAMPLES, tiny_model.tokenizer)
    batch = task.collate(list(samples)[:3])
    return tiny_model, lambda: first_module(Plain(tiny_model, task), [batch])


def test_property_nothing_is_found_and_nothing_stays_where_all_is_finite(looked_at):
    model, look = looked_at
    model.train()
    assert look() == "" and model.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("path", ["embed_tokens", "layers.0.mlp.up_proj", "layers.1.input_layernorm",
                                  "layers.1.self_attn.v_proj", "norm"])
@pytest.mark.parametrize("quick", [False, True])
def test_worked_example_a_weight_that_is_nan(looked_at, path, quick):
    model, look = looked_at
    if quick:
        use_custom_autograd(model)
    model.get_submodule(path).weight.data.fill_(math.nan)
    assert look() == f"in {path}, whose weight holds NaN or infinity"


def test_worked_example_what_bursts_between_two_modules(looked_at):
    """Values are finite, their mixture by the attention is not."""
    model, look = looked_at
    attention = model.layers[1].self_attn
    attention.attend = lambda q, k, v, mask: v.repeat_interleave(q.shape[1] // v.shape[1], 1) * math.inf
    assert look() == "between layers.1.self_attn.v_proj and layers.1.self_attn.o_proj"


def test_worked_example_numbers_too_large_for_float16(looked_at):
    model, look = looked_at
    model.half()
    model.layers[1].mlp.down_proj.weight.data.fill_(6e4)
    model.layers[1].mlp.up_proj.weight.data.mul_(1e3)
    assert look() == "in layers.1.mlp.down_proj"                    # its own numbers are finite


def test_worked_example_under_an_adapter_and_in_the_head(looked_at):
    model, look = looked_at
    add_lora(model, LoRAConfig(rank=2, targets=("down_proj",)))
    model.layers[1].mlp.down_proj.adapters["default"].lora_B.data.fill_(math.inf)
    assert look().startswith("in layers.1.mlp.down_proj")
    model.layers[1].mlp.down_proj.adapters["default"].lora_B.data.zero_()
    model.lm_head.weight = torch.nn.Parameter(torch.full_like(model.lm_head.weight, 3e38))
    assert look() == "in lm_head"                                   # of finite states and weights


def test_worked_example_the_first_gradient_of_the_backward_pass(tiny_model):
    learned = dict(tiny_model.named_parameters())
    for parameter in learned.values():
        parameter.grad = torch.zeros_like(parameter)
    for name in ("layers.0.mlp.up_proj.weight", "layers.1.mlp.gate_proj.weight", "embed_tokens.weight"):
        learned[name].grad[0, 0] = math.inf
    assert where_it_began(tiny_model, learned, [], 1.5).endswith("is that of layers.1.mlp.gate_proj.weight")


def test_worked_example_what_was_learned_is_poisoned(tiny_model):
    learned = {name: parameter.detach() for name, parameter in tiny_model.named_parameters()}
    assert poisoned(learned) == ""
    learned["norm.weight"][3] = -math.inf
    assert poisoned(learned) == "norm.weight"
