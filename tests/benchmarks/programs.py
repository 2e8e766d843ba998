"""The programs that are compared on a data set: methods of old, a small model that is trained here, the default model.

    methods of old       tests/benchmarks/baselines.py, in an interpreter that has their packages
    small                train.py on the training texts, for the vocabulary and a beginning; finetune.py; evaluate
    default              finetune.py --lora; evaluate

The commands are those that anybody would give. A training that was interrupted goes on; one that is done with the same
flags is not made again.

Try: let `going_on` overwrite always; tests/test_task_baselines.py (test_property_an_interrupted_training_goes_on)
fails.
"""

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.benchmarks.baselines import METHODS, NAMES
from tests.benchmarks.sets import SETS, texts_of
from weights.formats import paths

SMALL, DEFAULT = "a small model, trained here", "smollm2-135m-instruct, LoRA"


class Way(NamedTuple):
    """How a task is learned.

    minutes  of training at most, for each of the two models
    writes   part of them in which the small one learns to write first
    shape    flags of train.py for the small one
    small    flags of finetune.py for it
    default  the same for the default model, beside --lora
    """

    minutes: float
    writes: float
    shape: tuple[str, ...]
    small: tuple[str, ...]
    default: tuple[str, ...] = ()


# Found on dev sets, within minutes: docs/experiments.md.
_BAG = ("--preset", "tiny-1m", "--num-hidden-layers", "1", "--vocab-size", "8192")
_FLAT = ("--preset", "tiny-1m", "--num-hidden-layers", "2", "--vocab-size", "4096")
_WHOLE = ("--attention", "full", "--batch-size", "32", "--lr", "2e-3", "--dtype", "float32")
_MEAN = (*_WHOLE, "--pooling", "mean", "--max-length", "128")
_FEW = (*_MEAN, "--word-dropout", "0.35", "--weight-decay", "1")
_SHORT = ("--max-length", "128")

WAYS = {
    "sentiment-reviews": Way(15, 0, _BAG, (*_FEW, "--epochs", "6"), _SHORT),
    "poets": Way(8, 0, _BAG, (*_FEW, "--epochs", "10"), _SHORT),
    "poem-forms": Way(5, 0, _FLAT, (*_MEAN, "--epochs", "5"), _SHORT),
    "disciplines": Way(5, 0, _FLAT, (*_FEW, "--epochs", "12"), _SHORT),
    "entities": Way(15, 0, _FLAT, (*_WHOLE, "--epochs", "10", "--max-length", "256"), _SHORT),
    "words": Way(15, 0, _FLAT, (*_WHOLE, "--epochs", "5", "--max-length", "256"), _SHORT),
    "questions": Way(5, 0.3, _FLAT, ("--batch-size", "8", "--lr", "1e-3", "--epochs", "5", "--attention", "full")),
    "titles": Way(5, 0.3, _FLAT, ("--batch-size", "8", "--lr", "1e-3", "--epochs", "10")),
    "sentences": Way(5, 0.2, _FLAT, ("--batch-size", "32", "--lr", "1e-3", "--epochs", "5"), _SHORT),
}


def programs_of(name: str, wanted: Sequence[str] = ("baselines", "small", "default")) -> list[str]:
    """The rows of a data set: its baselines by name, then ours."""
    rows = [NAMES[method] for method in METHODS[SETS[name].task]] if "baselines" in wanted else []
    return rows + [SMALL] * ("small" in wanted) + [DEFAULT] * ("default" in wanted)


def minutes_of(name: str, program: str, given: float = 0) -> float:
    """Of training at most; of a baseline, which ends by itself, a guess."""
    if program in (SMALL, DEFAULT):
        return given or WAYS[name].minutes
    return 10 if program == NAMES["crf"] else 1


def measured(name: str, program: str, files: dict[str, Path], *, work: Path, minutes: float = 0, limit: int = 0,
             judges: str = sys.executable, iterations: int = 100, again: bool = False) -> dict[str, Any]:
    """{"scores", "minutes", "memory", "commands"}: minutes of training, the largest memory of its programs.

    minutes  at most; 0 takes those of the data set
    limit    examples to score answers on that are written; 0 for all

    Raises RuntimeError.
    """
    train, test = (paths.shown(files[part]) for part in ("train", "test"))
    if program not in (SMALL, DEFAULT):
        method = next(key for key, shown in NAMES.items() if shown == program)
        command = [judges, "-m", "tests.benchmarks.baselines", method, name, train, test, "--iterations",
                   str(iterations)]
        return run(command, work / name / f"{method}.log") | {"commands": [shown(command)]}
    way, place, small = WAYS[name], work / name, program == SMALL
    minutes, seconds, memory, commands = minutes or way.minutes, 0.0, 0, []

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
    if small:
        texts = place / "texts.jsonl"
        texts.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n"
                                 for text in texts_of(name, files["train"])), encoding="utf-8")
        steps = [] if way.writes else ["--max-steps", "1"]          # for the vocabulary alone
        trained(["train.py", "--data", str(texts), *way.shape, *steps], place / "small", minutes * (way.writes or 1))
    output, task = place / ("small-tuned" if small else "lora"), SETS[name].task
    how = ["--model", str(place / "small"), *way.small] if small else ["--lora", *way.default]
    trained(["finetune.py", "--task", task, "--data", train, *how], output, minutes - seconds / 60)
    length = how[how.index("--max-length") :][:2] if "--max-length" in how else []
    command = ["-m", "llama.evaluate", "--task", task, "--model" if small else "--adapter", str(output), "--data",
               test, "--batch-size", "32", "--json", *length]
    if task in ("summarization", "translation"):
        command += ["--max-new-tokens", "48", *(["--limit", str(limit)] if limit else [])]
    commands.append(shown(command))
    scores = run([sys.executable, *command], Path(f"{output}.scores.log"))
    return {"scores": {key: value for key, value in scores.items() if isinstance(value, float)},
            "minutes": seconds / 60, "memory": memory, "commands": commands}


def going_on(output: Path, *, again: bool) -> list[str]:
    """The flag for a run that may have been interrupted."""
    interrupted = any(Path(f"{output}.training").glob("last-*.pt"))
    return ["--resume"] if interrupted and not (output.exists() or again) else ["--overwrite"]


def shown(command: Sequence[str]) -> str:
    return " ".join(["python", *command] if command[0] in ("train.py", "finetune.py", "-m") else command)


def run(command: list[str], log: Path) -> dict[str, Any]:
    """The JSON that a command prints last; what it says meanwhile is in `log`. Raises RuntimeError with its last words.
    """
    started = time.monotonic()
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "w", encoding="utf-8") as said:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=said, text=True, encoding="utf-8")
    if done.returncode:
        words = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
        raise RuntimeError(f"{' '.join(command[:4])} … ended with {done.returncode}: "
                           f"{words[-1] if words else 'it said nothing'}")
    lines = done.stdout.strip().splitlines()
    try:
        return json.loads(lines[-1])
    except (IndexError, json.JSONDecodeError):
        raise RuntimeError(f"{' '.join(command[:4])} … printed no JSON after {time.monotonic() - started:.0f} s"
                           ) from None
