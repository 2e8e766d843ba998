import dataclasses
import itertools
import math

import pytest
import torch

from llama import reference
from llama.cache import KVCache
from llama.config import RopeScaling, preset
from llama.masks import additive_mask, causal_mask, padding_mask, sliding_window_mask
from llama.model import Llama, RMSNorm, apply_rotary, attention, naive_attention, rotary_frequencies, rotary_tables
from llama.training.activation_checkpointing import checkpoint_activations

SHAPES = {
    "plain": preset("test"),
    "multi-head": preset("test", tie_word_embeddings=False, num_key_value_heads=4),
    "multi-query": preset("test", num_key_value_heads=1),
    "wide heads": preset("test", head_dim=16),
    "attention bias": preset("test", attention_bias=True),
    "mlp bias": preset("test", mlp_bias=True),
    "qkv bias": preset("test", qkv_bias=True),
    "window": preset("test", sliding_window=7),
    "qkv bias and window": preset("test", qkv_bias=True, sliding_window=5),
}
SCALINGS = {
    "linear": RopeScaling("linear", 2.0),
    "ntk": RopeScaling("ntk", 4.0),
    "dynamic": RopeScaling("dynamic", 3.0),
    "llama3": RopeScaling("llama3", 8.0, original_max_position_embeddings=64),
    "yarn": RopeScaling("yarn", 4.0, original_max_position_embeddings=256),
    "yarn, all options": RopeScaling("yarn", 8.0, original_max_position_embeddings=512, beta_fast=20.0, beta_slow=2.0,
                                     mscale=1.0, mscale_all_dim=0.7, truncate=False),
    "yarn, attention factor": RopeScaling("yarn", 4.0, original_max_position_embeddings=256, attention_factor=1.7),
}
# Trained on 24 positions: what comes after is where scalings differ from each other and from the past.
SCALED = {name: preset("test", head_dim=16, max_position_embeddings=24 if name == "dynamic" else 256,
                       rope_scaling=scaling) for name, scaling in SCALINGS.items()}
VARIANTS = SHAPES | SCALED | {"dynamic in a window": dataclasses.replace(SCALED["dynamic"], sliding_window=9)}


def each(configs):
    return pytest.mark.parametrize("config", configs.values(), ids=configs.keys())


def _model(config=SHAPES["plain"]):
    """Weights so large that attention looks somewhere, gains and biases away from where they start."""
    torch.manual_seed(0)
    model = Llama(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif name.startswith("layers"):
            torch.nn.init.normal_(parameter, 0.0, 0.2)
    return model


def _cache(model, B=1, max_length=48):
    return KVCache(model.config, B, max_length, dtype=torch.float32, device="cpu")


def _tokens(B, T):
    return torch.randint(0, 512, (B, T), generator=torch.Generator().manual_seed(1))


def _close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item())


@each(VARIANTS)
def test_two_ways_whole_model_equals_reference(config):
    model, tokens = _model(config), _tokens(1, 60)
    with torch.no_grad():
        _close(model(tokens)[0], reference.logits(config, model.state_dict().__getitem__, tokens[0]))


@each({name: SCALED[name] for name in ("ntk", "dynamic", "llama3", "yarn")})
def test_two_ways_model_equals_reference_far_beyond_the_trained_length(config):
    """Position 3,000, in float64 there: angles of float32 are good to four digits that far."""
    trained = 1024 if config.rope_stable_length < config.context else 4096
    config = dataclasses.replace(config, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1,
                                 max_position_embeddings=trained)
    model, tokens = _model(config), _tokens(1, 3000)
    wide = {name: tensor.double() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        expected = reference.logits(config, wide.__getitem__, tokens[0]).float()
        torch.testing.assert_close(model(tokens)[0], expected, rtol=0, atol=1e-3 * expected.abs().max().item())


def test_property_every_variant_computes_something_of_its_own():
    """Otherwise the comparisons above would prove little."""
    tokens = _tokens(1, 60)
    with torch.no_grad():
        last = {name: _model(config)(tokens)[0, -1] for name, config in (SHAPES | SCALED).items() if name != "plain"}
        plain = {K: _model(preset("test", head_dim=K))(tokens)[0, -1] for K in (8, 16)}
    for name, logits in last.items():
        if name != "wide heads":
            assert all((logits - other).abs().max() > 1e-2 for other in plain.values()), name
    assert all((a - b).abs().max() > 1e-3 for a, b in itertools.combinations(last.values(), 2))


def test_property_the_references_other_layout_is_another_model_for_the_same_weights():
    model, tokens = _model(), _tokens(1, 20)
    weights = dict(model.state_dict())
    halves = reference.logits(model.config, weights.__getitem__, tokens[0])
    neighbours = reference.logits(model.config, weights.__getitem__, tokens[0], pairs="neighbours")
    assert (halves - neighbours)[4:].abs().max() > 1e-2
    for name, weight in weights.items():                            # rows in the order that Meta's files have
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weights[name] = weight.unflatten(0, (-1, 2, 4)).transpose(1, 2).reshape(weight.shape)
    _close(reference.logits(model.config, weights.__getitem__, tokens[0], pairs="neighbours"), halves)


@each(VARIANTS)
def test_property_every_parameter_gets_a_gradient(config):
    model = _model(config)
    model(_tokens(2, 30)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().max() > 0, name


def test_worked_example_rms_norm():
    norm = RMSNorm(2, eps=0.0)
    norm.weight.data = torch.tensor([1.0, 2.0])
    rms = math.sqrt((9 + 16) / 2)
    _close(norm(torch.tensor([3.0, 4.0])), torch.tensor([3 / rms, 2 * 4 / rms]))


def test_property_rms_norm_works_inside_in_float32():
    norm, x = RMSNorm(64, 1e-5), torch.full((1, 64), 300.0, dtype=torch.float16)     # 300² overflows float16
    torch.testing.assert_close(norm.to(torch.float16)(x), torch.ones_like(x))


def test_worked_example_rotary_turns_the_pair_i_and_i_plus_half_by_position_times_frequency():
    config = preset("test", hidden_size=16, num_attention_heads=4, rope_theta=100.0)               # K = 4: θ_i = 1, 0.1
    cos, sin = rotary_tables(torch.tensor([3]), config)
    turned = apply_rotary(torch.tensor([[[[1.0, 0.0, 0.0, 1.0]]]]), cos, sin)
    _close(turned, torch.tensor([[[[math.cos(3), -math.sin(0.3), math.sin(3), math.cos(0.3)]]]]))


def test_property_rotary_keeps_norms_and_scores_depend_on_distance_alone():
    config, x = SHAPES["plain"], torch.randn(1, 2, 50, 8)
    turned = apply_rotary(x, *rotary_tables(torch.arange(50), config))
    _close(turned.norm(dim=-1), x.norm(dim=-1))
    q, k = torch.randn(2, 1, 1, 1, 8)
    def score(m, n):
        at = [apply_rotary(v, *rotary_tables(torch.tensor([p]), config)) for v, p in ((q, m), (k, n))]
        return (at[0] * at[1]).sum()
    _close(score(7, 3), score(107, 103))


def test_worked_example_llama3_scaling_keeps_short_waves_and_divides_long_ones():
    config = preset("llama-3.2-1b")
    plain = rotary_frequencies(dataclasses.replace(config, rope_scaling=None))
    scaled = rotary_frequencies(config)
    wavelength = 2 * math.pi / plain
    assert torch.equal(scaled[wavelength < 8192 / 4], plain[wavelength < 8192 / 4])
    _close(scaled[wavelength > 8192], plain[wavelength > 8192] / 32)


def test_worked_example_yarn_by_hand():
    """K = 8, θ = 10,000: waves of 2π · 10^i positions. In 1,000 positions pair i turns 159 / 10^i times, so 32 turns
    are at i = 0.70 and 1 turn at i = 2.20: with whole pairs the ramp is 0, 1/3, 2/3, 1."""
    config = preset("test", rope_scaling=RopeScaling("yarn", 4.0, original_max_position_embeddings=1000))
    _close(rotary_frequencies(config) * torch.tensor([1, 1e1, 1e2, 1e3]),
           torch.tensor([1, 2 / 3 + 1 / 12, 1 / 3 + 2 / 12, 1 / 4]))
    cos, _ = rotary_tables(torch.tensor([0]), config)
    _close(cos, torch.full((1, 8), 0.1 * math.log(4) + 1))


def test_worked_example_dynamic_ntk_by_hand():
    """K = 8: a text of twice the trained length, with factor 3, has θ · (1 + 3 · 1)^(8/6); a shorter one its own θ."""
    config = preset("test", max_position_embeddings=100, rope_scaling=RopeScaling("dynamic", 3.0))
    theta = 10_000 * 4 ** (8 / 6)
    _close(rotary_frequencies(config, length=torch.tensor([200])), theta ** -torch.tensor([[0, 1 / 4, 2 / 4, 3 / 4]]))
    plain = rotary_frequencies(dataclasses.replace(config, rope_scaling=None))
    for length in (7, 100):
        assert torch.equal(rotary_frequencies(config, length=torch.tensor([length]))[0], plain)


def test_refusal_rotary_tables_of_another_length():
    with pytest.raises(ValueError, match=r"\(5, 8\) positions and features, x has \(6, 8\)"):
        apply_rotary(torch.zeros(1, 1, 6, 8), *rotary_tables(torch.arange(5), SHAPES["plain"]))


@pytest.mark.parametrize("T, S", [(1, 1), (1, 9), (9, 9), (4, 9)])
@pytest.mark.parametrize("G", [1, 2, 4])
def test_two_ways_fused_attention_equals_its_definition(T, S, G):
    q, k, v = torch.randn(2, 4, T, 8), torch.randn(2, G, S, 8), torch.randn(2, G, S, 8)
    for mask in (None, causal_mask(T, S), padding_mask(torch.tensor([0, S - T]), T, S)):
        _close(attention(q, k, v, mask), naive_attention(q, k, v, mask))
        _close(attention(q, k, v, additive_mask(mask, q.dtype)), naive_attention(q, k, v, mask))


def test_worked_example_padding_mask():
    expected = [[[1, 0, 0], [0, 1, 0], [0, 1, 1]], [[1, 0, 0], [1, 1, 0], [1, 1, 1]]]
    assert padding_mask(torch.tensor([1, 0]), 3, 3)[:, 0].int().tolist() == expected


def test_worked_example_window_mask():
    assert sliding_window_mask(4, 4, 2).int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert sliding_window_mask(1, 4, 3).int().tolist() == [[0, 1, 1, 1]]


def test_property_a_window_hides_what_lies_before_it():
    model, tokens = _model(preset("test", num_hidden_layers=1, sliding_window=4)), _tokens(1, 20)
    changed = tokens.clone()
    changed[0, 12] += 1
    with torch.no_grad():
        differ = (model(tokens) - model(changed)).abs().amax(-1)[0] > 0
    assert differ.nonzero().flatten().tolist() == [12, 13, 14, 15]


def test_property_no_token_sees_a_later_one():
    model, tokens = _model(), _tokens(1, 20)
    changed = tokens.clone()
    changed[0, 12] += 1
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :12], after[:, :12]) and not torch.equal(before[:, 12:], after[:, 12:])


@pytest.mark.parametrize("chunks", [[30], [7, 23], [1] * 30, [10, 1, 9, 10]])
@each({name: VARIANTS[name] for name in VARIANTS if "bias" not in name})
def test_two_ways_cached_in_chunks_equals_one_shot(config, chunks):
    """What a chunk ends with equals a pass over all that was said by then, also where 24 positions were trained."""
    model, tokens = _model(config), _tokens(2, 30)
    cache, said = _cache(model, 2), 0
    with torch.no_grad():
        for piece in tokens.split(chunks, dim=1):
            said += piece.shape[1]
            logits = model(piece, cache=cache)
            assert logits.shape[1] == piece.shape[1]
            if len(chunks) < 30 or said > 22:
                whole = model(tokens[:, :said])[:, -piece.shape[1] :]
                _close(logits, whole)


@each({name: VARIANTS[name] for name in ("plain", "window", "dynamic", "dynamic in a window", "yarn")})
def test_two_ways_a_left_padded_row_equals_its_single_run(config):
    if config.rope_stable_length < config.context:
        config = dataclasses.replace(config, max_position_embeddings=6)        # the long row is beyond it, others not
    model, lengths = _model(config), [5, 12, 1]
    rows = [_tokens(1, n) for n in lengths]
    padding = torch.tensor([12 - n for n in lengths])
    tokens = torch.cat([torch.nn.functional.pad(row, (12 - row.shape[1], 0), value=3) for row in rows])
    cache = _cache(model, 3, 16)
    with torch.no_grad():
        positions = (torch.arange(12) - padding[:, None]).clamp(min=0)
        prefill = model(tokens, positions=positions, mask=padding_mask(padding, 12, 12), cache=cache)
        step = model(tokens[:, -1:], positions=(12 - padding)[:, None], mask=padding_mask(padding, 1, 13), cache=cache)
        for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
            _close(prefill[i, 12 - n :], model(row)[0])
            _close(step[i, 0], model(torch.cat([row, tokens[i : i + 1, -1:]], dim=1))[0, -1])


def test_two_ways_a_truncated_cache_goes_on_like_a_new_one():
    model, tokens = _model(), _tokens(1, 20)
    cache = _cache(model)
    with torch.no_grad():
        model(_tokens(1, 33), cache=cache)
        cache.truncate(0)
        _close(model(tokens, cache=cache), model(tokens))
    assert cache.length == 20


@each({name: VARIANTS[name] for name in ("plain", "window", "dynamic", "dynamic in a window")})
def test_two_ways_a_cache_of_chosen_rows_cut_and_grown_goes_on_like_a_new_one(config):
    """Also where dynamic scaling had gone beyond the trained length and comes back to keys that were never stored."""
    model = _model(config)
    tokens, more = _tokens(3, 30), _tokens(3, 45)[:, 30:]
    padding = torch.tensor([2, 4, 2])
    with torch.no_grad():
        cache = _cache(model, 3, 31)
        for start, piece in ((0, tokens[:, :10]), (10, tokens[:, 10:])):
            S = start + piece.shape[1]
            positions = (torch.arange(start, S) - padding[:, None]).clamp(min=0)
            model(piece, positions=positions, mask=padding_mask(padding, piece.shape[1], S), cache=cache)
        cache.select([2, 0, 2, 0], start=2)                         # the padding of these rows is gone
        cache.truncate(20)
        cache.reserve(48)
        for piece in more[[2, 0, 2, 0]].split(1, dim=1):
            logits = model(piece, cache=cache)
        whole = torch.cat([tokens[:, 2:22], more], dim=1)[[2, 0, 2, 0]]
        _close(logits[:, -1], model(whole)[:, -1])
    assert cache.length == 35


def test_two_ways_a_pass_that_was_interrupted_does_no_harm():
    model, tokens = _model(), _tokens(1, 20)
    cache = _cache(model)
    with torch.no_grad():
        model(tokens[:, :9], cache=cache)
        hook = model.layers[1].register_forward_pre_hook(lambda *_: exec("raise KeyboardInterrupt"))
        with pytest.raises(KeyboardInterrupt):
            model(_tokens(1, 5), cache=cache)
        hook.remove()
        cache.truncate(9)
        _close(model(tokens[:, 9:], cache=cache), model(tokens)[:, 9:])


def test_two_ways_rows_asked_for_equal_rows_taken():
    model, tokens = _model(), _tokens(2, 9)
    rows = (torch.tensor([0, 1, 1]), torch.tensor([8, 2, 3]))
    with torch.no_grad():
        _close(model(tokens, rows=rows), model(tokens)[rows])
        _close(model(tokens, rows=(slice(None), -1)), model(tokens)[:, -1])


def test_two_ways_recomputed_activations_give_equal_gradients_even_with_frozen_embeddings():
    gradients = []
    for recompute in (False, True):
        model = _model()
        model.embed_tokens.weight.requires_grad_(False)
        if recompute:
            checkpoint_activations(model)
        model.hidden(_tokens(2, 9)).square().sum().backward()
        gradients.append([p.grad for name, p in model.named_parameters() if name.startswith("layers")])
    for a, b in zip(*gradients, strict=True):
        assert a.abs().sum() > 0
        _close(a, b)


def test_property_initialisation_is_smaller_where_it_adds_to_the_residual_stream():
    model = Llama(preset("tiny-1m"))
    block = model.layers[0]
    for part, std in ((block.mlp.up_proj, 0.05), (block.mlp.down_proj, 0.05 / math.sqrt(8)),
                      (block.self_attn.q_proj, 0.05), (block.self_attn.o_proj, 0.05 / math.sqrt(8))):
        assert part.weight.std().item() == pytest.approx(std, rel=0.05)
    assert model.lm_head.weight is model.embed_tokens.weight


def test_refusal_beyond_the_cache_and_beyond_the_context():
    model = _model()
    with pytest.raises(ValueError, match="room for 4 positions, 0 are used and 5 more"):
        model(_tokens(1, 5), cache=_cache(model, 1, 4))
    with pytest.raises(ValueError, match="257 positions exceed the model's context of 256"):
        model(_tokens(1, 257))
    with pytest.raises(ValueError, match="73 positions exceed the model's context of 72"):      # 3 times the trained 24
        _model(SCALED["dynamic"])(_tokens(1, 73))
