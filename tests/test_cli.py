import dataclasses
import importlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Annotated, Literal

import pytest
import torch
from conftest import same_choices

import finetune
import generate
import train
from llama import evaluate, predict
from llama.benchmark import __main__ as benchmark
from llama.checkpoint import PretrainedLlama, load_model, save_model
from llama.commands import flags
from llama.config import preset
from llama.fast.compiled_step import cxx_compiler
from llama.generation import BatchDecoder
from llama.lora import LoRAConfig, add_lora, save_adapter
from llama.quantization.swap import bits_of
from llama.runtime import cli
from weights.convert import convert


@dataclasses.dataclass(frozen=True)
class Kinds:
    """All kinds of flags."""

    number: Annotated[int, "a number"] = 3
    rate: Annotated[float, "100 % of something"] = 0.5
    which: Annotated[Literal["a", "b"], "a choice"] = "a"
    names: Annotated[tuple[str, ...], "some names"] = ("q", "k")
    switch: Annotated[bool, "a switch"] = False
    numbers: Annotated[tuple[int, ...], "some numbers"] = ()
    pattern: Annotated[tuple[str, ...] | str, "names or a pattern"] = ("q",)
    ranks: Annotated[Mapping[str, int], "a number for each name"] = dataclasses.field(default_factory=dict)


def _parse(*arguments):
    parser = cli.Parser("x", "y")
    cli.add_flags(parser, Kinds)
    return cli.from_flags(Kinds, parser.parse_args(arguments))


def test_worked_example_a_dataclass_becomes_flags_and_a_dataclass_again(capsys):
    assert _parse() == Kinds()
    given = _parse("--number", "7", "--which", "b", "--names", "a, b", "--switch")
    assert given == Kinds(7, 0.5, "b", ("a", "b"), True)
    assert _parse("--numbers", "3, 0").numbers == (3, 0)
    for text, value in [("q_proj, layers.0.mlp.up_proj", ("q_proj", "layers.0.mlp.up_proj")),
                        ("all-linear", "all-linear"), (r".*\.(q|v)_proj", r".*\.(q|v)_proj")]:
        assert _parse("--pattern", text).pattern == value
    with pytest.raises(SystemExit):
        _parse("--help")
    assert "100 % of something (default: 0.5)" in " ".join(capsys.readouterr().out.split())


def test_property_a_list_in_parts_is_all_of_them():
    parser = cli.Parser("x", "…")
    for flag, more in (("--data", {}), ("--watch", {"default": ["usual"]}), ("--numbers", {"type": int})):
        parser.add_argument_group("a group").add_argument(flag, nargs="+", **more)
    parser.add_argument("--one")
    found = parser.parse_args("--data a b --watch x --one 1 --data c --numbers 1 --one 2 --numbers 2 3".split())
    assert (found.data, found.watch, found.numbers, found.one) == (["a", "b", "c"], ["x"], [1, 2, 3], "2")
    assert parser.parse_args([]).watch == ["usual"] == parser.get_default("watch")      # which stays as it is


def test_refusal_of_a_flag_is_one_sentence_and_code_2(capsys):
    with pytest.raises(SystemExit) as leaving:
        _parse("--which", "c")
    assert leaving.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert _parse("--ranks", "q=1,layers.0.=2").ranks == {"q": 1, r"layers\.0\..*": 2}
    with pytest.raises(SystemExit):
        _parse("--ranks", "q=1,k=2,q=3")
    assert "argument --ranks: it names 'q' twice; give it once" in capsys.readouterr().err


def test_refusal_a_type_that_no_flag_is_made_of():
    @dataclasses.dataclass
    class Bad:
        field: Annotated[list[int], "numbers"] = None

    with pytest.raises(TypeError, match="Bad.field"):
        cli.add_flags(cli.Parser("x", "y"), Bad)


def test_refusal_a_device_that_is_not_here():
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="--device cuda: this machine has none"):
            flags.choose_device("cuda")
    assert flags.choose_device("cpu").type == "cpu"


@pytest.mark.parametrize("statement, code, words", [
    ("None", 0, ""),
    ("from llama.config import preset; preset('llama-9')", 2, "no preset is called 'llama-9'"),
    ("open('/nowhere/x')", 2, "/nowhere/x: No such file or directory"),
    ("raise KeyboardInterrupt", 130, ""),
    ("from llama.runtime.interrupt import Stopped; raise Stopped(15)", 143, ""),
    ("raise RuntimeError('CUDA out of memory. Tried')", 1, ": CUDA out of memory: take a smaller --batch-size"),
    ("import torch; torch.empty(2**60)", 1, "2**60 bytes"),
    ("raise MemoryError", 1, ": out of memory: take a smaller --batch-size"),
])
def test_worked_example_exit_codes(statement, code, words, capsys):
    with pytest.raises(SystemExit) as leaving:
        cli.run(lambda: exec(statement))
    said = capsys.readouterr().err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler    # whoever calls `run` still hears Ctrl-C
    assert leaving.value.code == code and words.replace("2**60", "4611686018427387904") in said
    assert said.count("\n") == (code > 0) and "Traceback" not in said


def test_property_a_bug_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="size"):
        cli.run(lambda: torch.ones(2) @ torch.ones(3))


@pytest.mark.parametrize("stream, code", [("stdout", 0), ("stderr", 1)])
def test_worked_example_exit_code_where_the_reader_leaves(stream, code):
    """Results may be read in part (`| head`); a training run whose log breaks off has not come to its end."""
    script = f"""if True:
        import sys
        from llama.commands import flags
        from llama.runtime import cli
        cli.run(lambda: [print("x" * 999, file=sys.{stream}) for _ in range(999)])"""
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL} | {stream: subprocess.PIPE}
    writing = subprocess.Popen([sys.executable, "-c", script], **pipes)
    getattr(writing, stream).close()
    assert writing.wait() == code


def test_worked_example_data_is_looked_for_here_and_then_in_the_clone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    there = cli.PROJECT_ROOT / "examples" / "identity.jsonl"
    assert flags.data_files(["examples/identity.jsonl", "nowhere.jsonl"]) == [str(there), "nowhere.jsonl"]
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "identity.jsonl").touch()
    assert flags.data_files(["examples/identity.jsonl"]) == ["examples/identity.jsonl"]


def test_worked_example_next_free_name(tmp_path):
    assert cli.unique_path(tmp_path, "identity", take=False) == tmp_path / "identity"
    (tmp_path / "identity").mkdir()
    (tmp_path / "identity-2.training").mkdir()
    assert cli.unique_path(tmp_path, "identity", take=False) == tmp_path / "identity-3"


def test_refusal_an_output_that_exists(tmp_path):
    def check(name, *, overwrite=False, resume=False):
        cli.check_output(tmp_path / name, marker="config.json", overwrite=overwrite, resume=resume)

    for folder, file in (("model", "config.json"), ("adapter", "adapter_config.json"), ("run.training", "last-7.pt")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / file).touch()
    check("new")
    check("model", overwrite=True)
    check("run", resume=True)
    for options, words in ((("model", {}), "exists already; give --overwrite"),
                           (("run", {}), "is an interrupted run; give --resume"),
                           (("adapter", {"overwrite": True}), "holds no config.json"),
                           (("new", {"resume": True}), "nothing to resume"),
                           (("model", {"resume": True, "overwrite": True}), "give one of them")):
        with pytest.raises(ValueError, match=words):
            check(options[0], **options[1])


@pytest.mark.skipif(os.name == "nt", reason="Windows tells no living writer from a dead one")
def test_property_what_a_killed_run_left_is_swept_also_where_the_next_is_refused(tmp_path):
    """And an older result, put aside when the kill came between two renames, is back, so that it can be refused."""
    for left in (".model.0a1b2c3d.aside", ".model.1a1b2c3d.partial", ".other.0a1b2c3d.partial"):
        (tmp_path / left).mkdir()
        (tmp_path / left / "config.json").touch()
    with pytest.raises(ValueError, match="exists already; give --overwrite"):
        cli.check_output(tmp_path / "model", marker="config.json", overwrite=False, resume=False)
    assert {path.name for path in tmp_path.iterdir()} == {"model", ".other.0a1b2c3d.partial"}


def test_refusal_of_flags_that_are_another_tasks():
    for chosen, words in (({"task": "ner", "overlap": 8}, "--overlap 8: only the text of --task generation"),
                         ({"task": "opinion", "labels": ("a", "a=b")}, "--labels a,a=b: give each label once"),
                         ({"task": "translation", "labels": ("a",)}, "--task translation has no labels"),
                         ({"task": "summarization", "attention": "full"}, "whoever learns to write must not see"),
                         ({"task": "qa", "pooling": "mean"}, "--pooling mean: only whole texts are scored by one row"),
                         ({"task": "segmentation", "scheme": "BMES"}, "only --task ner has a choice of tags"),
                         ({"task": "opinion", "multi_label": True}, "has no several labels"),
                         ({"task": "qa", "score": "text"}, "only the options of --task multiple-choice are weighed"),
                         ({"task": "multiple-choice", "columns": ("question",)}, "its tables name their columns")):
        with pytest.raises(ValueError, match=words):
            flags.TaskFlags(**chosen)
    chosen = flags.TaskFlags(task="sentiment", labels=("good=好评", "bad"))
    assert chosen.names == ("good", "bad") and chosen.words == {"good": "好评"}
    assert flags.task_and_dataset(flags.TaskFlags(task="ner", scheme="BMES"))[0].scheme == "BMES"
    assert flags.task_and_dataset(flags.TaskFlags(task="opinion", pooling="mean"))[0].pooling == "mean"


def test_property_a_perplexity_is_measured_in_float32_and_what_is_found_is_found_fast(monkeypatch):
    monkeypatch.setattr(flags, "_cpu_multiplies_bfloat16", lambda: True)
    for purpose, dtype in (("measure", torch.float32), ("find", torch.bfloat16), ("generate", torch.bfloat16)):
        assert flags.choose_dtype("auto", torch.device("cpu"), purpose=purpose) == dtype


@pytest.mark.skipif(cxx_compiler() is None, reason="no C++ compiler is installed")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_two_ways_4_bits_are_read_where_nothing_is_asked_for(dtype, monkeypatch, tiny_tokenizer, tmp_path, capsys):
    """The whole way: a GGUF, the flags, single tokens through a cache, against the readable model in float32."""
    monkeypatch.setattr(flags, "choose_dtype", lambda *_, **__: getattr(torch, dtype))
    monkeypatch.setattr(flags, "WORTH_COMPILING", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    torch.manual_seed(0)
    model = PretrainedLlama(preset("test", vocab_size=tiny_tokenizer.vocab_size, hidden_size=64, num_attention_heads=4,
                                   num_key_value_heads=2, head_dim=16, intermediate_size=128, initializer_range=0.2))
    model.tokenizer = tiny_tokenizer
    save_model(model, tmp_path / "floats")
    file = convert(tmp_path / "floats", tmp_path / "x.gguf", quantization="Q4_1")
    fast = flags.load(flags.ModelFlags(model=str(file), device="cpu"), purpose="generate")
    assert fast.step is not None and bits_of(fast) == 4
    tokens = torch.arange(40)[None] * 7 % 400
    with torch.inference_mode():
        decoder = BatchDecoder(fast, [0], 40, vocab_size=400)
        steps = torch.cat([decoder.step(piece) for piece in tokens.split(1, dim=1)])
        same_choices(steps, load_model(file)(tokens)[0, :, :400], gap=0.05)


def test_worked_example_an_adapter_alone_brings_its_base(tiny_model, tmp_path, capsys):
    save_model(tiny_model, tmp_path / "base")
    tiny_model.source = tmp_path / "base"
    add_lora(tiny_model, LoRAConfig(rank=2))
    save_adapter(tiny_model, tmp_path / "adapter")
    model = flags.load(flags.ModelFlags(adapter=str(tmp_path / "adapter"), device="cpu"), purpose="find")
    assert model.config == tiny_model.config
    assert "the adapter's own base is taken" in capsys.readouterr().err


@pytest.mark.parametrize("door", [train, finetune, generate, evaluate, predict, benchmark,
                                  *map(importlib.import_module, ("llama.nearest", "llama.lens", "llama.trace"))],
                         ids=lambda door: door.__name__)
def test_property_help_shows_few_flags_and_help_all_the_others(door, monkeypatch, capsys):
    shown = {}
    for flag in ("--help", "--help-all"):
        monkeypatch.setattr(sys, "argv", ["door", flag])
        with pytest.raises(SystemExit) as left:
            door.main()
        assert not left.value.code
        text = capsys.readouterr().out
        shown[flag] = set(re.findall(r"^  (?:-h, )?(--[a-z-]+)", text, re.M)), text
    few, many = shown["--help"][0], shown["--help-all"][0]
    assert len(few) <= 15 and few < many and "\nexample: python " in shown["--help"][1]
