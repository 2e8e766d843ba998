"""The attacks on a mode, each of them drawn from seed, mode, kind and number alone, so that one can be repeated alone.

    moment   kill -9 at a random moment between the first import and the end, of processes of their own
    event    kill -9 after an event that changes the disk (before one is after the one before), or midway in a write
    dark     the same, and what no process had synced to the disk is lost with it, as in a power cut
    signal   SIGTERM or SIGINT at a random moment, half of them in processes of their own
    write    at one event, or from it on, the disk is full, broken or read-only
    damage   a file of the run is cut short, or has a bit turned

After each, what a user does: the same command with --resume, or from the beginning where the program says that nothing
was saved. Survived is what then is the truth, to the bit, with every step once in metrics.jsonl and no other file
beside it, and lost no step that had been saved. A damaged file may also be refused in one sentence.
"""

import re
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

from tests.torture import damage as damages
from tests.torture.events import FAILS
from tests.torture.modes import (
    RECORDS,
    SAVE_EVERY,
    STEPS,
    Ended,
    Launcher,
    Left,
    Mode,
    lay_out,
    left,
    result_files,
    run_alone,
    run_as_typed,
)

HIDDEN = (".partial", ".part", ".aside")                            # of what is still being written
HALF = 2                                                            # the save whose state is damaged


class Event(NamedTuple):
    rank: int
    number: int
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} of {self.name} (event {self.number} of rank {self.rank})"

    @property
    def site(self) -> tuple[int, str, str]:
        """The same for events of one place in the program."""
        name = re.sub(r"^\.(.*)\.\w+\.(partial|part|aside)$", r"\1", self.name)
        return self.rank, self.kind, re.sub("[0-9]+", "N", name)


class Verdict(NamedTuple):
    attack: str                                                     # MODE:KIND:NUMBER
    what: str
    survived: bool
    how: str


class Lost(Exception):
    """What must not be."""


# ---- a mode, and the truth about it ----------------------------------------------------------------------------------


class Target:
    """A mode whose truth is known: what an uninterrupted run leaves, how long it takes, the events in it.

    Raises RuntimeError where a run that nobody attacks fails, or is not always the same.
    """

    def __init__(self, mode: Mode, folder: Path, launcher: Launcher, seed: int):
        self.mode, self.folder, self.seed = mode, folder, seed      # the folder holds the material
        self.orders: dict[str, list[Any]] = {}
        typed, counted, half = (folder / f"{mode.name}-{name}" for name in ("typed", "counted", "half"))
        lay_out(mode, typed)
        started = time.monotonic()
        self.truth = left(mode, typed, _well(mode, run_as_typed(mode, typed)))
        self.seconds = time.monotonic() - started
        lay_out(mode, counted)
        logs = [folder / f"{mode.name}-{rank}.events" for rank in range(mode.processes)]
        started = time.monotonic()
        ended = _well(mode, launcher.run(mode, counted, watches={
            rank: {"act": "count", "log": str(log)} for rank, log in enumerate(logs)}))
        self.forked_seconds = time.monotonic() - started
        if found := difference(self.truth, left(mode, counted, ended)):
            raise RuntimeError(f"{mode.name}: two whole runs differ, so no attack can be judged: {found}")
        self.events = [Event(rank, int(line[0]), *line[1:]) for rank, log in enumerate(logs)
                       for line in map(str.split, log.read_text(encoding="utf-8").splitlines())]
        self.older = result_files(mode, folder / "older") if mode.older else {}
        self.snapshots = {"finished": counted}
        if mode.trains:
            lay_out(mode, half)
            launcher.run(mode, half, watches=_kill(self._end_of_save(HALF), "after"))
            self.snapshots["half done"] = half

    def _end_of_save(self, number: int) -> Event:
        """The last event of the number-th state that is saved; with a file that is opened each begins."""
        saves: list[Event] = []
        for event in self.events:
            if event.site[2] in ("last.pt", "last-N.pt"):
                saves[len(saves) - (event.kind != "open"):] = [event]
        if len(saves) < STEPS // SAVE_EVERY:
            raise RuntimeError(f"{self.mode.name}: {len(saves)} states are saved in {STEPS} steps")
        return saves[number - 1]

    def kinds(self) -> list[str]:
        return [kind for kind in ATTACKS if kind != "damage" or self.mode.trains]

    def attack(self, kind: str, number: int, launcher: Launcher) -> Verdict:
        name = f"{self.mode.name}:{kind}:{number}"
        attack = Attack(self, launcher, self.folder / name.replace(":", "-"), Random(f"{self.seed} {name}"))
        try:
            verdict = Verdict(name, attack.what, True, ATTACKS[kind](attack, number))
        except Lost as lost:
            verdict = Verdict(name, attack.what, False, str(lost))
        for path in self.folder.glob(f"{attack.folder.name}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        return verdict._replace(what=attack.what)

    def choices(self, kind: str) -> list[Any]:
        """All that an attack of this kind can hit, in an order in which every site comes once, then each again."""
        if kind not in self.orders:
            draw = Random(f"{self.seed} {self.mode.name} {kind}")
            self.orders[kind] = spread(CHOICES[kind](self), draw)
        return self.orders[kind]


def _well(mode: Mode, ended: Ended) -> Ended:
    if ended.code or ended.hung:
        raise RuntimeError(f"{mode.name}: a run that nobody attacks fails: {ended.codes} {ended.errors[-500:]}")
    return ended


def _kill(event: Event, when: str) -> dict[int, dict[str, Any]]:
    return {event.rank: {"act": "kill", "at": event.number, "when": when}}


def spread(choices: Sequence[tuple[Hashable, Any]], draw: Random) -> list[Any]:
    """The second of each pair, shuffled so that each value of the first comes once before any comes again."""
    shuffled, seen, turns = draw.sample(choices, len(choices)), Counter(), []
    for site, choice in shuffled:
        turns.append((seen[site], choice))
        seen[site] += 1
    return [choice for _, choice in sorted(turns, key=lambda turn: turn[0])]


def difference(truth: Left, found: Left, *, metrics: bool = True) -> str:
    """What is not as it should be, in words; "" if all is."""
    wrong = []
    for name in sorted(truth.files.keys() | found.files.keys()):
        if truth.files.get(name) != found.files.get(name):
            wrong.append(f"{name} is {'another' if name in found.files else 'missing'}")
    if metrics and truth.metrics != found.metrics:
        steps = [line.get("step") for line in found.metrics if "loss" in line]
        wrong.append(f"metrics.jsonl has other lines, of steps {steps}")
    if truth.scores != found.scores:
        wrong.append("the scores printed are others")
    if more := found.names - truth.names:
        wrong.append(f"besides there lie {', '.join(sorted(more))}")
    if less := truth.names - found.names:
        wrong.append(f"there is no {', '.join(sorted(less))}")
    return "; ".join(wrong)


# ---- one attack ------------------------------------------------------------------------------------------------------


class Attack:
    """One attack under way, and what must hold after it; all that does not is a `Lost`."""

    def __init__(self, target: Target, launcher: Launcher, folder: Path, draw: Random):
        self.target, self.mode, self.launcher, self.folder, self.draw = target, target.mode, launcher, folder, draw
        self.what = ""

    def lay_out(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        lay_out(self.mode, self.folder)

    def ranks(self) -> list[int]:
        """Of several processes one, or all as in a power cut."""
        return self.draw.choice([list(range(self.mode.processes)), [self.draw.randrange(self.mode.processes)]])

    def check_words(self, ended: Ended) -> None:
        if ended.hung:
            raise Lost("it hangs")
        if "Traceback (most recent call last)" in ended.errors:
            raise Lost(f"a traceback: {' / '.join(ended.errors.splitlines()[-2:])}")

    def check_results(self) -> None:
        """Each result is there whole, or as an older one was, or not at all."""
        here = result_files(self.mode, self.folder)
        for result in self.mode.results:
            files, truth, older = ({name: content for name, content in all_files.items()
                                    if name.split("/")[0] == result}
                                   for all_files in (here, self.target.truth.files, self.target.older))
            there = (self.folder / result).exists()
            whole = [truth, older]
            if result in RECORDS and there:
                whole += [{result: truth[result][: len(files[result])]}]            # as far as it has come
            if there and files not in whole:
                raise Lost(f"{result} lies there half written")

    def check_sentence(self, ended: Ended) -> str:
        """That one was said, and which."""
        said = re.findall(rf"^(?:rank \d+: )?{re.escape(self.mode.program)}: (.*)$", ended.errors, re.M)
        if not said or len(said) > self.mode.processes:
            raise Lost(f"exit codes {ended.codes} with {len(said)} sentences: {ended.errors[-300:]}")
        return said[0]

    def left(self, ended: Ended) -> Left:
        try:
            return left(self.mode, self.folder, ended)
        except (OSError, ValueError) as error:
            raise Lost(f"metrics.jsonl cannot be read: {error}") from None

    def check_truth(self, ended: Ended, *, metrics: bool = True) -> None:
        found = self.left(ended)
        if ended.code and not self.mode.resumes:                    # refused, for the result is there
            found = found._replace(scores=self.target.truth.scores)
        if wrong := difference(self.target.truth, found, metrics=metrics):
            raise Lost(wrong)

    def saved(self, ended: Ended, *, all_steps: bool = False) -> int:
        """The step, or number of records, that must be on the disk after all that was told; with `all_steps` the last.

        A step is told of before its state is saved.
        """
        if self.mode.trains:
            return ended.steps if all_steps else max(ended.steps - 1, 0) // SAVE_EVERY * SAVE_EVERY
        records = self.folder / RECORDS[0]
        return records.read_bytes().count(b"\n") if records.exists() else 0

    def check_goes_on(self, least: int) -> str:
        """That the same command, given again as the program asks for it, ends in the truth, and begins no earlier."""
        if not self.mode.resumes:
            ended = self.launcher.run(self.mode, self.folder)
            how = "from the beginning"
            if refused := ended.code == 2 and "exists" in ended.errors:
                how = "the result was there"
                if result_files(self.mode, self.folder) != self.target.truth.files:
                    how = "with --overwrite, as it says"
                    ended = self.launcher.run(self.mode, self.folder, "--overwrite")
                    refused = False
            self.check_words(ended)
            if ended.code and not refused:
                raise Lost(f"the same command ends with {ended.codes}: {ended.errors[-300:]}")
            self.check_truth(ended)
            return how
        ended = self.launcher.run(self.mode, self.folder, "--resume", without="--overwrite")
        if fresh := ended.code == 2 and "nothing to resume here; start without --resume" in ended.errors:
            ended = self.launcher.run(self.mode, self.folder)
        how = "from the beginning" if fresh else f"after {'step' if self.mode.trains else 'record'} {ended.resumed}"
        self.check_words(ended)
        if ended.code:
            raise Lost(f"to go on {how} ends with {ended.codes}: {ended.errors[-300:]}")
        if ended.resumed < least:
            raise Lost(f"{least} had been saved, but it goes on {how}")
        self.check_truth(ended)
        return how


def moment(attack: Attack, number: int) -> str:
    part, ranks = attack.draw.random(), attack.ranks()
    for _ in range(3):
        seconds = part * attack.target.seconds
        attack.what = f"kill -9 of {ranks} after {seconds:.2f} of {attack.target.seconds:.2f} s"
        attack.lay_out()
        started = time.monotonic()
        ended = run_alone(attack.mode, attack.folder, {"number": int(signal.SIGKILL), "after": seconds, "to": ranks})
        if any(ended.codes):
            break
        attack.target.seconds = time.monotonic() - started          # it had ended: the machine was busier before
    return _killed(attack, ended)


def event(attack: Attack, number: int) -> str:
    choices = attack.target.choices("event")
    where, when = choices[number % len(choices)]
    attack.what = f"kill -9 {when} {where}"
    attack.lay_out()
    return _killed(attack, attack.launcher.run(attack.mode, attack.folder, watches=_kill(where, when)))


def dark(attack: Attack, number: int) -> str:
    choices = attack.target.choices("dark")
    where = choices[number % len(choices)]
    attack.what = f"no power after {where}"
    attack.lay_out()
    ended = attack.launcher.run(attack.mode, attack.folder, watches=_kill(where, "dark"), ends={"dark": True})
    return _killed(attack, ended)


def _killed(attack: Attack, ended: Ended) -> str:
    attack.check_words(ended)
    attack.check_results()
    return attack.check_goes_on(attack.saved(ended))


def asked_to_end(attack: Attack, number: int) -> str:
    which, alone = (signal.SIGTERM, signal.SIGINT)[number % 2], number // 2 % 2 == 1
    whole = attack.target.seconds if alone else attack.target.forked_seconds
    seconds = attack.draw.uniform(0.15, 1) * whole                  # before, Python itself starts
    attack.what = f"{which.name} after {seconds:.2f} of {whole:.2f} s"
    attack.lay_out()
    sent = {"number": int(which), "after": seconds}
    ended = run_alone(attack.mode, attack.folder, sent) if alone else \
        attack.launcher.run(attack.mode, attack.folder, ends=sent)
    if attack.mode.file not in ended.errors.partition("Traceback")[2]:           # else Python itself still started
        ended = ended._replace(errors=ended.errors.partition("Traceback")[0])
    attack.check_words(ended)
    attack.check_results()
    allowed = {128 + which}
    if not 0 < ended.steps < STEPS:                                 # before or after the loop of training
        allowed |= {0, -which} | ({1, -signal.SIGTERM} if attack.mode.processes > 1 else set())   # when others ended
    if not allowed.issuperset(ended.codes):
        raise Lost(f"exit codes {ended.codes} after step {ended.steps}: {ended.errors[-300:]}")
    if which == signal.SIGINT:
        _check_strays(attack)
    return attack.check_goes_on(attack.saved(ended, all_steps=True))


def write(attack: Attack, number: int) -> str:
    choices = attack.target.choices("write")
    where, code, lasts = choices[number % len(choices)]
    attack.what = f"{code} {'since' if lasts else 'at'} {where}"
    attack.lay_out()
    ended = attack.launcher.run(attack.mode, attack.folder, watches={
        where.rank: {"act": "fail", "at": where.number, "errno": code, "lasts": lasts}})
    attack.check_words(ended)
    attack.check_results()
    if ended.codes[where.rank] not in (0, 1):
        raise Lost(f"exit codes {ended.codes}: {ended.errors[-300:]}")
    if ended.code == 0:
        attack.check_truth(ended)                                   # it did without what failed
    else:
        attack.check_sentence(ended)
    if code == "ENOSPC":
        _check_strays(attack)
    return attack.check_goes_on(attack.saved(ended))


def _check_strays(attack: Attack) -> None:
    if strays := [path.name for path in attack.folder.rglob(".*") if path.suffix in HIDDEN]:
        raise Lost(f"it leaves {', '.join(strays)}")


def damage(attack: Attack, number: int) -> str:
    choices = attack.target.choices("damage")
    which, file, part, how = choices[number % len(choices)]
    shutil.copytree(attack.target.snapshots[which], attack.folder, symlinks=True)
    attack.what = f"{file} of a run that is {which}: {part.name} {how(attack.folder / file, part, attack.draw)}"
    ended = attack.launcher.run(attack.mode, attack.folder, "--resume", without="--overwrite")
    attack.check_words(ended)
    log = Path(file).name == "metrics.jsonl"
    if ended.code == 0:
        if log:
            _check_rest_of_metrics(attack, ended, HALF * SAVE_EVERY if which == "half done" else STEPS)
        attack.check_truth(ended, metrics=not log)
        return f"after step {ended.resumed}"
    said = attack.check_sentence(ended)
    if log:
        raise Lost(f"a line of metrics.jsonl blocks the whole state: {said}")
    if re.match(r"out\.training/last\b", file) and len(list(attack.folder.glob("out.training/last*.pt"))) > 1:
        raise Lost(f"refused, though another state is there: {said}")
    ended = attack.launcher.run(attack.mode, attack.folder, "--overwrite", without="--overwrite")
    attack.check_words(ended)
    if ended.code:
        raise Lost(f"refused ({said}), and with --overwrite it ends with {ended.codes}: {ended.errors[-300:]}")
    attack.check_truth(ended)
    return f"refused: {said}"


def _check_rest_of_metrics(attack: Attack, ended: Ended, last: int) -> None:
    """What is damaged cannot be known again; what can be read stays, and the lines after the step `last` come once."""
    truth, found = attack.target.truth.metrics, attack.left(ended).metrics
    later = [line for line in truth if line["step"] > last]
    if len(found) > len(truth) or found[len(found) - len(later):] != later:
        raise Lost(f"metrics.jsonl has other lines, of steps {[line.get('step') for line in found]}")


ATTACKS: dict[str, Callable[[Attack, int], str]] = {
    "moment": moment, "event": event, "dark": dark, "signal": asked_to_end, "write": write, "damage": damage}


# ---- what can be hit: (site, choice) ---------------------------------------------------------------------------------


def _kills(target: Target) -> list[tuple[Hashable, Any]]:
    return [((each.site, when), (each, when)) for each in target.events
            for when in ("midway", "after")[each.kind != "write":]]


def _cuts(target: Target) -> list[tuple[Hashable, Any]]:
    return [(each.site, each) for each in target.events]


def _failures(target: Target) -> list[tuple[Hashable, Any]]:
    return [((each.site, code, lasts), (each, code, lasts)) for each in target.events for code, kinds in FAILS.items()
            if each.kind in kinds for lasts in (False, True)]


def _damages(target: Target) -> list[tuple[Hashable, Any]]:
    found = []
    for which, folder in target.snapshots.items():
        for path in sorted(path for path in folder.glob("out*/**/*") if path.is_file()):
            file = path.relative_to(folder).as_posix()
            found += [((which, file, re.sub("[0-9]+", "N", part.name), how.__name__), (which, file, part, how))
                      for part in damages.parts(path) for how in (damages.cut, damages.flip)]
    return found


CHOICES = {"event": _kills, "dark": _cuts, "write": _failures, "damage": _damages}
