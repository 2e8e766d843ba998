"""The modes of generation that `python -m llama.benchmark` measures, as what one types, and generate.py itself at work.

Try: give `MODES` a flag that generate.py lacks; tests/test_modes.py (test_property_modes_are_what_one_can_type) fails.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.runtime.worker import peak_memory


@dataclass(frozen=True)
class Mode:
    """flags: after `python generate.py --model …`; saved: the model is a folder that was quantised to 8 bits before."""

    flags: tuple[str, ...]
    saved: bool = False


MODES = {
    "default": Mode(()),
    "float32": Mode(("--dtype", "float32")),
    "bf16": Mode(("--dtype", "bfloat16")),
    "int8": Mode(("--quantize", "int8")),
    "int4": Mode(("--quantize", "int4")),
    "int8-saved": Mode((), saved=True),
    "lookup": Mode(("--lookup",)),
    "no-compiler": Mode(("--compile", "off")),
    "int8-lookup": Mode(("--quantize", "int8", "--lookup")),
    "int8-cache": Mode(("--cache-dtype", "int8")),
    "no-compiler-lookup": Mode(("--compile", "off", "--lookup")),
    "readable": Mode(("--readable",)),
}
USUAL = tuple(MODES)[:8]                                            # measured where none are named


def chosen_modes(names: str) -> list[str]:
    """Raises ValueError for a name that is none of MODES."""
    modes = [name.strip() for name in names.split(",") if name.strip()]
    unknown = [name for name in modes if name not in MODES]
    if unknown or not modes:
        raise ValueError(f"--modes {names}: {f'there is no mode {unknown[0]}' if unknown else 'none is named'}; "
                         f"there are {', '.join(MODES)}")
    return list(dict.fromkeys(modes))


def mode_commands(model: Path, modes: Sequence[str], folder: Path) -> dict[str, list[str]]:
    """What starts each mode's engine. A model in 8 bits is written into `folder` if a mode wants one."""
    saved = folder / f"{model.stem}-int8"
    measure = [sys.executable, "-m", "llama.benchmark.measure_generation", "--model"]
    if any(MODES[mode].saved for mode in modes):
        subprocess.run([*measure, str(model), "--write-int8", str(saved)], stdout=sys.stderr, check=False)
    return {mode: [*measure, str(saved if MODES[mode].saved else model), *MODES[mode].flags] for mode in modes}


def generate_command(command: Sequence[str]) -> list[str]:
    """`python generate.py` with the flags of one of our engines."""
    return [sys.executable, str(Path(__file__).parents[2] / "generate.py"), *command[3:]]


def starts(command: list[str], prompt: str, *, new_tokens: int, runs: int) -> dict[str, Any]:
    """Seconds from the start of the command to its first token, and the most memory it held, over a few whole runs."""
    flags = ["--prompt", prompt, "--max-new-tokens", str(new_tokens), "--temperature", "0", "--ignore-eos"]
    found = [one_start([*command, *flags], echo=len(prompt.encode())) for _ in range(runs)]
    peaks = [peak for _, peak in found if peak]
    return {"start": [seconds for seconds, _ in found]} | ({"memory": max(peaks)} if peaks else {})


def one_start(command: list[str], *, echo: int) -> tuple[float, int]:
    """Seconds until more than the `echo` bytes of the prompt came out; peak memory in bytes at the end of the text."""
    started, first, seen, peak = time.perf_counter(), 0.0, 0, 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        while piece := os.read(process.stdout.fileno(), 1 << 16):
            seen += len(piece)
            if seen > echo:
                first = first or time.perf_counter() - started
                peak = max(peak, peak_memory(process.pid))
        errors = process.stderr.read().decode(errors="replace").strip()
    if process.returncode:
        raise RuntimeError(f"generate.py ended with {process.returncode}: {errors.splitlines()[-1:]}")
    return first, peak


