import sys

import pytest

from llama import plot


def test_worked_example_roof():
    assert plot.roof(40e9, 538e6) == pytest.approx(74.35, abs=0.01)


def test_refusal_without_matplotlib(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match="--plot needs matplotlib, and it is not installed; pip install matplotlib"):
        plot.need_matplotlib()


def test_property_a_plot_shows_every_engine_that_ran(tmp_path):
    pytest.importorskip("matplotlib")
    results = {"engines": {"default": {"decode": [50, 60], "traffic": 3e8}, "int4": {"refused": "no"},
                           "llama.cpp F16": {"decode": [100], "traffic": 2.7e8}},
               "bandwidth": 4e10, "model": "tiny", "machine": {"cpu": "a CPU"}, "date": "2026-01-01"}
    plot.write_plot(str(tmp_path / "roof.svg"), results)
    assert (tmp_path / "roof.svg").stat().st_size > 5_000
