import math
import random

import pytest

from llama.metrics.overlap import TOKENIZATIONS, bleu, chrf, common_length, rouge_scores


def test_worked_example_rouge():
    """Lin's own: seven words against six, six of them in common."""
    scores = rouge_scores(["The cat was found under the bed."], ["the cat was under the bed"])
    assert scores == {"rouge_1": 12 / 13, "rouge_2": 8 / 11, "rouge_l": 12 / 13}
    assert rouge_scores(["police kill the gunman"], ["police killed the gunman"])["rouge_l"] == 6 / 8
    assert rouge_scores(["the gunman kill police"], ["police killed the gunman"])["rouge_l"] == 4 / 8


def test_worked_example_rouge_of_chinese_counts_characters():
    scores = rouge_scores(["今天天气好"], ["今天，天气很好！"])
    assert scores == {"rouge_1": 10 / 11, "rouge_2": 6 / 9, "rouge_l": 10 / 11}
    assert rouge_scores(["用GPT-4"], ["GPT_4"])["rouge_1"] == 4 / 5
    assert rouge_scores(["", "a"], ["", "a"])["rouge_1"] == 1 / 2


def test_two_ways_the_longest_common_subsequence_equals_its_table():
    rng = random.Random(0)
    for _ in range(200):
        a, b = (rng.choices("abc", k=rng.randrange(0, 90)) for _ in range(2))
        table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
        assert common_length(a, b) == table[-1][-1]


def test_worked_example_chrf():
    """abc, abd: of single characters 2 of 3 are right, of pairs 1 of 2, of triples none; longer ones there are none."""
    assert chrf(["a bc"], ["ab d"]) == pytest.approx(100 * (2 / 3 + 1 / 2 + 0) / 3)
    precision, recall = (2 / 2 + 1 / 1) / 2, (2 / 4 + 1 / 3) / 2
    assert chrf(["ab"], ["abcd"]) == pytest.approx(100 * 5 * precision * recall / (4 * precision + recall))
    assert chrf(["x"], ["y"]) == chrf([""], ["y"]) == chrf(["x"], [""]) == 0 and chrf(["x y"], ["xy"]) == 100


def test_worked_example_bleu_adds_up_counts():
    one = ("the cat sat on the mat", "the cat sat on a mat")            # 5/6, 3/5, 2/4, 1/3
    two = ("a dog", "a dog barks loudly")                               # 2/2, 1/1, and nothing longer
    assert bleu([one[0]], [one[1]]) == pytest.approx(100 * (5 / 6 * 3 / 5 * 2 / 4 * 1 / 3) ** 0.25)
    both = 100 * (7 / 8 * 4 / 6 * 2 / 4 * 1 / 3) ** 0.25 * math.exp(1 - 10 / 8)
    assert bleu([one[0], two[0]], [one[1], two[1]]) == pytest.approx(both)
    assert bleu(["a b c d"], ["a x c y"]) == pytest.approx(100 * (2 / 4 / 2 / 3 / 4 / 2 / 8 / 1) ** 0.25)
    assert bleu(["a b c"], ["a b c"]) == bleu(["x"] * 9, ["y"] * 9) == bleu([""], ["a"]) == 0


def test_worked_example_words_of_bleu():
    words = TOKENIZATIONS
    assert words["13a"]('It costs 3,000.50 "now", e.g. 5-6!') == [
        "It", "costs", "3,000.50", '"', "now", '"', ",", "e", ".", "g", ".", "5", "-", "6", "!"]
    assert words["13a"]("well-known &amp; co\n\"it's\"") == ["well-known", "&", "co", '"', "it's", '"']
    assert words["zh"]("我有3.5元，OK？") == ["我", "有", "3.5", "元", "，", "OK", "？"]
    assert words["char"]("我 OK") == ["我", "O", "K"]


def test_property_equal_texts_have_the_highest_scores_and_case_counts_for_bleu():
    texts = ["The quick brown fox jumps over the dog.", "今天天气很好，我们去公园散步。"]
    for name in TOKENIZATIONS:
        assert bleu(texts, texts, tokenization=name) == pytest.approx(100)
    assert chrf(texts, texts) == 100 and set(rouge_scores(texts, texts).values()) == {1.0}
    assert bleu([texts[0].lower()], texts[:1]) < 100 and rouge_scores([texts[0].lower()], texts[:1])["rouge_l"] == 1


def test_refusal_of_an_unknown_tokenization_and_of_missing_texts():
    with pytest.raises(ValueError, match="the tokenization 'ja' is not known; BLEU has 13a, zh, char"):
        bleu(["a"], ["a"], tokenization="ja")
    for score in (bleu, chrf, rouge_scores):
        with pytest.raises(ValueError, match="there are 1 predictions for 2 examples"):
            score(["a"], ["a", "b"])
