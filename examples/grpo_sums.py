"""A small model learns sums from being told which of its answers are right: python examples/grpo_sums.py

    prepare   sums of two numbers up to 9, of which half are wrong, and a model that learns to write such lines
    learn     weights/sums-grpo: GRPO on its own answers; no right sum is shown to it any more
    report    the reward by step, as docs/grpo.svg (needs matplotlib), and what held-out sums it gets right

Each command is one of docs/preferences.md, and is printed. What is done is not done again, what was interrupted goes
on.
"""

import argparse
import json
import random
import sys
from pathlib import Path

HOME = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(HOME))

from examples.steps import add_steps, chosen, run  # noqa: E402
from llama.methods.grpo import draw_questions  # noqa: E402
from llama.runtime import cli  # noqa: E402
from llama.runtime.terminal import say  # noqa: E402
from weights.formats.atomic_write import atomic_file  # noqa: E402

DATA, BEFORE, AFTER = HOME / "data" / "sums.txt", HOME / "weights" / "sums", HOME / "weights" / "sums-grpo"
RESULT, PLOT = Path(f"{AFTER}.training", "result.json"), HOME / "docs" / "grpo.svg"
STEPS = ("prepare", "learn", "report")
LARGEST = 9
LINES, RIGHT = 20_000, 0.5                                          # lines, and what part of them is a right sum
SHAPE = ("--hidden-size", 128, "--intermediate-size", 256, "--num-hidden-layers", 3, "--num-attention-heads", 4,
         "--num-key-value-heads", 2, "--block-size", 128, "--vocab-size", 260)
MEAN = 10                                                           # steps that a point of the smooth curve stands for


def main() -> None:
    parser = argparse.ArgumentParser(prog="python examples/grpo_sums.py", description=__doc__.splitlines()[0])
    add_steps(parser, STEPS)
    parser.add_argument("--steps", type=int, default=250, metavar="N", help="of GRPO (default: 250)")
    arguments = parser.parse_args()
    for name in chosen(parser, arguments.names, STEPS, {"report": "matplotlib"}):
        {"prepare": prepare, "learn": lambda: learn(arguments.steps), "report": report}[name]()


def prepare() -> None:
    if not DATA.exists():
        drawn = random.Random(0)
        questions = draw_questions(LINES, LARGEST, 0, reward="arithmetic", held_out=False)
        lines = [each.raw + str(each.answer if drawn.random() < RIGHT else drawn.randint(0, 2 * LARGEST))
                 for each in questions]
        with atomic_file(DATA) as file:
            file.write("\n".join(lines).encode())
    if not BEFORE.exists():
        run("train.py", "--data", DATA, "--documents", "line", *SHAPE, "--epochs", 4, "--batch-size", 16, "--lr", 3e-3,
            "--output", BEFORE)


def learn(steps: int) -> None:
    if AFTER.exists():
        return
    again = ("--resume",) if any(Path(f"{AFTER}.training").glob("last-*.pt")) else ()
    found = run("-m", "llama.methods.grpo", "--model", BEFORE, "--reward", "arithmetic", "--largest", LARGEST,
                "--steps", steps, "--prompts", 16, "--group", 16, "--new-tokens", 4, "--lr", 3e-4, "--batch-size", 256,
                "--eval-prompts", 85, "--output", AFTER, *again)
    with atomic_file(RESULT) as file:
        file.write(found.encode())


def report() -> None:
    """Prints one line, and draws."""
    result = json.loads(RESULT.read_text(encoding="utf-8"))
    metrics = Path(f"{AFTER}.training", "metrics.jsonl").read_text(encoding="utf-8")
    rewards = [json.loads(line)["reward"] for line in metrics.splitlines()]
    plot(rewards)
    train, before, after = result["train"], result["eval_before"]["reward"], result["eval"]["reward"]
    print(f"right answers to held-out sums {before:.3f} before, {after:.3f} after {len(rewards)} steps in "
          f"{train['seconds'] / 60:.1f} minutes; reward of answers {train['reward_first']:.3f} in the first tenth "
          f"of steps, {train['reward_last']:.3f} in the last")
    say(f"drawn: {PLOT.relative_to(HOME)}")


def plot(rewards: list[float]) -> None:
    import matplotlib
    from matplotlib.figure import Figure
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "grpo"})
    figure = Figure(figsize=(7, 3.6), layout="constrained")
    axes = figure.add_subplot()
    steps = range(1, len(rewards) + 1)
    axes.plot(steps, rewards, color="tab:gray", alpha=0.4, label="a step")
    smooth = [sum(rewards[max(0, i - MEAN) : i]) / min(i, MEAN) for i in steps]
    axes.plot(steps, smooth, color="tab:blue", label=f"mean of {MEAN} steps")
    axes.set(xlabel="steps of 16 questions with 16 answers each", ylabel="part of right answers", ylim=(0, 1))
    axes.grid(visible=True, alpha=0.3)
    axes.legend()
    figure.savefig(PLOT, metadata={"Date": None})


if __name__ == "__main__":
    cli.run(main)
