"""The sweep behind the rates of llama/training/recipes.py: tests/benchmarks/learning_rates.py."""

import json

import pytest

from tests.benchmarks import learning_rates


def _run(way, rate, *losses, **more):
    return {"task": "ner", "way": way, "rate": rate, "data": "a.conll", "records": 9, "steps": 4, "minutes": 1.0,
            "scores": [{"loss": loss, "f1": loss / 10} for loss in losses], "date": "2026-11-29"} | more


def test_worked_example_the_lowest_loss_of_each_way_is_marked_and_its_score_shown():
    rows = learning_rates.table([_run("lora", 1e-3, 3.0, 2.0, 2.5), _run("lora", 1e-4, 3.0, 2.2, 2.1),
                                 _run("all", 1e-3, 3.0, 2.9, 4.0), _run("lora", 1e-2, 9.0, 1.0, task="qa")])
    cells = [[cell.strip() for cell in row.split("|")[5:10]] for row in rows.splitlines()[2:]]
    assert cells == [["all", "1e-03", "3.000", "**2.900, 4.000**", "f1 0.290"],
                     ["lora", "1e-04", "3.000", "2.200, 2.100", "f1 0.210"],
                     ["lora", "1e-03", "3.000", "**2.000, 2.500**", "f1 0.200"],
                     ["lora", "1e-02", "9.000", "**1.000**", "f1 0.100"]]


def test_property_only_what_is_missing_is_run(tmp_path, monkeypatch, capsys):
    """Interrupted, the sweep keeps what is done, and goes on; other rates and ways add to it."""
    ran = []

    def measured(arguments, way, rate):
        if rate == interrupted_at:
            raise KeyboardInterrupt
        ran.append((way, rate))
        return _run(way, rate, 2.0, 1.0)

    monkeypatch.setattr(learning_rates, "measured", measured)

    def sweep(*more):
        monkeypatch.setattr("sys.argv", ["x", "--task", "ner", "--data", "a.conll", "--output",
                                         str(tmp_path / "kept" / "rates.json"), *more])
        learning_rates.main()
        return capsys.readouterr().out

    interrupted_at = 1e-4
    with pytest.raises(KeyboardInterrupt):
        sweep("--ways", "lora", "all", "--rates", "1e-3", "1e-4")
    assert ran == [("lora", 1e-3), ("all", 1e-3)] and "the same command goes on" in capsys.readouterr().err
    interrupted_at = 0
    out = sweep("--ways", "lora", "all", "--rates", "1e-3", "1e-4")
    assert ran[2:] == [("lora", 1e-4), ("all", 1e-4)] and out.count("a.conll") == 4
    sweep("--ways", "last", "--last", "5", "--rates", "1e-3")
    sweep("--ways", "last", "--last", "6", "--rates", "1e-3")
    sweep("--ways", "all", "--rates", "1e-3", "--last", "6")                            # which means nothing there
    assert ran[4:] == [("last", 1e-3), ("last", 1e-3)]


def test_worked_example_each_way_learns_what_it_should(tiny_model, tmp_path, monkeypatch):
    """A run of each, on the tiny model: before it, and after each epoch, what is held out is evaluated."""
    monkeypatch.chdir(tmp_path)
    tiny_model.save("model")
    records = [{"instruction": word, "output": f"The {word} sleeps."} for word in
               ("dog", "fox", "quick brown fox", "lazy", "天气", "numbers")]
    (tmp_path / "a.json").write_text(json.dumps(records), encoding="utf-8")
    tiny_model.tokenizer.chat_template = None
    arguments = learning_rates._parser().parse_args(
        ["--data", "a.json", "--model", "model", "--records", "3", "--eval-records", "2", "--rates", "1", "--last",
         "1", "--epochs", "2"])
    learned = {}
    real = learning_rates.Trainer

    def trainer(model, *given, **more):
        learned[way] = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        return real(model, *given, **more)

    monkeypatch.setattr(learning_rates, "Trainer", trainer)
    for way in ("lora", "last", "all"):
        found = learning_rates.measured(arguments, way, 1e-3)
        assert len(found["scores"]) == 3 and (found["records"], found["steps"]) == (3, 2)
    assert all(".adapters." in name for name in learned["lora"])
    assert {name.split(".")[0:2][-1] for name in learned["last"]} == {"1", "weight"}
    assert learned["last"] < learned["all"]
    arguments.records = 9
    with pytest.raises(ValueError, match="hold 6 examples, fewer than --records 9 and --eval-records 2 together"):
        learning_rates.measured(arguments, "all", 1e-3)
