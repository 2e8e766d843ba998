"""Raw text is put right, judged and compared, in an order that counts."""

from collections import Counter

import pytest

from llama.clean.steps import (
    Boilerplate,
    Characters,
    CleanConfig,
    Cleaner,
    half_width,
    han_share,
    mojibake_repaired,
    scripts,
    symbol_share,
    tidy,
)


def _kept(config: CleanConfig, *texts: str, convert=None) -> list[str]:
    cleaner = Cleaner(config, convert)
    return [kept for i, text in enumerate(texts) if (kept := cleaner(text, f"a.txt:{i + 1}")) is not None]


def test_property_copies_in_other_characters_are_duplicates():
    config = CleanConfig(half_width=True, characters="t2s")
    simplified = str.maketrans("語國", "语国")
    kept = _kept(config, "中国语言１９９８", " 中國語言1998", convert=lambda text: text.translate(simplified))
    assert kept == ["中国语言1998"]


def test_worked_example_a_report_says_what_was_dropped_and_where():
    cleaner = Cleaner(CleanConfig(min_characters=3, min_han=0.5))
    for i, text in enumerate(["今天天气好", "好", "hello world", "今天，天气好！"]):
        cleaner(text, f"a.txt:{i + 1}")
    assert {name: (step.dropped, step.examples) for name, step in cleaner.steps.items() if step.dropped} == {
        "too short": (1, ["a.txt:2 «好»"]), "too few Chinese characters": (1, ["a.txt:3 «hello world»"]),
        "duplicate": (1, ["a.txt:4 «今天，天气好！»"])}
    assert cleaner.read["texts"] == 4 and cleaner.kept["texts"] == 1 and cleaner.scripts["Chinese"] == 5


@pytest.mark.parametrize("wrong, right", [("ä¸\xadå\x9b½", "中国"), ("ÖÐ¹ú", "中国"), ("Ça va", "Ça va"),
                                          ("中国", "中国"), ("plain", "plain"), ("naïve café", "naïve café"),
                                          ("————", "————"), ("“”……“”", "“”……“”"), ("ÄÖ", "ÄÖ")])
def test_worked_examples_of_repaired_encodings(wrong, right):
    assert mojibake_repaired(wrong) == right


@pytest.mark.parametrize("text, tidied", [
    ("\ufeff甲\x00\x1b乙\ufffd \n\n  \t\n丙  丁\u200d", "甲乙\n丙  丁\u200d"),
    ("甲\r\n乙\r丙\x0c丁\x85戊\u2028己", "甲\n乙\n丙\n丁\n戊\n己"),
    ("\u3000甲\u200b\xad乙\u202e\ud800\ue000\t丙", "甲乙\t丙"),
    ("👩\u200d👩\u200d👧️ é", "👩\u200d👩\u200d👧️ é"), ("", "")])
def test_worked_examples_what_is_not_seen_goes_and_joiners_stay(text, tidied):
    assert tidy(text) == tidied


@pytest.mark.parametrize("text, kinds, share, symbols", [
    ("今天 OK１2，〇é ф②!", {"Chinese": 3, "blanks": 2, "Latin": 3, "digits": 3, "other signs": 2, "other letters": 1},
     3 / 7, 2 / 14),
    ("e\u0301", {"Latin": 1, "other letters": 1}, 0.0, 0.0), ("", {}, 0.0, 0.0), ("123", {"digits": 3}, 0.0, 0.0)])
def test_worked_examples_of_what_texts_are_made_of(text, kinds, share, symbols):
    assert scripts(Counter(text)) == kinds
    assert han_share(text) == pytest.approx(share) and symbol_share(text) == pytest.approx(symbols)


def test_two_ways_characters_counted_many_at_a_time_equal_a_counter():
    characters, texts = Characters(), [f"甲{chr(0x4E00 + i)}🙂a\n" * i for i in range(60)]
    characters.AT_ONCE = 1000
    for text in texts:
        characters.count(text)
    assert characters.counts() == characters.counts() == Counter("".join(texts))


def test_worked_example_full_width_digits_and_letters():
    assert half_width("１９９８年，ＡＢＣ：ｘ！") == "1998年，ABC：x！"


def test_worked_example_boilerplate_is_left_out_from_its_third_text_on():
    leave_out = Boilerplate(2)
    texts = [leave_out(f"第{i}页\n版权所有") for i in range(4)]
    assert texts == ["第0页\n版权所有", "第1页\n版权所有", "第2页", "第3页"]
