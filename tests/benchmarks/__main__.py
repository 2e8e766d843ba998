"""All tasks beside methods of old, on the same examples: make tasks, or python -m tests.benchmarks.

    python -m tests.benchmarks --only sentiment-reviews --minutes 20
    python -m tests.benchmarks --judges .venv-bench/bin/python --samples FOLDER --json

For each data set: the baselines, a small model (learns to write from the training texts, then the task), the default
model with LoRA. Every result is kept in --output when it is there, so that an interrupted comparison goes on with what
is missing; --again makes those anew that --only and --programs name. The commands are those that anybody would give.
"""

import argparse
import contextlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from llama.terminal import padded
from tests.benchmarks.baselines import METHODS, NAMES
from tests.benchmarks.sets import SETS, files_of, texts_of
from weights.whole import whole_file

SMALL, DEFAULT = "a small model, trained here", "smollm2-135m-instruct, LoRA"
PROGRAMS = ("baselines", "small", "default")
FULL = ("sentiment", "classification", "ner", "segmentation", "qa")     # tasks that may see the whole text

# Found on the reviews (docs/experiments.md): half of the minutes to write, half for the task.
WRITE = ("--preset", "tiny-3m", "--vocab-size", "4096", "--batch-size", "16", "--eval-every", "0")
LEARN = ("--batch-size", "32", "--lr", "5e-4", "--weight-decay", "0.1", "--epochs", "4")
LORA = ("--lora", "--batch-size", "8", "--accumulate", "2", "--lr", "1e-3", "--epochs", "3")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SETS, default=list(SETS), metavar="SET", help=", ".join(SETS))
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=list(PROGRAMS), help="what to run")
    parser.add_argument("--minutes", type=float, default=20, help="of training, at most, for each of ours")
    parser.add_argument("--iterations", type=int, default=100, help="of the CRF")
    parser.add_argument("--limit", type=int, default=0, help="examples to score answers that are written on; 0: all")
    parser.add_argument("--samples", type=Path, default=Path("../shared/data"), help="where the files of others lie")
    parser.add_argument("--work", type=Path, default=Path("benchmarks/tasks"), help="splits and trained models")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/tasks.json"), help="results so far")
    parser.add_argument("--judges", default=sys.executable, metavar="PYTHON", help="an interpreter with the baselines")
    parser.add_argument("--again", action="store_true", help="make these anew even if they are there")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    arguments = parser.parse_args()
    results: dict[str, Any] = json.loads(arguments.output.read_text("utf-8")) if arguments.output.exists() else {}
    failed = False
    for name in arguments.only:
        try:
            files = files_of(name, arguments.samples, arguments.work)
        except ValueError as error:
            print(f"{name}: left out: {error}", file=sys.stderr)
            failed = True
            continue
        for program in programs_of(name, arguments.programs):
            done = results.setdefault(name, {})
            if program in done and not arguments.again:
                continue
            print(f"{name}: {program} …", file=sys.stderr, flush=True)
            try:
                done[program] = measured(name, program, files, arguments)
            except RuntimeError as error:
                print(f"{name}: {program}: left out: {error}", file=sys.stderr)
                failed = True
                continue
            arguments.output.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(arguments.output) as file:
                file.write((json.dumps(results, indent=1, ensure_ascii=False) + "\n").encode())
    print(json.dumps(results, ensure_ascii=False) if arguments.json else table(results))
    sys.exit(1 if failed else 0)


def programs_of(name: str, wanted: list[str]) -> list[str]:
    """The rows of a data set: its baselines by name, then ours."""
    rows = [NAMES[method] for method in METHODS[SETS[name].task]] if "baselines" in wanted else []
    return rows + [SMALL] * ("small" in wanted) + [DEFAULT] * ("default" in wanted)


def measured(name: str, program: str, files: dict[str, Path], arguments: argparse.Namespace) -> dict[str, Any]:
    """{"scores", "minutes", "memory"}: of training, with the larger of its programs' memories. Raises RuntimeError."""
    if program not in (SMALL, DEFAULT):
        method = next(key for key, shown in NAMES.items() if shown == program)
        return run([arguments.judges, "-m", "tests.benchmarks.baselines", method, name, str(files["train"]),
                    str(files["test"]), "--iterations", str(arguments.iterations)])
    data, place = SETS[name], arguments.work / name
    how, model, minutes, memory = list(LORA), [], arguments.minutes, 0
    if program == SMALL:
        texts, model = place / "texts.jsonl", ["--model", str(place / "small")]
        place.mkdir(parents=True, exist_ok=True)
        texts.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n"
                                 for text in texts_of(name, files["train"])), encoding="utf-8")
        written = run([sys.executable, "train.py", "--data", str(texts), *WRITE, "--minutes", str(minutes / 2),
                       "--output", str(place / "small"), "--overwrite"])["train"]
        minutes -= written["seconds"] / 60
        memory = written["peak_memory"]
        how = [*LEARN, *(("--attention", "full") if data.task in FULL else ())]
    output = place / ("small-tuned" if program == SMALL else "lora")
    trained = run([sys.executable, "finetune.py", "--task", data.task, *model, "--data", str(files["train"]), *how,
                   "--max-length", "256", "--minutes", str(minutes), "--output", str(output), "--overwrite"])["train"]
    which = ["--model", str(output)] if program == SMALL else ["--adapter", str(output)]
    limit = ["--limit", str(arguments.limit)] if data.task in ("summarization", "translation") else []
    scores = run([sys.executable, "-m", "llama.evaluate", "--task", data.task, *which, "--data", str(files["test"]),
                  "--max-length", "256", "--batch-size", "32", "--dtype", "auto", "--max-new-tokens", "48", *limit,
                  "--json"])
    seconds = trained["seconds"] + (written["seconds"] if program == SMALL else 0)
    return {"scores": {key: value for key, value in scores.items() if isinstance(value, float)},
            "minutes": seconds / 60, "memory": max(memory, trained["peak_memory"])}


def run(command: list[str]) -> dict[str, Any]:
    """The JSON that a command prints last. Raises RuntimeError with its last words."""
    started = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        raise RuntimeError(f"{' '.join(command[:4])} … ended with {done.returncode}: {said[-1]}")
    with contextlib.suppress(IndexError, json.JSONDecodeError):
        return json.loads(done.stdout.strip().splitlines()[-1])
    raise RuntimeError(f"{' '.join(command[:4])} … printed no JSON after {time.monotonic() - started:.0f} s")


def table(results: dict[str, Any]) -> str:
    """A row for each program, the best score of a data set marked."""
    lines = [f"{'data':<30}{'score':<10}{'program':<32}{'':>8}{'minutes':>9}{'memory':>10}"]
    for name in (key for key in SETS if key in results):
        data, rows = SETS[name], results[name]
        best = max((row["scores"][data.score] for row in rows.values()), default=0)
        for program in (key for key in programs_of(name, list(PROGRAMS)) if key in rows):
            row = rows[program]
            value = row["scores"][data.score]
            lines.append(f"{padded(data.what, 30)}{data.score:<10}{padded(program, 32)}{value:>8.3f}"
                         f"{row['minutes']:>9.1f}{row['memory'] / 1e9:>7.2f} GB" + ("  ←" if value == best else ""))
    return "\n".join(lines)


if __name__ == "__main__":
    main()
