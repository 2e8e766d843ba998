import dataclasses

import pytest
import torch

from llama.benchmark import training
from llama.benchmark.training import ROWS, WORKS, losses, operations, order, run, tables
from llama.checkpoint import save_model


def test_worked_example_operations():
    config = {"num_hidden_layers": 2, "hidden_size": 3}
    assert operations(config, 100, lora=False, T=3) == 600 + 3 * 2 * 2 * 2 * 3 * 2
    assert operations(config, 100, lora=True, T=3) == 400 + 3 * 2 * 2 * 2 * 3 * 2


def test_property_steps_visit_every_sample_before_any_comes_again():
    steps = order(6, 2, 4)
    assert sorted(steps[0] + steps[1] + steps[2]) == list(range(6)) and steps[3] == steps[0] and order(6, 2, 4) == steps


def test_worked_example_tables():
    engine = {"memory": 1_000_000_000, "utilisation": 0.25, "losses": [2.0, 1.0]}
    engines = {"default": engine | {"speeds": [900.0, 1000.0]},
               "compile": engine | {"speeds": [900.0, 1000.0], "compiled at first": 4, "compilations": 7},
               "transformers": engine | {"speeds": [500.0, 400.0], "losses": [2.0, 1.5]}}
    machine = {"cpu": "c", "threads": 2, "cores": 2, "torch": "t"}
    results = {"model": "m", "date": "d", "machine": machine, "data": ["x"],
               "matrix_peak": 1e12, "dtype": "float32", "repeats": 2, "refused": {"7B": "too large"},
               "costs": [{"run": "LoRA", "predicted": 9, "measured": 10, "training_predicted": 9,
                          "training_measured": 10}],
               "rows": [{"name": ROWS[1].name, "engines": engines, "aims": {"default": (1.15, 1.4)}}],
               "memory": [{"name": "int8", "floor": 0.5, "stretch": 0.35, "shape": "", "theirs": 2_000_000_000,
                           "ours": {"memory": 900_000_000, "tokens_per_second": 12.0}},
                          {"name": "1.1B", "floor": 4.0, "stretch": None, "shape": "x", "theirs": None,
                           "ours": {"memory": 4_100_000_000, "tokens_per_second": 12.0}}]}
    shown = tables(results)
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in shown.splitlines()]
    assert ["LoRA, dense", "default", "950", "25%", "1,000", "2.15 × (1.80–2.50)", "1.15", "1.40", "stretch",
            "1.5000, 1.7500 (0.5000)"] in cells
    assert ["int8", "900", "0.45 × of 2,000", "0.5", "0.35", "floor", "12", ""] in cells
    assert any(cell.startswith("compile (3 recompilations)") for row in cells for cell in row)
    assert "-10.0%" in shown and "GFLOP/s in float32, which all compute in. Medians of 2 pairs" in shown
    assert ["1.1B", "4,100", "4.10 GB", "4", "", "no", "12", ""] in cells and "7B: too large" in shown
    with pytest.raises(ValueError):
        losses([1.0], [1.0, 2.0])


def test_refusal_of_unknown_works():
    with pytest.raises(ValueError, match="--works nothing: no work is called so; there are LoRA, ragged; "):
        run("none", "nothing", data=[], repeats=1, python="")
    assert len(set(WORKS)) == len(WORKS)


def test_property_a_run_says_on_what_it_was_measured_and_goes_on_where_a_work_is_refused(tmp_path, monkeypatch):
    def refuse(*given, **more):
        raise RuntimeError("no room")

    monkeypatch.setattr(training, "model_path", lambda model: tmp_path)
    monkeypatch.setattr(training, "measure_matrix_peak", lambda dtype: 1e9)
    monkeypatch.setattr(training, "choose_dtype", lambda *given, **more: torch.float32)
    monkeypatch.setattr(training.Place, "prepare", lambda place, data: None)
    monkeypatch.setattr(training, "speeds", refuse)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")                      # which a run sets, and this puts back
    found = run("any", "LoRA, ragged", data=[], repeats=1, python="")
    assert found["dtype"] == "float32" and found["machine"]["instructions"]
    assert found["refused"] == {"LoRA, ragged": "no room"}


def test_property_a_small_row_is_measured_whole(tiny_model, tmp_path, monkeypatch):
    """Files made, an engine started, steps taken, figures told: all but the size is as in earnest."""
    save_model(tiny_model, tmp_path / "model")
    row = dataclasses.replace(next(row for row in ROWS if row.shape), shape="test")
    monkeypatch.setattr(training, "ROWS", (row,))
    monkeypatch.setattr(training, "SETTLE", 0.0)
    monkeypatch.setattr(training, "measure_matrix_peak", lambda dtype: 1e11)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = run(str(tmp_path / "model"), row.name, data=[], repeats=1, python="")
    assert "refused" not in found
    (measured,) = found["rows"]
    engine = measured["engines"]["default"]
    assert len(engine["losses"]) == training.STEPS and engine["speeds"][0] > 0 and engine["memory"] > 10**7
    assert "| from scratch | default |" in tables(found)
