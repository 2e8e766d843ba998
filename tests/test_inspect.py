import pytest

from llama.inspect import GREEN, PLAIN, show_sample
from llama.tasks.instruction import InstructionTask
from llama.tasks.task import Sample
from tokenizer import bpe

TALK = [{"role": "user", "content": "The dog?\n你好"}, {"role": "assistant", "content": "sleeps."}]


@pytest.fixture
def letters():
    """A tokenizer of bytes alone: «e» is spelt by one id, «é» by two."""
    return bpe.train(["text"], 259)


def test_worked_example_a_sample_line_by_line(letters):
    sample = Sample(letters.encode("hé o"), [True, False, True, True, False], "f.jsonl:3", cut=2)
    assert show_sample(sample, letters, colour=False).split("\n") == [
        "f.jsonl:3, as the model sees it (● is learned, the rest is only read):",
        "  … 2 ids before these are cut off: the sample is too long",
        "     0     107   h",
        "     1     198   \\xc3",
        "     2     172 ● \\xa9  é",
        "     3      35 ● ▁",
        "     4     114   o",
        "5 ids: 2 learned, 3 only read",
    ]


def test_property_what_is_marked_is_what_is_learned(tiny_tokenizer):
    task = InstructionTask("chatml")
    sample = task.encode({"messages": TALK, "place": "f:1"}, tiny_tokenizer)
    rows = [line.split() for line in show_sample(sample, tiny_tokenizer, colour=False).split("\n")[1:-1]]
    batch = task.collate([sample])
    assert [int(row[1]) for row in rows] == sample.ids
    assert [int(row[0]) for row in rows if row[2] == "●"] == [i + 1 for i in task.rows(batch)[1].tolist()]
    assert rows[-2][2:] == ["●", "<|im_end|>"]


def test_property_colour_is_on_the_learned_lines_alone(letters):
    sample = Sample(letters.encode("abc"), [False, True, False])
    lines = show_sample(sample, letters, colour=True).split("\n")
    assert lines[2] == f"{GREEN}     1     101 ● b{PLAIN}"
    assert "".join(lines).count("\x1b") == 2
    assert "\x1b" not in show_sample(sample, letters, colour=False)


def test_property_data_cannot_write_to_the_terminal(letters):
    text = show_sample(Sample(letters.encode("\x1b[2J\r你\n"), [True] * 9), letters, colour=False)
    assert "\x1b" not in text and "\r" not in text and len(text.split("\n")) == 11 and "  你" in text


def test_property_long_samples_show_both_ends(letters):
    sample = Sample(letters.encode("abcde" * 200), [True] * 1000)
    lines = show_sample(sample, letters, colour=False, most=10).split("\n")
    assert len(lines) == 13 and lines[6] == "  … 990 more …" and lines[7].startswith("   995")
    assert len(show_sample(sample, letters, colour=False, most=1000).split("\n")) == 1002
