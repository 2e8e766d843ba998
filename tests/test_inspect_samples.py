import dataclasses
import io
import json
import re
import sys
from pathlib import Path

import pytest

import finetune
import train
from llama.tasks.instruction import InstructionTask
from llama.tasks.task import IGNORE_INDEX, Sample
from llama.training.inspect_samples import GREEN, PLAIN, in_colour, inspect_samples, show_sample, spelled
from tokenizer import bpe

TALK = [{"role": "user", "content": "The dog?\n你好"}, {"role": "assistant", "content": "sleeps."}]


@pytest.fixture
def letters():
    """A tokenizer of bytes alone: «e» is spelt by one id, «é» by two."""
    return bpe.train(["text"], 259)


def test_worked_example_a_sample_line_by_line(letters):
    sample = Sample(letters.encode("hé o"), [True, False, True, True, False], "f.jsonl:3", cut=2)
    assert show_sample(sample, letters, colour=False).split("\n") == [
        "f.jsonl:3, as the model sees it (● is learned, · is only read):",
        "  … 2 ids of what stands before the answer are left out: the sample is too long",
        "     0     107 · h",
        "     1     198 · <C3>",
        "     2     172 ● <A9>            é",
        "     3      35 ● ▁",
        "     4     114 · o",
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
    assert len(show_sample(sample, letters, colour=False).split("\n")) == 1002


@pytest.mark.parametrize("data, shown", [
    (b" the\n\t", "▁the\\n\\t"),
    ("你好".encode(), "你好"),
    ("你".encode()[:2], "<E4 BD>"),
    (b" \xe9", "▁<E9>"),
    (b"\xbd\xe4\xbda\xff", "<BD E4 BD>a<FF>"),
    (rb"\n", r"\\n"),
    ("\u200b\x1b".encode(), r"\u200b\x1b"),
])
def test_worked_example_bytes_in_a_form_to_look_at(data, shown):
    assert spelled(data) == shown


def test_property_characters_stand_in_one_column_whatever_stands_before(letters):
    """«你<E5>» takes as many cells as seven letters, though it has five characters."""
    class Wide:
        vocab_size, spellings = 3, ["你".encode() + b"\xe5", b"\xa5\xbd", b"\xa5\xbd"]

        def token_bytes(self, token):
            return self.spellings[token]

        def stream(self):
            return self

        def push(self, token):
            return "好"

    lines = show_sample(Sample([0, 1], [False, True]), Wide(), colour=False).split("\n")
    assert lines[1:3] == ["     0       0 · 你<E5>          好", "     1       1 ● <A5 BD>         好"]


def test_property_an_id_without_spelling_is_shown_all_the_same(letters):
    text = show_sample(Sample([5, 9999, 6], [True] * 3, lost=4), letters, colour=False)
    assert "  9999 ● (not in the vocabulary)" in text and "4 ids after these are cut off" in text


def test_property_colour_is_for_terminals_and_for_those_who_want_it(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert in_colour(Terminal()) and not in_colour(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not in_colour(Terminal())


def test_worked_example_inspection_shows_samples_counts_checks_and_what_failed(tiny_tokenizer, capsys):
    class MasksTheThird(InstructionTask):
        def encode(self, example, tokenizer):
            sample = super().encode(example, tokenizer)
            return dataclasses.replace(sample, loss_mask=[False] * len(sample.ids)) if "3" in sample.place else sample

    data = [{"messages": TALK, "place": f"f:{i}"} for i in range(1, 5)]
    options = {"vocab_size": tiny_tokenizer.vocab_size, "show": 2}
    inspect_samples(InstructionTask("chatml"), data, tiny_tokenizer, **options)
    shown = capsys.readouterr().out
    assert [line for line in shown.split("\n") if "as the model sees it" in line] == [
        f"f:{i}, as the model sees it (● is learned, · is only read):" for i in (1, 2)]
    assert re.search(r"^EOS supervised +4$", shown, re.M) and re.search("^check template +ok ", shown, re.M)

    with pytest.raises(ValueError, match=r"^masked: f:3 \(sample 3 of 4\): nothing"):
        inspect_samples(MasksTheThird("chatml"), data, tiny_tokenizer, **options)
    shown = capsys.readouterr().out
    assert re.search("^check masked +FAILED ", shown, re.M) and "f:3, as the model sees it" in shown
    assert "f:4" not in shown

    with pytest.raises(ValueError, match="--inspect -1: "):
        inspect_samples(MasksTheThird("chatml"), data, tiny_tokenizer, **options | {"show": -1})
    inspect_samples(MasksTheThird("chatml"), data, tiny_tokenizer, **options, allow=["masked"], as_json=True)
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert record["data"]["fully_masked"] == 1 and record["checks"]["masked"].startswith("f:3 ")
    assert record["checks"]["eos"] is None and "as the model sees it" in err


def test_property_the_marks_are_those_of_the_batch_whatever_a_sample_says(tiny_tokenizer, capsys):
    class ForgetsInTheBatch(InstructionTask):
        def collate(self, samples):
            batch = super().collate(samples)
            return batch | {"targets": batch["targets"].fill_(IGNORE_INDEX)}

    with pytest.raises(ValueError, match="^masked"):
        inspect_samples(ForgetsInTheBatch("chatml"), [{"messages": TALK}], tiny_tokenizer, vocab_size=400, show=1)
    assert not re.search(r"^ +\d+ +\d+ ●", capsys.readouterr().out, re.M)


def test_worked_example_both_doors_inspect_and_write_nothing(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_model.save("model")
    Path("a.jsonl").write_text('{"instruction": "The dog?", "output": "sleeps."}\n', encoding="utf-8")
    Path("a.txt").write_text("The dog sleeps.\n\n今天天气很好。\n", encoding="utf-8")
    before = sorted(tmp_path.rglob("*"))
    for door, command, words in (
            (finetune, ["--model", "model", "--data", "a.jsonl", "--max-length", "200", "--inspect"], "check eos-cut"),
            (finetune, ["--model", "model", "--data", "a.txt", "--task", "generation", "--max-length", "99",
                        "--inspect", "1", "--output", "model"], "check document-ends"),
            (train, ["--tokenizer", "model", "--data", "a.txt", "--inspect", "1"], "check document-ends")):
        monkeypatch.setattr(sys, "argv", [door.__file__, *command])
        door.main()
        shown = capsys.readouterr().out
        assert words in shown and "●" in shown and "FAILED" not in shown
    assert sorted(tmp_path.rglob("*")) == before
