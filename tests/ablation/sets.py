"""What the ablation learns and is scored on: files of three tasks, shares of them, and test sets that were perturbed.

    sentiment     reviews of books and hotels          data/reviews
    entities      names in the People's Daily          data/peoples-daily
    instructions  short Chinese questions and answers  belle_zh_seed_tasks.jsonl and sharegpt_zh_1k.jsonl of --samples,
                  the first exchange of each, where it has SHORT characters at most, divided 80 : 20

Every file is made once, and again only where it is missing.
"""

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from llama.datasets.columns import ColumnDataset
from llama.datasets.instructions import InstructionDataset
from llama.datasets.records import RecordDataset
from llama.datasets.split import split
from llama.datasets.tags import spans_of, tags_of
from tests.ablation.perturb import KINDS, perturbed
from weights.formats.paths import home

TESTS = ("clean", *KINDS)
SHORT = 120
Example = dict[str, Any]


class DataSet(NamedTuple):
    """A task on some data.

    score    as llama.evaluate calls it, and whether a lower one is better
    reading  fields of TaskFlags that learning and scoring share;  learning  flags of finetune.py beside them
    ending   of its files
    """

    task: str
    score: str
    lower: bool
    reading: dict[str, Any]
    learning: tuple[str, ...]
    batch_size: int
    ending: str

    @property
    def flags(self) -> list[str]:
        """Of finetune.py."""
        reading = [word for name, value in self.reading.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        return ["--task", self.task, *reading, *self.learning, "--batch-size", str(self.batch_size)]

    def within(self, batch: int) -> "DataSet":
        """Itself with so many examples a step where it has 16, half as many where it has 8; 0: as it is."""
        return self._replace(batch_size=max(1, batch * self.batch_size // 16)) if batch else self


_FULL = ("--attention", "full", "--lr", "5e-4")
_BARE = ("--pooling", "mean", "--word-dropout", "0")                # of its recipe what is no method to be compared
SETS = {
    "sentiment": DataSet("sentiment", "accuracy", False, {"max_length": 64}, (*_FULL, *_BARE), 16, "jsonl"),
    "entities": DataSet("ner", "f1", False, {"max_length": 128}, _FULL, 16, "conll"),
    "instructions": DataSet("instruction", "loss", True, {"max_length": 256, "chat_format": "plain"},
                            ("--lr", "5e-4"), 8, "jsonl"),
}


def files_of(name: str, work: Path, samples: Path, tests: int, longest: int = 0) -> dict[str, Path]:
    """"train", and a file for each of TESTS with so many examples; of those with labels the longer ones left out.

    Raises ValueError where there is no data.
    """
    ending = SETS[name].ending
    files = {part: work / f"{part}{'' if part == 'train' else f'-{tests}'}.{ending}"
             for part in ("train", *TESTS)}
    if all(file.exists() for file in files.values()):
        return files
    learn, judge = _READERS[name](samples)
    if longest and name in _LENGTHS:
        learn, judge = ([example for example in part if _LENGTHS[name](example) <= longest] for part in (learn, judge))
    chosen = random.Random(0).sample(range(len(judge)), min(tests, len(judge)))
    judged = [judge[i] for i in chosen]
    files["train"].parent.mkdir(parents=True, exist_ok=True)
    _write(files["train"], name, learn)
    _write(files["clean"], name, judged)
    for kind in KINDS:
        _write(files[kind], name, (_PERTURBERS[name](example, kind) for example in judged))
    return files


def share_of(name: str, train: Path, share: float, seed: int, work: Path, *, whole: int = 0) -> tuple[Path, int]:
    """A file with a share of the training examples, drawn by the seed, and how many they are; of `whole` ones, or all.
    """
    examples = _pieces(train)
    examples = random.Random(0).sample(examples, min(whole or len(examples), len(examples)))
    chosen = random.Random(seed).sample(examples, max(1, round(share * len(examples))))
    path = work / f"part.{SETS[name].ending}"
    path.write_text("".join(chosen), encoding="utf-8")
    return path, len(chosen)


def _pieces(file: Path) -> list[str]:
    """The examples of a file that `_write` wrote, as they stand there."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".jsonl":
        return text.splitlines(keepends=True)
    return [piece + "\n\n" for piece in text.split("\n\n") if piece.strip()]


def _write(file: Path, name: str, examples: Iterable[Example]) -> None:
    file.write_text("".join(_FORMS[name](example) for example in examples), encoding="utf-8")


# ---- each of the three -----------------------------------------------------------------------------------------------


def _fetched(folder: str, name: str) -> Path:
    path = home() / "data" / folder / name
    if not path.exists():
        raise ValueError(f"{path} is not here; python -m weights.fetch {folder} fetches it")
    return path


def _reviews(_: Path) -> tuple[Any, Any]:
    return tuple(RecordDataset(_fetched("reviews", f"{part}.jsonl")) for part in ("train", "test"))


def _entities(_: Path) -> tuple[Any, Any]:
    return tuple(ColumnDataset(_fetched("peoples-daily", f"{part}.txt")) for part in ("train", "test"))


def _instructions(samples: Path) -> tuple[Any, Any]:
    sources = [samples / f"{name}.jsonl" for name in ("belle_zh_seed_tasks", "sharegpt_zh_1k")]
    for source in sources:
        if not source.exists():
            raise ValueError(f"{source} is not here; say with --samples where the files of other projects are")
    asked = InstructionDataset(*sources, skip_bad=True)
    first = [{"messages": example["messages"][:2]} for example in asked]
    short = [example for example in first if [each["role"] for each in example["messages"]] == ["user", "assistant"]
             and sum(len(message["content"]) for message in example["messages"]) <= SHORT]
    learn, judge, _ = split(short, 0.8, 0.2, 0.0, text=lambda example: example["messages"][0]["content"])
    return learn, judge


def _perturbed_review(example: Example, kind: str) -> Example:
    return example | {"text": perturbed(example["text"], kind)[0]}


def _perturbed_sentence(example: Example, kind: str) -> Example:
    """Its tokens are characters."""
    text, spans = perturbed("".join(example["tokens"]), kind, spans=spans_of(example["tags"]))
    return {"tokens": list(text), "tags": tags_of(spans, len(text))}


def _perturbed_question(example: Example, kind: str) -> Example:
    """What the user says alone: the answers are what a right model would say."""
    return {"messages": [message | {"content": perturbed(message["content"], kind)[0]} if message["role"] == "user"
                         else message for message in example["messages"]]}


def _line(*fields: str) -> Callable[[Example], str]:
    return lambda example: json.dumps({field: example[field] for field in fields}, ensure_ascii=False) + "\n"


def _columns(example: Example) -> str:
    return "".join(f"{token}\t{tag}\n" for token, tag in zip(example["tokens"], example["tags"], strict=True)) + "\n"


_READERS: dict[str, Callable[[Path], tuple[Any, Any]]] = {
    "sentiment": _reviews, "entities": _entities, "instructions": _instructions}
_PERTURBERS = {"sentiment": _perturbed_review, "entities": _perturbed_sentence, "instructions": _perturbed_question}
_LENGTHS: dict[str, Callable[[Example], int]] = {
    "sentiment": lambda example: len(example["text"]), "entities": lambda example: len(example["tokens"])}
_FORMS = {"sentiment": _line("text", "label"), "entities": _columns, "instructions": _line("messages")}
