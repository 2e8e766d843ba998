"""A piece of work in a copy of this process: imports are there already, and what it leaves behind ends with the copy.

    forked(lambda: {"sum": 1 + 1}, Path("work.log"))            # {"sum": 2, "cpu": 0.01}

A run of some seconds would else spend half of them on `import torch`, and on what torch imports later. Only a process
of one thread may be copied so: torch starts none before its first backward pass, and none for kernels with
OMP_NUM_THREADS=1.

Try: read no further than the first 65,536 bytes; tests/test_method_ablation.py
(test_property_a_copy_gives_what_the_work_gives) fails.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch._dynamo  # here, or once more in every copy: 3 s of a processor
import torch.distributed.fsdp
import torch.fx.experimental.symbolic_shapes  # noqa: F401


def forked(work: Callable[[], dict[str, Any]], log: Path) -> dict[str, Any]:
    """What `work` gives, by way of JSON, and its processor seconds, "cpu"; what it says on stderr is in `log`.

    Raises RuntimeError with its last words.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        _in_the_copy(work, log, writer)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as pipe:
        found = pipe.read()
    _, status, usage = os.wait4(child, 0)
    if status:
        words = [line for line in log.read_text("utf-8", "replace").splitlines() if line.strip()]
        ended = os.waitstatus_to_exitcode(status)
        raise RuntimeError(words[-1] if words else f"it said nothing, and ended with {ended}")
    return json.loads(found) | {"cpu": round(usage.ru_utime + usage.ru_stime, 2)}


def _in_the_copy(work: Callable[[], dict[str, Any]], log: Path, writer: int) -> None:
    """Never returns: nothing that waits to be done at the end of the first process is done twice."""
    code = 1
    try:
        with open(log, "w", encoding="utf-8") as sys.stderr:
            os.dup2(sys.stderr.fileno(), 2)
            try:
                found = json.dumps(work())
            except BaseException:
                traceback.print_exc()
                raise
        with os.fdopen(writer, "w", encoding="utf-8") as pipe:
            pipe.write(found)
        code = 0
    finally:
        os._exit(code)
