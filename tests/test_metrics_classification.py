import pytest

from llama.metrics.classification import classification_scores, confusion_matrix, label_counts, multilabel_scores
from llama.metrics.counts import Counts

TABLE = [[5, 1, 0], [0, 3, 2], [0, 0, 4]]
PAIRS = [(a, b) for a, row in zip("abc", TABLE, strict=True) for b, n in zip("abc", row, strict=True) for _ in range(n)]
GOLD, PREDICTED = ([pair[side] for pair in PAIRS] for side in (0, 1))


def test_worked_example_the_table_of_the_module():
    assert confusion_matrix(GOLD, PREDICTED, "abc") == TABLE
    counts = label_counts([[label] for label in GOLD], [[label] for label in PREDICTED])
    assert counts == {"a": Counts(5, 5, 6), "b": Counts(3, 4, 5), "c": Counts(4, 6, 4)}
    assert (counts["b"].precision, counts["b"].recall) == (3 / 4, 3 / 5)
    scores = classification_scores(GOLD, PREDICTED)
    assert scores["accuracy"] == scores["micro_f1"] == 12 / 15
    assert scores["macro_f1"] == pytest.approx((10 / 11 + 6 / 9 + 8 / 10) / 3)


def test_worked_example_guessing_the_frequent_class_shows_in_macro_f1_and_correlation():
    scores = classification_scores(["a"] * 9 + ["b"], ["a"] * 10)
    assert scores == {"accuracy": 0.9, "macro_f1": pytest.approx((18 / 19) / 2), "micro_f1": 0.9, "mcc": 0.0}
    assert classification_scores(["a", "b"], ["b", "a"])["mcc"] == -1
    assert classification_scores(["a"], ["a"]) == {"accuracy": 1, "macro_f1": 1, "micro_f1": 1, "mcc": 0}


def test_worked_example_several_labels_or_none():
    gold, predicted = [["x", "y"], [], ["z"]], [["y", "x"], ["x"], []]
    scores = multilabel_scores(gold, predicted)
    assert scores == {"accuracy": 1 / 3, "macro_f1": pytest.approx((2 / 3 + 1 + 0) / 3), "micro_f1": 4 / 6}
    assert multilabel_scores([[]], [[]]) == {"accuracy": 1, "macro_f1": 0, "micro_f1": 0}


def test_property_swapping_sides_swaps_precision_and_recall():
    one, other = Counts(2, 5, 3), Counts(2, 3, 5)
    assert (one.precision, one.recall, one.f1) == (other.recall, other.precision, other.f1)
    assert one.f1 == pytest.approx(2 * one.precision * one.recall / (one.precision + one.recall))


def test_refusal_of_what_cannot_be_compared():
    with pytest.raises(ValueError, match="there are 1 predictions for 2 examples"):
        classification_scores(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="there are 0 predictions for 0 examples"):
        multilabel_scores([], [])
    with pytest.raises(ValueError, match="the labels c are not among a, b; list them all"):
        confusion_matrix(["a"], ["c"], ["a", "b"])
