"""Prompts out of flags and files, and what becomes of those that cannot be used."""

import pytest

from llama.commands.prompts import NAMED, BadPrompts, encode_prompts, read_prompts

LINES = (b'{"prompt": "one"}\n\n{oops\n{"text": "a"}\n{"prompt": 3}\n["prompt"]\n{"prompt": "\xff"}\n'
         b'{"prompt": "\\ud83d"}\n{"prompt": "two", "id": 2}\n')
LIST = b'[{"prompt": "one"},\n\n\n{"text": "a"}, {"prompt": 3},\n7,\n{"prompt": "\\ud83d"},\n{"prompt": "two"}]'


def encode(text):
    if len(text) > 20:
        raise ValueError("too long")
    return [ord(character) for character in text]


@pytest.mark.parametrize("name, content, lines, count", [("f.jsonl", LINES, (1, 9), 6), ("f.json", LIST, (1, 7), 4)],
                         ids=["lines", "list"])
def test_worked_example_a_place_is_that_of_the_file(tmp_path, capsys, name, content, lines, count):
    path, bad = tmp_path / name, BadPrompts(skip=True)
    path.write_bytes(content)
    texts = read_prompts(["first", "second"], str(path), bad)
    assert texts == [("--prompt, number 1", "first"), ("--prompt, number 2", "second"),
                     (f"{path}:{lines[0]}", "one"), (f"{path}:{lines[1]}", "two")]
    assert bad.count == count and capsys.readouterr().err.count(f"left out: {path}:") == count


def test_worked_example_a_text_file_is_one_prompt_without_its_last_line_end(tmp_path):
    path = tmp_path / "f.txt"
    path.write_bytes(b"\xef\xbb\xbfTwo\r\nlines\r\n")
    assert read_prompts([], str(path), BadPrompts(skip=False)) == [(str(path), "Two\nlines")]
    path.write_bytes(b"Two\nl\xffnes")
    with pytest.raises(ValueError, match="f.txt:2: byte 2 of this line is not UTF-8; save it as UTF-8 text$"):
        read_prompts([], str(path), BadPrompts(skip=False))
    assert read_prompts(["a"], str(path), BadPrompts(skip=True)) == [("--prompt", "a")]


def test_worked_example_ids_are_kept_small_and_what_cannot_be_encoded_is_named(capsys):
    bad = BadPrompts(skip=True)
    good = encode_prompts([("f:1", "狐"), ("f:2", "x" * 21), ("f:3", "b")], encode, bad)
    assert [(prompt.place, list(prompt.ids), prompt.ids.itemsize) for prompt in good] == [
        ("f:1", [0x72d0], 4), ("f:3", [98], 4)]
    assert capsys.readouterr().err == ("left out: f:2: too long\n"
                                       "left out 1 of 3 prompts, which cannot be used\n")


def test_property_only_the_first_bad_prompts_are_named(capsys):
    bad = BadPrompts(skip=True)
    encode_prompts([(f"f:{i}", "x" * 30) for i in range(100)] + [("f:100", "good")], encode, bad)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == NAMED + 1 and lines[-1] == "left out 100 of 101 prompts, which cannot be used"


@pytest.mark.parametrize("line, words", [
    ("{oops", "f.jsonl:2: this is not JSON"), ('{"text": "a"}', "f.jsonl:2: the field 'prompt' is missing"),
    ('{"prompt": ["a"]}', "f.jsonl:2: the field 'prompt' is .'a'.; it must be a text"),
    ('{"prompt": "\\udcff"}', "f.jsonl:2: the field 'prompt' holds half a character"),
    ('"a"', "f.jsonl:2: this is a JSON str; an object"),
    ('{"prompt": "%s"}' % ("x" * 21), "f.jsonl:2: too long"),
])
def test_refusal_names_file_and_line_and_the_way_round(tmp_path, line, words):
    path, bad = tmp_path / "f.jsonl", BadPrompts(skip=False)
    path.write_text(f'{{"prompt": "a"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=f"{words}.*, or --skip-bad to leave such prompts out$"):
        encode_prompts(read_prompts([], str(path), bad), encode, bad)


@pytest.mark.parametrize("skip", [False, True])
def test_refusal_of_what_hides_all_behind_it(tmp_path, skip):
    path = tmp_path / "f.json"
    path.write_bytes(b'[{"prompt": "a"},\n{oops},\n{"prompt": "b"}]')
    with pytest.raises(ValueError, match="f.json:2: this is not JSON"):
        read_prompts([], str(path), BadPrompts(skip=skip))


def test_refusal_where_nothing_is_left():
    bad = BadPrompts(skip=True)
    with pytest.raises(ValueError, match="none of the 1 prompts can be used"):
        encode_prompts([("f:1", "x" * 30)], encode, bad)
