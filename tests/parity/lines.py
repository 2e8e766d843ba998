"""The lines that tokenizers are asked about: some 75,000, each source under its name.

Characters that are not assigned in this Python's Unicode (pretokenize.UNICODE) are in none of the made lines: a later
version may have made letters of them, and then two programs split differently that are both right. All others are.
"""

import random
import unicodedata
from collections.abc import Iterator
from itertools import product
from pathlib import Path

from tests.parity import texts
from tokenizer.pretokenize import WHITE_SPACE
from weights.fetch import fetch

HOME = Path(__file__).parents[2]

POEMS = """床前明月光，疑是地上霜。举头望明月，低头思故乡。
白日依山尽，黄河入海流。欲穷千里目，更上一层楼。
春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。
千山鸟飞绝，万径人踪灭。孤舟蓑笠翁，独钓寒江雪。
國破山河在，城春草木深。感時花濺淚，恨別鳥驚心。
朝辞白帝彩云间，千里江陵一日还。两岸猿声啼不住，轻舟已过万重山。
空山新雨後，天氣晚來秋。明月松間照，清泉石上流。
离离原上草，一岁一枯荣。野火烧不尽，春风吹又生。
葡萄美酒夜光杯，欲饮琵琶马上催。醉卧沙场君莫笑，古来征战几人回。
大江东去，浪淘尽，千古风流人物。故垒西边，人道是，三国周郎赤壁。""".splitlines()

RIGHT_TO_LEFT = ["مرحبا بالعالم", "السلام عليكم ورحمة الله", "اللُّغَةُ العَرَبِيَّةُ", "שלום עולם",
                 "בְּרֵאשִׁית בָּרָא", "سلام دنیا، ۱۲۳",
                 "\u202bעברית (English) 123\u202c", "\u2067عربي\u2069 abc", "كتاب ١٢٣٤ book", "می\u200cخواهم"]

EMOJI = ["😀", "👍", "👩", "🧑", "🏳", "❤", "☕", "1", "#", "🇨", "🇳", "🇫🇷", "🦙", "🏴", "✋",
         "👨\u200d👩\u200d👧\u200d👦", "🏳\ufe0f\u200d🌈"]
MODIFIERS = ["", "\ufe0f", "\ufe0e", "\ufe0f\u20e3", "\u200d", *map(chr, range(0x1F3FB, 0x1F400)), "\u200d⚕\ufe0f"]

ATOMS = ["'s", "'S", "'ll", "'Ve", "I'm", "1", "234", "٣", "½", "²", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u0085",
         "\u2028", "\u3000", "\x1c", "\x1f", "\x00", "\u200b", "e\u0301", "é", "你好", "，", "。", "繁體", "日本語",
         "カタ", "한국어", "привет", "مرحبا", "ไทย", "हिन्दी", "Don't", "_", "!!", "...", "==", "🇨🇳", "👍🏽", "ß",
         "ǅ", "ª", "𠮷", "𝟙", "the", "The", " and", "World", "(", ")", "{", "}", "//", "\\", "<|im_end|>", "</s>",
         "<unk>", "ſ", "K"]


def lines() -> dict[str, list[str]]:
    """name of the source -> its lines. Fetches the corpora on first use."""
    return {
        "Chinese news": _of_corpus("peoples-daily"),
        "the Three Kingdoms": _of_corpus("three-kingdoms"),
        "poems": POEMS,
        "English": [line for path in (*HOME.glob("*.md"), *HOME.glob("*/*.md"), HOME / "examples" / "neutral.txt")
                    for line in path.read_text(encoding="utf-8").splitlines()],
        "code": [line for folder in ("llama", "tokenizer", "weights", "tests", "examples")
                 for path in sorted((HOME / folder).rglob("*.py"))
                 for line in path.read_text(encoding="utf-8").splitlines(keepends=True)],
        "emoji": [*("".join(pair) for pair in product(EMOJI, MODIFIERS)),
                  *(f"{a}{m} {b}{a}" for a, b in product(EMOJI, EMOJI) for m in MODIFIERS[:4])],
        "right to left": [*RIGHT_TO_LEFT, *(f"{a} {b}" for a, b in product(RIGHT_TO_LEFT, RIGHT_TO_LEFT)),
                          *(f"{a}{b}" for a, b in product(RIGHT_TO_LEFT, ATOMS))],
        "control": [f"{a}{chr(code)}{b}" for code in (*range(32), *range(127, 160)) for a in ("", "x", " ", "\n")
                    for b in ("", "y", " z", "1", "\n\n")],
        "white space": [*_white_space(), *(" " * 2 ** n + "x" for n in range(12))],
        "every block of Unicode": list(_blocks()),
        "mixed": [mixed(seed) for seed in range(12_000)],
        "odd texts": texts.TOKENIZER,
    }


def _of_corpus(name: str) -> list[str]:
    return (fetch(name) / "text.txt").read_text(encoding="utf-8").splitlines()


def _white_space() -> list[str]:
    kinds = sorted(map(chr, {*WHITE_SPACE, 10, 13}))
    runs = [a * n + b * m for a in kinds for b in kinds for n, m in ((1, 1), (2, 1), (1, 2))]
    return [f"{before}{run}{after}" for run in runs for before, after in (("a", "b"), ("", "1"), ("。", ""))]


def _blocks() -> Iterator[str]:
    """Every assigned character, 48 neighbours a line, three ways: as they follow, apart, and after a letter."""
    assigned = [chr(code) for code in range(0x110000) if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")]
    for start in range(0, len(assigned), 48):
        some = assigned[start:start + 48]
        yield from ("".join(some), " ".join(some), "a".join(some) + " 1")


def mixed(seed: int) -> str:
    draw = random.Random(seed)
    return "".join(draw.choices(ATOMS, k=draw.randint(1, 24)))
