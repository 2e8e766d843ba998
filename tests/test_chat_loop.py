"""The chat loop, driven by scripted lines and by a real pseudo-terminal; the live line and its silence in a log."""

import codecs
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from llama.commands import chat_loop
from llama.decoding.speculative import SpeculativeCompletion, draft_stats

HOME = Path(__file__).resolve().parent.parent


class Echo:
    """A conversation that answers with the question, and remembers what it was told."""

    def __init__(self):
        self.asked, self.resets, self.system = [], 0, None
        self.chat_format = SimpleNamespace(default_system="")

    def reset(self):
        self.resets += 1

    def reply(self, question, on_text):
        self.asked.append(question)
        if question == "long":
            raise ValueError("the prompt is too long")
        on_text("You said: ")
        if question == "stop":
            raise KeyboardInterrupt
        on_text(question)


def talk(*lines):
    """Run the chat loop on these lines, of which exceptions are raised; returns the conversation."""
    conversation, left = Echo(), iter(lines)

    def read(prompt):
        line = next(left, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    chat_loop.chat(conversation, read=read)
    assert next(left, None) is None, "the chat ended too early"
    return conversation


def test_worked_example_questions_and_answers(capsys):
    assert talk("Who are you?", "", "   ", "你是谁？", EOFError()).asked == ["Who are you?", "你是谁？"]
    assert capsys.readouterr().out == "You said: Who are you?\nYou said: 你是谁？\n"


def test_property_a_bad_line_costs_no_other(capsys):
    assert talk("\ufefffirst", "caf\udce9", "second", EOFError()).asked == ["first", "second"]
    assert "not valid UTF-8" in capsys.readouterr().err
    assert talk("\udcff\udcfeh\0i\0", "\0y\0o\0u\0", "third", EOFError()).asked == ["third"]     # UTF-16, piped
    assert "holds zero bytes, as UTF-16 has them" in capsys.readouterr().err


def test_worked_example_commands(capsys):
    conversation = talk("/reset", "/system Be brief. 请简短", "/system", "/help", "/nonsense x", "/etc/hosts", "/quit")
    assert conversation.resets == 1 and conversation.system == "Be brief. 请简短"
    assert conversation.asked == ["/etc/hosts"]                    # a path is no command
    said = capsys.readouterr()
    assert "/reset  " in said.err and "there is no command /nonsense" in said.err
    assert said.err.count("system message: Be brief. 请简短") == 2
    assert said.out == "You said: /etc/hosts\n"


def test_worked_example_ctrl_c_in_an_answer_goes_back_to_the_prompt(capsys):
    assert talk("stop", "go on").asked == ["stop", "go on"]
    assert capsys.readouterr().out == "You said:  …\nYou said: go on\n"


def test_worked_example_a_chat_that_guessed_tells_how_well(capsys, monkeypatch):
    told = SpeculativeCompletion("", "", [1, 2, 3, 4], "stop", 3, 40.0, steps=2, guessed=4, acceptance=0.5,
                                 tokens_per_step=2.0, speed_up=1.5)
    monkeypatch.setattr(Echo, "reply", lambda self, question, on_text: told)
    talk("a", "b", EOFError())
    assert str(draft_stats([told, told])) in capsys.readouterr().err.splitlines()
    talk(EOFError())
    assert not capsys.readouterr().err


@pytest.mark.parametrize("end", [EOFError(), KeyboardInterrupt()])
def test_worked_example_ctrl_d_or_ctrl_c_at_an_empty_prompt_leaves(end):
    assert talk("a", end).asked == ["a"]


def test_refusal_of_a_question_does_not_end_the_chat(capsys):
    broken = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    assert talk("long", broken, "short").asked == ["long", "short"]
    said = capsys.readouterr()
    assert said.out == "You said: short\n"
    assert "the prompt is too long" in said.err and "not valid UTF-8" in said.err


SLOW_ECHO = """
import itertools, sys, time
sys.path[:0] = [{tests!r}, {home!r}]
from test_chat_loop import Echo
from llama.commands import chat_loop
from llama.decoding.speculative import SpeculativeCompletion, draft_stats
class Slow(Echo):
    def reply(self, question, on_text):
        for character in itertools.cycle(question):
            on_text(character)
            time.sleep(0.02)
chat_loop.chat(Slow())
print("left")
"""


# The terminal becomes that of the program, so that Ctrl-C on it is a signal. Not by preexec_fn: between fork and exec a
# process that has had threads may wait for ever.
TAKE_TERMINAL = ("import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
                 "os.execv(sys.argv[1], sys.argv[1:])")


class Typist:
    """A program on a pseudo-terminal, and somebody who types and reads."""

    def __init__(self, *command):
        self.screen, terminal_end = os.openpty()
        self.process = subprocess.Popen([sys.executable, "-c", TAKE_TERMINAL, *command], stdin=terminal_end,
                                        stdout=terminal_end, stderr=terminal_end, start_new_session=True, cwd=HOME,
                                        env=os.environ | {"TERM": "xterm", "PYTHONUTF8": "1"})
        os.close(terminal_end)
        self.seen = ""
        self.characters = codecs.getincrementaldecoder("utf-8")("replace")

    def wait_for(self, words, seconds=100):
        """Read until `words` come; returns everything up to them, which is then read."""
        end = time.monotonic() + seconds
        while words not in self.seen:
            assert time.monotonic() < end, f"{words!r} did not come; on the screen: {self.seen!r}"
            if select.select([self.screen], [], [], 0.1)[0]:
                try:
                    self.seen += self.characters.decode(os.read(self.screen, 65536))
                except OSError:                                     # nobody holds the other end any more
                    code = self.process.wait(seconds)
                    assert words in self.seen, f"{words!r} did not come; ended with {code} behind {self.seen!r}"
        before, _, self.seen = self.seen.partition(words)
        return before + words

    def type(self, keys):
        os.write(self.screen, keys.encode())


def test_worked_example_a_chat_on_a_real_terminal():
    typist = Typist(sys.executable, "-c", SLOW_ECHO.format(tests=str(HOME / "tests"), home=str(HOME)))
    typist.wait_for("you> ")
    typist.type("你好\x7f吗\r")                                       # a wide character taken back
    typist.wait_for("你吗你吗")
    typist.type("\x03")
    typist.wait_for("…")
    typist.wait_for("you> ")
    typist.type("half a line")
    typist.wait_for("half a line")
    time.sleep(0.2)                                                 # CPython misses what comes before readline waits
    typist.type("\x03")                                             # given up: a new prompt
    typist.wait_for("you> ")
    time.sleep(0.2)
    typist.type("\x03")
    typist.wait_for("left")
    assert typist.process.wait(300) == 0
