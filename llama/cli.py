"""What the doors share: a dataclass becomes flags, an error becomes one sentence and an exit code.

A field with its help, `lr: Annotated[float, "peak learning rate"] = 3e-4`, is at once default, flag, line of `--help`
and saved record. Exit codes: 0 done, 1 failed midway, 2 refused, 130 interrupted.

Try: give a field the type `list[int]`; tests/test_cli.py says which types a flag can have.
"""

import argparse
import dataclasses
import itertools
import os
import sys
import traceback
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import torch

ROOMS = Path(__file__).resolve().parent.parent                      # where llama/, tokenizer/, weights/ and doors lie
OURS = ("llama", "tokenizer", "weights", "train.py", "finetune.py", "generate.py")


@dataclasses.dataclass(frozen=True)
class ModelFlags:
    """The flags of every door that takes a model."""

    model: Annotated[str, "a model folder, a file written by model.save, or a name to fetch"] = "smollm2-135m-instruct"
    adapter: Annotated[str, "LoRA adapter folder to put on the model"] = ""
    device: Annotated[Literal["auto", "cpu", "cuda", "mps"], "where to compute"] = "auto"
    dtype: Annotated[Literal["auto", "float32", "bfloat16", "float16"], "number format of the computation"] = "auto"
    seed: Annotated[int, "seed of every random choice"] = 0
    json: Annotated[bool, "print results as JSON on stdout"] = False


@dataclasses.dataclass(frozen=True)
class TaskFlags:
    """What the data means."""

    task: Annotated[Literal["instruction", "generation"], "instruction: learn answers; generation: learn all text"] = (
        "instruction")
    max_length: Annotated[int, "tokens of a sample, or of a block of text, at most"] = 512
    documents: Annotated[Literal["blank-line", "line"], "what separates the documents of a .txt file"] = "blank-line"
    chat_format: Annotated[str, "chatml, alpaca, llama-2 or llama-3; default: the model's own"] = ""

    def __post_init__(self) -> None:
        if self.max_length < 2:
            raise ValueError(f"max_length is {self.max_length}; a sample needs at least 2 tokens")


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults that say something: not None, no switch that is off, no empty name."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False or action.default in ("", ())
        return action.help if silent else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are one sentence, like all others here."""

    def __init__(self, prog: str, description: str):
        super().__init__(prog=prog, description=description, allow_abbrev=False,
                         formatter_class=_Help)

    def error(self, message: str) -> NoReturn:
        print(f"{self.prog}: {message}; see {self.prog} --help", file=sys.stderr)
        sys.exit(2)


def add_flags(parser: argparse.ArgumentParser, record: type, *, skip: tuple[str, ...] = ()) -> None:
    """One flag for each field of the dataclass `record`, but for those in `skip`, which the door adds in its own way.

    Types: bool (a switch), int, float, str, Literal (choices), tuple[str, ...] (comma-separated).
    """
    group = parser.add_argument_group((record.__doc__ or record.__name__).splitlines()[0].rstrip("."))
    for name, kind, text, default in _fields(record):
        if name in skip:
            continue
        flag, text = "--" + name.replace("_", "-"), text.replace("%", "%%")
        if kind is bool:
            group.add_argument(flag, action="store_true", default=default, help=text)
        elif typing.get_origin(kind) is Literal:
            group.add_argument(flag, choices=typing.get_args(kind), default=default, help=text)
        elif kind == tuple[str, ...]:
            group.add_argument(flag, type=_comma_separated, default=default, help=text, metavar="A,B")
        elif kind in (int, float, str):
            group.add_argument(flag, type=kind, default=default, help=text, metavar=_METAVARS[kind])
        else:
            raise TypeError(f"{record.__name__}.{name}: no flag is made of the type {kind}")


def from_flags(record: type, arguments: argparse.Namespace, **given: Any) -> Any:
    """The dataclass again, from parsed flags; `given` are the fields that have no flag of their own."""
    names = {field.name for field in dataclasses.fields(record)}
    return record(**{name: value for name, value in vars(arguments).items() if name in names} | given)


_METAVARS = {int: "N", float: "X", str: "TEXT"}


def _fields(record: type) -> list[tuple[str, Any, str, Any]]:
    hints = typing.get_type_hints(record, include_extras=True)
    rows = []
    for field in dataclasses.fields(record):
        kind, text = typing.get_args(hints[field.name])[:2]
        rows.append((field.name, kind, text, field.default))
    return rows


def _comma_separated(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def choose_device(name: str) -> torch.device:
    """«auto» takes CUDA, then Apple's MPS, then the CPU. Raises ValueError for one that this machine lacks."""
    here = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(device for device, present in here.items() if present))
    if not here[name]:
        raise ValueError(f"--device {name}: this machine has none that torch can use; take --device cpu")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device, *, training: bool) -> torch.dtype:
    """The dtype to compute in. «auto» is bfloat16 where it is faster and float32 elsewhere.

    On CPUs with bfloat16 instructions its products are 4 × faster, so training uses it; generation, bound by memory
    and by the conversion of single rows, is faster in float32 there.
    """
    if training and name == "float16":
        raise ValueError("--dtype float16 loses small gradients in training; take bfloat16 or float32")
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if device.type == "cpu" and training and _cpu_multiplies_bfloat16() else torch.float32


def _cpu_multiplies_bfloat16() -> bool:
    probes = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(probe() for probe in probes if probe)


def load(flags: ModelFlags) -> Any:
    """The model that the flags name, with its adapter, on its device and in the dtype to generate or evaluate in."""
    from llama.checkpoint import get_model
    from llama.lora import load_adapter
    from weights.paths import resolve

    device = choose_device(flags.device)
    dtype = choose_dtype(flags.dtype, device, training=False)
    model = get_model(flags.model, device=device, dtype=dtype, seed=flags.seed)
    if flags.adapter:
        load_adapter(model, resolve(flags.adapter, "adapters"))
    return model


def task_and_dataset(flags: TaskFlags) -> tuple[Any, Callable[[list[str]], Any]]:
    """The task that `--task` names, and what makes its data set from files."""
    from llama.datasets.instructions import InstructionDataset
    from llama.datasets.language_modeling import LanguageModelingDataset
    from llama.tasks.generation import TextGenerationTask
    from llama.tasks.instruction import InstructionTask

    if flags.task == "instruction":
        task = InstructionTask(chat_format=flags.chat_format or None, max_length=flags.max_length)
        return task, lambda files: InstructionDataset(*files)
    return TextGenerationTask(), lambda files: LanguageModelingDataset(*files, block_size=flags.max_length,
                                                                       documents=flags.documents)


def check_model(flags: TaskFlags, model: Any) -> None:
    """Raise ValueError for a model without tokenizer, and if samples may be longer than what it can read."""
    if model.tokenizer is None:
        raise ValueError("this model has no tokenizer, so it reads no text; give a model folder, or make one of a "
                         "preset's shape with train.py --preset")
    if flags.max_length > (context := model.config.max_position_embeddings):
        raise ValueError(f"samples of up to {flags.max_length} tokens do not fit the model's context of {context}; "
                         f"give --max-length {context}")


def next_free(folder: Path, name: str) -> Path:
    """folder/name, or folder/name-2, -3 … : the first that neither a result nor a run in progress has taken."""
    for number in itertools.count(1):
        path = folder / (name if number == 1 else f"{name}-{number}")
        if not path.exists() and not Path(f"{path}.training").exists():
            return path
    raise AssertionError("numbers do not end")


def check_output(output: Path, *, holds: str, overwrite: bool, resume: bool) -> None:
    """Raise ValueError where there is something that nobody asked to replace, or nothing to go on with.

    holds  the file by which a result of this kind is known; a folder of another kind is never replaced
    """
    run = Path(f"{output}.training", "last.pt")
    if overwrite and resume:
        raise ValueError("--overwrite starts anew and --resume goes on; give one of them")
    if resume and not run.exists():
        raise ValueError(f"{run}: there is nothing to resume here; start without --resume")
    if not (overwrite or resume):
        if output.exists():
            raise ValueError(f"{output} exists already; give --overwrite to replace it, or another --output")
        if run.exists():
            raise ValueError(f"{output} is an interrupted run; give --resume to go on, --overwrite to start anew, "
                             "or another --output")
    if output.exists() and not (output / holds).exists() and not (output.is_dir() and not any(output.iterdir())):
        raise ValueError(f"{output} holds no {holds}, so it is no earlier result; give another --output")


def prove_saved(model: Any, again: Any, prompt: str) -> None:
    """What was loaded from disk must write the same text as what is in memory. Raises RuntimeError otherwise."""
    options = {"max_new_tokens": 32, "temperature": 0.0}
    in_memory, from_disk = model.generate(prompt, **options), again.generate(prompt, **options)
    if in_memory != from_disk:
        raise RuntimeError(f"the saved result is not the trained model: to {prompt!r} it writes {from_disk!r} "
                           f"instead of {in_memory!r}")
    print("loaded again from disk: the same text as before saving", file=sys.stderr)


def run(main: Callable[[], None]) -> NoReturn:
    """Run a door's main and leave with its exit code; user errors become one sentence on stderr, bugs a traceback."""
    program = Path(sys.argv[0]).name
    for stream in (sys.stdout, sys.stderr):                         # Chinese where the locale knows ASCII alone
        if stream:                                                  # None where it was closed
            stream.reconfigure(encoding="utf-8", errors="replace")
    try:
        main()
        sys.stdout.flush()
        code = 0
    except KeyboardInterrupt:
        print("", file=sys.stderr)
        code = 130
    except BrokenPipeError:                                         # the reader left: `| head` is no failure
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except (ValueError, RuntimeError, OSError) as error:
        if not _said_by_us(error):
            raise
        print(f"{program}: {_sentence(error)}", file=sys.stderr)
        code = 2 if isinstance(error, (ValueError, *_WRONG_PATH)) else 1
    sys.exit(code)


_WRONG_PATH = (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError, PermissionError)


def _said_by_us(error: Exception) -> bool:
    """Raised by a line of ours (or by the system, about a file), not from inside a library, which would be a bug."""
    if isinstance(error, OSError):
        return True
    innermost = Path(traceback.extract_tb(error.__traceback__)[-1].filename).resolve()
    return innermost.is_relative_to(ROOMS) and innermost.relative_to(ROOMS).parts[0] in OURS


def _sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'a file'}: {error.strerror}"
    return " ".join(str(error).split())
