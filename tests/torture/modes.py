"""What is attacked: a door, run as its user would on a tiny model; what it leaves; how one goes on after it was killed.

Add a mode: a row of MODES. Its result must be the same to the bit whenever it is run, timings aside.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch

from llama.checkpoint import PretrainedLlama, save_model
from llama.config import preset
from llama.lora import LoRAConfig, add_lora, save_adapter
from tests.mutants import HOME
from tests.torture.launcher import IMPORTED, wait
from tokenizer import bpe

TEXT = ["The quick brown fox jumps over the lazy dog. The dog sleeps, and the fox goes home.",
        "你好，世界！今天天气很好。小驼是一个小小的语言模型。", "def add(a, b):\n    return a + b\n",
        "Emoji and numbers 12345, and   spaces."]
STEPS, SAVE_EVERY = 6, 2
TRAIN = ("--device", "cpu", "--dtype", "float32", "--max-steps", str(STEPS), "--epochs", "9", "--batch-size", "2",
         "--save-every", str(SAVE_EVERY), "--eval-every", "2", "--output", "out")
FINETUNE = ("finetune.py", "--model", "model", "--max-length", "256", "--lr", "0.05", *TRAIN)
TUNE = (*FINETUNE, "--data", "data.jsonl", "--eval-data", "eval.jsonl")
WORSE = ("--lr", "0.9", "--schedule", "constant")                  # the best evaluation is not the last one
TIMES = {"seconds", "tokens_per_second", "peak_memory"}
ENVIRONMENT = {"PYTHONPATH": str(HOME), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}


RECORDS = ("out.jsonl",)                                           # of a command that adds to a file, record by record
TIMED = re.compile(rb', "tokens_per_second": [0-9.e+-]+')


class Mode(NamedTuple):
    name: str
    command: tuple[str, ...]
    resumes: bool = True                # by --resume; else by the same command again
    processes: int = 1
    results: tuple[str, ...] = ("out",)
    older: bool = False                 # whether there is an older result under the output's name, to be replaced

    @property
    def trains(self) -> bool:
        """Whether there are steps, metrics and states beside a result; else records that are added to one by one."""
        return self.resumes and self.results != RECORDS

    @property
    def program(self) -> str:
        """What it calls itself in errors."""
        return f"python -m {self.command[1]}" if self.command[0] == "-m" else self.file

    @property
    def file(self) -> str:
        """As tracebacks name it."""
        return f"{self.command[1].rpartition('.')[2]}.py" if self.command[0] == "-m" else Path(self.command[0]).name


MODES = (
    Mode("train", ("train.py", "--data", "text.txt", "--hold-out", "0.2", "--preset", "test", "--vocab-size", "300",
                   "--max-position-embeddings", "256", "--block-size", "32", "--lr", "0.05", *TRAIN)),
    Mode("lora", (*TUNE, "--lora", "--dropout", "0.1", *WORSE)),
    Mode("full", (*TUNE, "--dtype", "bfloat16", "--save-epochs"), results=("out", "out_epoch1")),
    Mode("frozen", (*TUNE, "--freeze-layers", "1", *WORSE)),
    Mode("int8", (*TUNE, "--lora", "--quantize", "int8")),
    Mode("int4", (*TUNE, "--lora", "--quantize", "int4")),
    Mode("labels", (*FINETUNE, "--lora", "--task", "classification", "--data", "labels.jsonl", "--eval-data",
                    "labels.jsonl", "--test-data", "labels.jsonl")),
    Mode("merge", (*TUNE, "--lora", "--merge"), results=("out", "out-merged")),
    Mode("ddp", (*TUNE, "--lora", "--parallel", "ddp"), processes=2),
    Mode("fsdp", (*TUNE, "--parallel", "fsdp", *WORSE), processes=2),
    Mode("overwrite", (*TUNE, "--lora", "--overwrite"), older=True),
    Mode("generate", ("generate.py", "--model", "model", "--device", "cpu", "--dtype", "float32", "--prompt-file",
                      "prompts.jsonl", "--batch-size", "4", "--max-new-tokens", "24", "--ignore-eos", "--output",
                      "out.jsonl"), results=RECORDS),
    Mode("fold", ("-m", "llama.merge", "--model", "model", "--adapter", "adapter", "--device", "cpu", "--output",
                  "out"), resumes=False),
    Mode("quantize", ("-m", "llama.quantize", "--model", "model", "--bits", "4", "--output", "out"), resumes=False),
    Mode("convert", ("-m", "weights.convert", "model", "out.gguf"), resumes=False, results=("out.gguf",)),
)


class Ended(NamedTuple):
    """How the processes of a command ended."""

    codes: list[int]
    output: str
    errors: str
    hung: bool = False

    @property
    def code(self) -> int:
        """0 only if all have ended well."""
        return next((code for code in self.codes if code), 0)

    @property
    def steps(self) -> int:
        """How many steps it said were done."""
        return max(map(int, re.findall(r"^step (\d+)/", self.errors, re.M)), default=0)

    @property
    def resumed(self) -> int:
        """The step, or number of records, that it went on after."""
        said = re.findall(r"^(?:resuming after step|out.jsonl holds) (\d+) of", self.errors, re.M)
        return max(map(int, said), default=0)


class Left(NamedTuple):
    """What a run that ended well has left: all that must be the same, however often it was killed on the way."""

    files: dict[str, bytes]             # of results, byte for byte
    metrics: list[dict[str, Any]]
    scores: Any                         # the last line of stdout
    names: set[str]                     # of all that lies in the folder


def write_material(folder: Path) -> None:
    """A random model with its tokenizer and an adapter, and data to tune them on."""
    torch.manual_seed(0)
    tokenizer = bpe.train(TEXT * 4, 400, special=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    model = PretrainedLlama(preset("test", vocab_size=tokenizer.vocab_size))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.3)
    model.tokenizer = tokenizer
    save_model(model, folder / "model")
    add_lora(model, LoRAConfig(rank=4), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0.0, 0.1)
    for name in ("adapter", "older/out"):
        save_adapter(model, folder / name, base="model")
    write_lines(folder / "prompts.jsonl", [{"prompt": f"{text[:12]} {i}"} for i in range(4) for text in TEXT])
    write_lines(folder / "data.jsonl", [{"instruction": word, "output": text} for word in ("a", "b") for text in TEXT])
    write_lines(folder / "eval.jsonl", [{"instruction": "c", "output": text[::-1]} for text in TEXT[:2]])
    write_lines(folder / "labels.jsonl", [{"text": f"{text} {i}", "label": "even" if i % 2 == 0 else "odd"}
                                          for i in range(3) for text in TEXT])
    (folder / "text.txt").write_text("\n\n".join(TEXT * 5), encoding="utf-8")


def write_lines(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")


MATERIAL = ("model", "adapter", "prompts.jsonl", "data.jsonl", "eval.jsonl", "labels.jsonl", "text.txt")


def lay_out(mode: Mode, folder: Path) -> None:
    """A folder to run in, with links to the material, which lies beside it."""
    folder.mkdir()
    material = folder.parent
    for name in MATERIAL:
        (folder / name).symlink_to(material / name)
    if mode.older:
        shutil.copytree(material / "older" / "out", folder / "out")


def left(mode: Mode, folder: Path, ended: Ended) -> Left:
    metrics = []
    if mode.trains:
        text = (folder / "out.training" / "metrics.jsonl").read_text(encoding="utf-8")
        metrics = [without_times(json.loads(line)) for line in text.splitlines()]
        if not all(isinstance(line, dict) and "step" in line for line in metrics):
            raise ValueError("a line is of no step")
    last = (ended.output.splitlines() or [""])[-1]
    scores = without_times(json.loads(last)) if last.startswith("{") else last
    return Left(result_files(mode, folder), metrics, scores, names(folder))


def result_files(mode: Mode, folder: Path) -> dict[str, bytes]:
    """Of the results that are there under their names."""
    found = {}
    for result in mode.results:
        path = folder / result
        for file in sorted(path.rglob("*")) if path.is_dir() else [path] if path.is_file() else []:
            if file.is_file():
                found[file.relative_to(folder).as_posix()] = TIMED.sub(b"", file.read_bytes()) \
                    if result in RECORDS else file.read_bytes()
    return found


def names(folder: Path) -> set[str]:
    """Folders of shards of a resumed run may have a + at their end, and the state before the newest may be of any step:
    that in which the run was asked to end."""
    there = {re.sub(r"\++(?=/|$)", "", path.relative_to(folder).as_posix()) for path in folder.rglob("*")
             if path.relative_to(folder).parts[0] not in MATERIAL}
    states = sorted({int(found[1]) for name in there if (found := re.search(r"/last-(\d+)", name))})
    older = "|".join(map(str, states[:-1])) or "none"
    return {re.sub(rf"/last-({older})(?=\D|$)", "/last-before", name) for name in there}


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(each) for key, each in value.items() if key not in TIMES}
    return value


def door(command: tuple[str, ...]) -> list[str]:
    """The command with the place of its script."""
    return [command[0] if command[0] == "-m" else str(HOME / command[0]), *command[1:]]


# ---- running ---------------------------------------------------------------------------------------------------------


class Launcher:
    """The child's side is launcher.py. One launcher runs one command at a time; its processes are its own."""

    def __init__(self, imported: tuple[str, ...] = IMPORTED):
        self.process = subprocess.Popen([sys.executable, "-m", "tests.torture.launcher", *imported], cwd=HOME,
                                        text=True, encoding="utf-8", stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        env={**os.environ, **ENVIRONMENT})
        self.process.stdout.readline()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()

    def run(self, mode: Mode, folder: Path, *more: str, without: str = "",
            watches: dict[int, dict[str, Any]] | None = None, ends: dict[str, Any] | None = None) -> Ended:
        """The mode's command in `folder`, with more flags or without one.

        watches  by rank, what events.py is to do there
        ends     for `launcher.wait`: what signal it is to send, and when
        """
        processes = []
        for rank, process in enumerate(started(mode, folder)):
            process["command"] = [word for word in process["command"] if word != without] + list(more)
            plan = (watches or {}).get(rank)
            processes.append(process | {"watch": plan and plan | {"folder": str(folder)}})
        answer = self.start(processes, ends)
        return ended(folder, answer["codes"], hung=answer["hung"])

    def start(self, processes: list[dict[str, Any]], ends: dict[str, Any] | None = None) -> dict[str, Any]:
        """What `launcher.wait` says of processes as `started` describes them."""
        print(json.dumps({"processes": processes, "ends": ends or {}}), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


def started(mode: Mode, folder: Path) -> list[dict[str, Any]]:
    """What it takes to start each process of the command; all write to one file, as to one terminal."""
    said = {name: str(folder.with_name(f"{folder.name}.{name}")) for name in ("stdout", "stderr")}
    for path in said.values():
        Path(path).unlink(missing_ok=True)
    together = {"WORLD_SIZE": str(mode.processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [{"command": door(mode.command), "folder": str(folder), **said, "environment":
             together | {"RANK": str(rank), "LOCAL_RANK": str(rank)} if mode.processes > 1 else {}}
            for rank in range(mode.processes)]


def ended(folder: Path, codes: list[int], *, hung: bool = False) -> Ended:
    said = (folder.with_name(f"{folder.name}.{name}") for name in ("stdout", "stderr"))
    return Ended(codes, *(path.read_text(encoding="utf-8", errors="replace") for path in said), hung)


def run_alone(mode: Mode, folder: Path, ends: dict[str, Any] | None = None) -> Ended:
    """The command in processes of its own, each an interpreter that begins with its first import."""
    processes = []
    for process in started(mode, folder):
        with open(process["stdout"], "ab") as output, open(process["stderr"], "ab") as errors:
            processes.append(subprocess.Popen(
                [sys.executable, *process["command"]], cwd=folder, stdin=subprocess.DEVNULL, stdout=output,
                stderr=errors, env={**os.environ, **ENVIRONMENT, **process["environment"]}))
    answer = wait([process.pid for process in processes], **ends or {})
    for process, code in zip(processes, answer["codes"], strict=True):
        process.returncode = code                                   # `wait` has asked already
    return ended(folder, answer["codes"], hung=answer["hung"])


def run_as_typed(mode: Mode, folder: Path) -> Ended:
    """The command as its user types it, with torchrun where it takes several processes."""
    if mode.processes == 1:
        return run_alone(mode, folder)
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node", str(mode.processes), "--master-port",
                str(free_port()), *door(mode.command))
    return run_alone(mode._replace(command=torchrun, processes=1), folder)


PORTS = itertools.count(10_000 + os.getpid() % 10_000)            # below those that a system gives out by itself


def free_port() -> int:
    """One that nothing listens at, and that no attack beside this one has been given: theirs may not listen yet."""
    while True:
        with socket.socket() as asked:
            with contextlib.suppress(OSError):
                asked.bind(("127.0.0.1", port := next(PORTS)))
                return port
