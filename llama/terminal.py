"""What a terminal sees: the chat loop, and of long work one live line; in a log nothing but what is meant for it.

Try: print the live line to stdout; tests/test_terminal.py (test_property_a_log_gets_no_live_line) fails, because
results on stdout must stay clean.
"""

import contextlib
import importlib
import sys
import time
import unicodedata
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llama.conversation import Conversation  # the trainer shows progress and needs no chat
    from llama.generation import Completion

HELP = """\
/reset         forget the conversation
/system TEXT   set the system message; without TEXT, show it
/help          these lines
/quit          leave, as Ctrl-D does, or Ctrl-C at the empty prompt
Ctrl-C         stop the answer; what has been said counts as said"""


def chat(conversation: "Conversation", *, read: Callable[[str], str] = input) -> None:
    """Ask for a line, answer it, until someone leaves. Answers go to stdout, all else to stderr.

    read  shows a prompt and returns a line, or raises EOFError; lines that come through a pipe get no prompt
    """
    with contextlib.suppress(ImportError):                          # where there is one, `input` edits wide characters
        importlib.import_module("readline")
    watched = sys.stdin.isatty()
    if watched:
        _remark("a chat: /help lists the commands, /quit leaves")
    answers = []
    while (line := _next_line(read, "you> " if watched else "")) is not None:
        command, _, text = line.strip().partition(" ")
        if command == "/quit":
            break
        if command == "/reset":
            conversation.reset()
            _remark("the conversation is forgotten")
        elif command == "/system":
            conversation.system = text.strip() or conversation.system
            _remark(f"system message: {conversation.system or conversation.chat_format.default_system or 'none'}")
        elif command == "/help":
            _remark(HELP)
        elif command.startswith("/") and command[1:].isalpha():
            _remark(f"there is no command {command}; /help lists those there are")
        elif line.strip():
            answers.append(_answer(conversation, line))
    if guessed := [answer for answer in answers if getattr(answer, "guessed", 0)]:
        from llama.speculative import success

        _remark(str(success(guessed)))


def _next_line(read: Callable[[str], str], prompt: str) -> str | None:
    """The next line; None when there is none and nobody waits for another."""
    while True:
        try:
            return read(prompt)
        except UnicodeDecodeError:
            _remark("this line is not valid UTF-8; it is left out")
        except EOFError:
            break
        except KeyboardInterrupt:
            if not _typed():
                break
            _remark("")                                             # the line is given up, not the chat
    if prompt:
        _remark("")
    return None


def _typed() -> str:
    """What stood on the line when Ctrl-C came; without readline nobody knows."""
    readline = sys.modules.get("readline")
    return readline.get_line_buffer() if readline else ""


def _answer(conversation: "Conversation", question: str) -> "Completion | None":
    """What came of it; None of one that was stopped or refused."""
    answer = None
    try:
        answer = conversation.reply(question, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        print(" …", end="")
    except ValueError as error:                                     # a question too long for the context, say
        _remark(str(error))
        return None
    print(flush=True)
    return answer


def _remark(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


class Progress:
    """A live line on stderr: what is done, how fast, and an estimate of what is left. Silent where nobody watches.

    total  0 where the clock ends the work, and no count is known
    """

    def __init__(self, total: int, what: str):
        self.total, self.what = total, what
        self.started = time.monotonic()
        self.live = sys.stderr.isatty()

    def show(self, done: int, text: str = "", *, left: float | None = None) -> None:
        """`done` of `total`, a few words about it, and seconds left, where the caller knows better than `left`."""
        if self.live:
            left = self.left(done) if left is None else left
            line = f"{self.what} {done}{f'/{self.total}' if self.total else ''} {text} · {duration(left)} left"
            print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    def left(self, done: int) -> float:
        """Seconds left, at the speed so far."""
        return (time.monotonic() - self.started) * (self.total - done) / max(done, 1)

    def clear(self) -> None:
        """Take the line away, so that something lasting can be printed."""
        if self.live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """75 -> '1 min 15 s'."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60} min"


def cells(text: str) -> int:
    """How many columns of a terminal a text takes: Chinese two a character, an accent or a joiner none."""
    widths = (0 if unicodedata.category(c) in ("Mn", "Me", "Cf") else 1 + (unicodedata.east_asian_width(c) in "WF")
              for c in text)
    return sum(widths)


def padded(text: str, columns: int) -> str:
    """The text with spaces up to so many columns of a terminal."""
    return text + " " * (columns - cells(text))
