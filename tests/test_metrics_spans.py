import pytest

from llama.metrics.counts import Counts
from llama.metrics.spans import entity_counts, entity_scores, word_scores


def test_worked_example_of_the_conll_task():
    """A right one, one whose end is wrong, one of the wrong type, one too many, one overlooked."""
    gold = ["B-PER I-PER O B-LOC I-LOC O".split(), "B-ORG O B-PER O O O".split()]
    predicted = ["B-PER I-PER O B-LOC O O".split(), "B-LOC O O O B-PER O".split()]
    assert entity_counts(gold, predicted) == {"LOC": Counts(0, 2, 1), "ORG": Counts(0, 0, 1), "PER": Counts(1, 2, 2)}
    assert entity_scores(gold, predicted) == {"precision": 1 / 4, "recall": 1 / 4, "f1": 1 / 4}


def test_worked_example_a_predicted_row_that_breaks_the_rules_is_read_as_conlleval_does():
    assert entity_scores([["B-A", "I-A", "B-B"]], [["I-A", "I-A", "I-B"]])["f1"] == 1
    assert entity_counts([["B-A", "I-A", "I-A"]], [["B-A", "I-B", "I-A"]]) == {"A": Counts(0, 2, 1),
                                                                             "B": Counts(0, 1, 0)}


def test_two_ways_both_schemes_score_alike():
    gold, predicted = ["B-A", "I-A", "O", "B-A", "B-B"], ["B-A", "I-A", "O", "O", "B-B"]
    bmes = [["B-A", "E-A", "O", "S-A", "S-B"]], [["B-A", "E-A", "O", "O", "S-B"]]
    assert entity_scores([gold], [predicted]) == entity_scores(*bmes) == {"precision": 1.0, "recall": 2 / 3,
                                                                          "f1": 4 / 5}


def test_worked_example_words():
    """北京大学|生 against 北京|大学生: no word is right; 在 and 去 are."""
    scores = word_scores([["在", "北京大学", "生"], ["去"]], [["在", "北京", "大学生"], ["去"]])
    assert scores == {"precision": 2 / 4, "recall": 2 / 4, "f1": 2 / 4}
    assert word_scores([["北京", "大学"]], [["北", "京", "大学"]]) == {"precision": 1 / 3, "recall": 1 / 2, "f1": 2 / 5}


def test_refusal_of_other_texts():
    with pytest.raises(ValueError, match="sentence 2 has 2 tags, and 1 were predicted"):
        entity_scores([["O"], ["O", "O"]], [["O"], ["O"]])
    with pytest.raises(ValueError, match="text 1 is «北京», and its predicted words make «北»"):
        word_scores([["北京"]], [["北"]])
    with pytest.raises(ValueError, match="there are 0 predictions for 1 examples"):
        entity_scores([["O"]], [])
