"""Precision, recall and F1 of whatever can be counted: labels, entities, words (van Rijsbergen 1979, chapter 7).

Try: let F1 be the plain mean of the two; tests/test_metrics_classification.py
(test_property_swapping_sides_swaps_precision_and_recall) fails.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Counts:
    """How many were right and predicted, predicted, and right. What nobody predicted or has is scored 0."""

    correct: int = 0
    predicted: int = 0
    gold: int = 0

    @property
    def precision(self) -> float:
        return self.correct / self.predicted if self.predicted else 0.0

    @property
    def recall(self) -> float:
        return self.correct / self.gold if self.gold else 0.0

    @property
    def f1(self) -> float:
        """Their harmonic mean, in whole numbers: no precision has to be divided by a recall of 0."""
        return 2 * self.correct / (self.predicted + self.gold) if self.predicted + self.gold else 0.0

    def scores(self) -> dict[str, float]:
        return {"precision": self.precision, "recall": self.recall, "f1": self.f1}


def total(counts: Iterable[Counts]) -> Counts:
    """The sum; its F1 is the micro-averaged one."""
    counts = list(counts)
    return Counts(*(sum(getattr(each, name) for each in counts) for name in ("correct", "predicted", "gold")))


def check_pairs(gold: list, predicted: list) -> None:
    """Raise ValueError unless there are as many predictions as examples, and at least one."""
    if len(gold) != len(predicted) or not gold:
        raise ValueError(f"there are {len(predicted)} predictions for {len(gold)} examples; give one for each, and at "
                         "least one")
