"""By tables written here; OpenCC's own, with its own tests, are in tests/parity/text.py."""

import json
import random

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


def _naive(described, folder, text, at):
    """(word, what it becomes) at a place, by the definition: all tables, all lengths."""
    if described["type"] == "text":
        lines = (line.split("\t") for line in (folder / described["file"]).read_text(encoding="utf-8").splitlines()
                 if "\t" in line)
        found = [(old, new.split(" ")[0]) for old, new in lines if text.startswith(old, at)]
        return max(found, key=lambda pair: len(pair[0]), default=None)
    found = [each for some in described["dicts"] if (each := _naive(some, folder, text, at))]
    if described["match_policy"] == "union":
        return max(found, key=lambda pair: len(pair[0]), default=None)
    return found[0] if found else None


def _naive_pieces(described, folder, text):
    """(piece, what it becomes or None) from the left: words, and single characters between them."""
    at = 0
    while at < len(text):
        old, new = _naive(described, folder, text, at) or (text[at], None)
        yield old, new
        at += len(old)


def _naive_convert(described, folder, text):
    return "".join(old if new is None else new for old, new in _naive_pieces(described, folder, text))


@pytest.mark.parametrize("seed", range(8))
def test_two_ways_pairs_first_equals_place_by_place(tmp_path, seed):
    """Random tables over four characters, of one character and more, in groups of both kinds."""
    draw = random.Random(seed)

    def table(name):
        words = {"".join(draw.choices("甲乙丙丁", k=draw.choice((1, 1, 2, 2, 3, 4)))) for _ in range(5)}
        (tmp_path / name).write_text("".join(f"{word}\t{''.join(draw.choices('甲乙子丑', k=2))}\n"
                                             for word in sorted(words)), encoding="utf-8")
        return {"type": "text", "file": name}

    union = {"type": "group", "match_policy": "union", "dicts": [table("a"), table("b")]}
    first = {"type": "group", "match_policy": "short_circuit", "dicts": [table("c"), union, table("d")]}
    words, second = table("e"), table("f")
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "s2tw.json").write_text(json.dumps(
        {"segmentation": {"dict": words}, "conversion_chain": [{"dict": first}, {"dict": second}]}), encoding="utf-8")
    convert = Converter("s2tw", tmp_path)
    for _ in range(40):
        text, pieces = "".join(draw.choices("甲乙丙丁戊", k=12)), [""]
        for old, new in _naive_pieces(words, tmp_path, text):       # what is no word runs on to the next one
            pieces[-1:] = [pieces[-1] + old] if new is None else [pieces[-1], old, ""]
        assert convert(text) == "".join(_naive_convert(second, tmp_path, _naive_convert(first, tmp_path, piece))
                                        for piece in pieces)


def test_refusal_of_other_conversions_and_of_missing_tables(tables, tmp_path):
    with pytest.raises(ValueError, match="'t2x' is no conversion; there are t2s, s2t"):
        Converter("t2x", tables)
    with pytest.raises(FileNotFoundError, match="python -m weights.fetch opencc"):
        Converter("t2s", tables)
