"""SmolLM2, which knows no Chinese, reads some in four ways, as much each: python examples/smollm2_zh.py

    prepare   news, English that the model itself writes, 8,000 more pieces, and rows for them: as means, and as noise
    train     adapters/smollm2-zh/: grown as means, as noise, with its rows not first alone, and not grown, each for
              --max-steps of 1,024 tokens
    report    bits per byte of held-out news over the steps, as a table and as docs/smollm2-zh.svg (needs matplotlib)

Each command is one of docs/chinese.md, and is printed. What is done is not done again, what was interrupted goes on.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

from examples.steps import add_steps, chosen  # noqa: E402
from llama.runtime import cli  # noqa: E402
from llama.runtime.terminal import say  # noqa: E402
from weights.fetch import fetch  # noqa: E402
from weights.formats.atomic_write import atomic_file  # noqa: E402

MODEL = "smollm2-135m-instruct"
DATA, RUNS, PLOT = HOME / "data" / "smollm2-zh", HOME / "adapters" / "smollm2-zh", HOME / "docs" / "smollm2-zh.svg"
ALL, NEWS, DEV, ENGLISH = (DATA / name for name in ("text.txt", "news.txt", "dev.txt", "english.txt"))
VOCABULARY, NEUTRAL = DATA / "vocabulary", HOME / "examples" / "neutral.txt"
JUDGED_BY = 8000                                                    # characters of held-out news
STEPS = ("prepare", "train", "report")
ROWS_ALONE = 5                                                      # one step in so many, where there are new rows
GUARD = 1.012                                                       # times the bits: 5 % of a perplexity of 56
OPENINGS = ("The history of", "Water is", "In the morning, she", "A good teacher", "The city has", "Most birds",
            "To cook rice,", "Computers were", "The report says", "He had never", "Energy from", "Our research shows")
READING = ("--task", "generation", "--data", NEWS, "--eval-data", DEV, "--max-length", 256, "--batch-size", 4,
           "--eval-every", 20)
GUARDED, WATCHED = ("--guard", f"{NEUTRAL}={GUARD}"), ("--watch", NEUTRAL)
ROWS = ("--train-new-rows", "--lr", 3e-4)
LORA = ("--lora", "--targets", "all-linear", "--rank", 16, "--lr", 5e-4, "--mix", f"{ENGLISH}=0.1")
WAYS = {"mean": "grown, rows start as means", "random": "grown, rows start as noise",
        "at-once": "grown as means, all at once", "as-it-was": "not grown"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python examples/smollm2_zh.py", description=__doc__.splitlines()[0])
    add_steps(parser, STEPS)
    parser.add_argument("--max-steps", type=int, default=200, metavar="N", help="of training, for each (default: 200)")
    arguments = parser.parse_args()
    for name in chosen(parser, arguments.names, STEPS, {"report": "matplotlib"}):
        {"prepare": prepare, "train": lambda: train(arguments.max_steps), "report": report}[name]()


def prepare() -> None:
    fetch(MODEL)
    if not ALL.exists():
        run("-m", "llama.clean", fetch("peoples-daily") / "text.txt", "--output", ALL, "--split", 0.02)
    if not DEV.exists():
        _write(NEWS, ALL.read_text(encoding="utf-8"))
        _write(DEV, ALL.with_name("text-held-out.txt").read_text(encoding="utf-8")[:JUDGED_BY])
    if not ENGLISH.exists():
        _write(DATA / "openings.jsonl", "".join(json.dumps({"prompt": each}) + "\n" for each in OPENINGS * 16))
        written = run("generate.py", "--model", MODEL, "--prompt-file", DATA / "openings.jsonl", "--max-new-tokens",
                      160, "--temperature", 1, "--batch-size", 16, "--json")
        _write(ENGLISH, "\n\n".join(json.loads(line)["prompt"] + json.loads(line)["text"].strip("\n")
                                    for line in written.splitlines()))
    if not VOCABULARY.exists():
        run("-m", "tokenizer.extend", MODEL, NEWS, "--add", 8000, "--corpus", DEV, NEUTRAL, "--output", VOCABULARY)
    for start in ("mean", "random"):
        if not (DATA / start).exists():
            run("-m", "llama.resize", MODEL, VOCABULARY, "--init", start, "--output", DATA / start)


def train(steps: int) -> None:
    """Beside what is recommended, what it is compared with, which no guard ends."""
    alone = steps // ROWS_ALONE
    for start, seen in (("mean", GUARDED), ("random", WATCHED)):
        learn(f"{start}-1", "--model", DATA / start, *seen, *ROWS, "--max-steps", alone, "--merge")
        learn(f"{start}-2", "--model", RUNS / f"{start}-1-merged", *seen, *LORA, "--train-new-rows",
              "--max-steps", steps - alone)
    learn("at-once-2", "--model", DATA / "mean", *GUARDED, *LORA, "--train-new-rows", "--max-steps", steps)
    learn("as-it-was-2", "--model", MODEL, *WATCHED, *LORA, "--max-steps", steps)


def learn(name: str, *flags: object) -> None:
    output = RUNS / name
    if not (RUNS / f"{name}.json").exists():
        again = ["--resume"] if any(Path(f"{output}.training").glob("last-*.pt")) else []
        _write(RUNS / f"{name}.json", run("finetune.py", *READING, *flags, "--output", output, *again, "--json"))


def report() -> None:
    """Prints Markdown."""
    print("| SmolLM2-135M | steps | minutes | bits per byte of held-out news | perplexity of English |\n"
          "|---|---|---|---|---|")
    curves = {}
    for way, title in WAYS.items():
        stages = [f"{way}-{number}" for number in (1, 2) if (RUNS / f"{way}-{number}.json").exists()]
        results = [json.loads((RUNS / f"{stage}.json").read_text(encoding="utf-8")) for stage in stages]
        english = [stage["watched"]["neutral.txt"] for stage in results]
        print(f"| {title} | {sum(stage['train']['steps'] for stage in results)} "
              f"| {sum(stage['train']['seconds'] for stage in results) / 60:.0f} "
              f"| {results[0]['eval_before']['bits_per_byte']:.3f} → {results[-1]['eval']['bits_per_byte']:.3f} "
              f"| {english[0]['before']['perplexity']:.2f} → {english[-1]['after']['perplexity']:.2f} |")
        curves[title] = curve(stages)
    plot(curves)
    say(f"drawn: {PLOT.relative_to(HOME)}")


def curve(stages: list[str]) -> list[tuple[int, float]]:
    """Steps, and bits per byte after them, of runs one after the other."""
    points, before = [], 0
    for stage in stages:
        metrics = (RUNS / f"{stage}.training" / "metrics.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in metrics.splitlines()]
        points += [(before + line["step"], line["eval"]["bits_per_byte"]) for line in lines if "eval" in line]
        before += lines[-1]["step"]
    return points


def plot(curves: dict[str, list[tuple[int, float]]]) -> None:
    import matplotlib
    from matplotlib.figure import Figure
    matplotlib.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    for title, points in curves.items():
        axes.plot(*zip(*points, strict=True), "o-", markersize=3, label=title)
    axes.set(xlabel="steps of 1,024 tokens", ylabel="bits per byte of held-out Chinese news")
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(PLOT, metadata={"Date": None})


def run(*command: Any) -> str:
    words = [str(word) for word in command]
    say("$ python " + shlex.join(words).replace(f"{HOME}/", ""))
    done = subprocess.run([sys.executable, *words], cwd=HOME, check=False, stdout=subprocess.PIPE, text=True,
                          encoding="utf-8")
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(text.encode())


if __name__ == "__main__":
    cli.run(main)
