"""Jobs of many prompts: in order, as they end, kept when they are stopped, and gone on with to the byte."""

import json
import os
import signal
import subprocess
import sys
import time
import weakref
from array import array
from pathlib import Path

import pytest

import generate
from llama.checkpoint import save_model
from llama.commands.generate_records import run_in_batches, run_job
from llama.commands.prompts import Prompt
from llama.generation import Completion
from llama.runtime import cli

DOOR = Path(generate.__file__)
TEXTS = ["The fox", "你好，世界！", "def add(", "The quick brown fox jumps over the lazy dog.", "Emoji", "and", "go",
         "1"]
PROMPTS = [f"{text} {i}" for i in range(3) for text in TEXTS]
SAMPLED = ["--dtype", "float32", "--max-new-tokens", 6, "--temperature", "1.0", "--seed", 5, "--batch-size", 4]


@pytest.fixture
def folder(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save_model(tiny_model, tmp_path / "model")
    write_prompts(tmp_path / "many.jsonl", PROMPTS)
    return tmp_path


def write_prompts(path, prompts):
    path.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts), encoding="utf-8")


def command(*flags):
    return ["generate.py", "--model", "model", "--prompt-file", "many.jsonl", *map(str, flags)]


@pytest.fixture
def door(folder, monkeypatch, capsys):
    """Run a job in this process; returns what it said on stderr, and keeps what it printed."""
    def door(*flags, code=0):
        monkeypatch.setattr(sys, "argv", command(*flags))
        with pytest.raises(SystemExit) as ended:
            cli.run(generate.main)
        said = capsys.readouterr()
        assert ended.value.code == code, said.err
        door.printed = said.out
        assert "--json" in flags or said.out == ""
        return said.err
    return door


def start(folder, *flags):
    """Run it in a process of its own, with one thread as here: more would round in another way."""
    return subprocess.Popen([sys.executable, DOOR, *command(*flags)[1:]], cwd=folder, encoding="utf-8",
                            env=os.environ | {"OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def texts(path):
    """The records, but for speeds, the only thing that differs from run to run."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in record.items() if name not in ("tokens_per_second", "speed_up")}
            for record in records]


def wait_for_lines(path, count, process):
    for _ in range(6000):
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.01)
    raise AssertionError(f"no {count} lines in a minute")


# Batches and order

def completion(number):
    return Completion(f"decoded {number}", f"text {number}", [number], "stop", 1, 1.0)


def backwards(asked):
    """Stands in for a model: texts of a batch end from the last to the first, and are named by their prompt."""
    def write(prompts, *, seed, on_end):
        asked.append(([list(prompt) for prompt in prompts], seed))
        for row in reversed(range(len(prompts))):
            on_end(row, completion(seed + row))
    return write


def test_worked_example_batches_seeds_and_order():
    asked, shown = [], []
    run_in_batches(backwards(asked), [[7], [8], [9]], lambda number, text: shown.append((number, text.text)),
                   num_samples=2, batch_size=4, seed=10)
    assert asked == [([[7], [7], [8], [8]], 10), ([[9], [9]], 14)]
    assert shown == [(number, f"text {10 + number}") for number in range(6)]


@pytest.mark.parametrize("batch_size", [1, 4, 7, 100])
def test_property_a_resumed_job_runs_the_batches_of_the_whole_one(batch_size):
    prompts, whole, all_shown = [[i] for i in range(10)], [], []
    run_in_batches(backwards(whole), prompts, lambda number, text: all_shown.append((number, text)), num_samples=1,
                   batch_size=batch_size, seed=0)
    for done in range(11):
        asked, shown = [], []
        run_in_batches(backwards(asked), prompts, lambda number, text, shown=shown: shown.append((number, text)),
                       num_samples=1, batch_size=batch_size, seed=0, done=done)
        assert asked == (whole[done // batch_size :] if done < 10 else [])
        assert shown == all_shown[done:]


def test_property_no_more_texts_are_held_than_a_batch_has():
    made, most = [], []

    def write(prompts, *, seed, on_end):
        for row in reversed(range(len(prompts))):
            text = completion(seed + row)
            made.append(weakref.ref(text))
            on_end(row, text)

    def show(number, text):
        made.append(weakref.ref(text))
        most.append(sum(text() is not None for text in made))

    prompts = [Prompt(f"f:{i}", f"prompt {i}", array("i", [i])) for i in range(1000)]
    summary = run_job(write, prompts, show, records=None, num_samples=1, batch_size=8, seed=0)
    assert summary.texts == summary.tokens == 1000 and max(most) <= 2 * 8


# A job that goes on

@pytest.mark.parametrize("flags", [
    SAMPLED, [*SAMPLED, "--num-samples", 3], [*SAMPLED, "--lookup"], [*SAMPLED, "--draft", "model"],
    ["--beams", 2, "--max-new-tokens", 6, "--batch-size", 4],
    [*SAMPLED, "--chat", "--chat-format", "chatml", "--stop", "a", "--system", "Be brief."]],
    ids=["sampled", "samples", "lookup", "draft", "beams", "chat"])
def test_two_ways_a_resumed_job_equals_an_uninterrupted_one(door, folder, flags):
    flags = ["--output", "out.jsonl", *flags]
    write_prompts(folder / "many.jsonl", PROMPTS[:7])
    door(*flags)
    out, whole = folder / "out.jsonl", texts(folder / "out.jsonl")
    lines = out.read_bytes().splitlines(keepends=True)
    assert [record["prompt"] for record in whole] == [prompt for prompt in PROMPTS[:7]
                                                      for _ in range(len(whole) // 7)]
    for kept, cut in ((0, 0), (0, 20), (2, -1), (4, 0), (6, 30), (len(lines), 0)):
        out.write_bytes(b"".join(lines[:kept]) + (lines[kept][:cut] if cut else b""))
        said = door(*flags, "--resume")
        assert texts(out) == whole
        assert out.read_bytes().splitlines(keepends=True)[:kept] == lines[:kept]        # not written again
        assert (f"out.jsonl holds {kept} of {len(lines)} records" in said) == (kept > 0)
    assert "nothing was left to write" in said


def test_two_ways_json_on_stdout_and_an_output_hold_the_same(door, folder):
    door("--output", "out.jsonl", *SAMPLED)
    door(*SAMPLED, "--json")
    (folder / "piped.jsonl").write_text(door.printed, encoding="utf-8")
    assert texts(folder / "piped.jsonl") == texts(folder / "out.jsonl") and len(texts(folder / "out.jsonl")) == 24


def test_two_ways_a_job_that_every_signal_stopped_equals_one_that_none_did(door, folder, monkeypatch):
    """At a quarter by Ctrl-C, at half by SIGTERM, at three quarters by kill -9."""
    flags = ["--output", "out.jsonl", "--max-new-tokens", 150, "--ignore-eos", "--batch-size", 2]
    out, lines = folder / "out.jsonl", 0
    endings = [("SIGINT", 6, 130), ("SIGTERM", 12, 143), ("SIGKILL", 18, -9)]
    for name, count, code in endings:
        process = start(folder, *flags, *(["--resume"] if lines else []))
        wait_for_lines(out, count, process)                         # so a reader sees them before the job has ended
        if name == "SIGTERM":
            said = door(*flags, "--resume", code=2)
            assert f"out.jsonl is being written by another run (process {process.pid}" in said
        process.send_signal(getattr(signal, name))
        printed, said = process.communicate(timeout=60)
        assert (process.returncode, printed) == (code, ""), said
        lines = out.read_bytes().count(b"\n")
        assert count <= lines < 24
        if name != "SIGKILL":
            told = f"{lines} of 24 records are in out.jsonl; to go on, give the same command with --resume"
            assert told in said.splitlines() and "Traceback" not in said
    door(*flags, "--resume")
    resumed = texts(out)
    door(*flags, "--overwrite")
    assert resumed == texts(out) and [record["prompt"] for record in resumed] == PROMPTS


def test_property_a_reader_of_stdout_gets_each_record_before_the_job_has_ended(folder):
    process = start(folder, "--json", "--max-new-tokens", 150, "--ignore-eos", "--batch-size", 1)
    assert json.loads(process.stdout.readline())["prompt"] == PROMPTS[0]
    assert process.poll() is None
    process.send_signal(signal.SIGHUP)
    rest, said = process.communicate(timeout=60)
    assert process.returncode == 129
    assert f"interrupted after {1 + rest.count(chr(10))} of 24 texts; a job with --output FILE" in said


def test_property_a_prompt_more_goes_on_and_another_batch_size_may_be_taken(door, folder):
    door("--output", "out.jsonl", *SAMPLED)
    write_prompts(folder / "many.jsonl", [*PROMPTS, "one more"])
    door("--output", "out.jsonl", *SAMPLED[:-1], 3, "--resume", "--readable")
    assert [record["prompt"] for record in texts(folder / "out.jsonl")] == [*PROMPTS, "one more"]


# Bad prompts

BAD = ['{"prompt": ""}', '{"prompt": 3}', '{"text": "x"}', "{oops", '{"prompt": "\\ud83d"}', '"x"',
       '{"prompt": "%s"}' % ("x y " * 200)]


def test_worked_example_bad_prompts_are_left_out_and_counted_and_keep_line_numbers_right(door, folder):
    good = [json.dumps({"prompt": prompt}) for prompt in PROMPTS]
    door("--output", "good.jsonl", *SAMPLED)
    (folder / "many.jsonl").write_text("\n".join([*good[:5], *BAD, *good[5:]]), encoding="utf-8")
    said = door("--output", "out.jsonl", *SAMPLED, "--skip-bad")
    assert [f"left out: many.jsonl:{line}: " in said for line in range(5, 14)] == [False, *[True] * 7, False]
    assert "left out 7 of 31 prompts, which cannot be used" in said
    assert texts(folder / "out.jsonl") == texts(folder / "good.jsonl")
    out = folder / "out.jsonl"
    out.write_bytes(b"".join(out.read_bytes().splitlines(keepends=True)[:9]))
    assert "left out: many.jsonl:12: the prompt is" in door("--output", "out.jsonl", *SAMPLED, "--skip-bad", "--resume")
    assert texts(folder / "out.jsonl") == texts(folder / "good.jsonl")


@pytest.mark.parametrize("line", BAD, ids=range(len(BAD)))
def test_refusal_of_a_bad_prompt_names_its_line_and_writes_nothing(door, folder, line):
    (folder / "many.jsonl").write_text(f'{{"prompt": "a"}}\n\n{line}\n', encoding="utf-8")
    said = door("--output", "out.jsonl", *SAMPLED, code=2)
    assert said.startswith("generate.py: many.jsonl:3: ") and "or --skip-bad to leave such prompts out" in said
    assert said.count("\n") == 1 and not (folder / "out.jsonl").exists()


# What is refused

@pytest.fixture
def begun(door, folder):
    """A job of which three records are there."""
    door("--output", "out.jsonl", *SAMPLED)
    out = folder / "out.jsonl"
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:3]))
    return out


@pytest.mark.parametrize("changes, words", [
    (["--resume", "--temperature", "0.5"], "was written with --temperature 1.0; give the same to resume"),
    (["--resume", "--stop", "x", "--seed", "6"], "was written with no --stop, --seed 5"),
    (["--resume", "--chat", "--chat-format", "chatml"], "was written with no --chat, no --chat-format"),
    (["--resume", "--model", "other"], "was written with another --model"),
    (["--resume", "--dtype", "bfloat16"], "was written with --dtype float32"),
    ([], "out.jsonl exists already; give --resume to go on where it ends, --overwrite to start anew"),
])
def test_refusal_of_another_job(begun, door, folder, tiny_model, changes, words):
    tiny_model.embed_tokens.weight.data.mul_(2)
    save_model(tiny_model, folder / "other")
    before = begun.read_bytes()
    assert words in door("--output", "out.jsonl", *SAMPLED, *changes, code=2)
    assert begun.read_bytes() == before


def test_refusal_of_records_that_are_not_of_these_prompts_names_the_line(begun, door, folder):
    whole = begun.read_bytes()
    write_prompts(folder / "many.jsonl", [*PROMPTS[:2], "another", *PROMPTS[2:]])
    assert (f"out.jsonl:3: this record is of the prompt {PROMPTS[2]!r}, and the job has 'another' there "
            "(many.jsonl:3); give") in door("--output", "out.jsonl", *SAMPLED, "--resume", code=2)
    write_prompts(folder / "many.jsonl", PROMPTS[:2])
    assert "out.jsonl:3: this job has 2 texts, and here is a record more" in door(
        "--output", "out.jsonl", *SAMPLED, "--resume", code=2)
    write_prompts(folder / "many.jsonl", PROMPTS)
    for damage in (b"{oops\n", b"[1]\n", b"{}\n", b"\xff\n"):
        begun.write_bytes(damage + whole)
        assert "out.jsonl:1: this is no record of a text" in door("--output", "out.jsonl", *SAMPLED, "--resume", code=2)
        assert begun.read_bytes() == damage + whole


def test_refusal_where_nobody_knows_by_which_options(begun, door, folder):
    (folder / "out.jsonl.job" / "settings.json").write_text("{", encoding="utf-8")
    assert "nobody knows by which options" in door("--output", "out.jsonl", *SAMPLED, "--resume", code=2)


def test_refusal_to_write_over_the_prompts(door, folder):
    before = (folder / "many.jsonl").read_bytes()
    assert "is the file of the prompts" in door("--output", "./many.jsonl", "--overwrite", code=2)
    assert (folder / "many.jsonl").read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="Windows limits no file's size")
def test_refusal_of_a_full_disk_keeps_what_is_done(door, folder):
    import resource

    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    door("--output", "whole.jsonl", *SAMPLED)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2500, usual[1]))
    try:
        said = door("--output", "out.jsonl", *SAMPLED, code=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    done = (folder / "out.jsonl").read_bytes().count(b"\n")
    assert 0 < done < 24 and f"{done} of 24 records are in out.jsonl; to go on" in said
    assert "generate.py: out.jsonl cannot be written: File too large" in said
    door("--output", "out.jsonl", *SAMPLED, "--resume")
    assert texts(folder / "out.jsonl") == texts(folder / "whole.jsonl")
