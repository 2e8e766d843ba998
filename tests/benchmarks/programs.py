"""The programs that are compared on a data set: methods of old, models that are tuned, a model that is asked.

    methods of old       tests/benchmarks/baselines.py, in an interpreter that has their packages
    small                train.py on the training texts, for the vocabulary and a beginning; finetune.py; evaluate
    zh-small             finetune.py on all weights of zh-small, which has read Chinese before; evaluate
    default              finetune.py --lora on the default model; evaluate
    larger               the same on a model of half a billion parameters, which knows Chinese
    asked                evaluate --zero-shot, and --few-shot 4, of that model as it comes

The commands are those that anybody would give. A training that was interrupted goes on; one that is done with the same
flags is not made again.

Try: let `going_on` overwrite always; tests/test_task_baselines.py (test_property_an_interrupted_training_goes_on)
fails.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from llama.frontier.runs import going_on, run, shown
from tests.benchmarks.baselines import NAMES, methods_of
from tests.benchmarks.sets import SETS, examples_of, texts_of
from weights.formats import paths

LARGE = "qwen2.5-coder-0.5b-instruct"
SMALL, CHINESE, DEFAULT = "a small model, trained here", "zh-small, tuned", "smollm2-135m-instruct, LoRA"
LARGER = f"{LARGE}, LoRA"
TUNED = (SMALL, CHINESE, DEFAULT, LARGER)
PROGRAMS = ("baselines", "small", "zh-small", "default", "larger", "asked")
SHOTS = {f"{LARGE}, asked": 0, f"{LARGE}, 4 examples": 4}
ASKED_OF = 100                                                      # examples of a test set, drawn


class Way(NamedTuple):
    """How a task is learned.

    minutes  of training at most, for each model
    writes   part of them in which the small one learns to write first
    shape    flags of train.py for the small one
    small    flags of finetune.py for it
    chinese  the same for zh-small, beside the task's own recipe (llama/training/recipes.py)
    lora     the same for the default model and the larger one, beside --lora
    larger   more of them for the larger one
    """

    minutes: float
    writes: float
    shape: tuple[str, ...]
    small: tuple[str, ...]
    chinese: tuple[str, ...] = ()
    lora: tuple[str, ...] = ()
    larger: tuple[str, ...] = ()


# Found on dev sets, within minutes: docs/experiments.md.
_BAG = ("--preset", "tiny-1m", "--num-hidden-layers", "1", "--vocab-size", "8192")
_FLAT = ("--preset", "tiny-1m", "--num-hidden-layers", "2", "--vocab-size", "4096")
_WHOLE = ("--attention", "full", "--batch-size", "32", "--lr", "2e-3", "--dtype", "float32")
_MEAN = (*_WHOLE, "--pooling", "mean", "--max-length", "128")
_FEW = (*_MEAN, "--word-dropout", "0.35", "--weight-decay", "1")
_SHORT = ("--max-length", "128")

WAYS = {
    "sentiment-reviews": Way(15, 0, _BAG, (*_FEW, "--epochs", "6"), (), _SHORT, ("--lr", "3e-4")),
    "poets": Way(8, 0, _BAG, (*_FEW, "--epochs", "10"), (), _SHORT),
    "poem-forms": Way(5, 0, _FLAT, (*_MEAN, "--epochs", "5"), (), _SHORT),
    "disciplines": Way(5, 0, _FLAT, (*_FEW, "--epochs", "12"), (), _SHORT),
    "entities": Way(15, 0, _FLAT, (*_WHOLE, "--epochs", "10", "--max-length", "256"), (), _SHORT),
    "words": Way(15, 0, _FLAT, (*_WHOLE, "--epochs", "5", "--max-length", "256"), (), _SHORT),
    "questions": Way(5, 0.3, _FLAT, ("--batch-size", "8", "--lr", "1e-3", "--epochs", "5", "--attention", "full")),
    "titles": Way(5, 0.3, _FLAT, ("--batch-size", "8", "--lr", "1e-3", "--epochs", "10")),
    "sentences": Way(5, 0.2, _FLAT, ("--batch-size", "32", "--lr", "1e-3", "--epochs", "5"), (), _SHORT),
    "classical": Way(20, 0.2, _FLAT, ("--batch-size", "32", "--lr", "1e-3", "--epochs", "1"),
                     ("--request", "译成白话："), _SHORT),
}
WRITTEN = ("summarization", "translation")


def programs_of(name: str, wanted: Sequence[str] = PROGRAMS) -> list[str]:
    """The rows of a data set: its baselines by name, then ours."""
    rows = {"baselines": [NAMES[method] for method in methods_of(name)], "small": [SMALL], "zh-small": [CHINESE],
            "default": [DEFAULT], "larger": [LARGER],
            "asked": list(SHOTS) if SETS[name].task != "segmentation" else []}
    return [row for kind in PROGRAMS if kind in wanted for row in rows[kind]]


def minutes_of(name: str, program: str, given: float = 0) -> float:
    """Of training at most; of a baseline, which ends by itself, a guess."""
    if program in TUNED:
        return given or WAYS[name].minutes
    return 10 if program == NAMES["crf"] else 1


def measured(name: str, program: str, files: dict[str, Path], *, work: Path, minutes: float = 0, limit: int = 0,
             judges: str = sys.executable, iterations: int = 100, again: bool = False) -> dict[str, Any]:
    """{"scores", "minutes", "memory", "commands", "limit"}: minutes of training, the largest memory of its programs.

    minutes  at most; 0 takes those of the data set
    limit    examples to score answers on that are written; 0 for all, but ASKED_OF for a model that is asked

    Raises RuntimeError.
    """
    train, test = (paths.shown(files[part]) for part in ("train", "test"))
    if program in SHOTS:
        limit = limit or ASKED_OF
        few = ["--few-shot", str(SHOTS[program]), "--examples", train] if SHOTS[program] else ["--zero-shot"]
        labels = ",".join(_labels(name, files["train"]))
        command = _scoring(name, ["--model", LARGE, *few, *(["--labels", labels] if labels else [])], test, limit)
        return _scored(command, work / name / f"asked-{SHOTS[program]}.log") | {
            "minutes": 0.0, "memory": 0, "commands": [shown(command)], "limit": limit}
    if program not in TUNED:
        method = next(key for key, shown in NAMES.items() if shown == program)
        command = [judges, "-m", "tests.benchmarks.baselines", method, name, train, test, "--iterations",
                   str(iterations)]
        return run(command, work / name / f"{method}.log") | {"commands": [shown(command)]}
    limit = limit if SETS[name].task in WRITTEN else 0
    return _tuned(name, program, files, work / name, minutes or WAYS[name].minutes, limit, again=again)


def _tuned(name: str, program: str, files: dict[str, Path], place: Path, minutes: float, limit: int, *, again: bool
           ) -> dict[str, Any]:
    way, seconds, memory, commands = WAYS[name], 0.0, 0, []
    if program == CHINESE and SETS[name].traditional:
        files = _simplified(files, place, commands)
    train, test = (paths.shown(files[part]) for part in ("train", "test"))

    def trained(command: list[str], output: Path, left: float) -> None:
        nonlocal seconds, memory
        command += ["--output", str(output), "--minutes", f"{left:.2f}", "--save-every", "100"]
        commands.append(shown(command))
        kept = Path(f"{output}.json")
        before = json.loads(kept.read_text("utf-8")) if kept.exists() and output.exists() and not again else {}
        if before.get("command") != shown(command):
            result = run([sys.executable, *command, *going_on(output, again=again)], Path(f"{output}.log"))["train"]
            before = {"command": shown(command), "train": result}
            kept.write_text(json.dumps(before), encoding="utf-8")
        seconds += before["train"]["seconds"]
        memory = max(memory, before["train"]["peak_memory"])

    place.mkdir(parents=True, exist_ok=True)
    output, how = {SMALL: (place / "small-tuned", ["--model", str(place / "small"), *way.small]),
                   CHINESE: (place / "zh-small-tuned", ["--model", "zh-small", *way.chinese]),
                   DEFAULT: (place / "lora", ["--lora", *way.lora]),
                   LARGER: (place / "larger-lora", ["--lora", "--model", LARGE, *way.lora, *way.larger])}[program]
    if program == SMALL:
        texts = place / "texts.jsonl"
        texts.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n"
                                 for text in texts_of(name, files["train"])), encoding="utf-8")
        steps = [] if way.writes else ["--max-steps", "1"]          # for the vocabulary alone
        trained(["train.py", "--data", str(texts), *way.shape, *steps], place / "small", minutes * (way.writes or 1))
    trained(["finetune.py", "--task", SETS[name].task, "--data", train, *how], output, minutes - seconds / 60)
    asked = [word for flag in ("--max-length", "--request") if flag in how for word in how[how.index(flag) :][:2]]
    kind = "--adapter" if "--lora" in how else "--model"
    command = _scoring(name, [kind, str(output), "--batch-size", "32", *asked], test, limit)
    commands.append(shown(command))
    return _scored(command, Path(f"{output}.scores.log")) | {
        "minutes": seconds / 60, "memory": memory, "commands": commands, "limit": limit}


def _simplified(files: dict[str, Path], place: Path, commands: list[str]) -> dict[str, Path]:
    """The same texts in the characters that zh-small has read; of others it sees the bytes alone."""
    found = {part: place / f"simplified-{part}.jsonl" for part in ("train", "test")}
    for part, output in found.items():
        command = [sys.executable, "-m", "llama.clean", paths.shown(files[part]), "--characters", "t2s",
                   "--keep-duplicates", "--overwrite", "--json", "--output", str(output)]
        run(command, output.with_suffix(".log"))
        commands.append(shown(command[1:]))
    return found


def _labels(name: str, train: Path) -> list[str]:
    """Those that a model which is asked has to choose from."""
    if SETS[name].task in ("sentiment", "classification"):
        return sorted({example["label"] for example in examples_of(name, train)})
    if SETS[name].task == "ner":
        return sorted({tag[2:] for example in examples_of(name, train) for tag in example["tags"] if tag != "O"})
    return []


def _scoring(name: str, model: list[str], test: str, limit: int) -> list[str]:
    command = ["-m", "llama.evaluate", "--task", SETS[name].task, *model, "--data", test, "--json"]
    command += ["--max-new-tokens", str(SETS[name].written)] if SETS[name].task in WRITTEN else []
    return command + (["--limit", str(limit)] if limit else [])


def _scored(command: list[str], log: Path) -> dict[str, Any]:
    scores = run([sys.executable, *command], log)
    return {"scores": {key: value for key, value in scores.items() if isinstance(value, float)}}
