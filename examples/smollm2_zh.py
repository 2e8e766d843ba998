"""SmolLM2, which knows no Chinese, reads some, grown or not, as much each: python examples/smollm2_zh.py

    prepare   news, English that the model itself writes, 8,000 more pieces, and rows for them: as means, these as
              likely as they are frequent in the news or not, and as noise
    train     adapters/smollm2-zh/: grown, with the rows alone at first or not, and not grown, each for --max-steps of
              1,024 tokens; and rows alone that start as noise
    report    bits per byte of held-out news over the steps, as a table and as docs/smollm2-zh.svg (needs matplotlib)

Each command is one of docs/chinese.md, and is printed. What is done is not done again, what was interrupted goes on.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

from examples.steps import add_steps, chosen, run  # noqa: E402
from llama.runtime import cli  # noqa: E402
from llama.runtime.terminal import say  # noqa: E402
from weights.fetch import fetch  # noqa: E402
from weights.formats.atomic_write import atomic_file  # noqa: E402

MODEL = "smollm2-135m-instruct"
DATA, RUNS, PLOT = HOME / "data" / "smollm2-zh", HOME / "adapters" / "smollm2-zh", HOME / "docs" / "smollm2-zh.svg"
NEWS, DEV, ENGLISH = (DATA / name for name in ("news.txt", "dev.txt", "english.txt"))
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
WAYS = {"grown, its rows alone at first": ("mean-1", "mean-2"), "grown, all at once": ("at-once",),
        "grown, rows as likely as frequent": ("frequent",), "not grown": ("as-it-was",)}
STARTS = {"rows start as means": ("mean-1",), "rows start as noise": ("random-1",)}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python examples/smollm2_zh.py", description=__doc__.splitlines()[0])
    add_steps(parser, STEPS)
    parser.add_argument("--max-steps", type=int, default=200, metavar="N", help="of training, for each (default: 200)")
    arguments = parser.parse_args()
    for name in chosen(parser, arguments.names, STEPS, {"report": "matplotlib"}):
        {"prepare": prepare, "train": lambda: train(arguments.max_steps), "report": report}[name]()


def prepare() -> None:
    fetch(MODEL)
    if not NEWS.exists():
        run("-m", "llama.clean", fetch("peoples-daily") / "text.txt", "--output", NEWS, "--split", 0.02)
    if not DEV.exists():
        _write(DEV, NEWS.with_name("news-held-out.txt").read_text(encoding="utf-8")[:JUDGED_BY])
    if not ENGLISH.exists():
        _write(DATA / "openings.jsonl", "".join(json.dumps({"prompt": each}) + "\n" for each in OPENINGS * 16))
        written = run("generate.py", "--model", MODEL, "--prompt-file", DATA / "openings.jsonl", "--max-new-tokens",
                      160, "--temperature", 1, "--batch-size", 16, "--json")
        _write(ENGLISH, "\n\n".join(json.loads(line)["prompt"] + json.loads(line)["text"].strip("\n")
                                    for line in written.splitlines()))
    if not VOCABULARY.exists():
        run("-m", "tokenizer.extend", MODEL, NEWS, "--add", 8000, "--corpus", DEV, NEUTRAL, "--output", VOCABULARY)
    for name, start in (("mean", ("mean",)), ("random", ("random",)), ("frequent", ("mean", "--texts", NEWS))):
        if not (DATA / name).exists():
            run("-m", "llama.resize", MODEL, VOCABULARY, "--init", *start, "--output", DATA / name)


def train(steps: int) -> None:
    """Beside what is recommended, what it is compared with, which no guard ends."""
    alone = steps // ROWS_ALONE
    learn("mean-1", "--model", DATA / "mean", *GUARDED, *ROWS, "--max-steps", alone, "--merge")
    learn("mean-2", "--model", RUNS / "mean-1-merged", *GUARDED, *LORA, "--train-new-rows",
          "--max-steps", steps - alone)
    learn("as-it-was", "--model", MODEL, *WATCHED, *LORA, "--max-steps", steps)
    for name, start in (("at-once", "mean"), ("frequent", "frequent")):
        learn(name, "--model", DATA / start, *GUARDED, *LORA, "--train-new-rows", "--max-steps", steps)
    learn("random-1", "--model", DATA / "random", *WATCHED, *ROWS, "--max-steps", alone)


def learn(name: str, *flags: object) -> None:
    output = RUNS / name
    if not (RUNS / f"{name}.json").exists():
        again = ["--resume"] if any(Path(f"{output}.training").glob("last-*.pt")) else []
        _write(RUNS / f"{name}.json", run("finetune.py", *READING, *flags, "--output", output, *again, "--json"))


def report() -> None:
    """Prints Markdown, of the runs that have ended."""
    ended = {title: stages for title, stages in (WAYS | STARTS).items()
             if all((RUNS / f"{stage}.json").exists() for stage in stages)}
    print("| SmolLM2-135M | steps | minutes | tokens a character | bits per byte of held-out news "
          "| perplexity of English |\n|---|---|---|---|---|---|")
    for title, stages in ended.items():
        results = [json.loads((RUNS / f"{stage}.json").read_text(encoding="utf-8")) for stage in stages]
        english, scores = [stage["watched"]["neutral.txt"] for stage in results], results[-1]["eval"]
        print(f"| {title} | {sum(stage['train']['steps'] for stage in results)} "
              f"| {sum(stage['train']['seconds'] for stage in results) / 60:.0f} "
              f"| {scores['bits_per_character'] * math.log(2) / scores['loss']:.2f} "
              f"| {results[0]['eval_before']['bits_per_byte']:.3f} → {scores['bits_per_byte']:.3f} "
              f"| {english[0]['before']['perplexity']:.2f} → {english[-1]['after']['perplexity']:.2f} |")
    for title in ended.keys() & {"grown, all at once", "grown, rows as likely as frequent"}:
        say(f"{title}: {distance(WAYS[title], WAYS['not grown'])}")
    plot(ended)
    say(f"drawn: {PLOT.relative_to(HOME)}")


def distance(stages: Sequence[str], others: Sequence[str]) -> str:
    """By how many bits a byte others are ahead, first and last, and where a line through all of that meets 0."""
    ours, theirs = (dict(zip(*curve(each), strict=True)) for each in (stages, others))
    steps = sorted(ours.keys() & theirs.keys() - {0})
    (slope, start), spread = np.polyfit(steps, [ours[step] - theirs[step] for step in steps], 1, cov=True)
    meets = -start / slope
    error = math.sqrt(np.array([meets, 1]) @ spread @ np.array([meets, 1])) / abs(slope)        # to first order
    first, last = (f"{ours[step] - theirs[step]:.3f} after {step}" for step in (steps[0], steps[-1]))
    return f"bits behind, by steps: {first}, {last}; a line meets 0 at {meets:,.0f} ± {error:,.0f}"


def curve(stages: Sequence[str]) -> tuple[list[int], list[float]]:
    """Steps, and bits per byte after them, of runs one after the other."""
    steps, bits, before = [], [], 0
    for stage in stages:
        metrics = (RUNS / f"{stage}.training" / "metrics.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in metrics.splitlines()]
        found = [line for line in lines if "eval" in line and (line["step"] or not before)]
        steps += [before + line["step"] for line in found]
        bits += [line["eval"]["bits_per_byte"] for line in found]
        before += lines[-1]["step"]
    return steps, bits


def plot(ended: Mapping[str, Sequence[str]]) -> None:
    import matplotlib
    from matplotlib.figure import Figure
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "smollm2-zh"})
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, ways in zip(figure.subplots(1, 2, width_ratios=(1, 2)), (STARTS, WAYS), strict=True):
        for title, stages in ((title, stages) for title, stages in ways.items() if title in ended):
            axes.plot(*curve(stages), "o-", markersize=3, label=title)
        axes.set(xlabel="steps of 1,024 tokens")
        axes.grid(visible=True, alpha=0.3)
        axes.legend()
    figure.axes[0].set(ylabel="bits per byte of held-out Chinese news")
    figure.savefig(PLOT, metadata={"Date": None})


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(text.encode())


if __name__ == "__main__":
    cli.run(main)
