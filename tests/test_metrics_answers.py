import random

import pytest

from llama.metrics.answers import answer_scores, chinese_exact, chinese_f1, english_exact, english_f1, longest_piece


def test_worked_example_english():
    assert english_exact("The Norman's  king", "norman's KING.") == 1
    assert english_exact("in 1066", "1066") == 0
    assert english_f1("in the year 1066", "1066 A.D., in France") == pytest.approx(2 * 2 / (3 + 4))
    assert english_f1("a b b", "b b b") == pytest.approx(2 * 2 / (2 + 3))       # the article is no word
    assert english_f1("yes", "no") == 0 and english_f1("the", "") == 1 and english_f1("x", "") == 0


def test_worked_example_chinese_counts_the_longest_piece():
    assert chinese_exact("《三国演义》", " 三国演义。") == 1 and chinese_exact("ＡＢ", "AB") == 0
    assert chinese_f1("甲乙丙丁戊", "甲乙X丁戊") == pytest.approx(2 * 2 / (5 + 5))        # not 4 in common
    assert chinese_f1("1998年5月", "在1998年") == pytest.approx(2 * 2 / (4 + 3))     # 1998 is one word
    assert chinese_f1("Nexon公司", "nexon") == pytest.approx(2 * 1 / (3 + 1))
    assert chinese_f1("3.5米", "3.5 米") == 1 and chinese_f1("山", "水") == 0


def test_worked_example_the_best_of_several_answers_and_none():
    answers, predicted = [["山", "高山"], [], ["水"], []], ["高山", "", "", "河"]
    scores = answer_scores(answers, predicted, language="zh")
    assert scores == {"exact_match": 2 / 4, "f1": 2 / 4, "answerable_f1": 1 / 2, "unanswerable_accuracy": 1 / 2}
    assert answer_scores([["in Paris", "Paris"]], ["paris"]) == {"exact_match": 1.0, "f1": 1.0}


def test_two_ways_the_longest_piece_equals_that_of_all_pieces():
    rng = random.Random(0)
    for _ in range(200):
        a, b = ("".join(rng.choices("ab1", k=rng.randrange(0, 9))) for _ in range(2))
        pieces = [a[i:j] for i in range(len(a)) for j in range(i + 1, len(a) + 1)]
        assert longest_piece(a, b) == max((len(piece) for piece in pieces if piece in b), default=0)


def test_refusal_of_an_unknown_language():
    with pytest.raises(ValueError, match="the language is 'fr'; answers are compared in one of en, zh"):
        answer_scores([["oui"]], ["oui"], language="fr")
    with pytest.raises(ValueError, match="there are 0 predictions for 1 examples"):
        answer_scores([["a"]], [])
