import argparse
import dataclasses
import importlib
import inspect
import math
import sys
import typing
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest

import finetune
import generate
import train
from llama import cost, evaluate, lens, merge, plot, predict, quantize, resize, trace
from llama.benchmark import __main__ as benchmark
from llama.benchmark import measure_generation, quantization_loss
from llama.clean import __main__ as clean
from llama.clean.steps import CleanConfig
from llama.commands.flags import ModelFlags, TaskFlags
from llama.decoding.beam_search import BeamConfig
from llama.decoding.speculative import SpeculationConfig
from llama.frontier import __main__ as frontier
from llama.lora import LoRAConfig
from llama.methods import cut, grpo, reptile
from llama.methods.grpo import GRPOConfig
from llama.methods.preferences import PreferenceConfig
from llama.relatives import ablation
from llama.runtime import cli
from llama.runtime.ranges import Range, check_ranges, ranges_of
from llama.sampling import SamplingConfig
from llama.serve import __main__ as serve
from llama.training.optimizer import TrainConfig
from tokenizer import extend
from tokenizer import train as train_tokenizer
from weights import convert, fetch

nearest = importlib.import_module("llama.nearest")                  # llama.nearest itself is the function
DOORS = [train, finetune, generate, evaluate, predict, nearest, merge, quantize, cost, benchmark,
         measure_generation, quantization_loss, convert, fetch, resize, train_tokenizer, extend, clean,
         lens, trace, serve, plot, cut, grpo, reptile, frontier, ablation]
RECORDS = [TrainConfig, ModelFlags, TaskFlags, SamplingConfig, BeamConfig, SpeculationConfig, LoRAConfig,
           PreferenceConfig, GRPOConfig, benchmark.Work, CleanConfig, clean.SourceFlags]
ODD = ("nan", "inf", "-inf", "1e308", "1e-320", str(2**64), "-1e9", "9" * 5000, "", "0x10", "٣ x")


@dataclasses.dataclass(frozen=True)
class Kinds:
    count: Annotated[int, "a count", Range(1, 9)] = 3
    rate: Annotated[float, "a rate", Range(0.5, 2.0, off=True)] = 1.0
    several: Annotated[tuple[int, ...], "counts", Range(1, 9)] = (1, 2)

    def __post_init__(self) -> None:
        check_ranges(self)


def parser_of(door, monkeypatch):
    """The parser that a door makes, as it is when arguments are parsed."""
    class Found(Exception):
        pass

    def found(parser, *_):
        raise Found(parser)

    monkeypatch.setattr(cli.Parser, "parse_args", found)
    monkeypatch.setattr(sys, "argv", ["door"])
    with pytest.raises(Found) as parsed:
        door.main()
    return parsed.value.args[0]


def test_worked_example_what_lies_in_a_range():
    assert 1 in Range(1, 9) and 9 in Range(1, 9) and np.int64(3) in Range(1, 9)
    assert all(value not in Range(1, 9) for value in (0, 10, 2.5, True, "3", None, math.nan))
    assert 0 in Range(0.5, 2.0, off=True) and 0.1 not in Range(0.5, 2.0, off=True) and 0 not in Range(0.5, 2.0)
    assert str(Range(1, 65_536)) == "a whole number from 1 to 65,536" and str(Range(0.0, 0.5)) == "from 0 to 0.5"
    assert Range(1, 9)("7") == 7 and Range(0.5, 2.0)("1") == 1.0 and ranges_of(Kinds).keys() == {
        "count", "rate", "several"}


@pytest.mark.parametrize("given, words", [
    ({"count": 0}, "count is 0; it must be a whole number from 1 to 9"),
    ({"rate": math.nan}, r"rate is nan; it must be 0 \(off\) or from 0.5 to 2"),
    ({"several": (1, 10)}, "several is 10; it must be"), ({"count": 2.5}, "count is 2.5"),
])
def test_refusal_of_a_field_beyond_its_range(given, words):
    with pytest.raises(ValueError, match=words):
        Kinds(**given)
    name, value = next(iter(given.items()))
    if name != "several":
        with pytest.raises(argparse.ArgumentTypeError):
            ranges_of(Kinds)[name](str(value))


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_property_every_number_of_a_record_has_a_range_that_is_checked(record):
    for field in dataclasses.fields(record):
        hint = typing.get_type_hints(record, include_extras=True)[field.name]
        if typing.get_args(hint)[0] in (int, float, tuple[int, ...]):
            assert field.name in ranges_of(record), f"{record.__name__}.{field.name} states no range"
            odd = (math.inf,) if isinstance(field.default, tuple) else math.inf
            with pytest.raises(ValueError, match=f"^{field.name} is "):
                record(**{field.name: odd})


@pytest.mark.parametrize("door", DOORS, ids=lambda door: door.__name__)
def test_property_every_number_of_every_door_has_a_range(door, monkeypatch):
    """No flag's type is plain `int` or `float`, and no range lets through what no computation takes."""
    for action in parser_of(door, monkeypatch)._actions:
        assert action.type not in (int, float) or action.choices, f"{action.option_strings} has no range"
        if isinstance(action.type, Range):
            for text in ODD if action.type.least > 0 else [text for text in ODD if text != "1e-320"]:   # as good as 0
                with pytest.raises(argparse.ArgumentTypeError, match="it is .*, and must be "):
                    action.type(text)
            for value in (action.default, action.const):
                assert value is None or value in action.type, f"the default of {action.option_strings}"


@pytest.mark.parametrize("door", [train, finetune, generate, evaluate, merge], ids=lambda door: door.__name__)
def test_refusal_of_a_seed_before_anything_is_loaded(door, monkeypatch, capsys):
    monkeypatch.setattr("llama.pretrained.load_model", None)
    for seed in (2**64, 10**13, -1):
        monkeypatch.setattr(sys, "argv", ["door", "--seed", str(seed)])
        with pytest.raises(SystemExit) as ended:
            door.main()
        said = capsys.readouterr().err
        assert ended.value.code == 2 and "--seed: it is" in said and said.count("\n") == 1


def test_property_every_door_was_looked_at():
    """A new door gets a place in DOORS."""
    places = [place for pattern in ("*.py", "llama/**/*.py", "weights/*.py", "tokenizer/*.py")
              for place in cli.PROJECT_ROOT.glob(pattern)]
    doors = {place for place in places if "Parser(" in place.read_text(encoding="utf-8") and place.name != "cli.py"}
    assert doors == {Path(inspect.getfile(door)).resolve() for door in DOORS}
