"""Opinions over time: of texts with dates, which share holds which opinion in each month, and how that changes.

    period      texts   negative            positive
    2024-01       120       25.0 %              75.0 %
    2024-02       200       40.0 %  +15.0       60.0 %  -15.0       points more or less than in the period before
    all           320       34.4 %  +15.0       65.6 %  -15.0       the last period against the first

Each text gets its opinion from a classifier, a tuned head or the model's own likelihood (zero_shot.py); nobody has to
say what is right. Shares of few texts move by chance: `margin` is the half width of their 95 % interval, in points (the
normal approximation for a share of one half, the widest). What a classifier gets wrong, its shares get wrong too.

Try: take the change against the first period instead of the one before; tests/test_opinion.py
(test_worked_example_the_table_of_the_module) fails.
"""

import datetime
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any, Literal, get_args

from llama.runtime.progress import pad_to_width
from llama.tasks.classification import ClassificationTask
from llama.tasks.labelled import Example, Labelled, Result
from llama.tasks.task import Totals

Period = Literal["day", "week", "month", "year"]
PERIODS = get_args(Period)
Z = 1.96                                                            # 95 % of a normal distribution lie within so many σ


class OpinionTask(ClassificationTask):
    """Classification of a stream of texts with "date"; a "label" only where it is learned or scored.

    period  day, week (that of ISO 8601, 2024-W09), month or year
    """

    name = "opinion"

    def __init__(self, labels: Sequence[str] = (), *, period: Period = "month", attention: str = "",
                 pooling: str = "", max_length: int = 512):
        if period not in PERIODS:
            raise ValueError(f"the period is '{period}'; it must be one of {', '.join(PERIODS)}")
        super().__init__(labels, attention=attention, pooling=pooling, max_length=max_length)
        self.period = period

    def check(self, dataset: Sequence[Example]) -> None:
        """Raise ValueError for a text without a day."""
        for example in dataset:
            dated({}, example)

    def decode(self, samples: Sequence[Labelled], scores: Sequence[Any]) -> Result:
        example = samples[0].example
        found = super().decode(samples, scores)
        return found | {"date": example["date"]} if "date" in example else found        # to learn, none is needed

    def score(self, totals: Totals) -> dict[str, float]:
        """Nothing, where nobody says what is right: there, `details` is what this task is for."""
        if not any("gold" in result for result in self.results(totals)):
            return {}
        return super().score(totals)

    def compute_metrics(self, results: Sequence[Result]) -> dict[str, float]:
        return super().compute_metrics(results) if all("gold" in result for result in results) else {}

    def report(self, results: Sequence[Result]) -> tuple[dict[str, Any], str]:
        as_json, text = super().report(results) if all("gold" in result for result in results) else ({}, "")
        for result in results:
            dated({}, result)
        periods = over_time(results, self.period)
        return as_json | {"period": self.period, "over_time": periods}, "\n\n".join(
            filter(None, [text, time_table(periods)]))


def dated(result: Result, example: Example) -> Result:
    """With the day of the example. Raises ValueError where it has none."""
    if "date" not in example:
        raise ValueError(f"{example.get('place', 'an example')}: it has no 'date', and opinions are followed over "
                         "time; give one to every text")
    return result | {"date": example["date"]}


def over_time(results: Sequence[Result], period: Period) -> list[dict[str, Any]]:
    """For each period in which there are texts, in order, "texts", "margin", and the "share" and "change" of each
    opinion; at last that of "all", whose change is that of the last period against the first. Shares are from 0 to 1.
    """
    by_period: dict[str, Counter] = defaultdict(Counter)
    for result in results:
        by_period[period_of(result["date"], period)][result["predicted"]] += 1
    labels = sorted({label for counts in by_period.values() for label in counts})
    periods = [_period(name, by_period[name], labels) for name in sorted(by_period)]
    whole = _period("all", sum(by_period.values(), Counter()), labels)
    pairs = [*zip(periods, periods[1:], strict=False)]
    for before, after in pairs:
        after["change"] = {label: after["share"][label] - before["share"][label] for label in labels}
    if pairs:
        whole["change"] = {label: periods[-1]["share"][label] - periods[0]["share"][label] for label in labels}
    return [*periods, whole]


def period_of(day: str, period: Period) -> str:
    """«2024-03-01» is in 2024-03-01, 2024-W09, 2024-03 or 2024: names that sort as time goes by."""
    if period == "week":
        year, week, _ = datetime.date.fromisoformat(day).isocalendar()
        return f"{year:04}-W{week:02}"
    return day[: {"year": 4, "month": 7, "day": 10}[period]]


def _period(name: str, counts: Counter, labels: Sequence[str]) -> dict[str, Any]:
    n = counts.total()
    return {"period": name, "texts": n, "margin": Z * (0.25 / n) ** 0.5,
            "share": {label: counts[label] / n for label in labels}}


def time_table(periods: Sequence[dict[str, Any]]) -> str:
    labels = list(periods[0]["share"])
    names = "".join(f"{'':>5}{pad_to_width(label[:12], 14)}" for label in labels)
    lines = [f"{'period':<12}{'texts':>8}{'±':>8}  {names}"]
    for each in periods:
        cells = [f"{100 * each['share'][label]:>8.1f} %"
                 + (f"{100 * each['change'][label]:>+7.1f}  " if "change" in each else " " * 9) for label in labels]
        lines.append(f"{each['period']:<12}{each['texts']:>8,}{100 * each['margin']:>8.1f}  " + "".join(cells))
    return "\n".join(lines)
