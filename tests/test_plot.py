"""Roofline and curves: what is drawn, told by a matplotlib that only listens, and by the real one."""

import json
import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import pytest

import finetune
import train
from llama import lens
from llama import plot as curves
from llama.benchmark import plot
from llama.runtime.figures import need_matplotlib

RESULTS = {"engines": {"default": {"decode": [50, 60, 70], "traffic": 3e8}, "int4": {"refused": "no"},
                       "llama.cpp F16": {"decode": [100], "traffic": 2e8}},
           "bandwidth": 4e10, "model": "tiny", "machine": {"cpu": "a CPU"}, "date": "2026-01-01"}


class Listening:
    """Stands for any object of matplotlib: notes every call in `calls`, as (name, what was given)."""

    def __init__(self, calls):
        self.calls = calls

    def __getattr__(self, name):
        def call(*given, **more):
            self.calls.append((name, given, more))
            return self
        return Listening(self.calls) if name.endswith("axis") else call

    def subplots(self, rows, *_, **__):
        return [Listening(self.calls) for _ in range(rows)]


@pytest.fixture
def calls(monkeypatch):
    calls = []
    listening, fonts = Listening(calls), SimpleNamespace(get_font_names=lambda: ["DejaVu Sans"])
    for name, content in {"matplotlib": {"rc_context": nullcontext, "font_manager": fonts},
                          "matplotlib.figure": {"Figure": listening.Figure},
                          "matplotlib.ticker": {"LogLocator": listening.LogLocator,
                                                "NullFormatter": listening.NullFormatter}}.items():
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return calls


def test_worked_example_roof():
    assert plot.roof(40e9, 538e6) == pytest.approx(74.35, abs=0.01)


def test_worked_example_what_is_drawn(calls, tmp_path):
    """A point for every engine that ran, at MB and tokens a second, ours round; above them the roof, to 1.5 × each."""
    plot.write_plot(str(tmp_path / "roof.png"), RESULTS)
    drawn = SimpleNamespace(**{name: [given for called, given, _ in calls if called == name]
                               for name in ("plot", "annotate", "savefig")})
    roof, ours, theirs = drawn.plot
    assert roof[0] == pytest.approx([200 / 1.5, 450]) and roof[1] == pytest.approx([300, 4e10 / 450e6])
    assert ours == (300, 60, "o") and theirs == (200, 100, "s")
    assert drawn.annotate == [("default", (300, 60)), ("llama.cpp F16", (200, 100))]
    assert drawn.savefig == [(str(tmp_path / "roof.png"),)]


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_property_the_real_matplotlib_writes_both_forms(tmp_path, ending):
    pytest.importorskip("matplotlib", reason="matplotlib is an extra: pip install matplotlib, and this is drawn, too")
    plot.write_plot(str(tmp_path / f"roof.{ending}"), RESULTS)
    assert (tmp_path / f"roof.{ending}").stat().st_size > 5_000


LINES = [{"step": 0, "eval": {"loss": 3.0}},
         {"step": 1, "loss": 2.0, "lr": 0.1, "gradient_norm": 5.0, "tokens": 10, "seconds": 0.5},
         {"step": 2, "skipped": 1},
         {"step": 3, "loss": 1.0, "lr": 0.2, "gradient_norm": 4.0, "tokens": 30, "seconds": 1.5},
         {"step": 3, "eval": {"loss": 1.5, "perplexity": 4.48}}]


def write_metrics(folder, lines=LINES, *, end=""):
    folder.mkdir(parents=True)
    text = "".join(json.dumps(line) + "\n" for line in lines) + end
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")


def test_worked_example_smoothed():
    """(0.5 · 2 + 4) / (0.5 + 1) after the second; a span of 1 smooths nothing."""
    assert curves.smoothed([2.0, 4.0], 2) == pytest.approx([2.0, 10 / 3]) and curves.smoothed([2.0, 4.0], 1) == [2, 4]


def test_worked_example_a_run_is_read_from_its_result_and_a_line_half_written_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_metrics(tmp_path / "mine.training", end='{"step": 4, "lo')
    run = curves.read_run("mine")
    assert "mine.training/metrics.jsonl: 1 lines cannot be read" in capsys.readouterr().err.replace("\\", "/")
    assert (run.column("step"), run.column("loss"), run.skipped) == ([1, 3], [2.0, 1.0], 1)
    assert run.evaluations == [(0, 3.0), (3, 1.5)] and run.evaluated_at("tokens") == [0.0, 30.0]
    assert run.evaluated_at("seconds") == [0.0, 1.5] and curves.read_run("mine.training").steps == run.steps
    write_metrics(tmp_path / "empty.training", LINES[:1])
    with pytest.raises(ValueError, match="tells of no step yet"):
        curves.read_run("empty")
    with pytest.raises(FileNotFoundError, match="there is no gone.training/metrics.jsonl"):
        curves.read_run("gone")


def test_worked_example_curves_of_several_runs_in_one_figure(calls, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_metrics(tmp_path / "a.training")
    write_metrics(tmp_path / "b.training", LINES[:2])
    monkeypatch.setattr(sys, "argv", ["plot", "a", "b", "--output", "deep/both.svg", "--against", "tokens"])
    curves.main()
    drawn = [(given, more["color"]) for name, given, more in calls if name == "plot"]
    a, b = ([given for given, colour in drawn if colour == own] for own in ("C0", "C1"))
    assert a == [([10, 30], [2.0, 1.0]), ([10, 30], [2.0, 1.0]), ([0, 30], [3.0, 1.5], "o"), ([10, 30], [0.1, 0.2]),
                 ([10, 30], [5.0, 4.0]), ([10, 30], [5.0, 4.0])]
    assert len(b) == 6 and b[3] == ([10], [0.1])
    assert "a, 1 steps skipped" in [more.get("label") for name, _, more in calls if name == "plot"]
    assert [given for name, given, _ in calls if name in ("savefig", "set_xlabel")] == [("tokens",), ("deep/both.svg",)]


def test_property_the_real_matplotlib_draws_curves(tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is an extra: pip install matplotlib, and this is drawn, too")
    write_metrics(tmp_path / "$a.training")
    curves.plot_runs(tmp_path / "deep" / "curves.png", [curves.read_run(tmp_path / "$a")] * 2)
    assert (tmp_path / "deep" / "curves.png").stat().st_size > 5_000


def test_two_ways_what_a_run_draws_is_what_it_logged(calls, tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model.save("model")
    (tmp_path / "a.txt").write_text("The dog sleeps. " * 40, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["finetune.py", "--lora", "--model", "model", "--task", "generation", "--data",
                                      "a.txt", "--max-length", "16", "--max-steps", "2", "--device", "cpu", "--output",
                                      "mine", "--plot", "mine.png"])
    finetune.main()
    metrics = (tmp_path / "mine.training" / "metrics.jsonl").read_text(encoding="utf-8")
    logged = [json.loads(line) for line in metrics.splitlines()]
    drawn = [given for name, given, _ in calls if name == "plot"]
    assert drawn[0] == ([1, 2], [line["loss"] for line in logged])
    assert drawn[2] == ([1, 2], [line["lr"] for line in logged])
    assert [given for name, given, _ in calls if name == "savefig"] == [("mine.png",)]


@pytest.mark.parametrize(("door", "arguments"), [
    (train, ["--data", "gone.txt"]), (finetune, ["--lora", "--data", "gone.jsonl"]),
    (lens, ["text", "--model", "gone"])], ids=["train", "finetune", "lens"])
def test_refusal_without_matplotlib_comes_before_the_training(door, arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["door", *arguments, "--plot", "x.png"])
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match="--plot needs matplotlib, and it is not installed; pip install matplotlib"):
        door.main()


def test_refusal_of_figures_that_nobody_could_write(calls, monkeypatch):
    need_matplotlib("a.svg")
    for name in ("a.jpeg2000", "a", "a.txt"):
        with pytest.raises(ValueError, match="the ending says the format; give one of .png, .svg, .pdf"):
            need_matplotlib(name)
    for other in ("--dry-run", "--inspect"):
        monkeypatch.setattr(sys, "argv", ["train.py", "--data", "gone.txt", "--plot", "x.png", other])
        with pytest.raises(ValueError, match="--plot draws a run, and --inspect and --dry-run train nothing"):
            train.main()
