"""Splitting text into words. The worked examples were taken from Hugging Face's `tokenizers` 0.23.3."""

import random
import re
import unicodedata

import pytest

from tokenizer.pretokenize import RULES, rule_of_gguf, rule_of_json

ENGLISH = "It's 10  o'clock, I'LL  wait\r\n\r\n\tnow. "
CHINESE = "2024年3月，价格是１２元！"
SPACES = "a\u00a0b\u0085\u3000c\x1cd \x1f\n e"            # U+001C and U+001F are white space to Python's \s alone
CASES = "HTTPServer camelCase ÉTÉ'S //\n"
SIGNS = "'ſee e\u0301 👩‍👩‍👧 ½²Ⅷ हिन्दी"

EXAMPLES = {
    "gpt2": {
        ENGLISH: ["It", "'s", " 10", " ", " o", "'", "clock", ",", " I", "'", "LL", " ", " wait", "\r\n\r\n", "\t",
                  "now", ".", " "],
        CHINESE: ["2024", "年", "3", "月", "，", "价格是", "１２", "元", "！"],
        SPACES: ["a", "\u00a0", "b", "\u0085", "\u3000", "c", "\x1c", "d", " \x1f", "\n", " e"],
        SIGNS: ["'", "ſee", " e", "\u0301", " 👩‍👩‍👧", " ½²Ⅷ", " ह", "ि", "न", "्", "द", "ी"],
    },
    "llama3": {
        ENGLISH: ["It", "'s", " ", "10", " ", " o", "'clock", ",", " I", "'LL", " ", " wait", "\r\n\r\n", "\tnow", ".",
                  " "],
        CHINESE: ["202", "4", "年", "3", "月", "，价格是", "１２", "元", "！"],
        SPACES: ["a", "\u00a0b", "\u0085", "\u3000c", "\x1cd", " \x1f\n", " e"],
        SIGNS: ["'ſ", "ee", " e", "\u0301", " 👩‍👩‍👧", " ", "½²Ⅷ", " ह", "िन", "्द", "ी"],
    },
    "qwen2": {
        ENGLISH: ["It", "'s", " ", "1", "0", " ", " o", "'clock", ",", " I", "'LL", " ", " wait", "\r\n\r\n", "\tnow",
                  ".", " "],
        CHINESE: ["2", "0", "2", "4", "年", "3", "月", "，价格是", "１", "２", "元", "！"],
        SPACES: ["a", "\u00a0b", "\u0085", "\u3000c", "\x1cd", " \x1f\n", " e"],
        SIGNS: ["'ſ", "ee", " e", "\u0301", " 👩‍👩‍👧", " ", "½", "²", "Ⅷ", " ह", "िन", "्द", "ी"],
    },
    "smollm": {
        ENGLISH: ["It", "'s", " ", "1", "0", " ", " o", "'", "clock", ",", " I", "'", "LL", " ", " wait", "\r\n\r\n",
                  "\t", "now", ".", " "],
        CHINESE: ["2", "0", "2", "4", "年", "3", "月", "，", "价格是", "１", "２", "元", "！"],
        SPACES: ["a", "\u00a0", "b", "\u0085", "\u3000", "c", "\x1c", "d", " \x1f", "\n", " e"],
        SIGNS: ["'", "ſee", " e", "\u0301", " 👩‍👩‍👧", " ", "½", "²", "Ⅷ", " ह", "ि", "न", "्", "द", "ी"],
    },
    "tekken": {
        ENGLISH: ["It", "'s", " ", "1", "0", " ", " o", "'clock", ",", " I", "'LL", " ", " wait", "\r\n\r\n", "\tnow",
                  ".", " "],
        CHINESE: ["2", "0", "2", "4", "年", "3", "月", "，价格是", "１", "２", "元", "！"],
        SPACES: ["a", "\u00a0b", "\u0085", "\u3000c", "\x1cd", " \x1f\n", " e"],
        SIGNS: ["'ſee", " e\u0301", " 👩‍👩‍👧", " ", "½", "²", "Ⅷ", " हिन्दी"],
        CASES: ["HTTPServer", " camel", "Case", " ÉTÉ", "'S", " //\n"],
    },
    "o200k": {
        ENGLISH: ["It's", " ", "10", " ", " o", "'clock", ",", " I'LL", " ", " wait", "\r\n\r\n", "\tnow", ".", " "],
        CHINESE: ["202", "4", "年", "3", "月", "，价格是", "１２", "元", "！"],
        SPACES: ["a", "\u00a0b", "\u0085", "\u3000c", "\x1cd", " \x1f\n", " e"],
        SIGNS: ["'ſee", " e\u0301", " 👩‍👩‍👧", " ", "½²Ⅷ", " हिन्दी"],
        CASES: ["HTTPServer", " camel", "Case", " ÉTÉ'S", " //\n"],
    },
}


def odd_text(seed: int) -> str:
    """Characters of every kind that a rule speaks of, in an order nobody would type."""
    draw = random.Random(seed)
    atoms = ["'s", "'S", "'ll", "'Ve", "1", "234", "٣", "½", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u0085",
             "\u2028", "\u3000", "\x1c", "\x1f", "\x00", "\u200b", "e\u0301", "你好", "，", "مرحبا", "ไทย", "Don't",
             "_", "!!", "🇨🇳", "ß", "ǅ", "ª", "²", "𠮷", "𝟙", "ABCdef", "É", "ſ", "/\n"]
    return "".join(draw.choices(atoms, k=draw.randint(0, 30)))


def split_slowly(pattern: str, text: str) -> list[str]:
    """The rule as written, each category spelled out with the characters of this text that are in it."""
    def members(has) -> str:
        return "".join(f"\\U{ord(char):08x}" for char in sorted(set(text) | {"\U0010ffff"}) if has(char))

    white = members(lambda char: re.fullmatch(r"\s", char) and char not in "\x1c\x1d\x1e\x1f") + " "
    classes = {
        r"\p{L}": members(lambda char: unicodedata.category(char).startswith("L")) + "a",
        r"\p{N}": members(lambda char: unicodedata.category(char).startswith("N")) + "0",
        r"\s": white,
        r"\p{M}": members(lambda char: unicodedata.category(char).startswith("M")) + r"\U0010ffff",     # never empty
        **{rf"\p{{{kind}}}": members(lambda char, kind=kind: unicodedata.category(char) == kind)
           for kind in ("Lu", "Lt", "Ll", "Lm", "Lo")},
    }
    pattern = pattern.replace(r"(?!\S)", f"(?![^{white}])")
    for name, chars in classes.items():
        pattern = re.sub(r"\[[^]]*]", lambda found, name=name, chars=chars: found[0].replace(name, chars), pattern)
        pattern = pattern.replace(name, f"[{chars}]")
    return re.findall(pattern, text)


@pytest.mark.parametrize("name", RULES)
def test_worked_examples_split_as_the_tokenizers_library_splits_them(name):
    for text, words in EXAMPLES[name].items():
        assert RULES[name].split(text) == words


def test_worked_example_digits_go_alone_in_threes_or_together():
    assert {name: rule.split("1234") for name, rule in RULES.items()} == {
        "gpt2": ["1234"], "llama3": ["123", "4"], "qwen2": ["1", "2", "3", "4"], "smollm": ["1", "2", "3", "4"],
        "tekken": ["1", "2", "3", "4"], "o200k": ["123", "4"]}


@pytest.mark.parametrize("name", RULES)
def test_two_ways_agree_shadow_and_spelled_out_categories(name):
    for seed in range(300):
        text = odd_text(seed)
        assert RULES[name].split(text) == split_slowly(RULES[name].pattern, text), ascii(text)


@pytest.mark.parametrize("name", RULES)
def test_two_ways_agree_ascii_with_and_without_a_shadow(name):
    ascii_text = "".join(map(chr, range(128))) * 2 + "it's I'M  1 22 333 4444\n\n x"
    assert RULES[name].split(ascii_text + "\n你")[:-1] == RULES[name].split(ascii_text + "\n!")[:-1]


@pytest.mark.parametrize("name", RULES)
def test_property_words_joined_are_the_text(name):
    for seed in range(300, 600):
        text = odd_text(seed)
        assert "".join(RULES[name].split(text)) == text


@pytest.mark.parametrize("name", RULES)
def test_property_a_megabyte_of_one_thing_is_split_in_linear_time(name):
    for text in (" " * 10**6 + "x", "\n" * 10**6, "哈" * 10**6, "'" * 10**6, " \n" * 500_000):
        assert sum(map(len, RULES[name].split(text))) == len(text)


def test_property_each_rule_is_found_again_in_what_it_writes():
    for rule in RULES.values():
        assert rule_of_json(rule.written_as) is rule
        assert all(rule_of_gguf(name) is rule for name in rule.gguf_names)


def test_two_ways_of_writing_gpt2s_rule_are_one_rule():
    """A Split by its pattern before a ByteLevel that does not split, or a ByteLevel that does."""
    as_split = {"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": RULES["gpt2"].pattern}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}]}
    assert rule_of_json(as_split) is RULES["gpt2"]
    assert rule_of_json({"type": "ByteLevel", "add_prefix_space": False}) is RULES["gpt2"]


def test_refusal_of_an_unknown_rule_quotes_it():
    unknown = {"type": "Split", "pattern": {"Regex": r"\p{Han}+"}, "behavior": "Isolated", "invert": False}
    with pytest.raises(ValueError, match=r"not known here.*p\{Han\}"):
        rule_of_json(unknown)
    with pytest.raises(ValueError, match='"add_prefix_space": true'):
        rule_of_json({"type": "ByteLevel", "add_prefix_space": True})
    with pytest.raises(ValueError, match="null"):
        rule_of_json(None)
    with pytest.raises(ValueError, match="'deepseek-llm' .*known are: gpt-2, mpt, .*, llama-bpe"):
        rule_of_gguf("deepseek-llm")
