"""The roofline: its roof by hand, and what is drawn, told by a matplotlib that only listens, and by the real one."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from llama.benchmark import plot

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


@pytest.fixture
def calls(monkeypatch):
    calls = []
    listening = Listening(calls)
    for name, content in {"matplotlib": {}, "matplotlib.figure": {"Figure": listening.Figure},
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


def test_refusal_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match="--plot needs matplotlib, and it is not installed; pip install matplotlib"):
        plot.need_matplotlib()
