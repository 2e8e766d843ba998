"""What is compared: shapes × text × amount of it × seeds, each tuned by every method; and the commands of each run.

    tiny-1m, 200,000 tokens of peoples-daily, seed 0            a start: train.py, then llama.evaluate
    the same, LoRA of rank 8                                    tuned from it: finetune.py, which scores it, too

Text is made worse by shuffling the characters of a share of its documents: they keep their length and their letters,
and say nothing. All starts are scored on the same text, held out of the first source, with one vocabulary.

Try: draw the documents to shuffle without a seed; tests/test_frontier_grid.py
(test_property_texts_are_made_alike_and_once) fails.
"""

import json
import random
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from llama.config import PRESETS
from llama.datasets.language_modeling import LanguageModelingDataset, hold_out
from llama.datasets.records import RecordDataset
from llama.frontier.runs import run
from llama.runtime.ranges import MANY, MOST_TOKENS, Range, check_ranges
from weights.catalogue import CATALOGUE
from weights.fetch import fetch
from weights.formats.atomic_write import atomic_file

HELD_OUT, JUDGED = 0.05, 20_000                                     # of the first text; characters of that to score on
OF_A_TOKEN = 8                                                      # characters, more than pieces have in the mean
METHOD = re.compile(r"full|freeze-(\d+)|(lora|dora)-(\d+)(?:-(int8|int4))?")
RATES = {"full": "1e-3", "freeze": "1e-3", "lora": "3e-3", "dora": "3e-3"}


@dataclass(frozen=True)
class Grid:
    """What is run."""

    shapes: Annotated[tuple[str, ...], "presets to train from nothing, and models that are there to be tuned beside "
                      "them, such as zh-small"] = ("tiny-1m", "tiny-3m", "tiny-7m")
    tokens: Annotated[tuple[int, ...], "amounts of text that a shape reads before it is tuned", Range(1024, MANY)] = (
        100_000, 200_000, 400_000)
    texts: Annotated[tuple[str, ...], "where the text is from: corpora to fetch, or .txt files"] = ("peoples-daily",)
    shuffled: Annotated[tuple[str, ...], "shares of its documents whose characters are shuffled"] = ("0", "0.5")
    methods: Annotated[tuple[str, ...], "of tuning: full, freeze-N, lora-R, dora-R, and on few bits lora-R-int8, "
                       "dora-R-int4 …"] = ("full", "freeze-2", "lora-8", "dora-8", "lora-8-int8", "lora-8-int4")
    seeds: Annotated[int, "runs of each", Range(1, 1000)] = 3
    vocab_size: Annotated[int, "pieces of the vocabulary, learned from the first text", Range(300, 2**22)] = 2048
    block_size: Annotated[int, "tokens of a sample of text", Range(1, MOST_TOKENS)] = 128
    task: Annotated[str, "what is learned at the end, as finetune.py calls it"] = "sentiment"
    score: Annotated[str, "what decides, as llama.evaluate calls it"] = "accuracy"
    examples: Annotated[int, "of the task that are learned from, and half as many to score on", Range(8, MANY)] = 800
    tune_steps: Annotated[int, "of tuning, 16 examples each", Range(1, MANY)] = 60

    def __post_init__(self) -> None:
        check_ranges(self)
        for method in self.methods:
            flags_of(method)
        for share in self.shuffled:
            try:
                right = 0 <= float(share) <= 1
            except ValueError:
                right = False
            if not right:
                raise ValueError(f"--shuffled {share}: give shares from 0 to 1, such as 0,0.5")
        if not self.shapes or not self.tokens or not self.texts or not self.shuffled:
            raise ValueError("--shapes, --tokens, --texts and --shuffled each need one value at least")


class Start(NamedTuple):
    """A model before it is tuned; `text` is "" of one that is there, which nobody trains here."""

    shape: str
    text: str = ""
    shuffled: str = "0"
    tokens: int = 0
    seed: int = 0

    @property
    def cell(self) -> str:
        """What is the same over seeds."""
        if not self.text:
            return self.shape
        worse = f", {float(self.shuffled):.0%} shuffled" if float(self.shuffled) else ""
        return f"{self.shape}, {self.tokens:,} tokens of {Path(self.text).stem}{worse}"

    @property
    def name(self) -> str:
        return f"{self.cell}, seed {self.seed}" if self.text else self.cell

    @property
    def folder(self) -> str:
        return re.sub(r"[^\w.]+", "-", self.name)


class Tuned(NamedTuple):
    """A start and how it is tuned."""

    start: Start
    method: str
    seed: int

    @property
    def cell(self) -> str:
        return f"{self.start.cell}: {self.method}"

    @property
    def name(self) -> str:
        return f"{self.cell}, seed {self.seed}"


Run = Start | Tuned


def key(grid: Grid, run: Run) -> str:
    """Its name, and all else that makes it what it is."""
    name = f"{run.name}; {grid.vocab_size} pieces, blocks of {grid.block_size}"
    return name if isinstance(run, Start) else \
        f"{name}; {grid.task} from {grid.examples} examples, {grid.tune_steps} steps"


def runs_of(grid: Grid) -> Iterable[Run]:
    """All, with every start before what is tuned from it; seed by seed, so that a short time gives a whole table."""
    for seed in range(grid.seeds):
        for shape in grid.shapes:
            if shape not in PRESETS:
                if seed == 0:
                    yield Start(shape)
                yield from (Tuned(Start(shape), method, seed) for method in grid.methods)
                continue
            for tokens in sorted(grid.tokens):
                for text in grid.texts:
                    for shuffled in grid.shuffled:
                        yield (start := Start(shape, text, shuffled, tokens, seed))
                        yield from (Tuned(start, method, seed) for method in grid.methods)


def flags_of(method: str) -> list[str]:
    """Of finetune.py. Raises ValueError for what is no method."""
    found = METHOD.fullmatch(method)
    if not found:
        raise ValueError(f"--methods {method}: it must be full, freeze-N, lora-R or dora-R, the last two also with "
                         "-int8 or -int4 behind them")
    layers, kind, rank, bits = found.groups()
    flags = ["--lr", RATES[method.partition("-")[0]]]
    flags += ["--freeze-layers", layers] if layers else []
    flags += ["--lora", "--rank", rank] if rank else []
    flags += ["--dora"] if kind == "dora" else []
    return flags + (["--quantize", bits] if bits else [])


# ---- commands --------------------------------------------------------------------------------------------------------


BATCH, TUNED_BATCH, TUNED_LENGTH = 8, 16, 64


def train_command(grid: Grid, start: Start, files: "Files") -> list[str]:
    steps = max(1, start.tokens // (BATCH * grid.block_size))
    return ["train.py", "--data", str(files.beginning(start)), "--tokenizer", str(files.vocabulary),
            "--preset", start.shape, "--block-size", str(grid.block_size), "--batch-size", str(BATCH), "--epochs",
            "1000000", "--minutes", "0", "--max-steps", str(steps), "--seed", str(start.seed)]


def judge_command(grid: Grid, model: str, files: "Files") -> list[str]:
    return ["-m", "llama.evaluate", "--task", "generation", "--model", model, "--data", str(files.held_out),
            "--max-length", str(grid.block_size), "--batch-size", "32", "--json"]


def tune_command(grid: Grid, model: str, tuned: Tuned, files: "Files") -> list[str]:
    head = ["--attention", "full", "--pooling", "mean"] if grid.task in ("sentiment", "classification") else []
    return ["finetune.py", "--task", grid.task, "--model", model, "--data", str(files.learned), "--test-data",
            str(files.tested), *head, "--max-length", str(TUNED_LENGTH), "--batch-size", str(TUNED_BATCH), "--epochs",
            "1000000", "--max-steps", str(grid.tune_steps), "--save-every", str(grid.tune_steps), "--seed",
            str(tuned.seed), *flags_of(tuned.method)]


# ---- files -----------------------------------------------------------------------------------------------------------


class Files:
    """What the runs read, made once in a folder.

    Raises ValueError for a text or data that is not here.
    """

    def __init__(self, grid: Grid, folder: Path, task_data: Sequence[str]):
        self.grid, self.folder = grid, folder
        self.held_out, self.vocabulary = folder / "held-out.txt", folder / f"vocabulary-{grid.vocab_size}"
        self.learned, self.tested = (folder / f"{part}-{grid.task}.jsonl" for part in ("train", "test"))
        folder.mkdir(parents=True, exist_ok=True)
        for number, text in enumerate(grid.texts):
            self._divide(text, held=number == 0)
        if not self.vocabulary.exists():
            run([sys.executable, "-m", "tokenizer.train", str(self.text(grid.texts[0], "0")), "--vocab-size",
                 str(grid.vocab_size), "--output", str(self.vocabulary), "--json"], folder / "vocabulary.log")
        learn, test = task_data or (str(fetch("reviews") / f"{part}.jsonl") for part in ("train", "test"))
        for path, source, most in ((self.learned, learn, grid.examples), (self.tested, test, grid.examples // 2)):
            examples = RecordDataset(source)
            some = random.Random(0).sample(range(len(examples)), min(most, len(examples)))
            _write(path, "".join(json.dumps({name: examples[i][name] for name in ("text", "label")}, ensure_ascii=False)
                                 + "\n" for i in some))

    def text(self, name: str, shuffled: str) -> Path:
        return self.folder / f"{Path(name).stem}{f'-{shuffled}-shuffled' if float(shuffled) else ''}.txt"

    def beginning(self, start: Start) -> Path:
        """As much of its text as it can read: all of it would take longer to cut into tokens than to learn from."""
        whole = self.text(start.text, start.shuffled)
        path = whole.with_stem(f"{whole.stem}-{start.tokens}")
        if not path.exists():
            most = OF_A_TOKEN * start.tokens
            with open(whole, encoding="utf-8") as file:
                read = file.read(most)
            ends = read.rfind("\n\n") if len(read) == most else -1  # not in the midst of a document, if there are more
            _write(path, read[:ends].strip("\n") + "\n" if ends > 0 else read)
        return path

    def _divide(self, text: str, *, held: bool) -> None:
        wanted = [self.text(text, share) for share in (*self.grid.shuffled, "0")] + [self.held_out] * held
        if all(path.exists() for path in wanted):
            return
        documents = [example["text"] for example in LanguageModelingDataset(_source(text))]
        documents, last = hold_out(documents, HELD_OUT if held else 0.0)
        if held:
            _write(self.held_out, "\n\n".join(last)[:JUDGED] + "\n")
        for share in {*self.grid.shuffled, "0"}:
            _write(self.text(text, share), "\n\n".join(shuffle(documents, float(share))) + "\n")


def shuffle(documents: Sequence[str], share: float, seed: int = 0) -> list[str]:
    """The documents, so large a share of them with their characters in another order; drawn by the seed."""
    drawn = random.Random(seed)
    chosen = set(drawn.sample(range(len(documents)), round(share * len(documents))))
    return ["".join(drawn.sample(text, len(text))) if i in chosen else text for i, text in enumerate(documents)]


def _source(text: str) -> str:
    if Path(text).suffix:
        return text
    if text not in CATALOGUE:
        raise ValueError(f"--texts {text}: this is no corpus that can be fetched, and no file; give peoples-daily, "
                         "three-kingdoms, or a .txt file")
    path = fetch(text) / "text.txt"
    if not path.exists():
        raise ValueError(f"--texts {text}: {path} is not there, so it is no corpus of plain text; give its files")
    return str(path)


def _write(path: Path, text: str) -> None:
    with atomic_file(path) as file:
        file.write(text.encode())
