"""Starts the program's doors again and again without importing torch each time: one process that forks.

    python -m tests.torture.launcher MODULE …       # a line of JSON in: processes to start; one out: how each ended

What is forked has imported these modules, and done nothing else: no thread runs, nothing has been read. It then runs
the door as `python DOOR …` does, and leaves as that does. Truths come from processes of their own, so that the results
are the same is seen in every run.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import sys
import time
from typing import Any

from tests.torture.events import watch

IMPORTED = ("finetune", "train", "generate", "llama.merge", "llama.quantize", "weights.convert", "llama.training.fsdp",
            "torch.distributed.checkpoint.state_dict", "torch.distributed.fsdp", "torch.utils.serialization.config")
PATIENCE = 3.0                                                      # s for processes whose neighbour has died
HANGS = 300.0                                                       # s


def main() -> None:
    for name in sys.argv[1:]:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()                                                     # or each child would tidy all this up at its end
    print("{}", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        processes = []
        for process in request["processes"]:
            if (pid := os.fork()) == 0:
                return become(process)
            processes.append(pid)
        print(json.dumps(wait(processes, **request["ends"])), flush=True)


def become(process: dict[str, Any]) -> None:
    """The door, in this process, to its end."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(process[name], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, number)
        os.close(file)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.stdin = open(0, encoding="utf-8", closefd=False)            # the launcher has read from its own
    os.environ.update(process["environment"])
    os.chdir(process["folder"])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    if process.get("watch"):
        watch(process["watch"])
    door, *sys.argv[1:] = process["command"]
    if door == "-m":
        module = sys.argv.pop(1)
        sys.modules.pop(module, None)
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv[0] = door
        runpy.run_path(door, run_name="__main__")


def wait(processes: list[int], number: int = 0, after: float = 0.0, to: list[int] | None = None,
         dark: bool = False) -> dict[str, Any]:
    """Exit codes, negative for signals. With `number`, that signal goes after some seconds to all, or to some by rank.

    Where one of several has failed, the others get a moment, then what torchrun does to them; in a `dark` machine they
    end with it.
    """
    started, ended, failed = time.monotonic(), {}, 0.0
    hung = False
    while len(ended) < len(processes):
        for pid in processes:
            if pid not in ended:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    ended[pid] = os.waitstatus_to_exitcode(status)
                    failed = failed or (time.monotonic() if ended[pid] else 0.0)
        now = time.monotonic()
        left = [pid for pid in processes if pid not in ended]
        if number and now - started >= after:
            send([pid for rank, pid in enumerate(processes) if pid in left and (to is None or rank in to)], number)
            number = 0
        if failed and (dark or now - failed > PATIENCE):
            send(left, signal.SIGKILL if dark or now - failed > 2 * PATIENCE else signal.SIGTERM)
        if now - started > HANGS:
            hung = True
            send(left, signal.SIGKILL)
        time.sleep(0.002)
    return {"codes": [ended[pid] for pid in processes], "hung": hung, "seconds": time.monotonic() - started}


def send(processes: list[int], number: int) -> None:
    for pid in processes:
        os.kill(pid, number)


if __name__ == "__main__":
    main()
