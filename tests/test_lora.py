import pytest
import torch
from torch import nn

from llama.checkpoint import PretrainedLlama, load_model, save_model
from llama.config import preset
from llama.lora import LoRAConfig, add_lora, merge_lora, remove_lora, save_adapter, set_active, swap, unmerge_lora
from llama.training.activation_checkpointing import checkpoint_activations

TOKENS = torch.arange(24).reshape(2, 12) * 5 % 512
TIED = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
DORA = LoRAConfig(rank=2, dora=True)
WHOLE = LoRAConfig(rank=2, modules_to_save=("embed_tokens", "lm_head"))


def build(*, tied=True, dtype=torch.float32, seed=0, **changes):
    torch.manual_seed(seed)
    return PretrainedLlama(preset("test", tie_word_embeddings=tied, **changes)).to(dtype).eval()


@torch.no_grad()
def stir(model, seed=1):
    """Move what learns, so that an adapter is more than zeros."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter += torch.randn(parameter.shape, generator=generator) * 0.05
    return model


@torch.no_grad()
def logits(model):
    return model(TOKENS)


def bits(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters(remove_duplicate=False)}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


# ---- what it computes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [LoRAConfig(), DORA, WHOLE, LoRAConfig(targets=("lm_head",))],
                         ids=["", "dora", "whole", "head"])
@TIED
def test_property_a_new_adapter_changes_nothing(tied, config, dtype):
    model = build(tied=tied, dtype=dtype)
    before = logits(model)
    add_lora(model, config)
    assert torch.equal(logits(model), before) and model.dtype == dtype
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters() if parameter.requires_grad)


def test_property_dropout_acts_on_the_adapter_while_learning_alone():
    model = build()
    add_lora(model, LoRAConfig(rank=2, dropout=0.5))
    assert not any(module.training for module in model.modules())   # an adapter comes on as its model is
    before = logits(model.train())
    assert torch.equal(before, logits(model))                       # B is zero: dropout has nothing to drop
    stir(model)
    assert not torch.equal(logits(model), logits(model))
    assert torch.equal(logits(model.eval()), logits(model))


def test_property_gradients_reach_the_adapter_alone():
    model = build()
    add_lora(model, LoRAConfig(rank=2, targets=("q_proj", "self_attn.v_proj", "layers.1.mlp.up_proj")))
    stir(model)(TOKENS).square().mean().backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert learned == {f"{path}.adapters.default.lora_{letter}" for letter in "AB" for path in (
        "layers.0.self_attn.q_proj", "layers.0.self_attn.v_proj", "layers.1.self_attn.q_proj",
        "layers.1.self_attn.v_proj", "layers.1.mlp.up_proj")}


@pytest.mark.parametrize("config", [LoRAConfig(rank=2), WHOLE], ids=["frozen embeddings", "learned embeddings"])
def test_two_ways_recomputed_activations_give_equal_gradients(config):
    gradients = []
    for recompute in (False, True):
        model = build()
        add_lora(model, config, generator=torch.Generator().manual_seed(0))
        stir(model)
        if recompute:
            checkpoint_activations(model)
        model(TOKENS).square().mean().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()
                          if parameter.requires_grad})
    assert all(gradient is not None and gradient.any() for gradient in gradients[0].values())
    assert same(*gradients)


def test_property_an_adapter_of_a_bfloat16_base_learns_in_float32():
    model = build(dtype=torch.bfloat16)
    add_lora(model, WHOLE)
    frozen = {name: value for name, value in bits(model).items() if "adapters" not in name}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4, weight_decay=0.1)
    before = bits(model)
    for _ in range(2):                                              # A's gradient is zero while B is
        optimizer.zero_grad()
        assert model(TOKENS).dtype == torch.bfloat16
        model(TOKENS).float().logsumexp(-1).mean().backward()
        optimizer.step()
    after = bits(model)
    assert all(torch.equal(value, after[name]) for name, value in frozen.items())
    assert all(not torch.equal(before[name], after[name]) for name in after.keys() - frozen.keys())


# ---- several adapters ------------------------------------------------------------------------------------------------


def test_two_ways_stacked_adapters_equal_the_sum_of_their_deltas():
    model, plain = build(), build()
    add_lora(model, LoRAConfig(rank=2))
    stir(model)
    add_lora(model, LoRAConfig(rank=3, alpha=5.0, targets=("q_proj", "lm_head")), name="b")
    stir(model)
    plain.lm_head.weight = nn.Parameter(plain.lm_head.weight.clone())
    for path, wrapper in swap.wrappers(model).items():
        parts = wrapper.adapters.values()
        plain.get_submodule(path).weight.data += sum(part.delta_weight(wrapper.weight) for part in parts)
    torch.testing.assert_close(logits(model), logits(plain), rtol=1e-5, atol=1e-5)


def test_property_of_stacked_adapters_the_new_one_alone_learns():
    model = build()
    add_lora(model, LoRAConfig(rank=2), name="a")
    add_lora(model, LoRAConfig(rank=2), name="b")
    assert swap.adapter_names(model, active=True) == ["a", "b"]
    stir(model)(TOKENS).square().mean().backward()
    learned = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert len(learned) == 2 * 7 * 2 and all(".b." in name for name in learned)
    set_active(model, ["a", "b"])
    assert sum(parameter.requires_grad for parameter in model.parameters()) == 2 * len(learned)


def test_property_adapters_are_swapped_and_taken_off():
    model = build()
    base, weights = logits(model), bits(model)
    add_lora(model, WHOLE, name="a")
    a = logits(stir(model))
    set_active(model, [])
    assert torch.equal(logits(model), base)
    add_lora(model, WHOLE, name="b")
    b = logits(stir(model, seed=2))
    assert swap.adapter_names(model) == ["a", "b"] and swap.adapter_names(model, active=True) == ["b"]
    set_active(model, "a")
    assert torch.equal(logits(model), a)
    learned = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert learned and all(".a" in name for name in learned)
    set_active(model, ["b"])
    assert torch.equal(logits(model), b)
    remove_lora(model, "b")
    assert torch.equal(logits(model), base) and swap.has_lora(model)
    remove_lora(model, "a")
    assert same(bits(model), weights) and not swap.has_lora(model)
    assert model.lm_head.weight is model.embed_tokens.weight


# ---- merging ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [LoRAConfig(), DORA, WHOLE, LoRAConfig(targets=("q_proj", "lm_head"))],
                         ids=["layers", "dora", "whole", "head"])
@TIED
def test_two_ways_merged_equals_adapter_and_unmerge_restores(tied, config, tmp_path, caplog):
    model = build(tied=tied)
    weights, base = bits(model), logits(model)
    add_lora(model, config)
    adapted, learning = logits(stir(model)), bits(model)
    assert (adapted - base).abs().max() > 0.01
    merge_lora(model)
    torch.testing.assert_close(logits(model), adapted, rtol=1e-5, atol=1e-5)
    assert bits(model).keys() == weights.keys() and not swap.has_lora(model)
    apart = tied and "lm_head" in config.targets
    assert ("no longer tied" in caplog.text) == apart
    assert (model.lm_head.weight is model.embed_tokens.weight) == (tied and not apart)
    assert model.config.tie_word_embeddings == (tied and not apart)
    save_model(model, tmp_path / "merged")
    assert torch.equal(logits(load_model(tmp_path / "merged")), logits(model))
    unmerge_lora(model)
    assert same(bits(model), learning) and torch.equal(logits(model), adapted)
    remove_lora(model, "default")
    assert same(bits(model), weights) and model.config.tie_word_embeddings == tied
    assert (model.lm_head.weight is model.embed_tokens.weight) == tied


def test_property_unmerge_restores_bfloat16_bit_for_bit():
    model = build(dtype=torch.bfloat16)
    add_lora(model, LoRAConfig())
    before = bits(stir(model))
    merge_lora(model)
    assert model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    unmerge_lora(model)
    assert same(bits(model), before)


def test_worked_example_merging_for_good_keeps_nothing():
    model = build()
    add_lora(model, LoRAConfig())
    adapted = logits(stir(model))
    merge_lora(model, keep_undo=False)
    torch.testing.assert_close(logits(model), adapted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="nothing to unmerge"):
        unmerge_lora(model)
    add_lora(model, LoRAConfig())                                   # and the next adapter goes on top


def test_refusal_of_merging_in_the_wrong_order():
    model = build()
    with pytest.raises(ValueError, match="no active adapter to merge"):
        merge_lora(model)
    add_lora(model, LoRAConfig())
    merge_lora(model)
    with pytest.raises(ValueError, match="unmerge_lora can still take back"):
        add_lora(model, LoRAConfig())


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_refusal_unknown_targets_with_the_nearest_names():
    for targets, words in [(("q_prj",), "'q_prj' is the name of no layer; linear layers here are q_proj"),
                           (("w1",), "linear layers here are q_proj, k_proj, v_proj, o_proj"),
                           (("q_proj", "embed_tokens"), "'embed_tokens' is no linear layer")]:
        model = build()
        with pytest.raises(ValueError, match=words):
            add_lora(model, LoRAConfig(targets=targets))
        assert not swap.has_lora(model)
    with pytest.raises(ValueError, match="modules_to_save names 'norm'"):
        add_lora(model, LoRAConfig(modules_to_save=("norm",)))


def test_refusal_names_and_combinations_of_adapters():
    model = build()
    with pytest.raises(ValueError, match="lm_head is a target and learned whole at once .*tied"):
        add_lora(model, LoRAConfig(targets=("lm_head",), modules_to_save=("embed_tokens",)))
    add_lora(model, WHOLE, name="a")
    for name, config, words in [
        ("a", WHOLE, "has an adapter 'a' already"),
        ("x.y", WHOLE, "cannot be called 'x.y'"),
        ("keys", WHOLE, "cannot be called 'keys'"),
        ("b", WHOLE, "embed_tokens is replaced by adapter 'a'"),
        ("b", LoRAConfig(targets=("lm_head",)), "'a' learns it in another way"),
    ]:
        with pytest.raises(ValueError, match=words):
            add_lora(model, config, name=name)
    set_active(model, [])
    add_lora(model, WHOLE, name="b")
    with pytest.raises(ValueError, match="adapters a and b each replace embed_tokens"):
        set_active(model, ["a", "b"])
    for door in (set_active, remove_lora, lambda model, name: save_adapter(model, "nowhere", name=name)):
        with pytest.raises(ValueError, match="no adapter 'c'; it has a, b"):
            door(model, "c")


@pytest.mark.parametrize("field, value", [("rank", 0), ("rank", 1.5), ("alpha", 0.0), ("alpha", float("nan")),
                                          ("dropout", 1.0), ("dropout", -0.1), ("targets", ()), ("targets", ("",))])
def test_refusal_settings_out_of_range(field, value):
    with pytest.raises(ValueError, match=field):
        LoRAConfig(**{field: value})


def test_property_what_is_tied_is_said(caplog):
    add_lora(build(), LoRAConfig(modules_to_save=("embed_tokens",)))
    assert "head and embeddings are tied: both are learned" in caplog.text
