"""The ablation: rows that differ from Llama in one thing, and a table that says no more than its runs."""

import pytest
import torch

from llama.relatives import ablation
from llama.relatives.ablation import BASE, VARIANTS, build, run, table
from llama.relatives.mixture_of_experts import active_parameters


@pytest.fixture(scope="module")
def models():
    return {name: build(variant, None, seed=0).eval() for name, variant in VARIANTS.items()}


def test_property_parameters_are_as_equal(models):
    """Within 4 % of Llama's, in what a token meets, but where the row says why not."""
    base = active_parameters(models["llama"])
    for name, model in models.items():
        assert abs(active_parameters(model) - base) / base < 0.04 or VARIANTS[name].unequal, name


def test_property_every_row_computes_something_else(models):
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        found = {name: model(tokens)[0, -1] for name, model in models.items() if "balanced" not in name}
    for name, logits in found.items():
        assert not any(torch.allclose(logits, other) for others, other in found.items() if others != name), name


def test_property_who_knows_places(models):
    """Swapping the first two tokens changes the last row where places are known, also in several layers without."""
    tokens = torch.arange(20)[None]
    other = tokens.clone()
    other[0, :2] = tokens[0, :2].flip(0)
    with torch.no_grad():
        moved = {name: not torch.equal(model(tokens)[0, -1], model(other)[0, -1]) for name, model in models.items()}
    assert all(moved.values())
    one = build(ablation.Variant({"num_hidden_layers": 1, "no_rope_layers": (0,)}), None, seed=0).eval()
    with torch.no_grad():                                           # one layer without places sums over a set
        assert torch.allclose(one(tokens)[0, -1], one(other)[0, -1], atol=1e-6)


def test_property_a_tied_head_stays_tied_below_learned_places(models):
    model = models["positions: learned"]
    assert model.lm_head.weight is model.embed_tokens.weight and model.embed_tokens.places.shape == (
        BASE.max_position_embeddings, BASE.hidden_size)


def test_worked_example_table():
    """Differences are taken seed by seed: 4.1 - 4.0 and 4.5 - 4.2."""
    records = [{"variant": name, "seed": seed, "loss": loss, "bits_per_character": 6.0, "parameters": 10, "active": 10,
                "tokens": 100, "cpu_seconds": 2.0}
               for name, losses in (("llama", (4.0, 4.2)), ("positions: none", (4.1, 4.5)))
               for seed, loss in enumerate(losses)]
    assert table(records).splitlines()[2:] == [
        "| llama | 10 | 4.100 ± 0.100 | — | 6.000 | 50 |",
        "| positions: none | 10 | 4.300 ± 0.200 | +0.200 ± 0.100 | 6.000 | 50 |"]


def test_two_ways_a_run_again_is_the_same_run(small_tokenizer):
    texts = (["the cat sat on the mat and the cat ran after a dog"] * 4, ["a dog ran after the cat"])
    first, again = (run("mixture of experts", texts, small_tokenizer, seed=1, steps=2, lr=1e-3) for _ in range(2))
    assert first["loss"] == again["loss"] and first["tokens"] == again["tokens"] > 0


@pytest.fixture(scope="module")
def small_tokenizer():
    from tokenizer import bpe

    return bpe.train(["the cat sat on the mat and the cat ran after a dog"], 280)
