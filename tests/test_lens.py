"""Attention, logit lens and contributions: each against the model's own numbers, of Llama and of its siblings."""

import importlib
import json
import sys

import pytest
import torch
from test_model import SHAPES, _close, _tokens
from test_siblings import SIBLINGS

import llama
from llama import lens
from llama.checkpoint import PretrainedLlama
from llama.fast.agreement import use_custom_gradients, use_fused_blocks
from llama.heads import HeadConfig, add_head
from llama.lora import LoRAConfig, add_lora
from llama.masks import sliding_window_mask
from llama.quantization.swap import quantize

T = 12


@pytest.fixture(params=[*SHAPES, *SIBLINGS])
def model(request):
    """Of every shape a tiny one, with norms that are no ones."""
    model = PretrainedLlama((SHAPES | SIBLINGS)[request.param]).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.2, generator=generator)
    return model


def outputs(model, name, ids):
    """What the modules of this name gave, and got, in each layer."""
    given, got = [], []

    def keep(module, inputs, output):
        got.append(inputs[0][0])
        given.append(output[0])

    hooks = [layer.get_submodule(name).register_forward_hook(keep) for layer in model.layers]
    with torch.no_grad():
        model(ids[None])
    for hook in hooks:
        hook.remove()
    return given, got


def test_two_ways_weights_times_values_are_what_attention_gives(model):
    ids = _tokens(1, T)[0]
    weights = lens.attention(model, ids)
    L, H, G = model.config.num_hidden_layers, model.config.num_attention_heads, model.config.num_key_value_heads
    assert weights.shape == (L, H, T, T) and weights.dtype == torch.float32
    values, _ = outputs(model, "self_attn.v_proj", ids)
    _, mixed = outputs(model, "self_attn.o_proj", ids)
    for layer in range(L):
        v = values[layer].view(T, G, -1).repeat_interleave(H // G, dim=1)           # (T, H, K)
        _close(torch.einsum("hts,shk->thk", weights[layer], v).flatten(1), mixed[layer])


def test_property_weights_sum_to_1_and_nobody_sees_what_is_behind_or_beyond_a_window(model):
    weights = lens.attention(model, _tokens(1, T)[0])
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
    seen = sliding_window_mask(T, T, model.config.sliding_window or T)
    assert not weights[..., ~seen].any() and weights[..., seen].all()


def test_two_ways_the_last_layers_lens_is_the_model(model, tiny_tokenizer):
    model.tokenizer = tiny_tokenizer
    ids = _tokens(1, T)[0]
    said = lens.logit_lens(model, ids.tolist(), top=3)
    assert (len(said), {len(layer) for layer in said}) == (model.config.num_hidden_layers, {T})
    with torch.no_grad():
        best = model(ids[None])[0].softmax(-1).topk(3)
    for t in range(T):
        pieces, chances = zip(*said[-1][t], strict=True)
        assert list(pieces) == [lens.piece(model, i) for i in best.indices[t].tolist()]
        assert list(chances) == pytest.approx(best.values[t].tolist(), rel=1e-4)
    assert said[0] != said[-1]


def test_two_ways_the_first_layers_lens_is_a_model_of_one_layer(tiny_model):
    ids = _tokens(1, T)[0] % tiny_model.tokenizer.vocab_size
    said = lens.logit_lens(tiny_model, ids, top=1)
    del tiny_model.layers[1:]
    assert [best[0][0] for best in said[0]] == [lens.piece(tiny_model, i) for i in
                                                tiny_model(ids[None])[0].argmax(-1).tolist()]


@pytest.mark.parametrize("position, token", [(-1, None), (4, 7)])
def test_two_ways_contributions_sum_to_the_models_own_logit(model, position, token):
    ids = _tokens(1, T)[0]
    found = lens.contributions(model, ids, position, token)
    with torch.no_grad():
        logits = model(ids[None])[0, position]
    assert found.token == (int(logits.argmax()) if token is None else token) and found.position == position % T
    assert found.logit == pytest.approx(float(logits[found.token]), abs=1e-4 * float(logits.abs().max()))
    assert float(found.values.sum()) == pytest.approx(found.logit, abs=1e-4 * float(logits.abs().max()))


def test_two_ways_contributions_are_the_outputs_of_the_parts(model):
    """Each part's output as it is added, through the last norm with its scale held, times the head's row."""
    ids, config = _tokens(1, T)[0], model.config
    found = lens.contributions(model, ids, 5, 3)
    parts = ("post_attention_layernorm", "post_feedforward_layernorm") if config.norm_after else ("self_attn", "mlp")
    added = [outputs(model, name, ids)[0] for name in parts]
    with torch.no_grad():
        embedded = model.embed_tokens(ids)[5] * config.embedding_multiplier
        row = [embedded, *(each[layer][5] * config.residual_multiplier for layer in range(len(model.layers))
                           for each in added)]
        scale = torch.stack(row).sum(0).square().mean().add(config.rms_norm_eps).rsqrt()
        head = model.lm_head.weight[3] * model.norm.weight * scale / config.logits_scaling
    _close(found.values, torch.stack([each @ head for each in row]))
    assert found.names[:3] == ["embedding", "layers.0.self_attn", "layers.0.mlp"] and len(found.names) == len(row)


def test_property_looking_changes_nothing(model):
    ids = _tokens(1, T)
    with torch.no_grad():
        before = model(ids)
    model.train()
    own = [dict(vars(layer.self_attn)) for layer in model.layers]
    lens.attention(model, ids[0])
    lens.contributions(model, ids[0])
    assert model.training and [dict(vars(layer.self_attn)) for layer in model.layers] == own
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.no_grad():
        assert torch.equal(model.eval()(ids), before)


@pytest.mark.parametrize("swap", ["lora", "8 bits", "4 bits", "custom gradients", "bfloat16"])
def test_two_ways_of_a_swapped_model_contributions_sum_to_its_logit(tiny_model, swap):
    ids = _tokens(1, T)[0] % tiny_model.tokenizer.vocab_size
    if swap == "lora":
        add_lora(tiny_model, LoRAConfig(rank=2, targets=("q_proj", "down_proj", "lm_head")))
        for name, parameter in tiny_model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, generator=torch.Generator().manual_seed(1))
    elif swap.endswith("bits"):
        quantize(tiny_model, bits=int(swap[0]), report=False)
    elif swap == "bfloat16":
        tiny_model.bfloat16()
    else:
        use_custom_gradients(tiny_model)
    with torch.no_grad():
        logits = tiny_model(ids[None])[0, -1].float()
    found = lens.contributions(tiny_model, ids)
    most = (0.02 if swap == "bfloat16" else 1e-4) * float(logits.abs().max())
    assert (float(found.values.sum()), float(logits.max())) == pytest.approx((found.logit, found.logit), abs=most)
    torch.testing.assert_close(lens.attention(tiny_model, ids).sum(-1), torch.ones(2, 4, T))


def test_property_a_head_that_sees_the_whole_text_is_shown_seeing_it(tiny_model):
    add_head(tiny_model, HeadConfig(("a", "b"), attention="full"), generator=torch.Generator().manual_seed(0))
    assert lens.attention(tiny_model, [1, 2, 3]).all()
    for call in (lens.logit_lens, lens.contributions):
        with pytest.raises(ValueError, match="has a head for a, b, so it writes no text"):
            call(tiny_model, [1, 2, 3])


def test_refusal_of_what_is_not_there(tiny_model):
    for ids, words in (([], "give the ids of one text"), ([[1, 2]], r"ids have the shape \(1, 2\)"),
                       ([1, 10**6], "ids go from 1 to 1000000"), ([-1], "ids go from -1 to -1")):
        with pytest.raises(ValueError, match=words):
            lens.attention(tiny_model, ids)
    with pytest.raises(ValueError, match="position 3 is not in a text of 3 tokens; give one of -3 to 2"):
        lens.contributions(tiny_model, [1, 2, 3], position=3)
    with pytest.raises(ValueError, match="token -1 is not in this vocabulary"):
        lens.contributions(tiny_model, [1, 2, 3], token=-1)
    use_fused_blocks(tiny_model)
    with pytest.raises(ValueError, match="this model is fused, for generating alone; unfuse it first"):
        lens.contributions(tiny_model, [1, 2, 3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_two_ways_a_fused_model_is_looked_at_as_the_readable_one(tiny_model, dtype):
    """As a server holds it. What lies between the two parts of a block is not there, so contributions are refused."""
    tiny_model.to(dtype)
    ids = _tokens(1, T)[0] % tiny_model.tokenizer.vocab_size
    before, said = lens.attention(tiny_model, ids), lens.logit_lens(tiny_model, ids, top=1)
    use_fused_blocks(tiny_model)
    assert type(tiny_model.layers[0]).__name__ == "FusedBlock"
    torch.testing.assert_close(lens.attention(tiny_model, ids), before, atol=0.02 if dtype == torch.bfloat16 else 1e-5,
                               rtol=0)
    chances = [torch.tensor([[best[0][1] for best in layer] for layer in each])
               for each in (lens.logit_lens(tiny_model, ids, top=1), said)]
    torch.testing.assert_close(*chances, atol=0.02 if dtype == torch.bfloat16 else 1e-5, rtol=0)


def test_property_the_name_is_the_module():
    assert llama.lens is importlib.import_module("llama.lens")


def test_two_ways_the_command_says_what_python_does(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_model.save("tiny")
    text = "The dog sleeps 驼"
    ids = tiny_model.tokenizer.encode(text)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["lens", "--model", "tiny", "--device", "cpu", text, *arguments])
        lens.main()
        return capsys.readouterr().out

    said = json.loads(run("--json", "--token", "dog", "--position", "1", "--top", "2"))
    found = lens.contributions(tiny_model, ids, 1, tiny_model.tokenizer.encode("dog")[0])
    assert said["ids"] == ids and said["contributions"]["values"] == pytest.approx(found.values.tolist(), abs=1e-5)
    assert said["logit_lens"][0][0][1][0] == lens.logit_lens(tiny_model, ids)[0][0][1][0]
    torch.testing.assert_close(torch.tensor(said["attention"]), lens.attention(tiny_model, ids), atol=1e-5, rtol=0)
    shown = run()
    for part in ("layers.1", "the logit itself", "where the heads of layers.1 look", "head 3"):
        assert part in shown
    assert "where head 0 of layers.0 looks from each token; a column a token" in run("--layer", "0", "--head", "0")
    for wrong, words in ((("--layer", "2"), "has the layers 0 to 1"), (("--head", "4"), "has the heads 0 to 3")):
        with pytest.raises(ValueError, match=words):
            run(*wrong)
    if importlib.util.find_spec("matplotlib"):
        run("--plot", "lens.png")
        assert (tmp_path / "lens.png").stat().st_size > 5_000


def test_worked_example_heat_and_bars(tiny_model):
    weights = torch.tensor([[[[1.0, 0, 0], [0.3, 0.7, 0], [0.1, 0.05, 0.85]]]])
    lines = lens.heat(["a", "b", "c"], weights, 2, layer=0, head=0).splitlines()
    assert [line.split("│")[1] for line in lines[1:]] == ["█  ", "▒▓ ", "░ █"]
    assert lens.heat(["a", "b", "c"], weights, 1, layer=0, head=None).splitlines()[1].split("│")[1] == "▒▓"
    found = lens.Contributions(0, 5, 1.0, ["embedding", "layers.0.self_attn"], torch.tensor([-1.0, 2.0]))
    lines = lens.bars(tiny_model, ["a"], found).splitlines()
    assert lines[1] == f"{'embedding':<20}{'-1.000':>9}  {'█' * 12:>24}│"
    assert lines[2] == f"{'layers.0.self_attn':<20}{'2.000':>9}  {'':>24}│{'█' * 24}"
