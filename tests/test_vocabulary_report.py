"""What a vocabulary makes of texts, counted."""

import pytest
from test_bpe import gguf

from tokenizer import bpe
from tokenizer.bpe_extend import extend_bpe
from tokenizer.vocabulary_report import Rate, gb2312, growth_report, is_han, rate

BASE = bpe.from_vocabulary(gguf(["q u"]))
GROWN = BASE.with_merges([(0xE4, 0xBA), (257, 0xBA)])              # 人


def test_worked_example_of_rates():
    assert rate(BASE, ["人a"]) == Rate(tokens=4, tokens_per_character=2.0, bytes_per_token=1.0, han=0.0)
    assert rate(GROWN, ["人a", "天"]) == Rate(tokens=5, tokens_per_character=5 / 3, bytes_per_token=7 / 5, han=0.5)
    with pytest.raises(ValueError, match="a corpus to count on is empty"):
        rate(BASE, [""])


def test_worked_example_of_a_report():
    report = growth_report(BASE, GROWN, {"text": ["人a"]}, dead=0)
    assert report.size == (257, 259) and report.added == 2 and report.han == (0, 1)
    assert report.longest == ["人", "\\xe4\\xba"]
    assert str(report).splitlines()[-1].split() == ["text", "2.000", "→", "1.000", "1.00", "→", "2.00", "0.0%", "→",
                                                    "100.0%"]
    assert report.as_dict()["corpora"]["text"][1]["tokens"] == 2


def test_property_a_piece_as_long_as_a_page_does_not_fill_the_report():
    report = growth_report(GROWN, extend_bpe(GROWN, ["人" * 4000], 12), {}, dead=0)
    assert len(report.longest[0]) > 1000 > max(map(len, str(report).splitlines()))
    assert f"人…({len(report.longest[0]):,} characters) 人" in str(report)


def test_property_the_standard_has_as_many_characters_as_it_says():
    assert len(gb2312()) == 6763 and all(map(is_han, gb2312()))
