import contextlib
import json
import random
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from llama.tasks.generation import TextGenerationTask
from llama.training import run_state
from llama.training.digest import digest
from llama.training.fsdp import cpu_can_shard, full_tensor, shard
from llama.training.objective import Plain
from llama.training.optimizer import make_optimizer
from llama.training.run_state import Damaged, RunFolder, random_state, read_state, restore, write_state

SETTINGS = {"lr": 0.1, "labels": None, "data": b"\x00\x01"}


def state(step, best=0):
    return {"step": step, "loss": 2.5, "settings": SETTINGS, "best": (2.25, best, 1),
            "random": [random_state(torch.device("cpu"))]}


@pytest.fixture
def small():
    """A module of a few numbers in two dtypes, what it learned, and its optimiser after a step."""
    module = nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 2).bfloat16())
    optimizer = make_optimizer("adamw", list(module.parameters()), lr=0.1, weight_decay=0.0)
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return module, {name: parameter.detach() for name, parameter in module.named_parameters()}, optimizer


@pytest.fixture
def shards(tiny_model, monkeypatch):
    """An objective in shards of a single process, what it learned, and its optimiser after a step."""
    if not cpu_can_shard():
        pytest.skip("this torch does not shard on CPUs (docs/compat.md)")
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


@pytest.fixture
def folder(tmp_path, small):
    """A run with states after steps 8 and 12, the bests that they know of, and a better one since."""
    module, learned, optimizer = small
    found = RunFolder(tmp_path / "x")
    for step, best in ((8, 6), (12, 10)):
        write_state(found.best(best), {"step": best}, learned, module)
        write_state(found.last(step), state(step, best), learned, module, optimizer)
    write_state(found.best(14), {"step": 14}, learned, module)
    return found


def newest(found, check=lambda path, state: None):
    return found.newest(check, in_shards=False)


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << place % 8
    path.write_bytes(content)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def names(found):
    return sorted(path.name for path in found.path("").iterdir())


# ---- there and back --------------------------------------------------------------------------------------------------


def test_two_ways_what_is_written_is_read(small, tmp_path):
    module, learned, optimizer = small
    before, moments = digest(learned), digest(optimizer.state_dict())
    write_state(tmp_path / "last-3.pt", state(3), learned, module, optimizer)
    for tensor in [*learned.values(), *(values["exp_avg"] for values in optimizer.state.values())]:
        tensor.zero_()
    found = read_state(tmp_path / "last-3.pt", in_shards=False)
    restore(found, learned, module, optimizer)
    assert digest(learned) == before and digest(optimizer.state_dict()) == moments and found["step"] == 3


def test_property_a_state_that_was_restored_is_not_mapped(small, tmp_path):
    """Windows neither replaces nor deletes a file that is."""
    module, learned, optimizer = small
    path = tmp_path / "last-3.pt"
    write_state(path, state(3), learned, module, optimizer)
    restore(read_state(path, in_shards=False), learned, module, optimizer)
    if (maps := Path("/proc/self/maps")).exists():
        assert str(path) not in maps.read_text(encoding="utf-8")
    path.unlink()


def test_two_ways_shards_written_and_read(shards, tmp_path):
    objective, learned, optimizer = shards
    path, before = tmp_path / "last-1.pt", {name: full_tensor(tensor).clone() for name, tensor in learned.items()}
    write_state(path, {"step": 1, "loss": 2.5}, learned, objective, optimizer)
    moments = {n: full_tensor(state["exp_avg"]).clone() for n, state in enumerate(optimizer.state.values())}
    for tensor in [*learned.values(), *(state["exp_avg"] for state in optimizer.state.values())]:
        tensor.zero_()
    found = read_state(path, in_shards=True)
    restore(found, learned, objective, optimizer)
    assert found["loss"] == 2.5
    assert all(torch.equal(full_tensor(tensor), before[name]) for name, tensor in learned.items())
    for number, each in enumerate(optimizer.state.values()):
        assert torch.equal(full_tensor(each["exp_avg"]), moments[number]) and each["step"] == 1
    run_state.forget_state(path)
    assert not list(tmp_path.iterdir())


def test_property_a_write_broken_off_loses_nothing(shards, tmp_path, monkeypatch):
    objective, learned, optimizer = shards
    found = RunFolder(tmp_path / "x")
    write_state(found.last(1), state(1), learned, objective, optimizer)
    with monkeypatch.context() as broken:
        broken.setattr(run_state, "write_safetensors", lambda *given, **more: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_state(found.last(2), state(2), learned, objective, optimizer)
    assert found.newest(lambda path, state: None, in_shards=True)["step"] == 1
    found.begin_after(1)                                            # as a resumed run does
    assert names(found) == ["last-1", "last-1.pt"]


def test_refusal_another_choice_of_learned_parameters(small, tmp_path):
    module, learned, _ = small
    write_state(tmp_path / "last-1.pt", {"step": 1}, learned, module)
    with pytest.raises(ValueError, match="the state after step 1 is of another choice of learned parameters"):
        restore(read_state(tmp_path / "last-1.pt", in_shards=False), {"norm.weight": torch.zeros(3)}, module)


# ---- damage ----------------------------------------------------------------------------------------------------------


def test_property_of_a_damaged_state_nothing_is_taken(small, tmp_path):
    """One bit, at places over the whole file, or its end: what was written, or a refusal, and never anything else."""
    module, learned, optimizer = small
    path, chance = tmp_path / "last-3.pt", random.Random(0)
    write_state(path, state(3), learned, module, optimizer)
    whole, expected = path.read_bytes(), digest(read_state(path, in_shards=False))
    damaged = 0
    for number in range(150):
        if number % 5:
            flip(path, chance.randrange(len(whole)))
        else:
            path.write_bytes(whole[: chance.randrange(len(whole))])
        try:
            assert digest(read_state(path, in_shards=False)) == expected                # in bytes that nobody reads
        except Damaged as error:
            damaged += 1
            assert str(error) == f"{path} is damaged"
        path.write_bytes(whole)
    assert damaged > 90


def test_property_of_a_damaged_shard_nothing_is_taken(shards, tmp_path):
    objective, learned, optimizer = shards
    path, chance = tmp_path / "last-1.pt", random.Random(0)
    write_state(path, state(1), learned, objective, optimizer)
    piece = tmp_path / "last-1" / "rank-0.safetensors"
    whole, expected = piece.read_bytes(), digest(read_state(path, in_shards=True)["shard"])
    damaged = 0
    for number in range(40):
        if number % 5:
            flip(piece, chance.randrange(len(whole) if number % 2 else 4000))           # where its header is
        else:
            piece.write_bytes(whole[: chance.randrange(len(whole))])
        try:
            assert digest(read_state(path, in_shards=True)["shard"]) == expected
        except Damaged as error:
            damaged += 1
            assert str(error) == f"{piece} is damaged"
        piece.write_bytes(whole)
    piece.unlink()
    with pytest.raises(Damaged):
        read_state(path, in_shards=True)
    assert damaged >= 38


@pytest.mark.parametrize("harm", ["last-12.pt", "best-10.pt"])
def test_property_instead_of_a_damaged_state_the_one_before_is_taken(harm, folder, capsys):
    cut(folder.path(harm))
    assert newest(folder)["step"] == 8
    assert capsys.readouterr().err == (f"{folder.path(harm)} is damaged; so the run goes on from the state after "
                                       "step 8\n")
    folder.begin_after(8)
    assert names(folder) == ["best-6.pt", "last-8.pt"]              # what was learned since comes again


def test_refusal_where_no_state_is_whole(folder, tmp_path):
    cut(folder.last(12))
    cut(folder.last(8))
    with pytest.raises(ValueError, match=r"last-12.pt is damaged; .*last-8.pt is damaged; no state is left to go on "
                                         "from: start anew with --overwrite"):
        newest(folder)
    with pytest.raises(ValueError, match="there is nothing to resume here; start without --resume"):
        newest(RunFolder(tmp_path / "other"))


def test_refusal_where_the_best_is_damaged_says_how_to_go_on_without_it(folder, small):
    module, learned, optimizer = small
    folder.best(14).unlink()
    write_state(folder.last(16), state(16, 10), learned, module, optimizer)
    write_state(folder.last(20), state(20, 10), learned, module, optimizer)
    folder.prune()
    cut(folder.best(10))
    with pytest.raises(ValueError, match=r"^\S+best-10.pt is damaged; no state is left to go on from: delete "
                                         r"\S+best-10.pt to go on without it"):
        newest(folder)
    folder.best(10).unlink()
    assert newest(folder)["step"] == 20


def test_refusal_of_other_settings_is_about_a_state_that_is_whole(folder):
    cut(folder.last(12))

    def check(path, state):
        run_state.check_settings(path, state, SETTINGS | {"lr": 1.0, "data": b"other"})

    with pytest.raises(ValueError, match=r"last-8.pt is of a run with another lr, data; resume with lr = 0.1, the same "
                                         "data and what is mixed in, or start anew with --overwrite"):
        newest(folder, check)
    for settings, words in (({}, "another lr, data; resume with lr = 0.1, the same data"),
                            (SETTINGS | {"more": 1}, "another more; resume with no more, or")):
        with pytest.raises(ValueError, match=words):
            newest(folder, lambda path, state, settings=settings: run_state.check_settings(path, state, settings))


def test_property_two_states_and_what_evaluated_best_for_each_are_kept(folder, small):
    module, learned, optimizer = small
    folder.prune()
    assert names(folder) == ["best-10.pt", "best-14.pt", "best-6.pt", "last-12.pt", "last-8.pt"]
    write_state(folder.last(16), state(16, 14), learned, module, optimizer)
    folder.prune()
    assert names(folder) == ["best-10.pt", "best-14.pt", "last-12.pt", "last-16.pt"]


def test_property_what_a_killed_run_could_not_prune_the_next_one_does(folder, small):
    module, learned, optimizer = small
    write_state(folder.last(16), state(16, 14), learned, module, optimizer)
    folder.begin_after(16)
    assert names(folder) == ["best-10.pt", "best-14.pt", "last-12.pt", "last-16.pt"]


def test_property_what_a_killed_run_left_half_written_goes(folder):
    for left in (folder.path(".last-16.pt.0a1b2c3d.partial"), folder.path(".metrics.jsonl.0a1b2c3d.partial"),
                 folder.output.with_name(".x.0a1b2c3d.partial")):
        left.write_bytes(b"half")
    folder.path("last-16").mkdir()
    others = [folder.path("notes-1"), folder.output.with_name(".y.0a1b2c3d.partial"), folder.path(".partial")]
    for other in others:
        other.mkdir()
    before = set(names(folder))
    folder.begin_after(14)
    assert before - set(names(folder)) == {".last-16.pt.0a1b2c3d.partial", ".metrics.jsonl.0a1b2c3d.partial", "last-16"}
    assert not folder.output.with_name(".x.0a1b2c3d.partial").exists() and all(other.is_dir() for other in others)


# ---- metrics ---------------------------------------------------------------------------------------------------------


def test_worked_example_lines_that_cannot_be_read_are_named_and_dropped(folder, capsys):
    lines = [b'{"step": 1, "loss": 2.5}', b'{"step": 2, "lo', b'\xff\xfe', b'[7]', b'{"step": true}', b'{"step": "3"}',
             b'[' * 100_000, b'{"loss": 1}', b'{"step": 3}', b'', b'{"step": 13}', b'{"step": 4}']      # without an end
    path = folder.path("metrics.jsonl")
    path.write_bytes(b"\n".join(lines))
    folder.begin_after(12)
    assert path.read_bytes() == b'{"step": 1, "loss": 2.5}\n{"step": 3}\n{"step": 4}\n'
    assert capsys.readouterr().err == (f"{path}: what stands in line 2, 3, 4, 5, 6, 7, 8 cannot be read and was "
                                       "dropped\n")


def test_property_broken_metrics_never_block_a_state(folder, capsys):
    path, chance = folder.path("metrics.jsonl"), random.Random(0)
    whole = "".join(json.dumps({"step": step, "loss": 1 / step, "tokens": 7 * step}) + "\n" for step in range(1, 13))
    for number in range(60):
        content = bytearray(whole.encode())
        for _ in range(chance.choice([1, 1, 3, 30])):
            content[chance.randrange(len(content))] = chance.randrange(256)
        path.write_bytes(content[: chance.randrange(len(content))] if number % 4 == 0 else content)
        folder.begin_after(12)
        assert all(json.loads(line)["step"] <= 12 for line in path.read_bytes().split(b"\n") if line)
        kept = path.read_bytes()
        folder.begin_after(12)
        assert path.read_bytes() == kept


def test_property_metrics_are_on_the_disk_before_the_state_that_goes_on_behind_them(folder, small, monkeypatch):
    module, learned, optimizer = small
    folder.log({"step": 16})
    done = []
    monkeypatch.setattr(run_state, "sync", lambda path: done.append(path.name))
    monkeypatch.setattr(run_state, "save_torch_file", lambda path, state: done.append(path.name))
    write_state(folder.last(16), state(16, 14), learned, module, optimizer)
    assert done == ["metrics.jsonl", "last-16.pt"]


def test_property_metrics_are_cut_whole_or_not_at_all(folder, monkeypatch):
    path = folder.path("metrics.jsonl")
    whole = "".join(json.dumps({"step": step}) + "\n" for step in range(1, 15))
    path.write_text(whole, encoding="utf-8")
    with monkeypatch.context() as broken:
        broken.setattr("os.replace", lambda *paths: 1 / 0)
        with contextlib.suppress(ZeroDivisionError):
            folder.begin_after(12)
    assert path.read_text(encoding="utf-8") == whole
    folder.begin_after(12)
    assert path.read_text(encoding="utf-8").count("\n") == 12
    folder.begin_after(0)
    assert names(folder) == []


# ---- random numbers --------------------------------------------------------------------------------------------------


def test_two_ways_random_numbers_go_on_where_they_were():
    state = random_state(torch.device("cpu"))
    expected = torch.rand(3)
    run_state.set_random_state(state, torch.device("cpu"))
    assert torch.equal(torch.rand(3), expected)


def test_two_ways_a_generator_of_the_device_goes_on_too(monkeypatch):
    """No GPU is needed to see that its state is kept, where that is the device, and left alone elsewhere."""
    held = [torch.ones(2, dtype=torch.uint8)]
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: held[0])
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: held.append(state))
    state = random_state(torch.device("mps"))
    run_state.set_random_state(state, torch.device("mps"))
    run_state.set_random_state(state, torch.device("cpu"))
    assert len(held) == 2 and torch.equal(held[1], held[0])
