"""From raw text to generated text through all three scripts, as a user would call them, in an empty folder."""

import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TEXT

from tokenizer import bpe

HOME = Path(__file__).resolve().parent.parent
SIZES = ["--preset", "test", "--max-position-embeddings", "256", "--vocab-size", "300", "--block-size", "32"]


ENVIRONMENT = {"PYTHONPATH": str(HOME), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def trained(program, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "text.txt").write_text("\n\n".join(TEXT * 10), encoding="utf-8")
    done = program(HOME / "train.py", "--data", "text.txt", "--hold-out", "0.1", *SIZES, "--max-steps", "20",
               "--lr", "0.01", "--output", "model", cwd=folder)
    return folder, json.loads(done.stdout.splitlines()[-1]), done.stderr


def test_worked_example_train_from_raw_text(trained):
    folder, result, log = trained
    assert result["train"]["steps"] == 20 and result["output"] == "model"
    assert result["eval"]["bits_per_byte"] > 0 and set(result["baselines"]) == {"xz -9", "5-gram"}
    assert "the same text as before saving" in log and (folder / "model" / "tokenizer.json").exists()
    steps = [json.loads(line) for line in (folder / "model.training" / "metrics.jsonl").open(encoding="utf-8")]
    losses = [line["loss"] for line in steps if "loss" in line]
    assert len(losses) == 20 and losses[-1] < losses[0]


@pytest.mark.parametrize("how, answer", [
    (["--lora", "--rank", "16", "--modules-to-save", "embed_tokens"],
     ["--adapter", "tuned here", "--model", "my model"]),
    (["--freeze-layers", "1", "--epochs", "150", "--lr", "0.05"], ["--model", "tuned here"]),
    ([], ["--model", "tuned here"]),
])
def test_worked_example_tune_and_generate(program, trained, tmp_path, how, answer):
    folder, _, _ = trained
    (tmp_path / "my model").symlink_to(folder / "model")
    records = [{"instruction": f"Who? {i}", "input": "", "output": "I am 小驼."} for i in range(8)]
    (tmp_path / "data.jsonl").write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    done = program(HOME / "finetune.py", "--model", "my model", "--data", "data.jsonl", "--test-data", "data.jsonl",
               "--epochs", "50", "--lr", "0.02", "--chat-format", "alpaca", "--max-length", "200", *how,
               "--output", "tuned here", cwd=tmp_path)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["test"]["loss"] < 0.5 and "●" in done.stderr
    printed = next(line for line in done.stderr.splitlines() if "python generate.py" in line)
    assert shlex.split(printed) == ["python", "generate.py", *answer, "--chat"]         # as it is when pasted
    done = program(HOME / "generate.py", *answer, "--chat", "--prompt", "Who? 3", "--json",
               "--temperature", "0", "--max-new-tokens", "30", cwd=tmp_path)
    line = json.loads(done.stdout)
    assert line["text"].strip() == "I am 小驼." and line["finish_reason"] == "stop"
    assert set(line) == {"prompt", "text", "token_ids", "finish_reason", "prompt_tokens", "tokens_per_second"}


def test_refusal_resume_with_another_tokenizer_leaves_the_one_of_the_run(program, trained, tmp_path):
    folder, _, _ = trained
    bpe.train(TEXT, 290).save(tmp_path / "other")
    before = {path.name: path.read_bytes() for path in (folder / "model.training" / "tokenizer").iterdir()}
    done = program(HOME / "train.py", "--data", "text.txt", "--hold-out", "0.1", *SIZES[:4], *SIZES[6:], "--max-steps",
               "20", "--lr", "0.01", "--output", "model", "--resume", "--tokenizer", tmp_path / "other", cwd=folder,
               code=2)
    assert "tokenizer" in done.stderr
    assert before == {path.name: path.read_bytes() for path in (folder / "model.training" / "tokenizer").iterdir()}


def test_two_ways_an_interrupted_and_resumed_script_ends_where_a_whole_run_does(program, trained, tmp_path):
    folder, _, _ = trained
    (tmp_path / "model").symlink_to(folder / "model")
    record = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello, 小驼 here."}]}
    (tmp_path / "data.jsonl").write_text("\n".join([json.dumps(record)] * 24), encoding="utf-8")
    command = [HOME / "finetune.py", "--lora", "--dropout", "0.1", "--model", "model", "--data", "data.jsonl",
               "--max-length", "256", "--epochs", "4", "--batch-size", "2", "--output"]
    program(*command, "whole", cwd=tmp_path)
    interrupted = subprocess.Popen([sys.executable, *map(str, command), "in parts"], cwd=tmp_path, encoding="utf-8",
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   env={**ENVIRONMENT, "HOME": str(tmp_path)})
    for line in interrupted.stderr:
        if line.startswith("step 7/"):
            interrupted.send_signal(signal.SIGINT)
            break
    rest = interrupted.communicate()[1]
    assert interrupted.returncode == 130 and "--resume --output 'in parts'\n" in rest and "Traceback" not in rest
    assert not (tmp_path / "in parts").exists()
    assert "is an interrupted run" in program(*command, "in parts", cwd=tmp_path, code=2).stderr
    program(*command, "in parts", "--resume", cwd=tmp_path)
    whole, parts = (tmp_path / name / "adapter_model.safetensors" for name in ("whole", "in parts"))
    assert whole.read_bytes() == parts.read_bytes()


BAD = [
    (["train.py", "--data", "nowhere.txt"], "nowhere.txt"),
    (["train.py", "--data", "text.txt", "--preset", "llama-9"], "nearest names"),
    (["train.py", "--data", "text.txt", "--preset", "test", "--block-size", "999"], "exceeds the model's context"),
    (["train.py", "--data", "text.txt", "--hold-out", "2"], "--hold-out: it is '2', and must be from 0"),
    (["train.py", "--data", "text.txt", "--resume"], "--resume needs --output"),
    (["train.py", "--data", "text.txt", "--output", "model"], "exists already; give --overwrite"),
    (["finetune.py", "--lora", "--freeze-layers", "1"], "not allowed with"),
    (["finetune.py", "--model", "model", "--data", "good.jsonl", "--rank", "4"], "nothing without --lora"),
    (["finetune.py", "--model", "model", "--data", "good.jsonl", "--patience", "4"], "--patience needs --eval-data"),
    (["finetune.py", "--model", "tiny-1m", "--data", "good.jsonl"], "has no tokenizer"),
    (["train.py", "--data", "text.txt", "--resume", "--output", "nowhere"], "nothing to resume"),
    (["train.py", "--data", "text.txt", "--hold-out", "0.1", *SIZES, "--vocab-size", "299", "--max-steps", "20", "--lr",
      "0.01", "--output", "model", "--resume"],
     "another vocabulary; resume with vocabulary = --vocab-size 300, or start anew"),
    (["finetune.py", "--model", "model", "--data", "text.txt"], "text.txt:1"),
    (["finetune.py", "--model", "bert", "--data", "good.jsonl"], "not a Llama"),
    (["finetune.py", "--model", "model", "--data", "good.jsonl"], "give --max-length 256"),
    (["finetune.py", "--model", "model", "--data", "bad.jsonl"], "bad.jsonl:2"),
    (["finetune.py", "--model", "model", "--data", "lacks.jsonl"], "'output' is missing"),
    (["finetune.py", "--lora", "--model", "model", "--data", "good.jsonl", "--targets", "w1", "--max-length", "99"],
     "w1"),
    (["finetune.py", "--model", "model", "--data", "good.jsonl", "--freeze-layers", "9", "--max-length", "99"], "9"),
    (["generate.py", "--model", "model", "--prompt", "x " * 400], "context"),
    (["generate.py", "--model", "model", "--adapter", "nowhere", "--prompt", "x"], "nowhere"),
    (["-m", "llama.evaluate", "--model", "model", "--data", "nowhere.txt", "--task", "generation"], "nowhere.txt"),
]


@pytest.mark.parametrize("command, words", BAD, ids=[" ".join(command)[:60] for command, _ in BAD])
def test_refusal_one_sentence_and_nothing_written(program, trained, command, words):
    folder, _, _ = trained
    record = '{"instruction": "a", "output": "b"}\n'
    (folder / "good.jsonl").write_text(record, encoding="utf-8")
    (folder / "bad.jsonl").write_text(record + "{not json\n", encoding="utf-8")
    (folder / "lacks.jsonl").write_text('{"instruction": "a"}\n', encoding="utf-8")
    before = sorted(folder.iterdir())
    done = program(*command, cwd=folder, code=2)
    assert words in done.stderr
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize("door", ["train.py", "finetune.py", "generate.py", "-m llama.evaluate", "-m weights.fetch",
                                  "-m weights.convert"])
def test_worked_example_every_door_has_help(program, door, tmp_path):
    assert "usage:" in program(*door.split(), "--help", cwd=tmp_path).stdout
