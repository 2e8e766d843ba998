"""What a pickle would call, found without calling it: of torch.save's content only tensors and plain values may come.

`torch.load(weights_only=True)` calls nothing that could run code, but also what a few bytes make huge: a set of a
tensor of 10^9 numbers, a bytearray of a length, bytes that are encoded again and again as hexadecimal digits. So the
opcodes are gone through on a stack of names and texts, and a call that torch.save does not write is refused.

Try: let `encode` take any name of an encoding; tests/test_plain_pickle.py
(test_refusal_calls_that_tensors_and_plain_values_need_not) fails.
"""

import pickletools
from collections.abc import Callable
from typing import Any

_MARK = object()
_TENSORS = {f"torch._utils {name}" for name in ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")}


class _Global(str):
    """The name of what a pickle may call: «module name»."""


def strange_call(pickled: bytes) -> str:
    """The first call that neither tensors nor plain values need, or "" where there is none.

    Raises ValueError, IndexError, KeyError or TypeError for what is no pickle.
    """
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def above_mark() -> list[Any]:
        at = len(stack) - 1 - stack[::-1].index(_MARK)
        items = stack[at + 1 :]
        del stack[at:]
        return items

    drops: dict[str, Callable[[], Any]] = {
        "APPEND": stack.pop, "BUILD": stack.pop, "SETITEM": lambda: (stack.pop(), stack.pop()), "APPENDS": above_mark,
        "SETITEMS": above_mark, "PROTO": lambda: None}
    for opcode, argument, _ in pickletools.genops(pickled):
        name = opcode.name
        if name == "STOP":
            return ""
        if name == "REDUCE":
            arguments, called = stack.pop(), stack.pop()
            if not _is_plain(called, arguments):
                return str(called)[:80]
            stack.append(None)
        elif name in drops:
            drops[name]()
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "TUPLE":
            stack.append(tuple(above_mark()))
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            items = [stack.pop() for _ in range(int(name[-1]))]
            stack.append(tuple(reversed(items)))
        elif name == "BINPERSID":
            stack[-1] = None                                        # a storage
        elif opcode.stack_before or len(opcode.stack_after) != 1:
            return name                                             # NEWOBJ, INST, POP …: torch.save writes none
        else:
            stack.append(_Global(argument) if name == "GLOBAL" else argument if name == "BINUNICODE" else
                         () if name == "EMPTY_TUPLE" else None)
    return ""


def _is_plain(called: Any, arguments: Any) -> bool:
    """Whether a call only makes a tensor, an empty dictionary, or the bytes that Latin letters stand for."""
    if not isinstance(called, _Global) or not isinstance(arguments, tuple):
        return False
    if called == "collections OrderedDict":
        return not arguments
    if called == "_codecs encode":
        return len(arguments) == 2 and isinstance(arguments[0], str) and arguments[1] == "latin1"
    return called in _TENSORS
