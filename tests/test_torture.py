"""The torture notices what it is there for: a small program with a fault loses, the same without one survives."""

import os
from random import Random

import pytest
import torch
from safetensors.torch import save_file

from tests.torture import damage
from tests.torture.__main__ import planned, table
from tests.torture.attacks import ATTACKS, Event, Target, Verdict, difference, spread
from tests.torture.modes import MODES, Launcher, Left, Mode, write_lines

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the harness forks")

# Six steps of a number; like the doors it saves after every second, swears by its sums, and goes on with --resume.
PROGRAM = '''
import os, signal
signal.signal(signal.SIGINT, lambda *_: os._exit(130))
import glob, hashlib, io, json, re, sys, time, zipfile

FAULT, PAUSE, LAST, LOG = sys.argv[1], float(sys.argv[2]), "out.training/last.pt", "out.training/metrics.jsonl"


class Refused(Exception):
    pass


def write(path, content):
    if FAULT == "writes in place":
        with open(path, "wb") as file:
            file.write(content)
        return
    partial = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.getpid()}.partial")
    try:
        with open(partial, "wb") as file:
            file.write(content)
            file.flush()
            if FAULT != "does not sync":
                os.fsync(file)
        os.replace(partial, path)
    except OSError:
        if os.path.exists(partial):
            os.unlink(partial)
        raise


def save(state):
    text = json.dumps(state)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("last/state", hashlib.sha256(text.encode()).hexdigest() + text)
    write(LAST, packed.getvalue())


def load():
    if not os.path.exists(LAST):
        raise Refused(f"{LAST}: there is nothing to resume here; start without --resume")
    try:
        if FAULT == "trusts the disk":
            content = open(LAST, "rb").read()
            return json.loads(re.search(rb"{.step.*?]}", content)[0])
        text = zipfile.ZipFile(LAST).read("last/state").decode()
        if hashlib.sha256(text[64:].encode()).hexdigest() != text[:64]:
            raise ValueError
        return json.loads(text[64:])
    except Exception:
        if FAULT == "breaks down":
            raise
        raise Refused(f"{LAST} is damaged; start anew with --overwrite") from None


def log(state):
    write(LOG, "".join(line + "\\n" for line in state["lines"]).encode())


def main():
    asked = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: asked.append(number))
    os.makedirs("out.training", exist_ok=True)
    if FAULT != "leaves its litter":
        for path in glob.glob(".*.partial") + glob.glob("out.training/.*.partial"):
            os.unlink(path)
    state = load() if "--resume" in sys.argv else {"step": 0, "number": 7**300, "lines": []}
    if state["step"]:
        print(f"resuming after step {state['step']} of 6", file=sys.stderr)
    if FAULT != "counts twice":
        log(state)
    while state["step"] < 6:
        state["step"] += 1
        state["number"] = state["number"] * 31 % 10**250
        state["lines"].append(json.dumps({"step": state["step"], "loss": state["number"] % 10007}))
        print(f"step {state['step']}/6", file=sys.stderr, flush=True)
        if FAULT == "counts twice":
            with open(LOG, "a") as file:
                file.write(state["lines"][-1] + "\\n")
        else:
            log(state)
        if state["step"] % 2 == 0 or asked and FAULT != "forgets at its end":
            save(state)
        if asked:
            sys.exit(128 + asked[0])
        time.sleep(PAUSE)
    write("out", str(state["number"]).encode())
    print(json.dumps({"number": state["number"]}))


try:
    main()
except (Refused, OSError) as error:
    if FAULT == "breaks down":
        raise
    print(f"program.py: {error}", file=sys.stderr)
    sys.exit(2 if isinstance(error, Refused) else 1)
'''


@pytest.fixture(scope="module")
def launcher():
    started = Launcher(imported=("glob", "hashlib", "zipfile"))
    yield started
    started.close()


@pytest.fixture
def toy(tmp_path, launcher):
    """The program above with a fault, as a target of attacks; with pauses where moments matter."""
    def target(fault, kind):
        (tmp_path / "program.py").write_text(PROGRAM, encoding="utf-8")
        command = (str(tmp_path / "program.py"), fault, "0.04" if kind in ("moment", "signal") else "0")
        return Target(Mode("toy", command), tmp_path, launcher, seed=0)
    return target


@pytest.mark.parametrize("kind, number", [("moment", 2), ("event", 8), ("dark", 6), ("signal", 4), ("write", 10),
                                          ("damage", 10)])
def test_property_a_program_without_a_fault_survives(kind, number, toy, launcher):
    target = toy("none", kind)
    verdicts = [target.attack(kind, each, launcher) for each in range(number)]
    assert [verdict for verdict in verdicts if not verdict.survived] == []
    assert [verdict.attack for verdict in verdicts] == [f"toy:{kind}:{each}" for each in range(number)]


@pytest.mark.parametrize("fault, kind, words", [
    ("writes in place", "event", "half written"),
    ("writes in place", "event", "to go on after step 0 ends with [2]: program.py: out.training/last.pt is damaged"),
    ("does not sync", "dark", "to go on after step 0 ends with [2]: program.py: out.training/last.pt is damaged"),
    ("leaves its litter", "event", "besides there lie out.training/."),
    ("counts twice", "event", "metrics.jsonl has other lines, of steps [1, "),
    ("forgets at its end", "signal", "had been saved, but it goes on"),
    ("breaks down", "write", "a traceback: "),
    ("trusts the disk", "damage", "out is another"),
])
def test_property_a_fault_is_counted_as_lost(fault, kind, words, toy, launcher):
    target, said = toy(fault, kind), []
    for number in range(40):
        verdict = target.attack(kind, number, launcher)
        said += [verdict.how] * (not verdict.survived)
        if said and words in said[-1]:
            return
    raise AssertionError(said)


def test_property_an_attack_can_be_repeated_alone(toy, launcher):
    target = toy("none", "damage")
    third = [target.attack("damage", number, launcher) for number in range(3)][2]
    assert target.attack("damage", 2, launcher) == third


def test_refusal_of_a_program_that_is_not_always_the_same(tmp_path, launcher):
    (tmp_path / "program.py").write_text("import os\nos.mkdir('out.training')\n"
                                         "open('out.training/metrics.jsonl', 'w').close()\n"
                                         "open('out', 'w').write(str(os.getpid()))\n", encoding="utf-8")
    with pytest.raises(RuntimeError, match="two whole runs differ, so no attack can be judged: out is another"):
        Target(Mode("toy", (str(tmp_path / "program.py"),)), tmp_path, launcher, seed=0)


def test_worked_example_what_is_hit_first_is_hit_again_last():
    order = spread([("a", 1), ("a", 2), ("a", 3), ("b", 4), ("c", 5)], Random(0))
    assert {order[0], order[1], order[2]} > {4, 5} and sorted(order) == [1, 2, 3, 4, 5]
    names = (".last-4.pt.0a1b2c3d.partial", ".x.jsonl.4711.part", "last-12")
    assert [Event(0, 1, "write", name).site[2] for name in names] == ["last-N.pt", "x.jsonl", "last-N"]


def test_worked_example_the_parts_of_files(tmp_path):
    torch.save({"a": torch.zeros(3), "b": torch.ones(5)}, tmp_path / "last.pt")
    save_file({"w": torch.zeros(2, 3), "v": torch.zeros(4)}, tmp_path / "x.safetensors")
    write_lines(tmp_path / "metrics.jsonl", [{"step": 1}])
    for path in tmp_path.iterdir():
        parts = damage.parts(path)
        assert parts[0].start == 0 and parts[-1].end == path.stat().st_size
        assert all(before.end == after.start for before, after in zip(parts, parts[1:], strict=False))
    names = {part.name: part.end - part.start for part in damage.parts(tmp_path / "last.pt")}
    assert names["data/0"] == 12 and names["data/1"] == 20 and names["end"] == 22 and "header of data.pkl" in names
    assert {"length", "header", "w", "v"} == {part.name for part in damage.parts(tmp_path / "x.safetensors")}


def test_worked_example_damage(tmp_path):
    for number, how in enumerate((damage.cut, damage.flip)):
        path = tmp_path / str(number)
        path.write_bytes(bytes(100))
        said = how(path, damage.Part("middle", 40, 60), Random(0))
        content = path.read_bytes()
        if how is damage.cut:
            assert 40 <= len(content) < 60 and said == f"cut at byte {len(content)}"
        else:
            place = next(i for i, byte in enumerate(content) if byte)
            assert 40 <= place < 60 and content[place].bit_count() == 1 and f"byte {place} " in said


def test_worked_example_differences():
    truth = Left({"out/a": b"1"}, [{"step": 1, "loss": 2.0}], {"loss": 2.0}, {"out", "out/a"})
    assert difference(truth, truth) == ""
    found = Left({}, [], {}, {"out", ".out.partial"})
    for words in ("out/a is missing", "other lines, of steps []", "scores", "besides there lie .out.partial",
                  "there is no out/a"):
        assert words in difference(truth, found)
    assert "metrics" not in difference(truth, found, metrics=False)


def test_worked_example_the_table():
    verdicts = [Verdict("lora:event:0", "", True, ""), Verdict("lora:event:1", "", False, ""),
                Verdict("fsdp:write:0", "", True, "")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table(verdicts).splitlines()]
    assert dict(zip(cells[0], cells[2], strict=True)) == {
        "mode": "lora", "moment": "-", "event": "1/2", "dark": "-", "signal": "-", "write": "-", "damage": "-",
        "tried": "2", "survived": "1", "lost": "1"}
    assert cells[3][0] == "fsdp" and cells[3][-3:] == ["1", "1", "0"]
    assert cells[4][:3] == ["together", "-", "1/2"] and cells[4][-3:] == ["3", "2", "1"]


def test_property_the_clock_may_stop_anywhere():
    """In each turn every mode has every kind once, and the first attacks are of as many modes and kinds as can be."""
    class Known:
        def __init__(self, name):
            self.name = name

        def kinds(self):
            return list(ATTACKS)

        def choices(self, kind):
            return [None] * (3 if kind == "event" else 100)

    plan = [(number, kind, target.name) for number, kind, target in planned([Known(name) for name in "abc"], 24, [])]
    assert plan[:4] == [(0, "moment", "a"), (0, "event", "b"), (0, "dark", "c"), (0, "event", "a")]
    assert len({(kind, name) for _, kind, name in plan[:18]}) == 18
    assert [sum(each[1] == kind for each in plan) for kind in ATTACKS] == [12, 9, 6, 6, 12, 12]     # 3 events are all
    assert {mode.name for mode in MODES} >= {"train", "lora", "full", "frozen", "int8", "int4", "labels", "merge",
                                             "ddp", "fsdp"}
