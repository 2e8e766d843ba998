"""What rounding costs: rows of the table by hand, what judges is not what is rounded for, refusals of the command."""

import json
import math
import sys

import pytest
import torch
from conftest import TEXT

from llama.benchmark import quantization_loss
from llama.benchmark.measure_generation import mean_loss
from llama.benchmark.quantization_loss import FLOATS, WAYS, losses, parts, report
from llama.checkpoint import save_model
from llama.quantize import quantize


@pytest.fixture
def folder(tiny_model, tmp_path):
    save_model(tiny_model, tmp_path / "floats")
    (tmp_path / "text.txt").write_text("\n\n".join(TEXT * 8), encoding="utf-8")
    return tmp_path / "floats"


def test_worked_example_each_row_is_the_model_rounded_so(tiny_model):
    ids = torch.randint(0, 300, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    found = losses(tiny_model, ids[:120], ids[120:], block=32)
    assert list(found) == list(WAYS) and [row["bits"] for row in found.values()] == [0, 8, 4, 4, 4]
    floats = sum(parameter.nbytes for parameter in tiny_model.parameters())
    assert found[FLOATS]["bytes"] == floats and found["int8, a scale a row"]["bytes"] < 0.32 * floats
    assert found[FLOATS]["perplexity"] == pytest.approx(math.exp(mean_loss(tiny_model, ids[120:], block=32)))
    assert len({row["perplexity"] for row in found.values()}) == 5  # five different models, and none is changed
    quantize(tiny_model, bits=8)
    assert found["int8, a scale a row"]["perplexity"] == pytest.approx(
        math.exp(mean_loss(tiny_model, ids[120:], block=32)))


def test_worked_example_of_the_table():
    shown = report({FLOATS: {"perplexity": 20.0, "bits": 0, "bytes": 4e6},
                    "int8, a scale a row": {"perplexity": 20.02, "bits": 8, "bytes": 1e6},
                    "int4, searched": {"perplexity": 21.2, "bits": 4, "bytes": 6e5}}).splitlines()
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in shown[2:]]
    assert rows == [["float32", "4.0", "20.000", "", "", "", ""],
                    ["int8, a scale a row", "1.0", "20.020", "+0.10 %", "0.5", "0.15", "stretch"],
                    ["int4, searched", "0.6", "21.200", "+6.00 %", "8", "4", "floor"]]


def test_property_nothing_is_rounded_on_what_judges(tiny_tokenizer):
    documents = [f"{number}" for number in range(20)]
    before, held_out = parts(documents, tiny_tokenizer, hold_out=0.1, most=5)
    assert tiny_tokenizer.decode(before, skip_special=True) == "".join(documents[:18])
    assert len(held_out) == 5 and tiny_tokenizer.decode(held_out, skip_special=True).startswith("18")


def test_worked_example_of_the_command(folder, monkeypatch, capsys):
    command = ["rounding_loss", "--model", str(folder), "--data", str(folder.parent / "text.txt"), "--hold-out", "0.3",
               "--block-size", "32", "--text-tokens", "64"]
    monkeypatch.setattr(sys, "argv", command)
    quantization_loss.main()
    shown = capsys.readouterr().out
    assert shown.startswith("64 tokens held out, in blocks of 32") and shown.count("\n| int4") == 3
    monkeypatch.setattr(sys, "argv", [*command, "--json"])
    quantization_loss.main()
    printed = json.loads(capsys.readouterr().out)
    assert printed["tokens"] == 64 and f"{printed['rounded'][FLOATS]['perplexity']:.3f}" in shown


@pytest.mark.parametrize("flags, words", [
    (["--block-size", "999"], "--block-size is 999; it must be at least 2 and at most the model's context of 256"),
    (["--block-size", "200"], r"--hold-out 0.05 leaves \d+ tokens to judge; give more than 200"),
])
def test_refusal_of_what_cannot_be_measured(folder, monkeypatch, flags, words):
    monkeypatch.setattr(sys, "argv", ["rounding_loss", "--model", str(folder), "--data",
                                      str(folder.parent / "text.txt"), *flags])
    with pytest.raises(ValueError, match=words):
        quantization_loss.main()


def test_refusal_of_a_model_in_few_bits(folder, tiny_model, monkeypatch):
    quantize(tiny_model, bits=8)
    save_model(tiny_model, folder)
    monkeypatch.setattr(sys, "argv", ["rounding_loss", "--model", str(folder), "--data", "text.txt"])
    with pytest.raises(ValueError, match="floats is in 8 bits already; give the model that it was made from"):
        quantization_loss.main()
