"""The door generate.py: what it prints where, what it refuses, and how it ends."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_chat_loop import Typist

import generate
from llama.checkpoint import save_model
from llama.lora import LoRAConfig, add_lora, save_adapter
from llama.pretrained import get_model
from llama.runtime import cli
from tokenizer.chat import FORMATS

HOME = Path(__file__).resolve().parent.parent

DOOR = Path(generate.__file__)
FIELDS = ["prompt", "text", "token_ids", "finish_reason", "prompt_tokens", "tokens_per_second"]


@pytest.fixture
def folder(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path / "model")
    return tmp_path


@pytest.fixture
def door(folder, monkeypatch, capsys):
    """Run the door in this process with the tiny model; returns what it printed on stdout."""
    def door(*flags, code=0):
        monkeypatch.setattr(sys, "argv", ["generate.py", "--model", str(folder / "model"), *map(str, flags)])
        with pytest.raises(SystemExit) as ended:
            cli.run(generate.main)
        said = capsys.readouterr()
        door.stderr = said.err
        assert ended.value.code == code, said.err
        return said.out
    return door


def records(output):
    return [json.loads(line) for line in output.splitlines()]


def start(folder, *flags, **streams):
    return subprocess.Popen([sys.executable, DOOR, "--model", folder / "model", *flags], cwd=folder,
                            encoding="utf-8", stderr=subprocess.PIPE, **streams)


# What is printed

def test_two_ways_a_raw_prompt_streams_what_json_tells(door, tiny_model):
    flags = ["--prompt", "The 狐 fox", "--max-new-tokens", 12, "--temperature", 0]
    record, = records(door(*flags, "--json"))
    assert list(record) == FIELDS
    assert record["text"] == tiny_model.generate("The 狐 fox", max_new_tokens=12, temperature=0.0)
    assert record["prompt"] == "The 狐 fox" and len(record["token_ids"]) == 12
    assert record["prompt_tokens"] == len(tiny_model.tokenizer.encode("The 狐 fox"))
    assert door(*flags) == f"The 狐 fox{record['text']}\n"
    assert "12 tokens in" in door.stderr and "cut off" in door.stderr


def test_two_ways_prompts_of_several_lengths_equal_single_runs(door):
    prompts = ["The", "The quick brown fox", "你好，世界！"]
    flags = ["--max-new-tokens", 8, "--temperature", 0, "--json"]
    alone = [record for prompt in prompts for record in records(door("--prompt", prompt, *flags))]
    together = records(door(*(flag for prompt in prompts for flag in ("--prompt", prompt)), *flags))
    for record in alone + together:
        del record["tokens_per_second"]
    assert together == alone


def test_worked_example_several_texts_come_in_blocks(door):
    flags = ["--prompt", "The", "--prompt", "你好", "--num-samples", 2, "--max-new-tokens", 4]
    rows = records(door(*flags, "--json"))
    assert [record["prompt"] for record in rows] == ["The", "The", "你好", "你好"]
    assert rows[0]["text"] != rows[1]["text"]
    blocks = [f"--- {i} of 4 ---\n{record['prompt']}{record['text']}\n\n" for i, record in enumerate(rows, 1)]
    assert door(*flags) == "".join(blocks)


def test_worked_example_a_question_prints_the_answer_alone(door, tiny_model):
    flags = ["--chat", "--chat-format", "chatml", "--prompt", "Who?", "--max-new-tokens", 6, "--temperature", 0]
    record, = records(door(*flags, "--json"))
    assert record["prompt"] == "Who?" and door(*flags) == record["text"] + "\n"
    with_system, = records(door(*flags, "--system", "Be brief.", "--json"))
    said = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Who?"}]
    ids, _ = FORMATS["chatml"].encode(said, tiny_model.tokenizer, reply=True)
    assert with_system["prompt_tokens"] == len(ids) > record["prompt_tokens"]


def test_worked_example_a_template_of_the_model_and_one_in_a_file(door, folder, tiny_model):
    """Any template runs, with what else it asks for."""
    flags = ["--chat", "--prompt", "Who?", "--max-new-tokens", 2, "--json"]
    template = "{{ '<|im_start|>' ~ messages[0].content ~ ('!' if loud else '?') ~ '<|im_end|>' }}"
    (folder / "mine.jinja").write_text(template, encoding="utf-8")
    (folder / "model" / "chat_template.jinja").write_text(template, encoding="utf-8")
    marks = tiny_model.tokenizer.special_ids
    expected = [marks["<|im_start|>"], *tiny_model.tokenizer.encode("Who?!"), marks["<|im_end|>"]]
    for given in ([], ["--chat-format", folder / "mine.jinja"]):
        record, = records(door(*flags, *given, "--template-args", '{"loud": true}'))
        assert record["prompt_tokens"] == len(expected)
        assert "no chat format of its own" not in door.stderr


def test_worked_example_a_model_without_a_chat_format_says_which_it_takes(door):
    door("--chat", "--prompt", "Who?", "--max-new-tokens", 2)
    assert "'alpaca' is used" in door.stderr


def test_worked_example_without_prompt_and_terminal_a_sample_answer(door):
    assert door("--max-new-tokens", 4).startswith(f"you> {generate.QUESTION}\n")
    assert records(door("--max-new-tokens", 4, "--json"))[0]["prompt"] == generate.QUESTION


def test_worked_example_prompt_files(door, folder):
    flags = ["--max-new-tokens", 2, "--json"]
    (folder / "prompt.txt").write_text("Two\nlines\n", encoding="utf-8")
    (folder / "prompts.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": "b\\n", "text": ""}\n', encoding="utf-8")
    given = records(door("--prompt", "first", "--prompt-file", folder / "prompt.txt", *flags))
    assert [record["prompt"] for record in given] == ["first", "Two\nlines"]
    given = records(door("--prompt-file", folder / "prompts.jsonl", *flags))
    assert [record["prompt"] for record in given] == ["a", "b\n"]


def test_worked_example_stop_and_seed_and_ignore_eos_reach_the_model(door):
    flags = ["--prompt", "The", "--max-new-tokens", 40, "--temperature", 3, "--top-p", 1, "--json"]
    plain, = records(door(*flags, "--seed", 1))
    assert records(door(*flags, "--seed", 1))[0]["token_ids"] == plain["token_ids"]
    assert records(door(*flags, "--seed", 2))[0]["token_ids"] != plain["token_ids"]
    middle = plain["text"][3:6]
    cut, = records(door(*flags, "--seed", 1, "--stop", middle, "--stop", "never so"))
    assert cut["text"] == plain["text"].split(middle)[0] and cut["finish_reason"] == "stop"


def test_two_ways_an_adapter_equals_the_adapted_model(door, folder, tiny_model):
    before, = records(door("--prompt", "The", "--max-new-tokens", 8, "--temperature", 0, "--json"))
    model = get_model(folder / "model")
    add_lora(model, LoRAConfig(rank=2))
    for name, parameter in model.named_parameters():
        if "lora" in name.lower():
            parameter.data.normal_(std=1.0)
    save_adapter(model, folder / "adapter")
    after, = records(door("--prompt", "The", "--max-new-tokens", 8, "--temperature", 0, "--json",
                          "--adapter", folder / "adapter"))
    assert after["text"] == model.generate("The", max_new_tokens=8, temperature=0.0) != before["text"]


# Speculation and the cache

def test_two_ways_speculation_prints_the_same_text_and_tells_how_it_went(door, folder):
    flags = ["--prompt", "the fox, the dog, the fox,", "--max-new-tokens", 20, "--temperature", 0, "--ignore-eos"]
    flags += ["--json"]
    plain, = records(door(*flags))
    for guessing in (["--lookup"], ["--draft", folder / "model", "--draft-tokens", 4]):
        sooner, = records(door(*flags, *guessing))
        assert list(sooner) == [*FIELDS, "steps", "guessed", "acceptance", "tokens_per_step", "speed_up"]
        assert sooner["text"] == plain["text"] and "of the guesses kept" in door.stderr
    assert sooner["acceptance"] == 1.0 and sooner["tokens_per_step"] == 5.0


def test_worked_example_the_format_of_the_cache(door):
    flags = ["--prompt", "The fox", "--max-new-tokens", 12, "--temperature", 0]
    assert door(*flags, "--cache-dtype", "float32") == door(*flags)
    for dtype in ("bfloat16", "int8"):
        assert door(*flags, "--cache-dtype", dtype).startswith("The fox")
    door(*flags, "--cache-dtype", "int4", code=2)
    assert "invalid choice: 'int4'" in door.stderr


# What is refused

@pytest.mark.parametrize("flags, words", [
    (["--prompt", "x", "--system", "y"], "--system means nothing to a raw prompt; add --chat"),
    (["--prompt", "x", "--chat-format", "chatml"], "--chat-format means nothing to a raw prompt; add --chat"),
    (["--prompt", "x", "--template-args", "{}"], "--template-args means nothing to a raw prompt; add --chat"),
    (["--chat", "--prompt", "x", "--chat-format", "morse"], "the chat format 'morse' is not known"),
    (["--chat", "--prompt", "x", "--template-args", "loud"], "--template-args 'loud' is no JSON"),
    (["--chat", "--json"], "--json does not go with an interactive chat"),
    (["--chat", "--num-samples", "2"], "--num-samples 2 does not go with an interactive chat"),
    (["--prompt", "x", "--num-samples", "2", "--temperature", "0"], "same text 2 times; raise the temperature"),
    (["--prompt", "x", "--num-samples", "0"], "--num-samples: it is '0', and must be a whole number"),
    (["--prompt", "x", "--batch-size", "0"], "--batch-size: it is '0', and must be a whole number"),
    (["--prompt", "x", "--resume"], "--resume is about the file of records; name it with --output FILE"),
    (["--prompt", "x", "--overwrite"], "--overwrite is about the file of records; name it with --output FILE"),
    (["--prompt", "x", "--output", "y", "--resume", "--overwrite"], "give one of them"),
    (["--prompt", "x", "--output", "."], "argument --output: . is a folder that this command runs in"),
    (["--chat", "--output", "y"], "--output y does not go with an interactive chat; give a --prompt-file"),
    (["--prompt", "x", "--max-new-tokens", "-1"], "--max-new-tokens: it is '-1', and must be a whole"),
    (["--prompt", "x", "--stop", ""], "give at least one character"),
    (["--prompt", "x", "--top-p", "3"], "argument --top-p: it is '3', and must be from 0 to 1"),
    (["--prompt", "x", "--lookup", "--beams", "2", "--temperature", "0.7"], "leave --lookup out"),
    (["--prompt", "x", "--lookup", "--draft", "y"], "two ways to guess; give one of them"),
    (["--prompt", "x", "--draft-tokens", "3"], "needs something that guesses: --draft or --lookup"),
    (["--prompt", "x", "--draft", "nowhere/model"], "no such model file or folder"),
    (["--prompt", "x", "--draft", "test"], "the draft model test has no tokenizer"),
    (["--prompt", "x", "--temperature", "warm"], "argument --temperature: it is 'warm', and must be 0 (off) or from"),
    (["--prompt", ""], "--prompt: the prompt is empty"),
    (["--prompt", "x", "--prompt", ""], "--prompt, number 2: the prompt is empty"),
    (["--prompt", "broken \udcff"], "half of a surrogate pair"),
    (["--prompt", "x y " * 200], "model's context is 256"),
    (["--prompt", "x", "--adapter", "nowhere"], "nowhere"),
    (["--prompt", "x", "--model", "nowhere/model"], "no such model file or folder"),
    (["--prompt-file", "nowhere.txt"], "nowhere.txt: there is no such file"),
    (["--prompt-file", "."], "this is a folder"),
])
def test_refusal_in_one_sentence(door, flags, words):
    assert door(*flags, code=2) == ""
    assert words in door.stderr and door.stderr.startswith("generate.py: ") and door.stderr.count("\n") == 1


@pytest.mark.parametrize("name, content, words", [
    ("empty.txt", b"", "the file is empty"),
    ("latin.txt", "ä".encode("latin-1"), "latin.txt:1: byte 1 of this line is not UTF-8"),
    ("bad.jsonl", b'{"prompt": "a"}\n{oops\n', "bad.jsonl:2: this is not JSON"),
    ("lacks.jsonl", b'{"text": "a"}\n', "lacks.jsonl:1: the field 'prompt' is missing"),
])
def test_refusal_of_a_bad_prompt_file(door, folder, name, content, words):
    (folder / name).write_bytes(content)
    assert door("--prompt-file", folder / name, code=2) == ""
    assert words in door.stderr


# How it ends

def test_worked_example_a_reader_that_leaves_ends_it_quietly(folder):
    process = start(folder, "--prompt", "The fox", "--ignore-eos", "--max-new-tokens", "250", stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE)
    assert process.stdout.read(5) == "The f"
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (0, "")


def test_worked_example_ctrl_c_ends_it_with_one_line(folder):
    process = start(folder, "--chat", "--prompt", "Who?", "--ignore-eos", "--num-samples", "5000", "--batch-size", "1",
                    stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    assert "'alpaca' is used" in process.stderr.readline()
    assert process.stdout.readline() == "--- 1 of 5000 ---\n"       # now it is at work
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 130 and error.strip().count("\n") == 0
    assert error.startswith("interrupted after ") and " of 5000 texts; a job with --output FILE" in error


def test_worked_example_a_chat_on_a_terminal(folder):
    typist = Typist(sys.executable, str(DOOR), "--model", str(folder / "model"), "--chat-format", "chatml",
                    "--max-new-tokens", "200", "--ignore-eos")
    typist.wait_for("you> ")
    typist.type("你是谁？\r")
    typist.wait_for("you> ")
    typist.type("/system 请简短\r")
    typist.wait_for("system message: 请简短")
    typist.wait_for("you> ")
    typist.type("\x04")
    assert typist.process.wait(30) == 0


def test_worked_example_special_tokens_in_a_raw_prompt(door):
    """Text unless asked otherwise, and then it is said; asked for, a chat can be written by hand."""
    turn = "<|im_start|>user\nhi<|im_end|>\n"
    flags = ["--max-new-tokens", 2, "--temperature", 0, "--json"]
    text, = records(door("--prompt", turn, *flags))
    assert "1 of 1 prompts spell special tokens, such as <|im_start|>, which are read as text" in door.stderr
    tokens, = records(door("--prompt", turn, "--special-tokens", *flags))
    assert "special" not in door.stderr and tokens["prompt_tokens"] < text["prompt_tokens"]
    assert door("--chat", "--prompt", "x", "--special-tokens", code=2) == ""
    assert "--special-tokens is for raw prompts" in door.stderr


def test_worked_example_one_bad_byte_in_a_piped_chat(folder):
    """It costs the line that it stands on, and no other; a byte order mark is no part of a question."""
    questions = b"\xef\xbb\xbfone\ncaf\xe9\ntwo\n"
    done = subprocess.run([sys.executable, "generate.py", "--model", str(folder / "model"), "--chat", "--chat-format",
                           "chatml", "--temperature", "0", "--max-new-tokens", "2", "--device", "cpu"], cwd=HOME,
                          input=questions, capture_output=True, env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"})
    assert done.returncode == 0 and done.stdout.count(b"\n") >= 2
    assert done.stderr.count(b"this line is not valid UTF-8; it is left out") == 1
