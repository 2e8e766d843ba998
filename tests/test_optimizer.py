import pytest
import torch
from torch import nn

from llama.training.optimizer import MasterWeights, learning_rate, make_optimizer


def test_two_ways_small_updates_add_up_in_masters_and_vanish_in_bfloat16():
    model = nn.Linear(4, 1, bias=False)
    nn.init.ones_(model.weight)
    masters = MasterWeights(model, torch.bfloat16)
    optimizer = make_optimizer("sgd", masters.learned.values(), lr=1e-3, weight_decay=0.0)
    for _ in range(10):
        model(torch.ones(1, 4, dtype=torch.bfloat16)).sum().backward()
        masters.accumulate_grads()
        optimizer.step()
        optimizer.zero_grad()
        masters.copy_to_model()
    assert model.weight.dtype == torch.bfloat16
    masters.restore_fp32()
    assert model.weight.dtype == torch.float32
    torch.testing.assert_close(model.weight.data, torch.full((1, 4), 0.99))
    lost = torch.ones(4, dtype=torch.bfloat16)
    for _ in range(10):
        lost -= 1e-3
    assert torch.equal(lost, torch.ones(4, dtype=torch.bfloat16))


def test_property_weights_stored_in_bfloat16_get_masters_without_asking():
    model = nn.Linear(4, 1).to(torch.bfloat16)
    masters = MasterWeights(model, None)
    assert all(master.dtype == torch.float32 for master in masters.learned.values())
    assert model.weight.dtype == torch.bfloat16
    masters.restore_fp32()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_property_frozen_originals_come_back_to_the_bit():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    masters = MasterWeights(model, torch.bfloat16)
    assert model[0].weight.dtype == torch.bfloat16 and set(masters.learned) == {"1.weight", "1.bias"}
    masters.restore_fp32()
    assert torch.equal(model[0].weight, before)


def test_property_gradients_of_micro_batches_add_up_in_float32():
    model = nn.Linear(1, 1, bias=False)
    masters = MasterWeights(model, torch.bfloat16)
    for x in (1.0, 1e-3):
        model(torch.full((1, 1), x, dtype=torch.bfloat16)).sum().backward()
        masters.accumulate_grads()
    assert masters.learned["weight"].grad.item() == pytest.approx(1.001, abs=1e-5)      # bfloat16 would say 1.0


def test_worked_example_matrices_decay_and_gains_do_not():
    matrix, gain = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    optimizer = make_optimizer("adamw", [matrix, gain], lr=0.1, weight_decay=0.5)
    matrix.grad, gain.grad = torch.zeros(2, 2), torch.zeros(2)
    optimizer.step()
    assert torch.allclose(matrix, torch.full((2, 2), 0.95)) and torch.equal(gain.data, torch.ones(2))


def test_worked_example_learning_rate():
    options = {"peak": 1.0, "warmup": 0.1}
    assert learning_rate(0.05, schedule="cosine", **options) == 0.5
    assert learning_rate(0.1, schedule="cosine", **options) == 1.0
    assert learning_rate(0.55, schedule="cosine", **options) == pytest.approx(0.55)
    assert learning_rate(0.55, schedule="linear", **options) == pytest.approx(0.55)
    assert learning_rate(1.0, schedule="linear", **options) == pytest.approx(0.1)
    assert learning_rate(1.0, schedule="constant", **options) == 1.0


def test_refusal():
    with pytest.raises(ValueError, match="'lion' is not known; known are adamw, adam, sgd"):
        make_optimizer("lion", [nn.Parameter(torch.ones(1))], lr=1.0, weight_decay=0.0)
    with pytest.raises(ValueError, match="nothing to learn"):
        make_optimizer("adamw", [], lr=1.0, weight_decay=0.0)
