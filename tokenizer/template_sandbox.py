r"""Where a stranger's chat template runs: Jinja as Hugging Face sets it up, without Python's inner parts, and bounded.

A template is a program that came with somebody's weights. Jinja's sandbox keeps it away from Python; what it leaves
open is time and memory: 'a' * 10**12, loops in loops, a macro that calls itself, [x, x] a hundred times over. Here

    every turn of a loop, call, filter, test, operator and comparison first looks at the clock, and
    none of them is begun on a text or list of more than MOST, or where it would make one: so none takes long, either.

That needs no signal, thread or process, and so holds on every system. A rendering takes a millisecond; SECONDS are for
templates that would not end.

The second thing that is added: texts of the template are `Text` (template_text.py), which remembers that they are.

Source: Hugging Face's «Writing a chat template» (trim_blocks, lstrip_blocks, raise_exception, strftime_now, loop
controls, tojson, {% generation %}). This file is imported where a template runs, since jinja2 is needed only there.

Try: leave the call out of `_Counted.visit_For`; tests/test_template_sandbox.py
(test_refusal_of_templates_that_would_not_end) does not come to its end.
"""

import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any

from jinja2 import TemplateError, nodes, pass_environment
from jinja2.compiler import CodeGenerator
from jinja2.ext import Extension
from jinja2.filters import make_attrgetter
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from tokenizer.template_text import LEARNED, MESSAGE, WRITTEN, Text, joined, message_of

SECONDS = 10                # for one rendering
MOST = 1 << 24              # characters in a value
MOST_ITEMS = 1 << 17        # items in a value, of all its lists together
MOST_BITS = 4096            # of a whole number
MOST_MADE = 1 << 28         # characters of all values that a rendering makes
MOST_WIDE = 100_000         # of a number that says how often or how wide
LONGEST = 1 << 18           # characters of a template

_NEVER = ("encode", "translate", "maketrans", "expandtabs", "to_bytes",     # cost more than their result shows,
          "plain", "runs", "stretches", "with_origin")                      # or are ours, and no method of a str
_NO_FILTERS = ("urlize", "wordwrap", "striptags", "xmlattr", "pprint")      # for web pages, and slow on long texts


class TooMuch(TemplateError):
    """A template that asks for more time or space than a chat can need."""


# ---- sizes -----------------------------------------------------------------------------------------------------------

def _size(value: Any) -> int:
    """Characters and items of a value, with all that it holds, as often as it holds it. Raises TooMuch."""
    if isinstance(value, str):
        if len(value) > MOST:
            raise TooMuch(f"it works on a text of more than {MOST:,} characters")
        return len(value)
    if isinstance(value, int):
        if value.bit_length() > MOST_BITS:
            raise TooMuch(f"it computes a number of more than {MOST_BITS} bits")
        return 8
    characters = items = 0
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, str | bytes):
            characters += len(each)
        elif isinstance(each, dict | list | tuple | set | frozenset):
            items = _at_most_items(items + len(each))
            left += each
            left += each.values() if isinstance(each, dict) else ()
        elif isinstance(each, Namespace):
            left.append(each._Namespace__attrs)
    return _at_most(characters + items)


def _at_most(*factors: int) -> int:
    product = 1
    for factor in factors:
        product *= factor
    if product > MOST:
        raise TooMuch(f"it works on a text of more than {MOST:,} characters")
    return product


def _at_most_items(number: int) -> int:
    if number > MOST_ITEMS:
        raise TooMuch(f"it works on a list of more than {MOST_ITEMS:,} items")
    return number


def _check_arguments(owner: Any, name: str, given: list[Any]) -> None:
    """Raise TooMuch where a function would make much of little. `owner` is what it works on, None for other calls."""
    sizes = [_size(each) for each in given]
    if owner is None:
        return
    _size(owner)
    if any(isinstance(each, int) and abs(each) > MOST_WIDE for each in given):
        raise TooMuch(f"it gives {name} a number above {MOST_WIDE:,}")
    if name in ("split", "rsplit", "splitlines") and len(owner) > MOST_ITEMS:
        _at_most_items(len(getattr(str, name)(owner, *given)))
    elif name == "replace" and len(given) >= 2:
        _at_most_items(str(owner).count(str(given[0])))
        _at_most(str(owner).count(str(given[0])), sizes[1])
    elif name in ("indent", "tojson"):
        _at_most(_size(owner), max([1, *sizes, *(each for each in given if isinstance(each, int))]))
    elif name == "format" and isinstance(owner, str):
        _check_format(owner, "%", given)


def _check_format(format: str, sign: str, values: Any) -> None:
    if re.search(r"%[^a-zA-Z%]*(\d{5}|\*)" if sign == "%" else r"\{[^{}]*(\d{5}|\{)", format):
        raise TooMuch("its format asks for a width of more than 9,999")
    _at_most(max(1, format.count(sign)), _size(values) + 10_000)


# ---- what templates call ---------------------------------------------------------------------------------------------

def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(format: str) -> Text:
    if re.search(r"\d{3}", format):
        raise TooMuch("its date asks for a width of more than 99")
    return Text(datetime.now().strftime(format))


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None,
            sort_keys: bool = False) -> Text:
    """Jinja's own would write < as \\u003c, for web pages. All of it counts as said, by whom its values came from."""
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    return Text(text, message_of(value) * MESSAGE)


def _dict(*pairs: Any, **more: Any) -> dict:
    return dict(*pairs, **more)


class _Namespace(Namespace):
    """Jinja's, closed to the names of Python's inner parts, which it would otherwise hand on."""

    def __init__(*args: Any, **names: Any) -> None:                 # noqa: N805, `self` may be one of the names
        self, *pairs = args
        Namespace.__init__(self)
        for name, value in dict(*pairs, **names).items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        if str(name).startswith("_"):
            raise SecurityError(f"a namespace keeps nothing under the name {name!r}")
        super().__setitem__(name, value)


@pass_environment
def _join(environment: Any, values: Iterable[Any], d: str = "", attribute: str | int | None = None) -> Text:
    """Jinja's forgets who wrote what."""
    get = make_attrgetter(environment, attribute) if attribute is not None else None
    parts = [str(environment.weighed(get(each) if get else each)) for each in values]
    _at_most(1, sum(map(len, parts)) + len(parts) * len(str(d)))
    return joined([str(d)]).join(parts)


class _Generation(Extension):
    """{% generation %} … {% endgeneration %} encloses what a model should learn to say."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_learned"), [], [], body).set_lineno(line)

    def _learned(self, caller: Callable[[], str]) -> Text:
        return joined([caller()]).with_origin(lambda origin: origin | LEARNED)


# ---- the program that is made of a template --------------------------------------------------------------------------

class _Counted(NodeTransformer):
    """Puts a look at the clock into every turn of a loop, and before what decides whether there is one."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        tick = nodes.Call(nodes.EnvironmentAttribute("tick"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(tick).set_lineno(node.lineno))
        if node.test:
            node.test = nodes.And(tick, node.test)
        return node.set_environment(node.environment)


class _Writer(CodeGenerator):
    """Jinja's, with texts that know that the template wrote them, and comparisons that are bounded."""

    def visit_Const(self, node: nodes.Const, frame: Any) -> None:
        value = node.as_const(frame.eval_ctx)
        if type(value) is str:                                      # and no Markup, which `safe` makes
            self.write(f"environment.written({value!r})")
        else:
            super().visit_Const(node, frame)

    def visit_TemplateData(self, node: nodes.TemplateData, frame: Any) -> None:
        self.write(f"environment.written({node.data!r})")

    def _output_const_repr(self, group: Iterable[Any]) -> str:
        return f"environment.written({''.join(group)!r})"

    def visit_Concat(self, node: nodes.Concat, frame: Any) -> None:
        self.write("environment.concat((")
        for each in node.nodes:
            self.write("str(environment.weighed(")
            self.visit(each, frame)
            self.write(")), ")
        self.write("))")

    def visit_Compare(self, node: nodes.Compare, frame: Any) -> None:
        self.write("(environment.tick() and ")
        self._weighed(node.expr, frame)
        for operand in node.ops:
            self.visit(operand, frame)
        self.write(")")

    def visit_Operand(self, node: nodes.Operand, frame: Any) -> None:
        words = {"eq": "==", "ne": "!=", "gt": ">", "gteq": ">=", "lt": "<", "lteq": "<=", "in": "in",
                 "notin": "not in"}
        self.write(f" {words[node.op]} ")
        self._weighed(node.expr, frame)

    def visit_Dict(self, node: nodes.Dict, frame: Any) -> None:
        self.write("{")
        for pair in node.items:
            self._weighed(pair.key, frame)
            self.write(": ")
            self.visit(pair.value, frame)
            self.write(", ")
        self.write("}")

    def _weighed(self, node: nodes.Expr, frame: Any) -> None:
        self.write("environment.weighed(")
        self.visit(node, frame)
        self.write(")")


# ---- the environment -------------------------------------------------------------------------------------------------

class Environment(ImmutableSandboxedEnvironment):
    """Jinja, bounded. One rendering at a time: whoever renders holds the lock and starts the clock with `begin`."""

    intercepted_binops = frozenset(["+", "-", "*", "/", "//", "%", "**"])
    code_generator_class = _Writer

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation],
                         finalize=self.weighed)
        self.filters |= {"tojson": _tojson, "join": _join}
        self.filters = {name: self._bounded(each) for name, each in self.filters.items() if name not in _NO_FILTERS}
        self.tests = {name: self._bounded(each) for name, each in self.tests.items()}
        self.globals |= {"raise_exception": _raise_exception, "strftime_now": _strftime_now, "dict": _dict,
                         "namespace": _Namespace}
        del self.globals["lipsum"]
        self.written = lru_cache(maxsize=None)(lambda text: Text(text, WRITTEN))
        self.one_at_a_time = threading.Lock()
        self.begin()

    def compiled(self, template: str) -> Any:
        """The program of a template. Raises TooMuch for one that is longer than any."""
        if len(template) > LONGEST:
            raise TooMuch(f"it is longer than {LONGEST:,} characters")
        return self.from_string(template)

    def begin(self) -> None:
        """Start the clock."""
        self.ends, self.made_so_far = time.monotonic() + SECONDS, 0

    def _parse(self, *source: Any) -> nodes.Template:
        return _Counted().visit(super()._parse(*source))

    # What is counted

    def tick(self) -> bool:
        if time.monotonic() > self.ends:
            raise TooMuch(f"it takes longer than {SECONDS} seconds")
        return True

    def weighed(self, value: Any) -> Any:
        """The value itself. Raises TooMuch for one so large that work on it might take long."""
        _size(value)
        return value

    def made(self, value: Any) -> Any:
        """The same for what was just made."""
        self.made_so_far += _size(value)
        if self.made_so_far > MOST_MADE:
            raise TooMuch(f"it makes more than {MOST_MADE:,} characters on its way")
        return value

    def concat(self, parts: Iterable[str]) -> Text:
        """All that a template, a macro or a ~ wrote, laid end to end."""
        found, length = [], 0
        for part in parts:
            found.append(part)
            length += len(part)
            if length > MOST:
                raise TooMuch(f"it writes more than {MOST:,} characters")
        return self.made(joined(found))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.tick()
        sizes = _size(left), _size(right)
        if operator == "*" and not (isinstance(left, int | float) and isinstance(right, int | float)):
            _at_most(*(abs(each) if isinstance(each, int) else size
                       for each, size in zip((left, right), sizes, strict=True)))
        if operator == "**" and (abs(right) > MOST_BITS or isinstance(left, int) and
                                 left.bit_length() * abs(right) > MOST_BITS):
            raise TooMuch(f"it computes a number of more than {MOST_BITS} bits")
        if operator == "%" and isinstance(left, str):
            _check_format(left, "%", right)
        return self.made(super().call_binop(context, operator, left, right))

    def getitem(self, obj: Any, argument: Any) -> Any:
        return super().getitem(obj, self.weighed(argument))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _NEVER and super().is_safe_attribute(obj, attr, value)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        found = super().wrap_str_format(value)
        if found is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            _check_format(value.__self__, "{", [list(args), kwargs])
            return found(*args, **kwargs)

        return bounded

    def call(__self, __context: Any, __callable: Any, *args: Any, **kwargs: Any) -> Any:    # noqa: N805, as Jinja's
        __self.tick()
        if __callable == __self.tick:
            return True
        owner, name = getattr(__callable, "__self__", None), getattr(__callable, "__name__", "")
        given = [*args, *(value for key, value in kwargs.items() if key not in ("_loop_vars", "_block_vars"))]
        _check_arguments(owner if isinstance(owner, str) else None, name, given)
        if name == "join" and isinstance(owner, str) and len(given) == 1:
            return __self.made(_join(__self, given[0], owner))
        return __self.made(super().call(__context, __callable, *args, **kwargs))

    def _bounded(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter or test, counted."""
        name = function.__name__.removeprefix("do_").strip("_")

        @wraps(function)
        def bounded(*args: Any, **kwargs: Any) -> Any:
            self.tick()
            given = [each for each in args if not isinstance(each, Context | nodes.EvalContext | Environment)]
            if given and name in ("replace", "center", "indent", "format", "round", "truncate", "batch", "slice",
                                  "tojson"):
                _check_arguments(given[0], name, [*given[1:], *kwargs.values()])
            if name == "int" and isinstance(given[0], str) and len(given[0]) > 1000:
                raise TooMuch("it reads a number of more than 1,000 digits")
            if name == "sum" and any(isinstance(each, list | tuple) for each in [*given[1:], *kwargs.values()]):
                raise TooMuch("it adds up lists")
            for each in [*given, *kwargs.values()]:
                _size(each)
            return self.made(function(*args, **kwargs))

        return bounded


def line_of(error: BaseException) -> int | None:
    """The line of the template at which it went wrong, where Jinja knows it."""
    if getattr(error, "lineno", None):
        return error.lineno
    lines = [line for name, line in _frames(error) if name == "<template>"]
    return lines[-1] if lines else None


def _frames(error: BaseException) -> Iterator[tuple[str, int]]:
    trace = error.__traceback__
    while trace:
        yield trace.tb_frame.f_code.co_filename, trace.tb_lineno
        trace = trace.tb_next

