"""Runs of a comparison: commands as anybody would type them, and their results, kept as soon as each is there.

    kept = Results(Path("benchmarks/frontier.json"))
    if "tiny-1m" not in kept:
        kept.keep("tiny-1m", run([sys.executable, "train.py", …], Path("tiny-1m.log")))

So a comparison that was broken off goes on with what is missing, and a training in the midst of it with --resume.

Try: let `going_on` overwrite always; tests/test_frontier_runs.py (test_property_an_interrupted_training_goes_on) fails.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llama.runtime.cli import PROJECT_ROOT
from weights.formats.atomic_write import atomic_file

DOORS = ("train.py", "finetune.py", "-m")                           # what `shown` puts «python» before


class Results(dict[str, dict[str, Any]]):
    """What each run gave, by its name: a JSON file that is written anew by every `keep`, with what another command may
    have put there meanwhile.

    Raises ValueError for a file that holds anything else.
    """

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self._read()

    def _read(self) -> None:
        try:
            found = json.loads(self.path.read_text("utf-8")) if self.path.exists() else {}
        except ValueError:
            found = None
        if not isinstance(found, dict) or not all(isinstance(result, dict) for result in found.values()):
            raise ValueError(f"{self.path} holds no results of runs; give another file, or move it away")
        self.update(found)

    def keep(self, name: str, result: dict[str, Any]) -> None:
        self._read()
        self[name] = result | {"date": time.strftime("%Y-%m-%d")}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(self.path) as file:
            file.write((json.dumps(self, indent=1, ensure_ascii=False) + "\n").encode())


def run(command: Sequence[str], log: Path) -> dict[str, Any]:
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


def timed(command: Sequence[str], log: Path) -> dict[str, Any]:
    """The same of one of our own commands, with "wall" and "cpu", seconds from its start to its end.

    Where others compute on the same machine, only the latter says what it costs.
    """
    def cpu() -> float:
        times = os.times()
        return times.children_user + times.children_system

    before, started = cpu(), time.monotonic()
    found = run([sys.executable, *command], log)
    return found | {"wall": round(time.monotonic() - started, 2), "cpu": round(cpu() - before, 2)}


def trained(command: Sequence[str], output: Path, log: Path, *, again: bool = False) -> dict[str, Any]:
    """`timed`, of a command that trains and writes `output`: one that was interrupted goes on."""
    return timed([*command, "--output", str(output), "--json", *going_on(output, again=again)], log)


def going_on(output: Path, *, again: bool) -> list[str]:
    """The flag for a run that may have been interrupted."""
    interrupted = any(Path(f"{output}.training").glob("last-*.pt"))
    return ["--resume"] if interrupted and not (output.exists() or again) else ["--overwrite"]


def shown(command: Sequence[str]) -> str:
    """As one types it in the project's folder."""
    words = ["python", *command] if command[0] in DOORS else command
    return shlex.join(words).replace(f"{PROJECT_ROOT}/", "")
