"""`make compat`: the suite under other Pythons and other releases of torch, each pair in an environment of its own.

    python -m tests.compat [--python 3.10 …] [--torch 2.6.0 newest …] [--tests tests/test_x.py …] [--keep]

A Python is had where `python3.10` (on Windows `py -3.10`) starts one, torch where pip finds a wheel, of the kind that
pip is set up for: on Linux without an index for CPUs that is one with GPU libraries, 5 GB in each environment. What
cannot be had is a row that says why. The first pair takes every package as old as pyproject.toml allows; all others, as
new as there are. Named pairs are every Python with every torch.
"""

import argparse
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

HOME = Path(__file__).resolve().parents[1]
ENVIRONMENTS = HOME / ".venv-compat"
NEWEST = "newest"
# The corners, and the middle: what breaks does so at an end, and each Python and each torch comes once at least.
PAIRS = (("3.10", "2.6.0"), ("3.10", NEWEST), ("3.11", "2.9.1"), ("3.12", "2.9.1"), ("3.13", "2.6.0"), ("3.13", NEWEST))
COLUMNS = ("Python", "torch", "numpy", "passed", "failed", "skipped", "minutes", "why skipped, or not to be had")
VERSIONS = "import platform, torch, numpy; print(platform.python_version(), torch.__version__, numpy.__version__)"


class Outcome(NamedTuple):
    """Of the suite in one environment."""

    passed: int
    failed: tuple[str, ...]                                         # file::test
    skipped: Counter                                                # by reason


class NotToBeHad(Exception):
    """Why there is no such Python or no such torch here."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.compat", description=__doc__.splitlines()[0])
    parser.add_argument("--python", nargs="+", metavar="VERSION", help="such as 3.10")
    parser.add_argument("--torch", nargs="+", metavar="VERSION", help="such as 2.6.0, or newest: pip's choice")
    parser.add_argument("--tests", nargs="+", metavar="FILE", default=[], help="these tests alone")
    parser.add_argument("--keep", action="store_true", help="leave the environments in .venv-compat for the next time")
    arguments = parser.parse_args()
    pairs = PAIRS
    if arguments.python or arguments.torch:
        pairs = [(python, torch) for python in arguments.python or sorted({python for python, _ in PAIRS})
                 for torch in arguments.torch or sorted({torch for _, torch in PAIRS})]
    failed, ran = [], 0
    print(row(COLUMNS) + "\n" + row(["---"] * len(COLUMNS)), flush=True)
    for python, torch in pairs:
        started = time.monotonic()
        try:
            interpreter = environment(python, torch)
        except NotToBeHad as reason:
            print(row([python, torch, *[""] * 5, f"not to be had: {reason}"]), flush=True)
            continue
        outcome = suite(interpreter, arguments.tests)
        versions = subprocess.run([interpreter, "-c", VERSIONS], stdout=subprocess.PIPE, encoding="utf-8", check=True)
        if not arguments.keep:
            shutil.rmtree(interpreter.parents[1])
        failed += [f"{python} with torch {torch}: {test}" for test in outcome.failed]
        ran += 1
        remarks = "; ".join(f"{count}: {reason}" for reason, count in outcome.skipped.items()).replace("|", "\\|")
        print(row([*versions.stdout.split(), outcome.passed, len(outcome.failed), outcome.skipped.total(),
                   f"{(time.monotonic() - started) / 60:.1f}", remarks]), flush=True)
    print("\n".join(["", *failed, f"compat: {ran} of {len(pairs)} pairs to be had, {len(failed)} tests failed"]))
    return 1 if failed or not ran else 0


def environment(python: str, torch: str) -> Path:
    """The interpreter of the pair's environment, made where it is not there yet. Raises NotToBeHad."""
    folder = ENVIRONMENTS / f"python-{python}-torch-{torch}"
    interpreter = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if (folder / "ready").exists():
        return interpreter
    shutil.rmtree(folder, ignore_errors=True)
    command = [*starts(python), "-m", "venv", str(folder)]
    if (made := subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")).returncode:
        raise NotToBeHad(f"it makes no environment ({last_line(made.stdout + made.stderr)})")
    wanted = requirements(torch, oldest=(python, torch) == PAIRS[0])
    command = [str(interpreter), "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
               "--only-binary", ":all:", *wanted]
    if (done := subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")).returncode:
        shutil.rmtree(folder)
        errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        raise NotToBeHad("pip: " + (errors[0].partition(" (from ")[0] if errors else last_line(done.stderr)))
    (folder / "ready").touch()
    return interpreter


def starts(python: str) -> list[str]:
    """What starts this version of Python. Raises NotToBeHad: a name may be there and lead nowhere."""
    launcher = [["py", f"-{python}"]] if sys.platform == "win32" else []
    for command in (*launcher, [f"python{python}"]):
        if shutil.which(command[0]):
            said = subprocess.run([*command, "--version"], capture_output=True, encoding="utf-8", errors="replace")
            if said.returncode == 0 and said.stdout.startswith(f"Python {python}."):
                return command
    raise NotToBeHad(f"nothing called python{python} starts here")


def requirements(torch: str, *, oldest: bool) -> list[str]:
    """What pip is asked for: torch, and the rest of requirements.txt, at the lower bounds where `oldest`."""
    lines = (HOME / "requirements.txt").read_text(encoding="utf-8").splitlines()
    rest = [line.partition("  #")[0] for line in lines if re.match(r"(?!torch\b)\w", line)]
    return ["torch" if torch == NEWEST else f"torch=={torch}", *(line.replace(">=", "==") if oldest else line
                                                                 for line in rest)]


def suite(interpreter: Path, tests: list[str]) -> Outcome:
    """Run the tests, all if none are named."""
    report = interpreter.parents[1] / "report.xml"
    report.unlink(missing_ok=True)
    command = [str(interpreter), "-B", "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *tests]
    said = subprocess.run(command, cwd=HOME, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
                          errors="replace")
    if not report.exists():
        raise RuntimeError(f"pytest did not come to its end: {said.stdout[-2000:]}")
    return outcome(report)


def outcome(report: Path) -> Outcome:
    """What pytest tells of each test, in JUnit's XML."""
    passed, failed, skipped = 0, [], Counter()
    for case in ElementTree.parse(report).iter("testcase"):
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname', '').replace('.', '/')}.py::{case.get('name')}")
        elif (reason := case.find("skipped")) is not None:
            skipped[reason.get("message", "")] += 1
        else:
            passed += 1
    return Outcome(passed, tuple(failed), skipped)


def last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "it said nothing")


def row(cells: list | tuple) -> str:
    widths = (8, 12, 8, 6, 6, 7, 7, 0)
    return "| " + " | ".join(f"{cell!s:<{width}}" for cell, width in zip(cells, widths, strict=True)) + " |"


if __name__ == "__main__":
    sys.exit(main())
