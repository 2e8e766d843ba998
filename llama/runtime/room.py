"""Room on the disk and in memory: how much there is, and one sentence where it does not suffice.

    check_disk(path, 3 * GB, "the model", "make room")          # before anything is computed
    with memory_for("loading the model", remedy):               # whatever runs out in here says what it was doing

Try: let `memory_for` take every RuntimeError; tests/test_room.py (test_property_other_failures_pass_as_they_are)
fails: a bug would be told as a lack of memory.
"""

import errno
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
OUT_OF_MEMORY = ("out of memory", "allocate memory", "not enough memory")    # as CUDA, MPS and CPUs say it
ELSEWHERE = "make room there, or write to another disk"
SURE = 1.1                                                          # of an estimate, to be called enough


class OutOfMemory(RuntimeError):
    """Says what was being done, what it asked for, and what would need less."""


@contextmanager
def memory_for(what: str, remedy: Callable[[], str]) -> Iterator[None]:
    """Turn a lack of memory in the body into an OutOfMemory.

    what    "loading the model"
    remedy  what would need less; asked only then
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        if isinstance(error, OutOfMemory) or not is_out_of_memory(error):
            raise
        asked = asked_for(error)
        more = f", where {size(asked)} more were asked for" if asked else ""
        try:
            less = remedy()
        except (RuntimeError, MemoryError, OSError):                # there may be too little for that as well
            less = "take a smaller model, or more memory"
        raise OutOfMemory(f"out of memory while {what}{more}: {less}") from None


def is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError) or isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)


def asked_for(error: Exception) -> int:
    """Bytes that an allocator was asked for in vain; 0 where it does not tell."""
    if found := re.search(r"(?:allocate|mmap) (?:([\d.]+) ?([KMGT]?)i?B\b|(\d+) bytes)", str(error)):
        return int(found[3] or float(found[1]) * UNITS[found[2] or "B"])
    return 0


# ---- memory ----------------------------------------------------------------------------------------------------------


def free_memory(device: Any) -> float:
    """Bytes that this process may still take on a torch.device; infinity where nobody tells (macOS, Windows)."""
    if device.type == "cuda":
        import torch

        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)     # it gives that out itself
        return torch.cuda.mem_get_info(device)[0] + held
    if device.type != "cpu":
        return math.inf
    return min(_of_the_machine(), _of_the_container(), _of_the_process())


def _of_the_machine() -> float:
    found = re.search(r"^MemAvailable: *(\d+) kB", _text("/proc/meminfo"), re.M)
    return int(found[1]) * 1024 if found else math.inf


def _of_the_container(root: str = "/sys/fs/cgroup") -> float:
    """What Linux's control groups leave; files that are cached there make room."""
    group = re.search(r"^0::(/.*)$", _text("/proc/self/cgroup"), re.M)
    folder = root + (group[1].rstrip("/") if group else "")
    most, held = (_text(f"{folder}/memory.{name}").strip() for name in ("max", "current"))
    if not (most.isdecimal() and held.isdecimal()):
        return math.inf
    cached = re.search(r"^inactive_file (\d+)$", _text(f"{folder}/memory.stat"), re.M)
    return int(most) - int(held) + (int(cached[1]) if cached else 0)


def _of_the_process() -> float:
    """What `ulimit -v` leaves."""
    try:
        import resource
    except ImportError:                                             # Windows
        return math.inf
    limit, pages = resource.getrlimit(resource.RLIMIT_AS)[0], _text("/proc/self/statm").split()
    if limit == resource.RLIM_INFINITY or not pages:
        return math.inf
    return limit - int(pages[0]) * resource.getpagesize()


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""


# ---- the disk --------------------------------------------------------------------------------------------------------


def check_disk(path: str | Path, needed: float, what: str, remedy: str) -> None:
    """Raise ValueError where the disk of `path`, which need not exist, has fewer than `needed` bytes free."""
    if needed > (free := free_disk(path)):
        raise ValueError(f"{what} needs {size(needed)} on the disk of {path}, and {size(free)} are free; {remedy}")


def free_disk(path: str | Path) -> int:
    folder = Path(os.path.abspath(path))
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def size(count: float) -> str:
    """Bytes as a person reads them: 12.3 MB, 123 MB, 1.23 GB."""
    if count >= 1e9:
        return f"{count / 1e9:,.2f} GB"
    return f"{count / 1e6:,.1f} MB" if count < 1e8 else f"{count / 1e6:,.0f} MB"
