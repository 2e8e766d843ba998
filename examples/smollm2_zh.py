"""SmolLM2, which knows no Chinese, reads some, grown or not, as much each: python examples/smollm2_zh.py

    prepare   news, English that the model itself writes, 32,000 more pieces, and rows for them: as means, these as
              likely as they are frequent in the news, and as noise
    train     adapters/smollm2-zh/: grown and not grown, each for --max-steps of 1,024 tokens; and a fifth of them the
              rows alone, which start as means and as noise
    report    bits per byte of held-out news over the steps, as a table and as docs/smollm2-zh.svg (needs matplotlib)

Each command is one of docs/chinese.md, and is printed. What is done is not done again, what was interrupted goes on.
"""

import argparse
import json
import math
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

from examples.steps import add_steps, chosen, run  # noqa: E402
from llama.runtime import cli  # noqa: E402
from llama.runtime.ranges import Range  # noqa: E402
from llama.runtime.terminal import say  # noqa: E402
from weights.fetch import fetch  # noqa: E402
from weights.formats.atomic_write import atomic_file  # noqa: E402

MODEL = "smollm2-135m-instruct"
DATA, RUNS, PLOT = HOME / "data" / "smollm2-zh", HOME / "adapters" / "smollm2-zh", HOME / "docs" / "smollm2-zh.svg"
NEWS, DEV, ENGLISH = (DATA / name for name in ("news.txt", "dev.txt", "english.txt"))
VOCABULARY, NEUTRAL = DATA / "vocabulary", HOME / "examples" / "neutral.txt"
PIECES = 32_000
JUDGED_BY = 8000                                                    # characters of held-out news
STEPS = ("prepare", "train", "report")
ROWS_ALONE = 5                                                      # one step in so many, where rows learn alone
GUARD = 1.012                                                       # times the bits: 5 % of a perplexity of 56
OPENINGS = ("The history of", "Water is", "In the morning, she", "A good teacher", "The city has", "Most birds",
            "To cook rice,", "Computers were", "The report says", "He had never", "Energy from", "Our research shows")
READING = ("--task", "generation", "--data", NEWS, "--eval-data", DEV, "--max-length", 256, "--batch-size", 4,
           "--eval-every", 20)
GUARDED, WATCHED = ("--guard", f"{NEUTRAL}={GUARD}"), ("--watch", NEUTRAL)
ROWS = ("--train-new-rows", "--lr", 3e-4)
LORA = ("--lora", "--targets", "all-linear", "--rank", 16, "--optimizer", "adam", "--lr", 2e-3, "--mix",
        f"{ENGLISH}=0.1")
WAYS = {"grown": "grown", "not grown": "as-it-was"}
STARTS = {"rows start as means": "mean", "rows start as noise": "random"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python examples/smollm2_zh.py", description=__doc__.splitlines()[0])
    add_steps(parser, STEPS)
    parser.add_argument("--max-steps", type=Range(ROWS_ALONE, 10**6), default=160, metavar="N",
                        help="of training, for each (default: 160)")
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
        run("-m", "tokenizer.extend", MODEL, NEWS, "--add", PIECES, "--corpus", DEV, NEUTRAL, "--output", VOCABULARY)
    for name, start in (("mean", ("mean",)), ("random", ("random",)), ("frequent", ("mean", "--texts", NEWS))):
        if not (DATA / name).exists():
            run("-m", "llama.resize", MODEL, VOCABULARY, "--init", *start, "--output", DATA / name)


def train(steps: int) -> None:
    """Beside what is recommended, what it is compared with, which no guard ends."""
    learn("grown", "--model", DATA / "frequent", *GUARDED, *LORA, "--train-new-rows", "--hold-frequencies",
          "--max-steps", steps)
    learn("as-it-was", "--model", MODEL, *WATCHED, *LORA, "--max-steps", steps)
    for start in STARTS.values():
        learn(start, "--model", DATA / start, *WATCHED, *ROWS, "--max-steps", steps // ROWS_ALONE)


def learn(name: str, *flags: object) -> None:
    output, result = RUNS / name, RUNS / f"{name}.json"
    if result.exists():
        say(f"{name} has ended; remove {result.relative_to(HOME)} and {name}.training, and it is run anew")
    else:
        again = ["--resume"] if any(Path(f"{output}.training").glob("last-*.pt")) else []
        _write(result, run("finetune.py", *READING, *flags, "--output", output, *again, "--json"))


def report() -> None:
    """Prints Markdown, of the runs that have ended, and draws them once all have."""
    ended = {title: name for title, name in (WAYS | STARTS).items() if (RUNS / f"{name}.json").exists()}
    print("| SmolLM2-135M | steps | minutes | tokens a character | bits per byte of held-out news "
          "| perplexity of English |\n|---|---|---|---|---|---|")
    for title, name in ended.items():
        result = json.loads((RUNS / f"{name}.json").read_text(encoding="utf-8"))
        scores, english = result["eval"], result["watched"][NEUTRAL.name]
        print(f"| {title} | {result['train']['steps']} | {result['train']['seconds'] / 60:.0f} "
              f"| {scores['bits_per_character'] * math.log(2) / scores['loss']:.2f} "
              f"| {result['eval_before']['bits_per_byte']:.3f} → {scores['bits_per_byte']:.3f} "
              f"| {english['before']['perplexity']:.2f} → {english['after']['perplexity']:.2f} |")
    for ours, theirs in (list(WAYS), list(STARTS)):
        if {ours, theirs} <= ended.keys():
            say(f"{ours}, bits a byte below {theirs}: {distance(ended[ours], ended[theirs])}")
    missing = [title for title in WAYS | STARTS if title not in ended]
    if missing:
        say(f"not drawn: {', '.join(missing)} must end first (train)")
    else:
        plot()
        say(f"drawn: {PLOT.relative_to(HOME)}")


def distance(ours: str, theirs: str) -> str:
    """By how many bits a byte the first run is below the second, after each step at which both were judged."""
    first, second = (dict(zip(*curve(name), strict=True)) for name in (ours, theirs))
    return ", ".join(f"{second[step] - first[step]:.3f} after {step}" for step in first if step in second)


def curve(name: str) -> tuple[list[int], list[float]]:
    """Steps of a run, and bits per byte after them."""
    metrics = (RUNS / f"{name}.training" / "metrics.jsonl").read_text(encoding="utf-8")
    found = [line for line in map(json.loads, metrics.splitlines()) if "eval" in line]
    return [line["step"] for line in found], [line["eval"]["bits_per_byte"] for line in found]


def plot() -> None:
    import matplotlib
    from matplotlib.figure import Figure
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "smollm2-zh"})
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, ways in zip(figure.subplots(1, 2, width_ratios=(1, 2)), (STARTS, WAYS), strict=True):
        for title, name in ways.items():
            axes.plot(*curve(name), "o-", markersize=3, label=title)
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
