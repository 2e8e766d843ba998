"""Training runs that the page shows: whatever writes metrics.jsonl in adapters/ or weights/, and those started here.

    adapters/NAME.training/metrics.jsonl    a line a step, read from where the last look ended

A run that is started here is `finetune.py --lora --data FILE --output adapters/NAME --minutes N`, in a process of its
own: FILE is one of those that are listed, NAME a word, so that nothing of a request becomes another command.

Try: let `start` take any name; tests/test_serve_page.py (test_refuses_runs_of_other_names_and_files) fails.
"""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llama.runtime import cli
from weights.formats.paths import home

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
MOST = 4 * 2**20                                                    # bytes of metrics a look
SAMPLE_TEXTS = 3                                                    # that a run which is started here writes
SAID = 4000                                                         # characters of a run's own words, the last


@dataclass
class Started:
    process: subprocess.Popen
    log: Path                                                       # what it prints


class Runs:
    def __init__(self) -> None:
        self.started: dict[str, Started] = {}
        self._logs = tempfile.TemporaryDirectory(prefix="llama-runs-")

    def folders(self) -> dict[str, Path]:
        """adapters/NAME or weights/NAME -> the folder of its run."""
        found = {}
        for kind in ("adapters", "weights"):
            for place in (Path(kind), home() / kind):
                for path in place.glob("**/*.training"):
                    if path.is_dir():
                        name = path.relative_to(place).as_posix().removesuffix(".training")
                        found.setdefault(f"{kind}/{name}", path)
        return found

    def listed(self) -> list[dict[str, Any]]:
        """Those that have written something, the one that did so last first."""
        rows = []
        for name, folder in self.folders().items():
            metrics = folder / "metrics.jsonl"
            if metrics.is_file():
                rows.append((metrics.stat().st_mtime, name))
        rows.sort(reverse=True)
        names = [name for _, name in rows]
        names = [name for name in self.started if name not in names and self.is_running(name)] + names
        return [{"name": name, "running": self.is_running(name)} for name in names]

    def lines(self, name: str, start: int) -> tuple[list[dict[str, Any]], int]:
        """The lines of metrics.jsonl from a byte on, and where the next look begins. A half line waits for its rest."""
        folder = self.folders().get(name)
        path = folder / "metrics.jsonl" if folder else None
        if path is None or not path.is_file():
            return [], 0
        with open(path, "rb") as file:
            file.seek(start if 0 <= start <= path.stat().st_size else 0)
            text = file.read(MOST)
            end = file.tell() - (len(text) - (text.rfind(b"\n") + 1))
        lines = []
        for line in text[: text.rfind(b"\n") + 1].splitlines():
            try:
                lines.append(json.loads(line))
            except ValueError:                                      # of a run that was killed in the middle of it
                continue
        return lines, end

    def data_files(self) -> dict[str, Path]:
        """The instruction files that a run may learn from, or the page look into."""
        found = {}
        for place in (Path("."), home() / "examples"):
            for path in sorted(place.glob("*.jsonl")):
                found.setdefault(path.name, path)
        return found

    def start(self, data: str, name: str, minutes: float, *, model: str, max_length: int) -> str:
        """Begin a run; returns its name. Raises ValueError for names that are none, and while another one runs."""
        if data not in self.data_files():
            raise ValueError(f"the file {data!r:.80} is not among those that are listed")
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r:.80} is no name for a run; take letters, digits, - and _")
        if busy := [each for each in self.started if self.is_running(each)]:
            raise ValueError(f"{busy[0]} is still running; stop it, or wait for its end")
        run, output = f"adapters/{name}", home() / "adapters" / name
        if output.exists() or Path(f"{output}.training").exists():
            raise ValueError(f"{run} is there already; give another name")
        output.parent.mkdir(parents=True, exist_ok=True)
        log, finetune = Path(self._logs.name) / f"{name}.log", cli.PROJECT_ROOT / "finetune.py"
        command = [sys.executable, str(finetune), "--lora", "--model", model, "--data", str(self.data_files()[data]),
                   "--output", str(output), "--minutes", f"{minutes:g}", "--max-length", str(max_length),
                   "--sample-texts", str(SAMPLE_TEXTS)]
        with open(log, "wb") as file:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
        self.started[run] = Started(process, log)
        return run

    def is_running(self, name: str) -> bool:
        """Of those that were started here."""
        started = self.started.get(name)
        return started is not None and started.process.poll() is None

    def said(self, name: str) -> str:
        """The last that a run which was started here has printed."""
        started = self.started.get(name)
        return started.log.read_text(encoding="utf-8", errors="replace")[-SAID:] if started else ""

    def stop(self, name: str) -> None:
        """As SIGTERM does: the state after the last step that was saved is kept."""
        if self.is_running(name):
            self.started[name].process.terminate()

    def stop_all(self) -> None:
        for name in self.started:
            self.stop(name)
