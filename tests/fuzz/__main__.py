"""`make fuzz`: change valid files at random and read them. Each is read, or refused in one sentence; nothing else.

    python -m tests.fuzz [--count N | --minutes M] [--only READER …] [--seed N] [--guided MINUTES] [--keep FOLDER]

A mutant is read in a process of its own, within 5 s of the processor and twice the file's size of memory (or 64 MB).
Faults are told with the file that causes them, kept in --keep: a traceback, an error that a line of ours did not
raise on purpose, a hang, a balloon, a death. --guided lets atheris choose what to change, by the lines that it reaches.

    reader                  tried   read  refused  faults
"""

import argparse
import linecache
import os
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from tests.fuzz.mutate import mutant
from tests.fuzz.readers import Reader, readers

SECONDS, MEGABYTES = 5, 64
HOME = Path(__file__).resolve().parents[2]
OURS = ("llama", "tokenizer", "weights")


def outcome(reader: Reader, folder: Path) -> str:
    """"read", "refused: …" or "fault: …" of one file, read in this process."""
    try:
        reader.read(folder)
        return "read"
    except (ValueError, RuntimeError, OSError) as error:
        return judged(error)
    except MemoryError:
        return "fault: out of memory"
    except BaseException as error:                                  # a panic of a library in Rust is no Exception
        return f"fault: {last_lines(error)}"


def judged(error: Exception) -> str:
    """An error that users see as a sentence: raised by a `raise` of ours, or by the system about a file."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    path = Path(frame.filename)
    raised = linecache.getline(frame.filename, frame.lineno).strip().startswith("raise ")
    ours = path.is_relative_to(HOME) and path.relative_to(HOME).parts[0] in OURS
    if isinstance(error, OSError) and error.filename or ours and raised:
        return "refused: " + " ".join(str(error).split())[:300]
    return f"fault: {last_lines(error)}"


def last_lines(error: BaseException) -> str:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if str(HOME) in frame.filename]
    where = " < ".join(f"{Path(f.filename).relative_to(HOME)}:{f.lineno}" for f in reversed(frames[-3:]))
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]} at {where}"


def read_apart(reader: Reader, content: bytes, place: Path) -> str:
    """The outcome of a mutant in a process of its own: what it takes in time and memory dies with it."""
    folder = place / "mutant"
    if folder.exists():
        shutil.rmtree(folder)
    shutil.copytree(reader.folder, folder)
    (folder / reader.file).write_bytes(content)
    allowed = max(2 * sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()), MEGABYTES * 2**20)
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(out)
        before = _memory("VmRSS")
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
        limit = _memory("VmSize") + 8 * allowed                     # what is reserved and never touched is not counted
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, 1), os.dup2(devnull, 2)
        said = outcome(reader, folder)
        if (grown := _memory("VmHWM") - before) > allowed:
            said = f"fault: {grown >> 20} MB for a file of {len(content):,} bytes ({said})"
        os.write(into, said.encode(errors="replace")[:4000])
        os._exit(0)
    os.close(into)
    said = b""
    if select.select([out], [], [], 12 * SECONDS)[0]:               # by the clock, on a machine that others use
        said = os.read(out, 5000)
    else:
        os.kill(child, signal.SIGKILL)
    os.close(out)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status in (-signal.SIGXCPU, -signal.SIGKILL):
        return f"fault: no end within {SECONDS} s"
    return said.decode() if said else f"fault: the process died ({status})"


def _memory(name: str) -> int:
    """Bytes, of /proc/self/status."""
    line = next(line for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
                if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def fuzz(reader: Reader, place: Path, *, seed: int, count: int, until: float, keep: Path) -> Counter:
    found: Counter = Counter()
    valid = (reader.folder / reader.file).read_bytes()
    told: set[str] = set()
    for number in range(count):
        if time.monotonic() > until:
            break
        content = mutant(valid, reader.kind, random.Random(f"{seed} {reader.name} {number}"))
        said = read_apart(reader, content, place)
        kind, _, what = said.partition(": ")
        found["tried"] += 1
        found[kind] += 1
        if kind == "fault" and what not in told:
            told.add(what)
            kept = keep / f"{reader.name.replace(' ', '-')}-{number}"
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(content)
            print(f"{reader.name} {number}: {what}; {kept}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=400, metavar="N", help="mutants of each reader (400)")
    parser.add_argument("--minutes", type=float, default=0.0, metavar="M", help="stop after so long, however many")
    parser.add_argument("--only", nargs="*", default=[], metavar="READER", help="these readers alone")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    parser.add_argument("--guided", type=float, default=0.0, metavar="MINUTES",
                        help="let atheris choose mutants by what they reach (pip install atheris)")
    parser.add_argument("--keep", type=Path, default=Path("fuzz-faults"), metavar="FOLDER", help="where faults go")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        print("writing valid files …", file=sys.stderr)
        chosen = [reader for reader in readers(Path(place)) if not arguments.only or reader.name in arguments.only]
        if not chosen:
            parser.error(f"--only {arguments.only}: no such reader")
        totals: Counter = Counter()
        rows = []
        for number, reader in enumerate(chosen):
            left = arguments.minutes * 60 / len(chosen) if arguments.minutes else float("inf")
            print(f"[{number + 1}/{len(chosen)}] {reader.name}", file=sys.stderr)
            if arguments.guided:
                found = _guided(reader, Path(place), arguments.guided * 60 / len(chosen), arguments.keep)
            else:
                found = fuzz(reader, Path(place), seed=arguments.seed, count=arguments.count,
                             until=time.monotonic() + left, keep=arguments.keep)
            totals += found
            rows.append((reader.name, found))
        print(f"{'reader':28}{'tried':>8}{'read':>8}{'refused':>9}{'faults':>8}")
        for name, found in [*rows, ("all", totals)]:
            print(f"{name:28}{found['tried']:>8,}{found['read']:>8,}{found['refused']:>9,}{found['fault']:>8,}")
    sys.exit(1 if totals["fault"] else 0)


def _guided(reader: Reader, place: Path, seconds: float, keep: Path) -> Counter:
    """One run of atheris, which ends at its first fault and keeps the file."""
    keep.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.guided", reader.name, str(place), f"-max_total_time={int(seconds) + 1}",
         f"-timeout={4 * SECONDS}", "-rss_limit_mb=4096", f"-artifact_prefix={keep}/{reader.name.replace(' ', '-')}-"],
        cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, encoding="utf-8", errors="replace",
        check=False)
    tried: Any = [line for line in done.stdout.splitlines() if line.startswith("#")]
    if done.returncode:
        print(f"{reader.name}: " + "\n".join(done.stdout.splitlines()[-25:]), flush=True)
    count = int(tried[-1].split()[0][1:]) if tried else 0
    return Counter(tried=count, fault=int(done.returncode != 0))


if __name__ == "__main__":
    main()
