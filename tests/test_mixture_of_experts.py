"""A mixture of experts: the router and the balance by hand, and what the swap leaves as it was."""

import math

import pytest
import torch
from torch.nn import functional

from llama.cache import KVCache
from llama.checkpoint import new_model
from llama.config import preset
from llama.model import MLP
from llama.relatives.mixture_of_experts import (
    Balanced,
    MixtureOfExperts,
    active_parameters,
    balance_loss,
    route,
    use_experts,
    watch_routers,
)
from llama.tasks.task import Sample, Task
from llama.training.objective import Plain

CONFIG = preset("test")


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = new_model(CONFIG)
    use_experts(model, experts=4, top_k=2)
    return model


def test_worked_example_routing():
    """Scores 1/2, 1/4, 1/8, 1/8: the first two of them, which have 3/4 between them, are taken as 2/3 and 1/3."""
    weights, chosen = route(torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log(), top_k=2)
    assert chosen.tolist() == [[0, 1]] and weights[0].tolist() == pytest.approx([2 / 3, 1 / 3])


def test_worked_example_balance():
    """Two tokens, two experts, one choice each. Both to the first at 3/4: f = (1, 0), P = (3/4, 1/4): 2 · 3/4."""
    crowded = torch.tensor([[3.0, 1.0], [3.0, 1.0]]).log()
    apart = torch.tensor([[3.0, 1.0], [1.0, 3.0]]).log()            # f = (1/2, 1/2), P = (1/2, 1/2): 1
    assert balance_loss(crowded, 1).item() == pytest.approx(1.5)
    assert balance_loss(apart, 1).item() == pytest.approx(1.0)


def test_property_balance_has_a_gradient():
    """Away from the expert that everybody takes."""
    logits = torch.tensor([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0]], requires_grad=True)
    balance_loss(logits, 1).backward()
    assert (logits.grad[:, 0] > 0).all() and (logits.grad[:, 1:] < 0).all()


def test_two_ways_gathered_rows_equal_every_expert_weighted():
    """Each token by itself through all experts, those that it did not choose with weight 0."""
    torch.manual_seed(0)
    mixture = MixtureOfExperts(CONFIG, experts=3, top_k=2)
    x = torch.randn(2, 5, CONFIG.hidden_size)
    scores = mixture.gate(x).softmax(-1)
    kept = scores.where(scores > scores.min(-1, keepdim=True).values, 0.0)              # two of three
    weights = kept / kept.sum(-1, keepdim=True)
    expected = sum(weights[..., i, None] * expert(x) for i, expert in enumerate(mixture.experts))
    assert torch.allclose(mixture(x), expected, atol=1e-6)


def test_two_ways_one_expert_is_an_mlp():
    mlp, mixture = MLP(CONFIG), MixtureOfExperts(CONFIG, experts=1, top_k=1)
    mixture.experts[0].load_state_dict(mlp.state_dict())
    x = torch.randn(3, CONFIG.hidden_size)
    assert torch.allclose(mixture(x), mlp(x), atol=1e-6)


def test_two_ways_cached_in_pieces_equals_at_once(model):
    tokens = torch.randint(0, 99, (1, 12))
    cache = KVCache(model.config, 1, 12, dtype=torch.float32, device="cpu")
    with torch.no_grad():
        pieces = [model(piece, cache=cache) for piece in tokens.split([7, 1, 4], dim=1)]
        assert torch.allclose(torch.cat(pieces, 1), model(tokens), atol=1e-5)


def test_worked_example_what_a_token_costs(model):
    """Four experts of half the width: twice the numbers of an MLP, of which a token meets as many as before."""
    plain = sum(parameter.numel() for parameter in new_model(CONFIG).parameters())
    L, D, F = CONFIG.num_hidden_layers, CONFIG.hidden_size, CONFIG.intermediate_size
    router = L * D * 4
    assert active_parameters(model) == plain + router
    assert sum(parameter.numel() for parameter in model.parameters()) == plain + router + L * 3 * D * F


def test_property_the_objective_adds_balance_only_while_it_trains(model):
    batch = Task().collate([Sample(list(range(3, 15)), [False] + [True] * 11)])
    balanced, plain = Balanced(model, Task(), weight=0.5), Plain(model, Task())
    with watch_routers(model) as said:
        loss, count = plain(batch)
    extra = sum(balance_loss(*each) for each in said) / len(said)
    assert len(said) == CONFIG.num_hidden_layers
    assert balanced.train()(batch)[0].item() == pytest.approx((loss + 0.5 * count * extra).item(), rel=1e-6)
    assert balanced.eval()(batch)[0].item() == pytest.approx(loss.item(), rel=1e-6)
    assert not model.layers[0].mlp.gate._forward_hooks


def test_property_balance_brings_experts_together():
    """From a router that sends everything to one expert, gradient steps on the balance alone even the choices out."""
    torch.manual_seed(0)
    x, gate = torch.randn(400, 8), torch.nn.Linear(8, 4)
    with torch.no_grad():
        gate.bias[0] = 5.0
    def loss():
        return balance_loss(gate(x), 1)

    before = loss().item()
    optimizer = torch.optim.SGD(gate.parameters(), lr=2.0)
    for _ in range(60):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    shares = functional.one_hot(gate(x).argmax(-1), 4).float().mean(0)
    assert before > 3.5 and loss().item() < 1.2 and shares.max() < 0.6 and math.isclose(shares.sum(), 1, rel_tol=1e-5)


def test_refusal_more_experts_taken_than_there_are():
    with pytest.raises(ValueError, match="top_k is 3 and experts 2"):
        MixtureOfExperts(CONFIG, experts=2, top_k=3)


def test_refusal_to_save_what_no_config_names(model, tmp_path):
    with pytest.raises(ValueError, match=r"holds more than a plain Llama \(layers.0.mlp.experts"):
        model.save(tmp_path / "model")
