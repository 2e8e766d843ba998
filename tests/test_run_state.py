import pytest
import torch
import torch.distributed as dist

from llama.tasks.generation import TextGenerationTask
from llama.training import run_state
from llama.training.fsdp import full_tensor, shard
from llama.training.objective import Plain
from llama.training.optimizer import make_optimizer
from llama.training.run_state import forget_state, random_state, read_state, set_random_state, write_state


@pytest.fixture
def shards(tiny_model, monkeypatch):
    """An objective in shards of a single process, what it learned, and its optimiser after a step."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    objective = Plain(tiny_model, TextGenerationTask())
    shard(objective, dtype=None)
    learned = dict(tiny_model.named_parameters())
    optimizer = make_optimizer("adamw", learned.values(), lr=0.1, weight_decay=0.0)
    tokens = torch.arange(12).view(2, 6)
    objective({"tokens": tokens, "targets": tokens})[0].backward()
    optimizer.step()
    yield objective, {name: parameter.detach() for name, parameter in learned.items()}, optimizer
    dist.destroy_process_group()


def test_two_ways_shards_written_and_read(shards, tmp_path):
    objective, learned, optimizer = shards
    path, before = tmp_path / "last.pt", {name: full_tensor(tensor).clone() for name, tensor in learned.items()}
    write_state(path, {"step": 1, "loss": 2.5}, learned, objective, optimizer)
    moments = {n: full_tensor(state["exp_avg"]).clone() for n, state in enumerate(optimizer.state.values())}
    for tensor in [*learned.values(), *(state["exp_avg"] for state in optimizer.state.values())]:
        tensor.zero_()
    assert read_state(path, learned, objective, optimizer)["loss"] == 2.5
    assert all(torch.equal(full_tensor(tensor), before[name]) for name, tensor in learned.items())
    for number, state in enumerate(optimizer.state.values()):
        assert torch.equal(full_tensor(state["exp_avg"]), moments[number]) and state["step"] == 1
    forget_state(path)
    assert not list(tmp_path.iterdir())


def test_property_a_write_broken_off_loses_nothing(shards, tmp_path, monkeypatch):
    objective, learned, optimizer = shards
    path = tmp_path / "last.pt"
    write_state(path, {"step": 1}, learned, objective, optimizer)
    with monkeypatch.context() as broken:
        broken.setattr(run_state, "write_safetensors", lambda *given, **more: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_state(path, {"step": 2}, learned, objective, optimizer)
    assert read_state(path, learned, objective, optimizer)["step"] == 1
    write_state(path, {"step": 1}, learned, objective, optimizer)   # again after the same step, as at an epoch's end
    assert read_state(path, learned, objective, optimizer)["step"] == 1 and len(list(tmp_path.iterdir())) == 2


def test_refusal_another_choice_of_learned_parameters(tiny_model, tmp_path):
    learned = {"norm.weight": tiny_model.norm.weight.detach()}
    write_state(tmp_path / "last.pt", {"step": 1}, learned, tiny_model)
    with pytest.raises(ValueError, match="another choice of learned parameters"):
        read_state(tmp_path / "last.pt", {"norm.weight": torch.zeros(3)}, tiny_model)


def test_two_ways_random_numbers_go_on_where_they_were():
    state = random_state(torch.device("cpu"))
    expected = torch.rand(3)
    set_random_state(state, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)


def test_two_ways_a_generator_of_the_device_goes_on_too(monkeypatch):
    """No GPU is needed to see that its state is kept, where that is the device, and left alone elsewhere."""
    held = [torch.ones(2, dtype=torch.uint8)]
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: held[0])
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: held.append(state))
    state = random_state(torch.device("mps"))
    set_random_state(state, torch.device("mps"))
    set_random_state(state, torch.device("cpu"))
    assert len(held) == 2 and torch.equal(held[1], held[0])
