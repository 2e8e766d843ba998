"""Raw text is put right, judged and compared, in an order that counts."""

import pytest

from llama.clean.steps import Boilerplate, CleanConfig, Cleaner, mojibake_repaired, tidy


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
                                          ("中国", "中国"), ("plain", "plain"), ("naïve café", "naïve café")])
def test_worked_examples_of_repaired_encodings(wrong, right):
    assert mojibake_repaired(wrong) == right


def test_worked_example_control_characters_go_and_joiners_stay():
    assert tidy("\ufeff甲\x00\x1b乙\ufffd \n\n  \t\n丙  丁\u200d") == "甲乙\n丙  丁\u200d"


def test_worked_example_boilerplate_is_left_out_from_its_third_text_on():
    leave_out = Boilerplate(2)
    texts = [leave_out(f"第{i}页\n版权所有") for i in range(4)]
    assert texts == ["第0页\n版权所有", "第1页\n版权所有", "第2页", "第3页"]
