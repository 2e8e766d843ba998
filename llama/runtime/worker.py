"""Programs that are measured against each other: each in a process of its own that does a piece of work when asked.

    parent   with Engine(name, command) as engine: engine.ask("decode", prompt=[…], new=128)
    child    serve({"decode": function, …}, stdout): a line of JSON in, one out, {"tokens": 128, "seconds": 2.1}

Memory and thread pools of two engines do not mix, and two that are alive can take turns. The child's side serves other
libraries too, in an interpreter that knows nothing of this project, so this module imports the standard library alone:

    PYTHON -I llama/runtime/worker.py SCRIPT '{"dtype": "bfloat16"}'     # SCRIPT has `works(settings)`, what
    `serve` takes

Try: let `ask` give the answer of the request before; tests/test_worker.py (test_two_ways_asked_and_called) fails.
"""

import contextlib
import json
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Works = Mapping[str, Callable[..., dict[str, Any]]]


class Engine:
    """A process that answers requests; a context manager.

    command  what starts it; its stderr is kept aside, and is told if it fails

    Raises ValueError, with its own sentence, for one that refuses (exit code 2); RuntimeError for one that breaks off.
    """

    def __init__(self, name: str, command: list[str]):
        self.name = name
        self.log = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
                                        text=True, encoding="utf-8")

    def __enter__(self) -> "Engine":
        try:
            self._answer()                                          # says that it has loaded
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()                                     # it has nothing to finish
        self.process.wait()
        with contextlib.suppress(BrokenPipeError):                  # a request that nobody has read
            self.process.stdin.close()
        self.process.stdout.close()
        self.log.close()

    def ask(self, work: str, **request: Any) -> dict[str, Any]:
        with contextlib.suppress(BrokenPipeError):                  # it has ended: its log says why
            print(json.dumps({"work": work} | request), file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        if line := self.process.stdout.readline():
            return json.loads(line)
        code = self.process.wait()
        self.log.seek(0)
        said = [line.strip() for line in self.log if line.strip()] or ["it said nothing"]
        if code == 2:
            raise ValueError(said[-1])
        raise RuntimeError(f"{self.name} ended with {code}: {' / '.join(said[-3:])}")


@contextlib.contextmanager
def results_alone() -> Any:
    """What is printed goes to stderr, as libraries like to print; gives the stream that stdout was."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(kept, "w", encoding="utf-8") as results:
        try:
            yield results
        finally:
            sys.stdout.flush()
            os.dup2(kept, 1)


def serve(works: Works, results: Any) -> None:
    """Answer requests from stdin until it closes."""
    print(json.dumps({}), file=results, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = {"memory": memory} if request["work"] == "memory" else works
        print(json.dumps(answer[request.pop("work")](**request)), file=results, flush=True)


def memory() -> dict[str, Any]:
    return {"bytes": peak_memory()}


def peak_memory(process: int | str = "self") -> int:
    """The most memory that a process has held so far, in bytes, pages of mapped files included; 0 if nobody knows.

    Linux alone tells it of other processes. What `getrusage` tells may be the peak of the process that started it.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return _own_peak() if process == "self" else 0
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0)


def _own_peak() -> int:
    try:
        import resource
    except ImportError:                                             # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    with results_alone() as stream:
        serve(runpy.run_path(sys.argv[1])["works"](json.loads(sys.argv[2])), stream)
