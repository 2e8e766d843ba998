import sys

import pytest

import generate
from llama.benchmark.measure_generation import main as measure
from llama.benchmark.modes import MODES, chosen_modes, generate_command, mode_commands


@pytest.mark.parametrize("door, flag", [(generate.main, "--help-all"), (measure, "--help")])
def test_property_modes_are_what_one_can_type(door, flag, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["door", flag])
    with pytest.raises(SystemExit):
        door()
    shown = capsys.readouterr().out.split()
    for name, mode in MODES.items():
        for flag in mode.flags:
            if flag.startswith("--"):
                assert flag in shown, f"{name} gives {flag}, which {door.__module__} does not know"


def test_worked_example_commands(tmp_path):
    commands = mode_commands(tmp_path / "a", ["bf16", "default"], tmp_path)
    assert commands["bf16"][1:] == ["-m", "llama.benchmark.measure_generation", "--model", str(tmp_path / "a"),
                                    "--dtype", "bfloat16"]
    assert generate_command(commands["default"])[1:] == [generate.__file__, "--model", str(tmp_path / "a")]


def test_worked_example_chosen_modes():
    assert chosen_modes("int8, default,int8") == ["int8", "default"]


@pytest.mark.parametrize("names, sentence", [("int9", "there is no mode int9; there are default, float32"),
                                             (" ,", "none is named; there are default")])
def test_refusal_of_unknown_modes(names, sentence):
    with pytest.raises(ValueError, match=sentence):
        chosen_modes(names)
