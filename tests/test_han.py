"""By tables written here; OpenCC's own, with its own tests, are in tests/parity/text.py."""

import json

import pytest

from llama.clean.han import Converter


@pytest.fixture
def tables(tmp_path):
    def write(name, *entries):
        (tmp_path / name).write_text("# a table\n\n" + "".join(f"{old}\t{new}\n" for old, new in entries),
                                     encoding="utf-8")
        return {"type": "text", "file": name}

    words = write("words.txt", ("头发", "頭髮"), ("发展", "發展"), ("头发展", "頭發展"))
    characters = write("characters.txt", ("头", "頭"), ("发", "發 髮"), ("里", "裡"))
    variants = write("variants.txt", ("裡", "裏"), ("發展", "發達"))
    first = {"type": "group", "match_policy": "short_circuit", "dicts": [words, characters]}
    (tmp_path / "config").mkdir()
    for name, plan in {"s2t": {"conversion_chain": [{"dict": first}]},
                       "s2tw": {"segmentation": {"type": "mmseg", "dict": words},
                                "conversion_chain": [{"dict": first}, {"dict": variants}]}}.items():
        (tmp_path / "config" / f"{name}.json").write_text("// a comment\n" + json.dumps(plan), encoding="utf-8")
    return tmp_path


def test_worked_example_words_decide(tables):
    convert = Converter("s2t", tables)
    assert convert("头发") == "頭髮"
    assert convert("发展头") == "發展頭"
    assert convert("头发展") == "頭發展"                              # the longest that begins there
    assert convert("发里x") == "發裡x" and convert("") == ""


def test_worked_example_a_second_table_stays_within_the_words_of_the_first(tables):
    assert Converter("s2tw", tables)("里发展") == "裏發達"
    assert Converter("s2tw", tables)("发" + "展") == "發達"
    assert Converter("s2tw", tables)("头发展") == "頭發達"


def test_refusal_of_other_conversions_and_of_missing_tables(tables, tmp_path):
    with pytest.raises(ValueError, match="'t2x' is no conversion; there are t2s, s2t"):
        Converter("t2x", tables)
    with pytest.raises(FileNotFoundError, match="python -m weights.fetch opencc"):
        Converter("t2s", tables)
