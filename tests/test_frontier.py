"""The command: a budget, what is kept, what is left out. Runs are played by functions that return at once."""

import json
import sys
import time
from types import SimpleNamespace

import pytest

from llama.frontier import __main__ as frontier
from llama.frontier.grid import Grid, Tuned, key, runs_of
from llama.frontier.runs import Results

DRY = {"parameters": 1000, "learned": 100, "seconds_a_step": 1.0, "memory": {"training": 5e8}}
GRID = ("--shapes", "tiny-1m", "--tokens", "2048,4096", "--shuffled", "0", "--methods", "full,lora-8", "--seeds", "1")


@pytest.fixture
def played(tmp_path, monkeypatch):
    """The commands that were run, in their order."""
    ran = []

    def timed(command, log):
        ran.append(list(command))
        if "--dry-run" in command:
            return {"dry_run": DRY, "wall": 0.0, "cpu": 0.0}
        return {"loss": 3.0, "bits_per_byte": 1.5, "wall": 1.0, "cpu": 0.5}

    def trained(command, output, log, *, again=False):
        ran.append(list(command))
        output.mkdir(parents=True, exist_ok=True)
        (output / "model.safetensors").write_bytes(b"1234")
        return {"train": {"seconds": 5.0, "tokens": 2048, "peak_memory": 6e8}, "test": {"accuracy": 0.75},
                "wall": 10.0, "cpu": 8.0}

    monkeypatch.setattr(frontier, "timed", timed)
    monkeypatch.setattr(frontier, "trained", trained)
    monkeypatch.setattr(frontier, "Files", lambda grid, folder, data: SimpleNamespace(
        grid=grid, folder=folder, vocabulary="v", held_out="h", learned="l", tested="t",
        beginning=lambda start: "text"))
    monkeypatch.chdir(tmp_path)
    return ran


def _main(monkeypatch, *flags):
    monkeypatch.setattr("sys.argv", ["x", *GRID, *flags])
    with pytest.raises(SystemExit) as left:
        frontier.main()
    return left.value.code


def test_property_what_is_kept_is_not_run_again(played, monkeypatch, capsys):
    assert _main(monkeypatch) == 0
    doors = [command[0] for command in played if "--dry-run" not in command]
    assert doors.count("train.py") == 2 and doors.count("finetune.py") == 4 and doors.count("-m") == 2
    assert sum("--dry-run" in command for command in played) == 3   # of the shape, and of each method
    shown = capsys.readouterr()
    assert "6 runs, 0 of them kept" in shown.err and "★" in shown.out and "tiny-1m, 4,096 tokens" in shown.out
    assert "0.750" in shown.out and "no law of the loss is fitted" in shown.out
    played.clear()
    assert _main(monkeypatch, "--json") == 0 and not played
    results = json.loads(capsys.readouterr().out)["results"]
    assert len(results) == 6 and results[1]["wall_before"] == 10 and results[1]["stored"] == 4
    played.clear()
    assert _main(monkeypatch, "--again") == 0
    assert [command[0] for command in played] == doors              # dry runs alone are not
    played.clear()
    assert _main(monkeypatch, "--seeds", "2") == 0
    assert all("1" == command[command.index("--seed") + 1] for command in played if "--seed" in command)


def test_property_what_does_not_fit_is_said_and_not_begun(played, monkeypatch, capsys):
    monkeypatch.setattr(frontier, "ENDED", 100.0)                   # a start takes 102 or 104 s by the estimate
    assert _main(monkeypatch, "--minutes", "2") == 0
    told = capsys.readouterr().err
    assert "fit into 2 min" in told and "what will not fit: " in told
    assert not [command for command in played if "finetune.py" in command[0] and "2048" in command]
    played.clear()
    assert _main(monkeypatch, "--minutes", "0.0001", "--seeds", "3") == 0
    assert not [command for command in played if "--dry-run" not in command]
    assert "no time was left for " in capsys.readouterr().err


def test_property_nothing_is_tuned_from_a_start_that_is_not_there(played, monkeypatch, capsys):
    monkeypatch.setattr(frontier, "trained", lambda *a, **k: (_ for _ in ()).throw(RuntimeError("no luck")))
    assert _main(monkeypatch) == 1
    told = capsys.readouterr().err
    assert told.count("left out: no luck") == 2 and "no time was left" not in told
    assert "failed, or wanted a start that did: tiny-1m, 2,048 tokens" in told and "and 3 more" in told


def test_property_no_minutes_run_nothing(played, monkeypatch, capsys):
    assert _main(monkeypatch, "--minutes", "0") == 0
    assert not played and not capsys.readouterr().out


def test_property_estimates_follow_what_was_measured(tmp_path, played):
    grid = Grid(shapes=("tiny-1m",), tokens=(2048, 4096), shuffled=("0",), methods=("full",), seeds=2)
    runs, kept = list(runs_of(grid)), Results(tmp_path / "r.json")
    files = frontier.Files(grid, tmp_path, ())
    budget = frontier.Budget(grid, files, kept, time.monotonic() + 60)
    assert budget.expected(runs[0]) == frontier.ENDED
    kept.keep(key(grid, runs[0]), {"kind": "start", "shape": "tiny-1m", "text": "t", "tokens": 2048, "wall": 7.0})
    assert [budget.expected(run) for run in runs if not isinstance(run, Tuned)] == [7.0, 14.0, 7.0, 14.0]


def test_property_ctrl_c_says_how_to_go_on(played, monkeypatch, capsys):
    def interrupted(*a, **k):
        raise KeyboardInterrupt
    monkeypatch.setattr(frontier, "trained", interrupted)
    monkeypatch.setattr("sys.argv", ["x", *GRID])
    with pytest.raises(KeyboardInterrupt):
        frontier.main()
    assert "the same command goes on" in capsys.readouterr().err


def test_refusal_a_plot_without_matplotlib_before_anything_runs(played, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("sys.argv", ["x", *GRID, "--plot", "f.svg"])
    with pytest.raises(ValueError, match="--plot needs matplotlib"):
        frontier.main()
    assert not played
