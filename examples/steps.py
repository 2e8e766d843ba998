"""What the long examples share: steps by name, in their order, and what they need asked for before the first begins."""

import argparse
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from llama.runtime.terminal import say
from weights.formats.paths import home


def add_steps(parser: argparse.ArgumentParser, steps: Sequence[str]) -> None:
    parser.add_argument("names", nargs="*", metavar="STEP", help=f"of {', '.join(steps)} (default: all)")


def chosen(parser: argparse.ArgumentParser, names: Sequence[str], steps: Sequence[str], needs: Mapping[str, str]
           ) -> list[str]:
    """The steps named, or all; ends with a sentence where there is no such step, or not the package that it needs."""
    if unknown := set(names) - set(steps):
        parser.error(f"'{min(unknown)}' is no step; there are {', '.join(steps)}")
    found = [step for step in steps if not names or step in names]
    for step, package in needs.items():
        if step in found and find_spec(package) is None:
            others = " ".join(name for name in found if name != step)
            parser.error(f"{step} needs {package}, and it is not here; pip install {package}, or leave {step} out"
                         + (f": {others}" if others else ""))
    return found


def run(*command: Any) -> str:
    """What a command of ours prints; it is shown first. Ends with its exit code where that is not 0."""
    words = [str(word) for word in command]
    say("$ python " + shlex.join(words).replace(f"{home()}/", ""))
    done = subprocess.run([sys.executable, *words], cwd=home(), check=False, stdout=subprocess.PIPE, text=True,
                          encoding="utf-8")
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout
