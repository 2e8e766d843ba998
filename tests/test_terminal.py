"""No text is a command to a terminal: the function, the streams, the doors on a terminal, and the program as it reads.
"""

import ast
import io
import itertools
import json
import logging
import re
import sys

import pytest
from test_ladder import FILES

import finetune
import generate
from llama import evaluate, predict, quantize
from llama.checkpoint import save_model
from llama.clean import __main__ as clean
from llama.runtime import cli, distributed, terminal
from llama.runtime.progress import Progress
from llama.runtime.terminal import visible
from weights import convert, fetch

EVIL = "\x1b]0;owned\x07\x1b[2J\x9b8m\r\b\x7f\u202egpj\u2066"
COMMANDS = {chr(code) for code in [*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)]
            if chr(code) not in "\n\t"}
OURS = re.compile("\r\x1b\\[K|\x1b\\[32m|\x1b\\[0m")                # a live line is rewritten; what is learned is green


def test_worked_example_what_a_terminal_obeys_is_shown():
    assert visible("a\x1b[2Jb\x9b\x7f\u202e\r\n\t") == r"a\u001b[2Jb\u009b\u007f\u202e\u000d" + "\n\t"
    assert {chr(code) for code in range(0x110000) if visible(chr(code)) != chr(code)} == COMMANDS


@pytest.mark.parametrize("text", ["你好，世界！", "👩‍👩‍👧 🏴\U000e0067\U000e007f", "e\u0301é", "مرحبا שלום",
                                  "a\\b\u200b"])
def test_property_what_people_write_stays(text):
    assert visible(text) == text


def test_property_pieces_are_the_whole_and_a_string_of_json_says_the_same():
    assert "".join(map(visible, EVIL)) == visible(EVIL) == visible(visible(EVIL))
    assert json.loads(visible(json.dumps(EVIL, ensure_ascii=False))) == EVIL


class Screen(io.TextIOWrapper):
    """What a terminal would be sent."""

    def __init__(self):
        super().__init__(io.BytesIO(), encoding="utf-8", newline="\n")

    def isatty(self):
        return True

    def text(self):
        self.flush()
        return self.buffer.getvalue().decode()


def watched(monkeypatch):
    """stdout and stderr on one terminal."""
    screen = Screen()
    for name in ("stdout", "stderr", "excepthook"):
        monkeypatch.setattr(sys, name, screen)
    return screen


def test_property_nothing_that_prints_gets_past_the_streams(monkeypatch):
    screen = watched(monkeypatch)
    terminal.guard()
    print(EVIL, EVIL, sep=EVIL, end=EVIL)
    print(EVIL, file=sys.stderr)
    sys.stdout.writelines([EVIL, EVIL])
    terminal.say(EVIL)
    logging.lastResort.handle(logging.makeLogRecord({"msg": EVIL, "levelno": logging.WARNING}))
    Progress(3, EVIL).show(1, EVIL)
    try:
        raise TypeError(f"a bug {EVIL}")
    except TypeError:
        sys.excepthook(*sys.exc_info())
    shown = OURS.sub("", screen.text())
    assert not COMMANDS & set(shown) and shown.count(visible(EVIL)) >= 10


def test_worked_example_what_is_said_of_a_models_files_is_said_once(monkeypatch):
    said = io.StringIO()
    monkeypatch.setattr(logging, "lastResort", handler := logging.StreamHandler(said))

    def main():
        for name, text in (("tokenizer.base", "A"), ("weights.formats.sources", "B"), ("tokenizer.base", "A"),
                           ("llama.datasets.reading", "C"), ("llama.datasets.reading", "C")):
            handler.handle(logging.makeLogRecord({"name": name, "msg": text}))

    with pytest.raises(SystemExit):
        cli.run(main)
    assert said.getvalue().split() == ["A", "B", "C", "C"]


def test_property_a_file_gets_exactly_what_was_written(monkeypatch):
    screen = watched(monkeypatch)
    out = io.StringIO()
    monkeypatch.setattr(sys, "stdout", out)
    terminal.guard()
    print(EVIL, end="")
    print(EVIL, file=sys.stderr)
    assert out.getvalue() == EVIL and screen.text() == visible(EVIL) + "\n"


def test_property_a_silent_rank_comes_back_to_the_guarded_streams(monkeypatch):
    screen = watched(monkeypatch)
    terminal.guard()
    streams = sys.stdout, sys.stderr
    distributed.hear()
    assert (sys.stdout, sys.stderr) == streams                      # of one that was never silent
    silence = io.StringIO()
    silence.voice = streams
    monkeypatch.setattr(sys, "stdout", silence)
    monkeypatch.setattr(sys, "stderr", silence)
    distributed.complain(EVIL)
    assert sys.stdout is streams[0] and not COMMANDS & set(screen.text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("doors")


def doors(folder):
    """(door, its arguments, with what names and texts of others they are shown)."""
    name, data, words = str(folder / f"no{EVIL}"), folder / f"data{EVIL}.jsonl", folder / f"text{EVIL}.txt"
    data.write_text(json.dumps({"instruction": f"x{EVIL}", "output": "y"}) + "\n", encoding="utf-8")
    words.write_text(f"a{EVIL}\n", encoding="utf-8")
    broken = folder / f"broken{EVIL}.jsonl"
    broken.write_text("{", encoding="utf-8")
    labelled = folder / f"labelled{EVIL}.csv"
    labelled.write_text("text,label\nx,a\ny,a\n", encoding="utf-8")
    tiny = ["--model", str(folder / "tiny"), "--device", "cpu"]
    short = [*tiny, "--max-new-tokens", "2"]
    return {
        "generate": (generate, [*short, "--prompt", EVIL]),
        "several": (generate, [*short, "--prompt", EVIL, "--prompt", "b"]),
        "json": (generate, [*short, "--prompt", EVIL, "--json"]),
        "chat": (generate, [*short, "--chat", "--prompt", EVIL, "--chat-format", "chatml"]),
        "a prompt file": (generate, [*short, "--prompt-file", str(words)]),
        "no model": (generate, ["--model", name, "--prompt", "a"]),
        "no adapter": (generate, [*tiny, "--adapter", name, "--prompt", "a"]),
        "no flag": (generate, [f"--{EVIL}"]),
        "no choice": (generate, ["--device", EVIL]),
        "no format": (generate, [*tiny, "--chat", "--chat-format", EVIL, "--prompt", "a"]),
        "inspect": (finetune, [*tiny, "--inspect", "--data", str(data)]),
        "inspect json": (finetune, [*tiny, "--inspect", "--data", str(data), "--json"]),
        "broken data": (finetune, [*tiny, "--inspect", "--data", str(broken)]),
        "no data": (finetune, [*tiny, "--inspect", "--data", f"{name}.jsonl"]),
        "one label": (finetune, [*tiny, "--inspect", "--task", "sentiment", "--data", str(labelled)]),
        "evaluate": (evaluate, [*tiny, "--task", "generation", "--data", str(words)]),
        "few labels": (evaluate, [*tiny, "--task", "sentiment", "--zero-shot", "--labels", f"b,c{EVIL}", "--data",
                                  str(labelled)]),
        "predict": (predict, [*tiny, "--task", "translation", "--chat-format", "chatml",
                              "--max-new-tokens", "2", EVIL]),
        "convert": (convert, [name, str(folder / "out")]),
        "verify": (convert, [str(words), "--verify"]),
        "fetch": (fetch, [EVIL]),
        "clean": (clean, [str(words), "--output", str(folder / f"clean{EVIL}.txt"), "--overwrite"]),
        "quantize": (quantize, ["--model", name, "--output", str(folder / "q")]),
    }


NAMES = ["generate", "several", "json", "chat", "a prompt file", "no model", "no adapter", "no flag", "no choice",
         "no format", "inspect", "inspect json", "broken data", "no data", "one label", "evaluate", "few labels",
         "predict", "convert", "verify", "fetch", "quantize", "clean"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no files of such names")
@pytest.mark.parametrize("name", NAMES)
def test_property_no_door_hands_on_what_a_terminal_obeys(name, folder, tiny_model, monkeypatch):
    screen = watched(monkeypatch)
    if not (folder / "tiny").exists():
        save_model(tiny_model, folder / "tiny")
    assert doors(folder).keys() == set(NAMES)
    door, arguments = doors(folder)[name]
    monkeypatch.setattr(sys, "argv", [f"door{EVIL}.py", *arguments])
    with pytest.raises(SystemExit):
        cli.run(door.main)
    shown = OURS.sub("", screen.text())
    assert shown and not COMMANDS & set(shown), repr(shown)


# ---- the program, as it reads ----------------------------------------------------------------------------------------

AROUND = re.compile(r"sys\.__std|std(out|err)\.buffer|os\.write\(|/dev/tty|\bCONOUT|\.detach\(\)\.write")
BARE = {"llama.runtime.terminal", "llama.runtime.progress", "llama.training.inspect_samples", "finetune"}
NO_DOORS = {"llama.runtime.worker"}                                 # a child that only its parent reads


@pytest.mark.parametrize("name", FILES)
def test_property_no_file_writes_around_the_streams(name):
    source = FILES[name].read_text(encoding="utf-8")
    assert not AROUND.search(source)
    assert name in BARE or not re.search(r"\bbare\(|\.bare\b|\\x1b|\\033|\\e\[", source), "a command of our own"
    if '__name__ == "__main__"' in source and name not in NO_DOORS:
        last = ast.unparse(ast.parse(source).body[-1])
        assert re.search(r"\brun\(main\)", last), "a door whose streams nobody guards"


def test_property_the_demo_is_a_door_too():
    assert "cli.run(main)" in (cli.PROJECT_ROOT / "examples" / "demo.py").read_text(encoding="utf-8")


FOLLOWS_A_FLAG = re.compile(r"--[a-z-]+ $")


def values_of_commands(tree):
    """What stands behind a flag in every text that is a command to give: `python … --model {…}`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(part.value for part in node.values if isinstance(part, ast.Constant))
            if "python " in text or "the same command" in text:
                for before, part in itertools.pairwise(node.values):
                    if isinstance(before, ast.Constant) and FOLLOWS_A_FLAG.search(before.value):
                        yield ast.unparse(part.value)


@pytest.mark.parametrize("name", FILES)
def test_property_a_command_that_is_printed_can_be_pasted(name):
    """Whatever its paths hold, blanks and quotes among it."""
    for value in values_of_commands(ast.parse(FILES[name].read_text(encoding="utf-8"))):
        assert value.startswith("shlex.quote("), f"{name}: {value} is printed as part of a command without quotes"
