"""`make torture`: training and every other command that writes is killed, starved and given damaged files; one table.

    python -m tests.torture [--modes A,B] [--seed N] [--kills N] [--share MINUTES] [--json FILE] [--only MODE:KIND:N …]

Of the kills, half come at random moments, half at events that change the disk; there are a quarter as many power cuts
and requests to end, and half as many failing writes and damaged files. What each is, and what surviving means:
attacks.py.
"""

import argparse
import itertools
import json
import math
import queue
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tests.torture.attacks import ATTACKS, CHOICES, Target, Verdict
from tests.torture.modes import MODES, Launcher, Mode, write_material

SHARES = {"moment": 0.5, "event": 0.5, "dark": 0.25, "signal": 0.25, "write": 0.5, "damage": 0.5}
MARGIN = 20.0                                                       # s that attacks under way may take beyond the share


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__.splitlines()[0])
    parser.add_argument("--modes", type=lambda text: text.split(","), default=[mode.name for mode in MODES],
                        metavar="A,B", help=", ".join(mode.name for mode in MODES))
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of every draw")
    parser.add_argument("--kills", type=int, default=200, metavar="N", help="how many, over all modes")
    parser.add_argument("--every", nargs="+", choices=CHOICES, default=(), metavar="KIND",
                        help="of these kinds all that there are, which takes hours: " + ", ".join(CHOICES))
    parser.add_argument("--share", type=float, metavar="MINUTES", help="stop after so many, whatever is left to try")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="attacks at once")
    parser.add_argument("--json", metavar="FILE", help="write every attack and its verdict")
    parser.add_argument("--only", nargs="+", metavar="MODE:KIND:N", help="repeat these")
    arguments = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)        # a background job starts, and hands on, deaf to it
    started = time.monotonic()
    only = [name.split(":") for name in arguments.only or ()]
    chosen = [mode for mode in MODES if mode.name in ([name[0] for name in only] or arguments.modes)]
    verdicts: list[Verdict] = []
    last = started + 60 * arguments.share - MARGIN if arguments.share else math.inf
    begun = started + 60 * arguments.share / 2 if arguments.share else math.inf     # by when modes must be made ready

    def tell(found: Iterator[list[Verdict]]) -> None:
        for verdict in itertools.chain.from_iterable(found):
            verdicts.append(verdict)
            if not verdict.survived:
                print(lost_line(verdict, arguments.seed), file=sys.stderr)
            if len(verdicts) % 50 == 0:
                print(f"{len(verdicts)} tried in {time.monotonic() - started:.0f} s", file=sys.stderr)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary).resolve()
        write_material(folder)
        with Workers(arguments.jobs) as workers:
            targets: dict[str, Target] = {}
            tell(workers.all([_prepared(mode, folder, arguments.seed, targets, begun) for mode in chosen]))
            plan = [(int(number), kind, targets[mode]) for mode, kind, number in only if mode in targets] \
                or list(planned(list(targets.values()), arguments.kills, arguments.every))
            tell(workers.all([_attacked(target, kind, number, last) for number, kind, target in plan]))
    print(table(verdicts))
    if unreached := [mode.name for mode in chosen if mode.name not in targets]:
        print(f"\nno time, or no truth, for {', '.join(unreached)}")
    print("", *(lost_line(verdict, arguments.seed) for verdict in verdicts if not verdict.survived), sep="\n")
    lost = sum(not verdict.survived for verdict in verdicts)
    print(f"torture: {len(verdicts)} tried, {len(verdicts) - lost} survived, {lost} lost; seed {arguments.seed}, "
          f"{time.monotonic() - started:.0f} s")
    if arguments.json:
        report = {"seed": arguments.seed, "tried": len(verdicts), "lost": lost,
                  "attacks": [verdict._asdict() for verdict in sorted(verdicts)]}
        Path(arguments.json).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if lost or not verdicts else 0


Work = Callable[[Launcher], list[Verdict]]


class Workers:
    """Threads, each with a launcher of its own."""

    def __init__(self, number: int):
        self.number = number

    def __enter__(self) -> "Workers":
        self.pool, self.idle = ThreadPoolExecutor(self.number), queue.SimpleQueue()
        for launcher in [Launcher() for _ in range(self.number)]:
            self.idle.put(launcher)
        return self

    def __exit__(self, *error: object) -> None:
        self.pool.shutdown(cancel_futures=True)
        while not self.idle.empty():
            self.idle.get().close()

    def all(self, work: list[Work]) -> Iterator[list[Verdict]]:
        """The verdicts of each, as they come."""
        for done in as_completed([self.pool.submit(self._do, each) for each in work]):
            yield done.result()

    def _do(self, work: Work) -> list[Verdict]:
        launcher = self.idle.get()
        try:
            return work(launcher)
        finally:
            self.idle.put(launcher)


def _prepared(mode: Mode, folder: Path, seed: int, targets: dict[str, Target], last: float) -> Work:
    def work(launcher: Launcher) -> list[Verdict]:
        try:
            if time.monotonic() < last:
                targets[mode.name] = Target(mode, folder, launcher, seed)
        except RuntimeError as error:
            return [Verdict(f"{mode.name}:truth:0", "whole runs", False, str(error))]
        return []
    return work


def _attacked(target: Target, kind: str, number: int, last: float) -> Work:
    def work(launcher: Launcher) -> list[Verdict]:
        return [target.attack(kind, number, launcher)] if time.monotonic() < last else []
    return work


def planned(targets: list[Target], kills: int, every: list[str]) -> Iterator[tuple[int, str, Target]]:
    """The attacks in turn, modes against kinds: wherever the clock stops, each had its part."""
    numbers = {}
    for target in targets:
        for kind in target.kinds():
            room = len(target.choices(kind)) if kind in CHOICES else sys.maxsize
            asked = math.ceil(kills * SHARES[kind] / len(targets))
            numbers[target, kind] = room if kind in every else min(room, asked)
    for number, turn in itertools.product(range(max(numbers.values(), default=0)), range(len(ATTACKS))):
        for place, target in enumerate(targets):
            kind = list(ATTACKS)[(place + turn) % len(ATTACKS)]
            if number < numbers.get((target, kind), 0):
                yield number, kind, target


def lost_line(verdict: Verdict, seed: int) -> str:
    return (f"LOST {verdict.attack}: {verdict.what}: {verdict.how}\n     again: python -m tests.torture --seed {seed} "
            f"--only {verdict.attack}")


def table(verdicts: list[Verdict]) -> str:
    """A mode a row: of each kind of attack how many were survived, of how many."""
    tried, survived = Counter(), Counter()
    for verdict in verdicts:
        mode, kind, _ = verdict.attack.split(":")
        for place in ((mode, kind), (mode, "all"), ("together", kind), ("together", "all")):
            tried[place] += 1
            survived[place] += verdict.survived
    lines = [_row("mode", *ATTACKS, "tried", "survived", "lost"), _row(*["---"] * (len(ATTACKS) + 4))]
    for mode in sorted({mode for mode, _ in tried}, key=[*(mode.name for mode in MODES), "together"].index):
        cells = [f"{survived[mode, kind]}/{tried[mode, kind]}" if tried[mode, kind] else "-" for kind in ATTACKS]
        whole, kept = tried[mode, "all"], survived[mode, "all"]
        lines.append(_row(mode, *cells, str(whole), str(kept), str(whole - kept)))
    return "\n".join(lines)


def _row(mode: str, *cells: str) -> str:
    return f"| {mode:<10} | " + " | ".join(f"{cell:>8}" for cell in cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
