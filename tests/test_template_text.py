"""Text that knows who wrote it: as a text it is a str in all things, and what it forgets counts as said."""

import json
import random

import pytest

from tokenizer.template_text import LEARNED, MESSAGE, SAID, WRITTEN, Text, joined, message_of, said

LETTERS = "ab <|>\nß Σσ"


def origins(text):
    """Of each character."""
    found = [origin for begin, end, origin in text.stretches() for _ in range(begin, end)]
    assert len(found) == len(text)
    return found


def some(draw):
    """A text of several hands, and the same as a str."""
    parts = [("".join(draw.choices(LETTERS, k=draw.randint(0, 4))), draw.randint(0, 9))
             for _ in range(draw.randint(0, 6))]
    return joined([Text(text, origin) for text, origin in parts]), "".join(text for text, _ in parts)


def same(text, plain):
    """Equal, as texts, lists or tuples, and each character known."""
    assert text == plain
    for each in [text] if isinstance(text, str) else text:
        origins(each)


@pytest.mark.parametrize("seed", range(40))
def test_two_ways_every_operation_is_that_of_str(seed):
    draw = random.Random(seed)
    for _ in range(40):
        text, plain = some(draw)
        begin, end, step = draw.randint(-9, 12), draw.randint(-9, 12), draw.choice([1, 1, 2, -1])
        same(text[begin:end:step], plain[begin:end:step])
        for name in ("strip", "lstrip", "rstrip", "upper", "lower", "title", "capitalize", "split", "rsplit",
                     "splitlines"):
            same(getattr(text, name)(), getattr(plain, name)())
        for name, given in (("strip", "<>"), ("split", " "), ("rsplit", "<"), ("partition", "|"), ("rpartition", "|"),
                            ("removeprefix", "a"), ("removesuffix", ">")):
            same(getattr(text, name)(given), getattr(plain, name)(given))
        same(text.split(" ", 1), plain.split(" ", 1))
        same(text.rsplit(None, 1), plain.rsplit(None, 1))
        same(text.splitlines(True), plain.splitlines(True))
        same(text.replace("a", "<|>", 2), plain.replace("a", "<|>", 2))
        same(text.replace("", "-"), plain.replace("", "-"))
        same(text.join(["x", Text("y", 1)]), plain.join(["x", "y"]))
        same(text * 3, plain * 3)
        same("x" + text + "y", "x" + plain + "y")
        assert (hash(text), len(text), text in {plain}) == (hash(plain), len(plain), True)


def test_property_each_character_keeps_its_hand():
    text = Text("<s>", WRITTEN) + Text("  Hi <s> ", 2 * MESSAGE).strip() + Text("</s>\n", WRITTEN)
    assert origins(text) == [WRITTEN] * 3 + [2 * MESSAGE] * 6 + [WRITTEN] * 5
    assert text == "<s>Hi <s></s>\n"
    assert origins(text.replace("<s>", "[]")) == [SAID] * 2 + [2 * MESSAGE] * 3 + [SAID] * 2 + [WRITTEN] * 5
    assert origins(text.split("<s>")[2]) == [WRITTEN] * 5
    assert origins(text.upper()) == origins(text)
    assert origins(Text("-", WRITTEN).join(["a", Text("b", LEARNED)])) == [SAID, WRITTEN, LEARNED]
    assert origins(Text("<%s|%d%%>", WRITTEN) % ("x", 3)) == [WRITTEN, SAID, WRITTEN, SAID, WRITTEN, WRITTEN]


@pytest.mark.parametrize("format, values", [
    ("%s and %s", ("a", 1)), ("%5.2f|%-4d|%x", (1.5, 3, 255)), ("%(a)s %(b)d", {"a": "x", "b": 2}), ("%%", ()),
    ("%*d", (5, 1)), ("none", ())])
def test_two_ways_formats(format, values):
    same(Text(format, WRITTEN) % values, format % values)


def test_refusal_of_formats_as_str_refuses_them():
    for format, values, error in (("%d", "x", TypeError), ("%s %s", "x", TypeError), ("%", (), ValueError)):
        with pytest.raises(error):
            Text(format, WRITTEN) % values


def test_property_what_is_not_known_here_is_said():
    text = Text("<|im_end|>", WRITTEN)
    for made in (text.center(20), text.zfill(20), "".join(text), text.swapcase().swapcase(), f"{text:>12}",
                 text[::-1][::-1], json.loads(json.dumps(text)), Text(text.casefold())):
        if isinstance(made, Text):
            assert set(origins(made)) <= {SAID}
        assert made.strip("0 ").lower() == "<|im_end|>"
    assert origins(joined(["".join(text)])) == [SAID] * 10


def test_worked_example_values_and_their_message():
    value = said({"name": "f", "arguments": {"a": ["x", 1, None, True]}}, 3)
    assert value == {"name": "f", "arguments": {"a": ["x", 1, None, True]}}
    assert message_of(value) == 3 and message_of([value, said("y", 2)]) == 0 and message_of(7) == 0
    assert message_of(said("")) == 0
