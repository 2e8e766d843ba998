import copy

import pytest
import torch

from llama import trainer
from llama.checkpoint import PretrainedLlama
from llama.config import preset
from llama.fast import custom_autograd
from llama.fast.numbers import relative_difference
from llama.lora import LoRAConfig, add_lora
from llama.masks import additive_mask, bidirectional_mask, document_mask
from llama.model import apply_rotary, naive_attention, rotary_tables
from llama.quantize import quantize
from llama.tasks.classification import ClassificationTask
from llama.training.activation_checkpointing import checkpoint_activations, checkpoint_mlps
from llama.training.optimizer import TrainConfig


def _gradients(model, tokens, **options):
    model.zero_grad()
    hidden = model.hidden(tokens, **options)
    (hidden.float() * torch.linspace(-1, 1, hidden.numel()).view_as(hidden)).sum().backward()
    return hidden.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def _same(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)
    assert found[1].keys() == expected[1].keys() and expected[1]
    for name, gradient in expected[1].items():
        assert relative_difference(found[1][name], gradient) < 1e-4, name  # near 0, single elements are rounding


def _lora(model):
    add_lora(model, LoRAConfig(rank=2))
    _draw(model)


def _draw(model):
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)


@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "LoRA"])
def test_two_ways_gradients_equal_autograd(lora, tiny_model, monkeypatch):
    monkeypatch.setattr(custom_autograd, "QUERY_BLOCK", 4)                         # several pieces of queries
    if lora:
        _lora(tiny_model)
    tokens = torch.arange(22).view(2, 11)
    expected = _gradients(tiny_model, tokens)
    custom_autograd.use_custom_autograd(tiny_model)
    assert tiny_model.layers[0].self_attn.takes_documents
    _same(_gradients(tiny_model, tokens), expected)
    custom_autograd.restore_autograd(tiny_model)
    assert not tiny_model.layers[0].self_attn.takes_documents
    assert not any(type(module) in custom_autograd.PLAIN for module in tiny_model.modules())


def test_property_a_graph_can_be_gone_through_twice(tiny_model):
    """As adversarial training does: the backward pass changes nothing of what was kept."""
    custom_autograd.use_custom_autograd(tiny_model)
    total = tiny_model.hidden(torch.arange(22).view(2, 11)).square().sum()
    once, twice = (torch.autograd.grad(total, list(tiny_model.layers.parameters()), retain_graph=True)
                   for _ in range(2))
    assert all(torch.equal(first, second) for first, second in zip(once, twice, strict=True))


def test_two_ways_documents_equal_their_mask(tiny_model):
    tokens, lengths = torch.arange(12)[None], (5, 1, 6)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    expected = _gradients(tiny_model, tokens, positions=positions, mask=document_mask(torch.tensor(lengths)))
    custom_autograd.use_custom_autograd(tiny_model)
    _same(_gradients(tiny_model, tokens, positions=positions, mask=custom_autograd.Documents(lengths)), expected)


@pytest.mark.parametrize("G", [1, 2, 4])
def test_two_ways_attention_both_ways_equals_its_definition(G, monkeypatch):
    """Rows of several lengths, their queries in several pieces, keys shared by one, two or four queries."""
    monkeypatch.setattr(custom_autograd, "QUERY_BLOCK", 4)
    torch.manual_seed(0)
    (B, T, H, K), lengths = (3, 9, 4, 8), torch.tensor([9, 2, 5])
    cos, sin = rotary_tables(torch.arange(T), preset("test", head_dim=K))
    mask = additive_mask(bidirectional_mask(lengths, T), torch.float32)
    parts = [torch.randn(B, T, heads, K, requires_grad=True) for heads in (H, G, G)]
    real = (torch.arange(T) < lengths[:, None])[..., None, None]

    def defined(q, k, v, *_):
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        return naive_attention(apply_rotary(q, cos, sin), apply_rotary(k, cos, sin), v, mask).transpose(1, 2)

    found, expected = ((y := attend(*parts, cos, sin, mask) * real,
                        *torch.autograd.grad((y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum(), parts))
                       for attend in (custom_autograd.fused_attention, defined))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_two_ways_in_bfloat16_a_model_that_looks_both_ways_learns_by_them(tiny_model, monkeypatch):
    """Where float32 leaves it to torch, which is faster there."""
    tokens, mask = torch.arange(22).view(2, 11), bidirectional_mask(torch.tensor([11, 6]), 11)
    real = (torch.arange(11) < torch.tensor([11, 6])[:, None])[..., None]
    taken = []

    def attend(*parts):
        taken.append(parts)
        return custom_autograd.fused_attention(*parts)

    monkeypatch.setattr(custom_autograd.FusedAttention, "quick_attend", staticmethod(attend))
    for dtype, layers in ((torch.float32, 0), (torch.bfloat16, len(tiny_model.layers))):
        model, gradients = copy.deepcopy(tiny_model).to(dtype), []
        for swap in (custom_autograd.restore_autograd, custom_autograd.use_custom_autograd):
            taken.clear()
            swap(model)
            model.zero_grad()
            states = model.hidden(tokens, mask=mask).float() * real
            (states * torch.linspace(-1, 1, states.numel()).view_as(states)).sum().backward()
            gradients.append(torch.cat([p.grad.float().flatten() for p in model.layers.parameters()]))
        assert len(taken) == layers
        assert relative_difference(*gradients) < (1e-4 if dtype == torch.float32 else 0.02)


@pytest.mark.parametrize("recompute", [checkpoint_activations, checkpoint_mlps])
def test_two_ways_recomputed_activations_twice_asked_for_equal_kept_ones(recompute, tiny_model):
    _lora(tiny_model)
    tokens = torch.arange(10)[None]
    expected = _gradients(tiny_model, tokens)
    custom_autograd.use_custom_autograd(tiny_model)
    for _ in range(2):                                              # asked for twice, wrapped once
        recompute(tiny_model)
    runs = []
    tiny_model.layers[0].mlp.gate_proj.register_forward_hook(lambda *_: runs.append(1))
    _same(_gradients(tiny_model, tokens), expected)
    assert len(runs) == 2


@pytest.mark.parametrize("mask", [bidirectional_mask(torch.tensor([9, 5]), 9), None], ids=["full", "causal"])
@pytest.mark.parametrize("how", [{"dropout": 0.5}, {"dora": True}, {"rank": 3, "rslora": True}], ids=str)
def test_two_ways_every_kind_of_adapter_and_mask(how, mask, tiny_model):
    """What custom_autograd.py does not know takes the readable way: dropout, DoRA, masks that are not causal."""
    add_lora(tiny_model, LoRAConfig(**{"rank": 2} | how))
    torch.manual_seed(1)
    _draw(tiny_model)
    tokens, results = torch.arange(18).view(2, 9), []
    for swap in (custom_autograd.restore_autograd, custom_autograd.use_custom_autograd):
        swap(tiny_model)
        torch.manual_seed(0)
        results.append(_gradients(tiny_model.train(), tokens, mask=mask))
    _same(results[1], results[0])


@pytest.mark.parametrize("bits", [8, 4])
def test_two_ways_lora_over_a_base_of_few_bits(bits):
    torch.manual_seed(0)
    model = PretrainedLlama(preset("test", hidden_size=64, intermediate_size=96, qkv_bias=True))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    quantize(model, bits=bits)
    _lora(model)
    tokens = torch.arange(18).view(2, 9)
    expected = _gradients(model, tokens)
    custom_autograd.use_custom_autograd(model)
    assert any(type(module) is custom_autograd.FusedLoRALinear for module in model.modules())
    _same(_gradients(model, tokens), expected)


def test_property_gradients_in_bfloat16_are_as_near_to_float32_as_autograd_s():
    torch.manual_seed(0)
    model, errors = PretrainedLlama(preset("test", hidden_size=64, num_attention_heads=4)), []
    tokens = torch.randint(0, 64, (2, 60))
    exact = _gradients(model, tokens)[1]
    model.to(torch.bfloat16)
    for swap in (custom_autograd.restore_autograd, custom_autograd.use_custom_autograd):
        swap(model)
        found = _gradients(model, tokens)[1]
        errors.append(sum((found[name].float() - exact[name]).square().sum() / exact[name].square().sum()
                          for name in exact if "layers" in name))
    assert errors[1] < 1.3 * errors[0]


@pytest.mark.parametrize("task", [ClassificationTask(), ClassificationTask(attention="full")], ids=["causal", "full"])
def test_two_ways_a_task_with_labels_learns_the_same(task, tiny_model, monkeypatch):
    examples = [{"text": text, "label": "ab"[n % 2]} for n, text in enumerate(("a b c d", "e", "f g", "h i j"))]
    start, losses = copy.deepcopy(tiny_model.state_dict()), []
    for swap in (custom_autograd.use_custom_autograd, lambda model: None):
        model = PretrainedLlama(tiny_model.config)
        model.tokenizer = tiny_model.tokenizer
        model.load_state_dict(start)
        monkeypatch.setattr(trainer, "use_custom_gradients", swap)
        run = trainer.Trainer(model, copy.deepcopy(task), examples, config=TrainConfig(batch_size=2, accumulate=2))
        losses.append([run._update([0, 1, 2, 3])[0] for _ in range(3)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4) and losses[0][2] < losses[0][0]


def test_property_without_gradients_the_readable_path_runs(tiny_model):
    tokens = torch.arange(9)[None]
    with torch.no_grad():
        expected = tiny_model(tokens)
        custom_autograd.use_custom_autograd(tiny_model)
        assert torch.equal(tiny_model(tokens), expected)


def test_property_nothing_below_the_lowest_learning_layer_is_kept(tiny_model):
    """What needs no gradient: the embedding's output, and all blocks below the first that learns."""
    tiny_model.embed_tokens.requires_grad_(False)
    tiny_model.layers[0].requires_grad_(False)
    custom_autograd.use_custom_autograd(tiny_model)
    outputs = []
    for layer in tiny_model.layers:
        layer.register_forward_hook(lambda module, inputs, output: outputs.append(output.requires_grad))
    tiny_model.hidden(torch.arange(5)[None])
    assert outputs == [False, True]


def test_property_windows_and_other_devices_keep_torch_s_attention(tiny_tokenizer):
    window = PretrainedLlama(preset("test", sliding_window=4))
    custom_autograd.use_custom_autograd(window)
    assert not window.layers[0].self_attn.takes_documents
    with torch.device("meta"):
        elsewhere = PretrainedLlama(preset("test"))
    custom_autograd.use_custom_autograd(elsewhere)
    assert not any(type(module) in custom_autograd.PLAIN for module in elsewhere.modules())
