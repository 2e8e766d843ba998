from llama.inspect import GREEN, PLAIN, show_sample
from llama.tasks.instruction import InstructionTask
from llama.tasks.task import Sample

TALK = [{"role": "user", "content": "The dog?\n你好"}, {"role": "assistant", "content": "sleeps."}]


class Letters:
    """A tokenizer of 26 ids."""

    def piece(self, token):
        return chr(ord("a") + token)


def test_worked_example_a_sample_line_by_line():
    text = show_sample(Sample([7, 4, 24], [True, False, True], "f.jsonl:3", cut=2), Letters(), colour=False)
    assert text.split("\n") == [
        "f.jsonl:3, as the model sees it (● is learned, the rest is only read):",
        "  … 2 ids before these are cut off: the sample is too long",
        "     0       7   h",
        "     1       4   e",
        "     2      24 ● y",
        "3 ids: 1 learned, 2 only read",
    ]


def test_property_what_is_marked_is_what_is_learned(tiny_tokenizer):
    task = InstructionTask("chatml")
    sample = task.encode({"messages": TALK, "place": "f:1"}, tiny_tokenizer)
    rows = [line.split() for line in show_sample(sample, tiny_tokenizer, colour=False).split("\n")[1:-1]]
    batch = task.collate([sample])
    assert [int(row[1]) for row in rows] == sample.ids
    assert [int(row[0]) for row in rows if row[2] == "●"] == [i + 1 for i in task.rows(batch)[1].tolist()]
    assert rows[-2][2:] == ["●", "<|im_end|>"]


def test_property_colour_is_on_the_learned_lines_alone():
    sample = Sample([0, 1, 2], [False, True, False])
    lines = show_sample(sample, Letters(), colour=True).split("\n")
    assert lines[2] == f"{GREEN}     1       1 ● b{PLAIN}"
    assert "".join(lines).count("\x1b") == 2
    assert "\x1b" not in show_sample(sample, Letters(), colour=False)


def test_property_long_samples_show_both_ends():
    sample = Sample([i % 26 for i in range(1000)], [True] * 1000)
    lines = show_sample(sample, Letters(), colour=False, most=10).split("\n")
    assert len(lines) == 13 and lines[6] == "  … 990 more …" and lines[7].startswith("   995")
    assert len(show_sample(sample, Letters(), colour=False, most=1000).split("\n")) == 1002
