import dataclasses
import json
import re
import sys

import pytest
import torch

from llama import checkpoint
from llama.benchmark import __main__ as benchmark
from llama.benchmark import measure_generation
from llama.benchmark.__main__ import Work
from llama.benchmark.goals import RATIOS


class Tiny:
    """An engine in this process; `log` tells who worked when."""

    log: list[str] = []

    def __init__(self, name, command):
        if "int4" in command:
            raise ValueError("no 4 bits here")
        self.name = name
        self.works = measure_generation.works(checkpoint.load_model(command[4]), lookup="--lookup" in command)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def ask(self, work, **request):
        self.log.append(self.name)
        return {"bytes": 12_000_000} if work == "memory" else self.works[work](**request)


@pytest.fixture
def folder(tmp_path, tiny_model):
    checkpoint.save_model(tiny_model, tmp_path / "tiny")
    (tmp_path / "text.txt").write_text("The fox, 你好, sleeps and jumps. " * 30, encoding="utf-8")
    return tmp_path / "tiny"


WORK = Work(prompt_tokens=12, new_tokens=4, prefill=20, batch=(3,), repeats=2, starts=0, text_tokens=60)


def test_two_ways_the_command_prints_tables_and_json_of_one_tiny_model(folder, monkeypatch, capsys):
    monkeypatch.setattr(benchmark, "Engine", Tiny)
    monkeypatch.setattr(benchmark, "measure_bandwidth", lambda: 10e9)
    monkeypatch.setattr(benchmark, "QUESTIONS", str(folder.parent / "questions.jsonl"))
    monkeypatch.setattr(benchmark, "ANSWER", 30)
    questions = '{"prompt": "the fox, the dog, the fox, the dog"}\n'
    (folder.parent / "questions.jsonl").write_text(questions, encoding="utf-8")
    flags = [f"--{name.replace('_', '-')}={','.join(map(str, value)) if isinstance(value, tuple) else value}"
             for name, value in dataclasses.asdict(WORK).items()]
    monkeypatch.setattr(sys, "argv", ["benchmark", "--model", str(folder), "--text", str(folder.parent / "text.txt"),
                                      "--modes", "float32,default,int4,lookup", *flags,
                                      "--output", str(folder.parent / "a" / "b.json")])
    benchmark.main()
    shown = capsys.readouterr()
    results = json.loads((folder.parent / "a" / "b.json").read_text(encoding="utf-8"))
    assert shown.out.strip() == benchmark.tables(results)
    assert "int4: no 4 bits here" in shown.out and "no 4 bits here" in shown.err
    found = results["engines"]["default"]
    assert {len(found[piece]) for piece in ("decode", "prefill", "batch 3")} == {2} and found["memory"] == 12_000_000
    assert found["perplexity"] == results["engines"]["float32"]["perplexity"] > 1
    turn, = results["turns"]
    assert (turn["work"], turn["mode"], turn["against"]) == ("edit", "lookup", "default") and len(turn["ours"]) == 2
    assert turn["guesses"]["tokens_per_step"] > 1
    assert re.search(r"\nlookup, edit: \d+% of the guesses kept, \d\.\d\d tokens a step, \d+\.\d\d × as", shown.out)
    assert results["machine"]["threads"] == torch.get_num_threads()
    assert results["work"]["text"] == [str(folder.parent / "text.txt")]


def test_property_engines_take_turns(folder, monkeypatch):
    monkeypatch.setattr(benchmark, "Engine", Tiny)
    monkeypatch.setattr(benchmark.time, "sleep", lambda seconds: None)
    Tiny.log.clear()
    request = {"work": "decode", "prompt": [1, 2, 3], "new": 3}
    command = ["python", "-m", "llama.benchmark.measure_generation", "--model", str(folder)]
    answers = benchmark.in_turn({"a": command, "b": command}, request, 3)
    assert Tiny.log == ["a", "b"] + ["a", "b"] * 3                  # once to warm up, then in turn
    assert [len(found) for found in answers.values()] == [3, 3]
    assert all(benchmark.speed(answer) > 0 and answer["tokens"] == 3 for answer in answers["a"])


def test_property_turns_are_those_whose_engines_and_works_are_here():
    commands = dict.fromkeys(["default", "int8", "transformers bfloat16", "llama.cpp Q8_0"])
    groups = benchmark.turn_groups(commands, {"decode": {}, "prefill": {}}, "AVX512")
    assert {key: [aim.against for aim in aims] for key, aims in groups.items()} == {
        ("decode", "default"): ["transformers bfloat16"],
        ("decode", "int8"): ["transformers bfloat16", "llama.cpp Q8_0"],
        ("prefill", "default"): ["transformers bfloat16", "llama.cpp Q8_0"]}
    assert list(benchmark.turn_groups(commands, {"decode": {}}, "NEON").values()) == [list(RATIOS["AVX2"][2:3])]
    assert not benchmark.turn_groups(dict.fromkeys(["default"]), {aim.work: {} for aim in RATIOS["AVX512"]}, "AVX512")


def test_property_questions_are_left_out_where_the_context_is_too_short(tiny_tokenizer):
    asked = benchmark.edit_request(tiny_tokenizer, 4096)["edit"]
    assert len(asked["prompts"]) == 4 and asked["work"] == "answers"
    longest = max(map(len, asked["prompts"]))
    assert benchmark.edit_request(tiny_tokenizer, longest + asked["new"] - 1) == {}
    assert benchmark.edit_request(tiny_tokenizer, longest + asked["new"])


def test_worked_example_ragged_prompts():
    prompts = benchmark.ragged(list(range(100)), 4, 16)
    assert [len(prompt) for prompt in prompts] == [7, 10, 13, 16]
    assert [prompt[0] for prompt in prompts] == [0, 21, 42, 63]


def test_refusals(folder, monkeypatch):
    for wrong, sentence in (({"repeats": 0}, "repeats is 0; it must be a whole number from 1 to"),
                            ({"batch": (8, 0)}, "batch is 0; it must be a whole number from 1 to")):
        with pytest.raises(ValueError, match=sentence):
            dataclasses.replace(WORK, **wrong)
    text = [str(folder.parent / "text.txt")]
    with pytest.raises(ValueError, match=re.escape("--prefill need a context of")):
        benchmark.text_ids(folder, dataclasses.replace(WORK, prefill=100_000), text)
    (folder.parent / "text.txt").write_text("Too short.", encoding="utf-8")
    with pytest.raises(ValueError, match="tokens, --prompt-tokens is 12 and --prefill 20; give a longer --text"):
        benchmark.text_ids(folder, WORK, text)
    with pytest.raises(FileNotFoundError, match="nowhere: there is no such model file or folder"):
        benchmark.model_path("nowhere")
