"""Tables, the Pareto set and advice: llama/frontier/report.py."""

import pytest

from llama.frontier.report import Cell, advice, cells, front, speed, tables, write_plot


def _start(shape, tokens, loss, seed=0, parameters=1_000_000, wall=10.0, shuffled="0"):
    return {"kind": "start", "cell": f"{shape}, {tokens}{'' if shuffled == '0' else ' worse'}", "shape": shape,
            "text": "news", "shuffled": shuffled, "tokens": tokens, "seed": seed, "parameters": parameters,
            "learned": parameters, "predicted": 5e8, "measured": 6e8, "seconds": wall / 2, "read": tokens,
            "stored": 4_000_000, "wall": wall, "cpu": wall / 2, "train_wall": wall, "train_cpu": wall / 2,
            "loss": loss, "bits_per_byte": loss / 2}


def _tuned(name, score, seed=0, wall=5.0, method="full"):
    return _start("tiny", 1000, 0.0, seed, wall=wall) | {
        "kind": "tuned", "cell": name, "method": method, "score": score, "wall_before": 10.0, "cpu_before": 5.0}


def _points(*points):
    return [Cell(str(number), cost, tuple(values), ({},)) for number, (cost, *values) in enumerate(points)]


def test_worked_example_the_front():
    #                 cheap, bad        dear, better       worse for sure     cheaper and better, but seeds overlap
    points = _points((1, .5, .52, .51), (10, .8, .82, .81), (20, .6, .62, .61), (30, .79, .815, .8))
    assert front(points) == ["★", "★", "", "☆"]
    assert front(_points((1, 5.0), (2, 6.0), (3, 4.0)), lower=True) == ["★", "☆", "★"]     # of one seed nobody knows
    assert front(_points((1, 0.5), (1, 0.5))) == ["★", "★"]


def test_worked_example_costs_add_up_and_seeds_are_brought_together():
    [cell] = cells([_tuned("a", 0.7), _tuned("a", 0.9, seed=1, wall=7.0), _start("tiny", 1000, 3.0)], "tuned", "score",
                   "wall")
    assert cell.cost == pytest.approx(16) and cell.values == (0.7, 0.9)
    [cell] = cells([_tuned("a", 0.7)], "tuned", "score", "cpu")
    assert cell.cost == pytest.approx(7.5)


def test_worked_example_speed_by_both_clocks():
    result = _start("tiny", 1000, 3.0, wall=10.0)                   # half of it training, half of it this one's
    assert speed(result, "wall") == 200 and speed(result, "cpu") == 400


def test_property_the_tables_say_all_that_was_asked():
    given = {"kind": "start", "cell": "zh-small", "shape": "zh-small", "text": "", "shuffled": "0", "tokens": 0,
             "seed": 0, "wall": 0.0, "cpu": 0.0, "loss": 4.0, "bits_per_byte": 1.25}
    text = tables([_start("tiny", 1000, 3.0), _start("tiny", 1000, 3.2, seed=1), given, _tuned("tiny: full", 0.75)],
                  "accuracy", "wall")
    start, there, tuned = (next(line for line in text.splitlines() if name in line)
                           for name in ("| tiny, 1000", "| zh-small", "| tiny: full"))
    for shown in ("★", "1,000,000", "3.100 ± 0.141", "1.550 ± 0.071", "500 / 600", "4.0", "200", "| 2 "):
        assert shown in start
    assert "1.250" in there and "4.000" not in there                # its tokens are others
    assert "0.750" in tuned and "| 15 " in tuned and "accuracy" in text


def test_property_advice_is_honest():
    few = [_start("small", 1000, 4.0), _start("large", 1000, 3.5, parameters=2_000_000)]
    text = advice(few, 60, "accuracy", "wall")
    assert "no law of the loss is fitted: 2 sizes of model" in text and "large had the lowest loss" in text
    many = [_start(name, T, 1.69 + 406 / N**0.34 + 411 / T**0.28, parameters=N, wall=T / 100)
            for name, N in (("a", 10**6), ("b", 3 * 10**6), ("c", 9 * 10**6)) for T in (10**4, 10**5, 10**6)]
    text = advice([*many, _start("a", 10**5, 9.0, shuffled="0.5")], 60, "accuracy", "wall")
    assert "a = 0.34" in text and "b = 0.28" in text                # what was made worse is not of the law
    assert "measured less the law: a, 10000 " in text
    assert "for 60 minutes on this machine: c" in text and "guess" not in text and "extrapolation" not in text
    assert "extrapolation" in advice(many, 600, "accuracy", "wall")


def test_property_advice_on_tuning_names_the_cheapest_that_is_not_told_from_the_best():
    found = [_tuned(name, score, seed, wall=wall) for name, wall, scores in (
        ("dear", 100.0, (0.80, 0.82, 0.84)), ("cheap", 5.0, (0.79, 0.80, 0.81)), ("worse", 1.0, (0.5, 0.5, 0.5)))
        for seed, score in enumerate(scores)]
    text = advice([_start("tiny", 1000, 3.0), *found], 60, "accuracy", "wall")
    assert "dear has the best accuracy, 0.820" in text and "is cheap, 0.800" in text
    assert "dear" not in advice([_start("tiny", 1000, 3.0), *found], 1, "accuracy", "wall")     # not within a minute


def test_property_a_plot_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    results = [_start("tiny", 1000, 3.0), _start("tiny", 2000, 2.5, wall=20.0), _tuned("a", 0.7), _tuned("b", 0.8)]
    write_plot(str(tmp_path / "f.svg"), results, "accuracy", "wall")
    assert "<svg" in (tmp_path / "f.svg").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="no run is there"):
        write_plot(str(tmp_path / "g.svg"), [], "accuracy", "wall")
