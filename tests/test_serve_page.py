"""What the page asks for, what its files may do, and the runs that it shows. A browser: `make browser`."""

import json
import re

import pytest
import torch

from llama import lens
from llama.checkpoint import load_model
from llama.commands.flags import ModelFlags
from llama.fast.fused_block import fuse, unfuse
from llama.generation import encode_prompt
from llama.relatives.gpt import GPTConfig
from llama.serve import runs as runs_module
from llama.serve.runs import Runs
from llama.trace import as_json, trace

MISSING = "the server's tests need fastapi and uvicorn: pip install -r requirements.txt"
pytest.importorskip("fastapi", reason=MISSING)
pytest.importorskip("uvicorn", reason=MISSING)

from test_serve import client, folders, model  # noqa: E402, F401

from llama.serve.models import Models  # noqa: E402
from llama.serve.page_api import FILES, KINDS, read_along  # noqa: E402

SOURCES = {path.name: path.read_text(encoding="utf-8") for path in FILES.iterdir()}


# The files

def test_property_the_page_may_run_nothing_but_its_own_files(client):  # noqa: F811
    text = client.ask("/")
    policy = client.headers["content-security-policy"]
    assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy and "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy and client.headers["x-content-type-options"] == "nosniff"
    for name in re.findall(r'(?:src|href)="/static/([^"]+)"', text):
        assert client.ask(f"/static/{name}") == SOURCES[name]
        assert client.headers["content-type"].startswith(KINDS[f".{name.rpartition('.')[2]}"])
    assert client.refused("/static/..%2Fapi.py", None, 404)
    assert "no file" in client.refused("/static/nothing.js", None, 404)["message"]


@pytest.mark.parametrize("name", SOURCES)
def test_property_what_a_model_writes_is_never_markup_and_nothing_comes_from_elsewhere(name):
    text = SOURCES[name]
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\(|new Function|DOMParser|srcdoc|"
                         r"javascript:", text)
    assert set(re.findall(r"https?://[^\"'\s)]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|\sstyle=", text) or not name.endswith(".html")
    assert set(re.findall(r'from "\./([^"]+)"', text)) <= SOURCES.keys()


def test_property_the_page_speaks_both_languages():
    texts = dict(re.findall(r'\b(\w+): \[("(?:[^"\\]|\\.)*",\s*"(?:[^"\\]|\\.)*")\]', SOURCES["texts.js"]))
    used = {name for text in SOURCES.values() for name in re.findall(r'\bt\("(\w+)"', text)}
    used |= set(re.findall(r'data-text="(\w+)"', SOURCES["index.html"]))
    assert used <= texts.keys(), used - texts.keys()
    for name, pair in texts.items():
        english, chinese = json.loads(f"[{pair}]")
        assert set(re.findall(r"\{\d\}", english)) == set(re.findall(r"\{\d\}", chinese)), name


# What it asks for

def test_two_ways_tokens_are_those_of_the_tokenizer(client, model):  # noqa: F811
    answer = client.ask("/page/tokens", {"text": "The dog 你好"})
    assert answer["ids"] == model.tokenizer.encode("The dog 你好")
    assert answer["vocab_size"] == model.tokenizer.vocab_size
    assert answer["pieces"][0].startswith("T")
    assert client.refused("/page/tokens", {"text": "a", "tokenizer": "../x"}, 404)


def test_two_ways_attention_and_lens_are_those_of_llama_lens(client, model):  # noqa: F811
    text = "The lazy dog"
    ids = encode_prompt(model.tokenizer, text)
    answer = client.ask("/page/attention", {"text": text, "layer": 1})
    weights = lens.attention(model, ids)[1]
    assert answer["layers"] == 2 and len(answer["weights"]) == len(weights) and len(answer["pieces"]) == len(ids)
    assert all(abs(found - expected) <= 0.0006 for head, rows in zip(answer["weights"], weights.tolist(), strict=True)
               for row, other in zip(head, rows, strict=True) for found, expected in zip(row, other, strict=True))
    said = client.ask("/page/logit-lens", {"text": text})["said"]
    assert said == json.loads(json.dumps(lens.logit_lens(model, ids)))
    assert "layer is 2" in client.refused("/page/attention", {"text": text, "layer": 2}, 400)["message"]
    assert "at most 96" in client.refused("/page/logit-lens", {"text": "a b " * 200}, 400)["message"]


def test_two_ways_a_trace_is_that_of_llama_trace_though_the_model_served_is_fused(client, model, folders):  # noqa: F811
    ids = encode_prompt(model.tokenizer, "The lazy dog")
    with torch.inference_mode():
        fuse(model)
    try:
        answer = client.ask("/page/trace", {"text": "The lazy dog"})
        assert model.layers[0].only_generates                       # it was left as it is
    finally:
        with torch.inference_mode():
            unfuse(model)
    tensors, parameters = trace(load_model(folders / "tiny").float(), ids)
    expected = {"tensors": as_json(tensors), "parameters": as_json(parameters)}
    assert answer.keys() == {"ids", "pieces", "layers", *expected}
    assert answer["ids"] == ids and len(answer["pieces"]) == len(ids) and answer["layers"] == [0, 1]
    for kind, records in json.loads(json.dumps(expected)).items():
        for found, record in zip(answer[kind], records, strict=True):
            assert found.keys() == record.keys()
            assert all(found[name] == (pytest.approx(value, rel=1e-4, abs=1e-6) if isinstance(value, float) else value)
                       for name, value in record.items())


def test_worked_example_a_trace_of_an_adapter_shows_its_own_tensors(client):  # noqa: F811
    answer = client.ask("/page/trace", {"text": "The lazy dog", "model": "loud"})
    learned = [record for record in answer["parameters"] if record["name"].endswith("lora_B")]
    assert learned and all(record["gradient_norm"] > 0 and record["file"].startswith("llama/lora")
                           for record in learned)


@pytest.mark.parametrize("quantize", ["int8", "int4"])
def test_property_few_bits_are_traced_as_few_bits(folders, quantize):  # noqa: F811
    models = Models(ModelFlags(model=str(folders / "tiny"), device="cpu", quantize=quantize), keep=1)
    with torch.inference_mode():                                    # as in the thread that owns the models
        found = read_along(models, "", [5, 17, 30])
    assert any(record["file"].startswith("llama/quantization") for record in found["tensors"])
    assert found["tensors"][-1]["gradient_norm"] == 1.0


def test_refuses_a_trace_of_what_is_too_long_or_short_or_no_llama(client, model, monkeypatch):  # noqa: F811
    assert "and at most 32 are shown" in client.refused("/page/trace", {"text": "a b " * 40}, 400)["message"]
    assert "a text of one token" in client.refused("/page/trace", {"text": "a"}, 400)["message"]
    assert "'../x' is not here" in client.refused("/page/trace", {"text": "a b", "model": "../x"}, 404)["message"]
    monkeypatch.setattr(model, "config", GPTConfig(300, 8, 16, 2, 2, 64))
    assert "built for Llamas" in client.refused("/page/trace", {"text": "The dog"}, 400)["message"]


def test_worked_example_models_to_choose_from(client):  # noqa: F811
    found = client.ask("/page/models")
    assert found["default"] == "tiny"
    assert [(row["name"], row["adapter"], row["task_type"]) for row in found["models"]] == [
        ("tiny", False, "CAUSAL_LM"), ("loud", True, "CAUSAL_LM")]


def test_worked_example_a_model_that_was_not_tuned_is_asked(client):  # noqa: F811
    body = {"text": "The quick fox", "task": "sentiment", "labels": ["good", "bad"]}
    answer = client.ask("/page/task", body)
    assert answer["task"] == "sentiment" and answer["predicted"] in ("good", "bad")
    assert 0 <= answer["confidence"] <= 1
    assert "must be texts" in client.refused("/page/task", body | {"labels": ["good", None]}, 400)["message"]
    assert "give --adapter" in client.refused("/page/task", {"text": "a"}, 400)["message"]
    assert "a task that" in client.refused("/page/task", {"text": "a", "task": "cooking"}, 400)["message"]


def test_refuses_a_query_that_is_no_number_in_openais_form(client):  # noqa: F811
    assert client.refused("/page/runs/adapters/x?start=abc", None, 400)["param"] == "start"


# Runs

@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs_module, "home", lambda: tmp_path)
    return tmp_path


def test_worked_example_lines_of_a_run_as_they_come(home):
    folder = home / "adapters" / "mine.training"
    folder.mkdir(parents=True)
    metrics = folder / "metrics.jsonl"
    metrics.write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "lo', encoding="utf-8")
    runs = Runs()
    assert runs.listed() == [{"name": "adapters/mine", "running": False}]
    lines, end = runs.lines("adapters/mine", 0)
    assert lines == [{"step": 1, "loss": 2.5}]
    with metrics.open("a", encoding="utf-8") as file:
        file.write('ss": 2.25}\n')
    assert runs.lines("adapters/mine", end) == ([{"step": 2, "loss": 2.25}], metrics.stat().st_size)
    assert runs.lines("adapters/mine", 10**9)[0][0]["step"] == 1     # of a file that began anew
    assert runs.lines("adapters/../../etc", 0) == ([], 0)


def test_refuses_runs_of_other_names_and_files(home):
    (home / "data.jsonl").write_text('{"instruction": "a", "output": "b"}\n', encoding="utf-8")
    (home / "adapters" / "taken").mkdir(parents=True)
    runs = Runs()
    assert list(runs.data_files()) == ["data.jsonl"]
    for data, name, words in (("../data.jsonl", "x", "not among those"), ("data.jsonl", "../x", "no name for a run"),
                              ("data.jsonl", "--lora", "no name"), ("data.jsonl", "", "no name"),
                              ("data.jsonl", "taken", "is there already")):
        with pytest.raises(ValueError, match=words):
            runs.start(data, name, 1.0, model="tiny", max_length=256)
    assert not runs.started


def test_worked_example_a_run_is_started_seen_and_stopped(home, monkeypatch):
    """The command itself is another here: it says what it was given, and waits."""
    (home / "data.jsonl").write_text("{}\n", encoding="utf-8")
    script = home / "finetune.py"
    script.write_text("import sys, time\nprint(sys.argv[1:], flush=True)\ntime.sleep(60)\n", encoding="utf-8")
    monkeypatch.setattr(runs_module.cli, "PROJECT_ROOT", home)
    runs = Runs()
    name = runs.start("data.jsonl", "mine", 2.0, model="tiny", max_length=256)
    try:
        assert name == "adapters/mine" and runs.listed() == [{"name": name, "running": True}]
        with pytest.raises(ValueError, match="adapters/mine is still running"):
            runs.start("data.jsonl", "other", 2.0, model="tiny", max_length=256)
        while "--max-length" not in runs.said(name):
            assert runs.is_running(name)
        expected = ["--lora", "--model", "tiny", "--data", "data.jsonl", "--output", str(home / "adapters" / "mine"),
                    "--minutes", "2", "--max-length", "256", "--sample-texts", "3"]
        assert str(expected) in runs.said(name)
    finally:
        runs.stop_all()
        runs.started[name].process.wait(20)
    assert not runs.is_running(name)
