"""The first run, `make demo`: ask a model who it is, tune it with LoRA on examples/identity.jsonl, and ask again.

Prints the answers before and after side by side, and the perplexity of a neutral text before and after, which says how
much else was disturbed. The same by hand: python finetune.py --lora, then python generate.py --adapter … --chat.
"""

import json
import shlex
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
HOME = HERE.parent
sys.path.insert(0, str(HOME))                                       # run by file name, from any folder

from llama.commands import flags  # noqa: E402
from llama.runtime import cli  # noqa: E402
from llama.runtime.progress import display_width, pad_to_width  # noqa: E402
from weights.fetch import fetch  # noqa: E402

COLUMN = 52


def main() -> None:
    fetch(flags.ModelFlags.model)
    started = time.monotonic()
    questions = [json.loads(line)["instruction"] for line in (HERE / "questions.jsonl").open(encoding="utf-8")]
    adapter = cli.unique_path(HOME / "adapters", "identity", take=False)  # the run that is started takes it

    print("the model as it comes …", file=sys.stderr)
    before, perplexity_before = _answers(questions), _perplexity()
    _run("finetune.py", "--lora", "--output", adapter)
    print("the model with its adapter …", file=sys.stderr)
    after, perplexity_after = _answers(questions, "--adapter", adapter), _perplexity("--adapter", adapter)

    print(f"\n{pad_to_width('before', COLUMN)}   after")
    for question, old, new in zip(questions, before, after, strict=True):
        print(f"\n> {question}")
        left, right = _wrap(old, COLUMN), _wrap(new, COLUMN)
        for i in range(max(len(left), len(right))):
            print(f"{pad_to_width(left[i] if i < len(left) else '', COLUMN)} | {right[i] if i < len(right) else ''}")
    change = perplexity_after / perplexity_before - 1
    print(f"\nperplexity of examples/neutral.txt: {perplexity_before:.2f} before, {perplexity_after:.2f} after "
          f"({change:+.1%}); all of it in {time.monotonic() - started:.0f} s")
    print(f"try: python generate.py --adapter {shlex.quote(str(adapter.relative_to(HOME)))} --chat")


def _answers(questions: list[str], *flags: object) -> list[str]:
    prompts = [part for question in questions for part in ("--prompt", question)]
    lines = _run("generate.py", "--chat", "--json", "--temperature", "0", "--max-new-tokens", "60", *prompts, *flags)
    return [json.loads(line)["text"].strip() for line in lines.splitlines()]


def _perplexity(*flags: object) -> float:
    scores = _run("-m", "llama.evaluate", "--task", "generation", "--data", HERE / "neutral.txt", "--json", *flags)
    return json.loads(scores)["perplexity"]


def _run(*command: object) -> str:
    done = subprocess.run([sys.executable, *map(str, command)], cwd=HOME, stdout=subprocess.PIPE, encoding="utf-8")
    if done.returncode:
        sys.exit(done.returncode)                                   # it has said why
    return done.stdout


def _wrap(text: str, columns: int) -> list[str]:
    """Lines of at most `columns` terminal cells, Chinese characters counting two; broken at spaces where there are."""
    lines, line = [], ""
    for word in text.replace("\n", " ").replace(" ", " \0").split("\0"):
        for character in word if display_width(word) > columns else [word]:
            if display_width(line + character) > columns:
                lines, line = [*lines, line], ""
            line += character
    return [*lines, line]


if __name__ == "__main__":
    cli.run(main)
