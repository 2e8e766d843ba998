import dataclasses
import math

import pytest
import torch

from llama import reference
from llama.config import RopeScaling, preset
from llama.model import (
    KVCache,
    Llama,
    RMSNorm,
    apply_rotary,
    attention,
    causal_mask,
    checkpoint_activations,
    naive_attention,
    padding_mask,
    rotary_frequencies,
    rotary_tables,
)

SCALINGS = [None, RopeScaling("linear", 2.0), RopeScaling("llama3", 8.0, original_max_position_embeddings=64)]
SHAPES = [
    preset("test"),
    preset("test", tie_word_embeddings=False, num_key_value_heads=4),
    preset("test", num_key_value_heads=1, rope_scaling=SCALINGS[1]),
    preset("test", rope_scaling=SCALINGS[2], rope_theta=5e5),
    preset("test", head_dim=16),
]


def _model(config=SHAPES[0]):
    torch.manual_seed(0)
    model = Llama(config).eval()
    for name, parameter in model.named_parameters():                # gains of exactly 1 would hide a forgotten gain
        if name.endswith("norm.weight"):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return model


def _tokens(B, T):
    return torch.randint(0, 512, (B, T), generator=torch.Generator().manual_seed(1))


def _close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize("config", SHAPES)
def test_two_ways_whole_model_equals_reference(config):
    model, tokens = _model(config), _tokens(1, 90)
    with torch.no_grad():
        _close(model(tokens)[0], reference.logits(config, model.state_dict().__getitem__, tokens[0]))


def test_worked_example_rms_norm():
    norm = RMSNorm(2, eps=0.0)
    norm.weight.data = torch.tensor([1.0, 2.0])
    rms = math.sqrt((9 + 16) / 2)
    _close(norm(torch.tensor([3.0, 4.0])), torch.tensor([3 / rms, 2 * 4 / rms]))


def test_property_rms_norm_works_inside_in_float32():
    norm, x = RMSNorm(64, 1e-5), torch.full((1, 64), 300.0, dtype=torch.float16)     # 300² overflows float16
    assert norm.to(torch.float16)(x).isfinite().all()


def test_worked_example_rotary_turns_the_pair_i_and_i_plus_half_by_position_times_frequency():
    config = preset("test", hidden_size=16, num_attention_heads=4, rope_theta=100.0)               # K = 4: θ_i = 1, 0.1
    cos, sin = rotary_tables(torch.tensor([3]), config)
    turned = apply_rotary(torch.tensor([[[[1.0, 0.0, 0.0, 1.0]]]]), cos, sin)
    _close(turned, torch.tensor([[[[math.cos(3), -math.sin(0.3), math.sin(3), math.cos(0.3)]]]]))


def test_property_rotary_keeps_norms_and_scores_depend_on_distance_alone():
    config, x = SHAPES[0], torch.randn(1, 2, 50, 8)
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


def test_refusal_rotary_tables_of_another_length():
    with pytest.raises(ValueError, match=r"\(5, 8\) positions and features, x has \(6, 8\)"):
        apply_rotary(torch.zeros(1, 1, 6, 8), *rotary_tables(torch.arange(5), SHAPES[0]))


@pytest.mark.parametrize("T, S", [(1, 1), (1, 9), (9, 9), (4, 9)])
@pytest.mark.parametrize("G", [1, 2, 4])
def test_two_ways_fused_attention_equals_its_definition(T, S, G):
    q, k, v = torch.randn(2, 4, T, 8), torch.randn(2, G, S, 8), torch.randn(2, G, S, 8)
    for mask in (None, causal_mask(T, S), padding_mask(torch.tensor([0, S - T]), T, S)):
        _close(attention(q, k, v, mask), naive_attention(q, k, v, mask))


def test_worked_example_padding_mask():
    expected = [[[1, 0, 0], [0, 1, 0], [0, 1, 1]], [[1, 0, 0], [1, 1, 0], [1, 1, 1]]]
    assert padding_mask(torch.tensor([1, 0]), 3, 3)[:, 0].int().tolist() == expected


def test_property_no_token_sees_a_later_one():
    model, tokens = _model(), _tokens(1, 20)
    changed = tokens.clone()
    changed[0, 12] += 1
    with torch.no_grad():
        before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :12], after[:, :12]) and not torch.equal(before[:, 12:], after[:, 12:])


@pytest.mark.parametrize("chunks", [[30], [7, 23], [1] * 30, [10, 1, 9, 10]])
def test_two_ways_cached_in_chunks_equals_one_shot(chunks):
    model, tokens = _model(), _tokens(2, 30)
    cache = KVCache(model.config, 2, 32, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        pieces = [model(piece, cache=cache) for piece in tokens.split(chunks, dim=1)]
        _close(torch.cat(pieces, dim=1), model(tokens))


def test_two_ways_a_left_padded_row_equals_its_single_run():
    model, lengths = _model(), [5, 12, 1]
    rows = [_tokens(1, n) for n in lengths]
    padding = torch.tensor([12 - n for n in lengths])
    tokens = torch.cat([torch.nn.functional.pad(row, (12 - row.shape[1], 0), value=3) for row in rows])
    cache = KVCache(model.config, 3, 16, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        positions = (torch.arange(12) - padding[:, None]).clamp(min=0)
        prefill = model(tokens, positions=positions, mask=padding_mask(padding, 12, 12), cache=cache)
        step = model(tokens[:, -1:], positions=(12 - padding)[:, None], mask=padding_mask(padding, 1, 13), cache=cache)
        for i, (row, n) in enumerate(zip(rows, lengths, strict=True)):
            _close(prefill[i, 12 - n :], model(row)[0])
            _close(step[i, 0], model(torch.cat([row, tokens[i : i + 1, -1:]], dim=1))[0, -1])


def test_two_ways_a_truncated_cache_goes_on_like_a_new_one():
    model, tokens = _model(), _tokens(1, 20)
    cache = KVCache(model.config, 1, 40, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        model(_tokens(1, 33), cache=cache)
        cache.truncate(0)
        _close(model(tokens, cache=cache), model(tokens))
    assert cache.length == 20


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
        model(_tokens(1, 5), cache=KVCache(model.config, 1, 4, dtype=torch.float32, device="cpu"))
    with pytest.raises(ValueError, match="257 positions exceed the model's context of 256"):
        model(_tokens(1, 257))
