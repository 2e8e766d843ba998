"""Predicted memory held against measured: `python -m llama.cost`, each run in a fresh process.

The prediction is that of `--dry-run` (llama/training/memory_estimate.py).

Try: forget what glibc keeps (FRAGMENTATION there); the last column of the table says by how much the sum is off.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from llama.runtime.interrupt import quiet_start

with quiet_start(__name__):

    from llama.commands import flags
    from llama.runtime import cli
    from llama.runtime.worker import peak_memory
    from llama.training.memory_estimate import megabytes


TEXT = ["--data", "examples/neutral.txt"]
TUNE = ["finetune.py", "--task", "generation", *TEXT]
RUNS = {
    "LoRA, 4 × 256": [*TUNE, "--lora", "--max-length", "256", "--batch-size", "4"],
    "LoRA, 1 × 256": [*TUNE, "--lora", "--max-length", "256", "--batch-size", "1"],
    "LoRA on int8, 4 × 256": [*TUNE, "--lora", "--quantize", "int8", "--max-length", "256", "--batch-size", "4"],
    "LoRA, 4 × 256, checkpointed": [*TUNE, "--lora", "--max-length", "256", "--batch-size", "4",
                                    "--checkpoint-activations"],
    "LoRA in float32, 2 × 256": [*TUNE, "--lora", "--max-length", "256", "--batch-size", "2", "--dtype", "float32"],
    "all but 24 blocks, 4 × 256": [*TUNE, "--freeze-layers", "24", "--max-length", "256", "--batch-size", "4"],
    "full, 4 × 256": [*TUNE, "--max-length", "256", "--batch-size", "4"],
    "full, 1 × 128": [*TUNE, "--max-length", "128", "--batch-size", "1"],
    "from scratch, 15M, 8 × 256": ["train.py", *TEXT, "--preset", "tiny-15m", "--vocab-size", "1024", "--block-size",
                                   "256", "--batch-size", "8"],
}
BOUND = 0.15


def main() -> None:
    parser = cli.Parser("python -m llama.cost", "Predicted memory against measured, each run in a fresh process.")
    parser.add_argument("--runs", default=",".join(map(str, range(1, len(RUNS) + 1))), metavar="1,2",
                        help="numbers of the runs: " + "; ".join(f"{n} {name}" for n, name in enumerate(RUNS, 1)))
    parser.add_argument("--model", default=flags.ModelFlags.model, metavar="FOLDER", help="a model folder, or a name")
    parser.add_argument("--json", action="store_true", help="print results as JSON on stdout")
    arguments = parser.parse_args()
    names = list(RUNS)
    if unknown := [n for n in arguments.runs.split(",") if not n.isdigit() or not 1 <= int(n) <= len(names)]:
        raise ValueError(f"--runs {unknown[0]}: there are runs 1 to {len(names)}")
    results = []
    for name in (names[int(number) - 1] for number in arguments.runs.split(",")):
        results.append({"run": name} | compared(RUNS[name], arguments.model))
        print(line(results[-1]), file=sys.stderr, flush=True)
    print(json.dumps(results) if arguments.json else "\n".join(map(line, results)))


def compared(command: Sequence[str], model: str) -> dict[str, int]:
    """Peaks of a run in bytes, as predicted and as measured: of training alone, and with saving and its proof."""
    door, *flags = command
    flags += ["--json", *(["--model", model] if door == "finetune.py" else [])]
    predicted, _ = _ended([door, *flags, "--dry-run"])
    with tempfile.TemporaryDirectory(prefix="llama-cost-") as folder:
        measured, peak = _ended([door, *flags, "--max-steps", "3", "--output", f"{folder}/result"])
    return {"predicted": predicted["dry_run"]["memory"]["peak"], "measured": peak,
            "training_predicted": predicted["dry_run"]["memory"]["training"],
            "training_measured": measured["train"]["peak_memory"]}


def _ended(command: Sequence[str]) -> tuple[dict[str, Any], int]:
    """The last line of what a command printed, and the most memory that it held."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        process = subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=said,
                                   encoding="utf-8", cwd=cli.PROJECT_ROOT)
        peak = 0
        while process.poll() is None:
            peak = max(peak, peak_memory(process.pid))
            time.sleep(0.02)
        lines = process.stdout.read().splitlines()
        process.stdout.close()
        if process.returncode:
            said.seek(0)
            raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}: {said.read()[-300:]}")
    return json.loads(lines[-1]), peak


def line(result: dict[str, Any]) -> str:
    """A row of the table."""
    errors = {part: result[f"{part}predicted"] / max(1, result[f"{part}measured"]) - 1 for part in ("training_", "")}
    cells = [f"{megabytes(result[f'{part}predicted']):>10} {megabytes(result[f'{part}measured']):>10} {error:>+6.1%}"
             for part, error in errors.items()]
    return f"{result['run']:<28} training {cells[0]}   with saving {cells[1]}" + \
        ("   beyond 15 %" if max(map(abs, errors.values())) > BOUND else "")


if __name__ == "__main__":
    cli.run(main)
