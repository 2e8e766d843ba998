import pytest

from llama.tasks.opinion import OpinionTask, over_time, period_of, time_table
from llama.trainer import Trainer
from llama.training.optimizer import TrainConfig

STREAM = [{"text": text, "label": label, "date": date, "place": f"s:{i}"} for i, (text, label, date) in enumerate([
    ("The dog sleeps", "bad", "2024-01-03"), ("天气很好", "good", "2024-01-20"),
    ("今天天气很好", "good", "2024-02-01"), ("The lazy dog", "bad", "2024-02-02"),
    ("dog dog", "bad", "2024-02-09"), ("The fox goes home", "bad", "2024-02-29")])]


def results(spec):
    return [{"predicted": label, "date": date} for date, label, times in spec for _ in range(times)]


def test_worked_example_the_table_of_the_module():
    stream = results([("2024-02-11", "positive", 120), ("2024-01-01", "negative", 30), ("2024-01-31", "positive", 90),
                      ("2024-02-10", "negative", 80)])
    january, february, whole = over_time(stream, "month")
    assert january == {"period": "2024-01", "texts": 120, "margin": pytest.approx(1.96 * 0.5 / 120**0.5),
                       "share": {"negative": 0.25, "positive": 0.75}}
    assert february["change"] == pytest.approx({"negative": 0.15, "positive": -0.15})
    assert whole["share"]["negative"] == 110 / 320 and whole["change"] == february["change"]
    last = over_time([*stream, *results([("2024-03-01", "negative", 1)])], "month")
    assert last[2]["change"]["negative"] == pytest.approx(0.6) and last[3]["change"]["negative"] == pytest.approx(0.75)
    lines = time_table([january, february, whole]).splitlines()
    assert lines[2].split() == "2024-02 200 6.9 40.0 % +15.0 60.0 % -15.0".split()
    assert lines[3].split() == "all 320 5.5 34.4 % +15.0 65.6 % -15.0".split()


def test_worked_example_periods_sort_as_time_goes_by():
    assert [period_of("2024-12-30", period) for period in ("day", "week", "month", "year")] == \
        ["2024-12-30", "2025-W01", "2024-12", "2024"]


def test_property_shares_of_a_period_sum_to_one_and_changes_to_zero():
    stream = results([(f"2024-0{1 + i % 5}-1{i % 9}", "abc"[i * i % 3], 1 + i % 4) for i in range(40)])
    for period in ("day", "week", "month", "year"):
        *parts, whole = over_time(stream, period)
        assert sum(part["texts"] for part in parts) == whole["texts"] == len(stream)
        assert all(sum(part["share"].values()) == pytest.approx(1) for part in [*parts, whole])
        assert all(sum(part.get("change", {}).values()) == pytest.approx(0, abs=1e-9) for part in [*parts, whole])


def test_two_ways_a_stream_without_labels_has_the_shares_of_the_one_with_them(tiny_model):
    task = OpinionTask()
    Trainer(tiny_model, task, STREAM, config=TrainConfig(epochs=8, lr=0.01, batch_size=3)).train()
    bare = [{name: each[name] for name in ("text", "date", "place")} for each in STREAM]
    known, unknown = (OpinionTask().found(tiny_model, stream) for stream in (STREAM, bare))
    assert task.compute_metrics(known)["accuracy"] == 1 and task.compute_metrics(unknown) == {}
    details, text = task.report(known)
    assert details["over_time"] == task.report(unknown)[0]["over_time"] and details["by_label"]["bad"]["f1"] == 1
    assert details["over_time"][1]["share"] == {"bad": 0.75, "good": 0.25} and "2024-02" in text


def test_refusal_of_texts_without_a_day_and_of_unknown_periods(tiny_model):
    with pytest.raises(ValueError, match="the period is 'hour'; it must be one of day, week, month, year"):
        OpinionTask(period="hour")
    for look in (OpinionTask().check, OpinionTask().report):
        with pytest.raises(ValueError, match="x:1: it has no 'date'"):
            look([{"text": "dog", "predicted": "good", "place": "x:1"}])
    task = OpinionTask()
    task.prepare(tiny_model, [{name: each[name] for name in ("text", "label")} for each in STREAM])     # to learn: none
    assert task.predict(tiny_model, ["The dog"])[0] in ("good", "bad")
