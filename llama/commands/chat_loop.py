"""A chat in a terminal: lines in, answers out, and a few commands that begin with a slash.

Try: print remarks to stdout; tests/test_chat_loop.py fails, because answers on stdout must stay clean.
"""

import contextlib
import importlib
import sys
from collections.abc import Callable

from llama.decoding.chat_session import ChatSession
from llama.decoding.speculative import draft_stats
from llama.generation import Completion
from llama.runtime.terminal import say

HELP = """\
/reset         forget the conversation
/system TEXT   set the system message; without TEXT, show it
/help          these lines
/quit          leave, as Ctrl-D does, or Ctrl-C at the empty prompt
Ctrl-C         stop the answer; what has been said counts as said"""


def chat(conversation: ChatSession, *, read: Callable[[str], str] = input) -> None:
    """Ask for a line, answer it, until someone leaves. Answers go to stdout, all else to stderr.

    read  shows a prompt and returns a line, or raises EOFError; lines that come through a pipe get no prompt
    """
    with contextlib.suppress(ImportError):                          # where there is one, `input` edits wide characters
        importlib.import_module("readline")
    watched = sys.stdin.isatty()
    if not watched and hasattr(sys.stdin, "reconfigure"):           # or a bad byte would cost all that is read with it
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    if watched:
        say("a chat: /help lists the commands, /quit leaves")
    answers = []
    while (line := _next_line(read, "you> " if watched else "")) is not None:
        command, _, text = line.strip().partition(" ")
        if command == "/quit":
            break
        if command == "/reset":
            conversation.reset()
            say("the conversation is forgotten")
        elif command == "/system":
            conversation.system = text.strip() or conversation.system
            say(f"system message: {conversation.system or conversation.chat_format.default_system or 'none'}")
        elif command == "/help":
            say(HELP)
        elif command.startswith("/") and command[1:].isalpha():
            say(f"there is no command {command}; /help lists those there are")
        elif line.strip():
            answers.append(_answer(conversation, line))
    if guessed := [answer for answer in answers if getattr(answer, "guessed", 0)]:
        say(str(draft_stats(guessed)))


def _next_line(read: Callable[[str], str], prompt: str) -> str | None:
    """The next line; None when there is none and nobody waits for another."""
    while True:
        try:
            line = read(prompt)
            line.encode()
            if "\0" in line:
                say("this line holds zero bytes, as UTF-16 has them; send UTF-8: it is left out")
                continue
            return line.removeprefix("\ufeff")                      # of a piped file, a byte order mark
        except UnicodeError:
            say("this line is not valid UTF-8; it is left out")
        except EOFError:
            break
        except KeyboardInterrupt:
            if not _typed():
                break
            say("")                                             # the line is given up, not the chat
    if prompt:
        say("")
    return None


def _typed() -> str:
    """What stood on the line when Ctrl-C came; without readline nobody knows."""
    readline = sys.modules.get("readline")
    return readline.get_line_buffer() if readline else ""


def _answer(conversation: ChatSession, question: str) -> Completion | None:
    """What came of it; None of one that was stopped or refused."""
    answer = None
    try:
        answer = conversation.reply(question, lambda text: print(text, end="", flush=True))
    except KeyboardInterrupt:
        print(" …", end="")
    except ValueError as error:                                     # a question too long for the context, say
        say(str(error))
        return None
    print(flush=True)
    return answer
