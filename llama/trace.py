"""Read along: every tensor of one forward and one backward pass, beside the line that makes it.

    python -m llama.trace "The capital of France is"            # the first block, and what stands around the blocks
    python -m llama.trace "春风" --model zh-small --all --json   # every block, for a program

    llama/model.py:113  naive_attention, in layers.0.self_attn
        scores = scores + additive_mask(causal_mask(T, S, q.device) if mask is None else mask, scores.dtype)
            scores        B H T T     1 9 5 5     float32   mean …   std …   min …   max …   |gradient| …

Nothing in the model knows of it. `sys.settrace`, with which debuggers work, tells which line runs and what its
variables hold afterwards; a `TorchFunctionMode` sees each call of torch, so that what has no name is shown by the
function or the sign that made it. So a line number cannot be out of date. Attention runs as `naive_attention`, for of
torch's fused kernel nobody sees the scores. The loss is that of the next token, its mean.

Letters (B T D H G K F V, see config.py) are found by running a second time with other B and T: an axis that grows along
is theirs, and the others are sizes of the model.

Try: let `longer` in `trace` be as long as the text; tests/test_trace.py
(test_worked_example_letters_of_axes_also_where_two_sizes_are_equal) fails, for four heads are then called T.
"""

import ast
import functools
import inspect
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from llama.runtime.interrupt import quiet_start

with quiet_start(__name__):
    import torch
    from torch import Tensor, nn
    from torch.overrides import TorchFunctionMode

    from llama.checkpoint import PretrainedLlama
    from llama.commands import flags
    from llama.config import LlamaConfig, require_llama
    from llama.generation import encode_prompt, eval_mode
    from llama.heads import check_editable, require_lm_head
    from llama.lens import swapped_attend
    from llama.model import naive_attention
    from llama.runtime import cli
    from llama.runtime.progress import pad_to_width
    from llama.runtime.ranges import MANY, Range
    from llama.runtime.terminal import visible
    from llama.tasks.task import cross_entropy

# What stands in a line for the functions of torch that it calls by no name.
SIGNS = {"add": "+ sum", "sub": "-", "rsub": "-", "mul": "*", "div": "/", "truediv": "/", "reciprocal": "/",
         "matmul": "@", "pow": "**", "neg": "-", "getitem": "[]", "and": "&", "bitwise_and": "&", "or": "|",
         "bitwise_or": "|", "rshift": ">>", "lshift": "<<", "invert": "~", "bitwise_not": "~", "eq": "==", "ne": "!=",
         "ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@dataclass
class TensorRecord:
    """A tensor, and the line that makes it. Statistics are of its finite numbers; `others` counts those that are not.

    name           its module, function and variable: layers.0.self_attn.naive_attention.scores
    letters        of its axes, or their sizes where no letter stands for them
    gradient_norm  of the loss with respect to it; None where the loss does not follow from it by any gradient
    file, line     of the statement, whose text is `code`
    """

    name: str
    shape: tuple[int, ...]
    letters: tuple[str, ...]
    dtype: str
    mean: float | None
    std: float | None
    min: float | None
    max: float | None
    others: int
    gradient_norm: float | None
    module: str
    function: str
    file: str
    line: int
    code: str


def trace(model: PretrainedLlama, ids: Sequence[int]) -> tuple[list[TensorRecord], list[TensorRecord]]:
    """The tensors that one forward pass makes, in that order, and the parameters; with the gradients of the loss.

    Parameters and their `grad` stay as they are. Raises ValueError for a text of a single token, which has no next one.
    """
    require_lm_head(model)
    check_editable(model)
    T, context, window = len(ids), model.config.context, model.config.sliding_window
    if T < 2:
        raise ValueError("a text of one token has none to predict, so there is no loss; give a longer text")
    tokens = torch.tensor([list(ids)], device=model.device)
    with ExitStack() as swaps:
        swaps.enter_context(eval_mode(model))
        swaps.enter_context(_all_learn(model))
        for layer in model.layers:
            swaps.enter_context(swapped_attend(layer.self_attn, naive_attention))
        with _Watch(model) as watch:
            loss = _loss(model, tokens)
        longer = torch.zeros(3, T - 1 if T in (context, window) else T + 1, dtype=torch.int64, device=model.device)
        with _Watch(model) as again:
            _loss(model, longer)
        parameters = dict(model.named_parameters())
        asked = [tensor for tensor in (*(made.tensor for made in watch.made), *parameters.values())
                 if tensor.requires_grad]
        found = torch.autograd.grad(loss, asked, allow_unused=True)
    gradients = {id(tensor): gradient for tensor, gradient in zip(asked, found, strict=True)}
    letters = _Letters(model.config, T, longer.shape[1])
    tensors = [_record(made, letters.of(made.tensor.shape, other.tensor.shape), gradients)
               for made, other in zip(watch.made, again.made, strict=True)]
    return tensors, [_record(_Made(parameter, name, *_maker(model, name)), letters.of(parameter.shape, parameter.shape),
                             gradients) for name, parameter in parameters.items()]


def _loss(model: PretrainedLlama, tokens: Tensor) -> Tensor:
    logits = model(tokens)
    loss = cross_entropy(logits[0, :-1].float(), tokens[0, 1:]) / (tokens.shape[1] - 1)
    return loss


@dataclass
class _Made:
    tensor: Tensor
    name: str
    module: str
    function: str
    file: str
    line: int                                                       # the statement's first


class _Watch(TorchFunctionMode):
    """Keeps every tensor that a line of the project makes while the body runs, by its name: `made`."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.paths = {module: name for name, module in model.named_modules()}
        self.made: list[_Made] = []
        self.known: dict[int, tuple[_Made, Any]] = {}               # by id; the tensors themselves are held in `made`
        self.calls: dict[FrameType, tuple[dict[str, Any], int]] = {}    # variables before the line that runs; that line

    def __enter__(self) -> "_Watch":
        self.before = sys.gettrace()
        super().__enter__()
        sys.settrace(self.called)
        return self

    def __exit__(self, *error: Any) -> None:
        sys.settrace(self.before)
        super().__exit__(*error)
        self.calls.clear()                                          # frames hold this, and this them: a cycle, with
        self.known.clear()                                          # which every tensor would stay till it is found

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        if function.__name__.endswith("_") and not function.__name__.endswith("__"):    # writes over what is there
            before, _ = self.known.pop(id(arguments[0]), (None, None))
            if before is not None:
                before.tensor = before.tensor.clone()
        result = function(*arguments, **(options or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, Tensor) and id(tensor) not in self.known:
                self.keep(tensor, function.__name__, sys._getframe(1))
        return result

    def keep(self, tensor: Tensor, name: str, frame: FrameType) -> None:
        """A tensor that has no variable's name yet: it is called by the module, the function or the sign."""
        inside = ""                                                 # a module of torch's own, such as nn.Linear
        while not _is_ours(frame.f_code):
            inside = inside or self.path(frame) or ""
            frame = frame.f_back
        self.add(tensor, inside.rpartition(".")[2] or name, frame, frame.f_lineno)

    def add(self, tensor: Tensor, name: str, frame: FrameType, line: int) -> None:
        file, call = frame.f_code.co_filename, frame
        line, bare = _statements(file)[line], name.strip("_")
        signs = SIGNS.get(bare) or SIGNS.get(bare.removeprefix("r"), "")
        name = next((each for each in (name, *signs.split()) if each.strip("]") in _code(file, line)), name)
        while frame.f_code.co_name.startswith("<"):                 # <genexpr>: the function around it
            frame = frame.f_back
        function = frame.f_code.co_name
        while (module := self.path(frame)) is None and frame.f_code is not _loss.__code__:
            frame = frame.f_back
        module = module or ""
        path = (module, "" if function == "forward" else function, name)
        made = _Made(tensor, ".".join(filter(None, path)), module, function, file, line)
        self.known[id(tensor)] = made, (call, line)
        self.made.append(made)

    def path(self, frame: FrameType) -> str | None:
        """Of the module whose method a frame is; None for a function."""
        module = frame.f_locals.get("self")
        return self.paths.get(module) if isinstance(module, nn.Module) else None

    def called(self, frame: FrameType, event: str, argument: Any) -> Any:
        if not _is_ours(frame.f_code):
            return None
        self.calls[frame] = _tensors(frame), frame.f_lineno         # what comes in was made by the caller
        return self.line

    def line(self, frame: FrameType, event: str, argument: Any) -> Any:
        """A line is about to run, or its function to return: the variables that are new come from the line before."""
        before, line = self.calls[frame]
        now = _tensors(frame)
        for name, tensor in now.items():
            if before.get(name) is not tensor:
                made, place = self.known.get(id(tensor), (None, None))
                if made is not None and place == (frame, _statements(frame.f_code.co_filename)[line]):
                    made.name = made.name.rpartition(".")[0] + "." * ("." in made.name) + name  # its own line's result
                else:
                    self.add(tensor, name, frame, line)
        self.calls[frame] = now, frame.f_lineno
        return self.line


def _tensors(frame: FrameType) -> dict[str, Tensor]:
    return {name: value for name, value in frame.f_locals.items() if isinstance(value, Tensor)}


@functools.cache
def _is_ours(code: CodeType) -> bool:
    """Whether code is of this project, and no machinery of this file."""
    if code.co_filename == __file__:
        return code is _loss.__code__
    path = Path(code.co_filename).resolve()
    return path.is_relative_to(cli.PROJECT_ROOT) and path.relative_to(cli.PROJECT_ROOT).parts[0] in cli.PACKAGES


@functools.cache
def _statements(file: str) -> dict[int, int]:
    """Of each line the first line of the innermost statement that it belongs to."""
    first = {}
    for node in ast.walk(ast.parse(Path(file).read_text(encoding="utf-8"))):        # outer ones come first
        if isinstance(node, ast.stmt):
            body = getattr(node, "body", None)
            end = body[0].lineno - 1 if body else node.end_lineno
            first |= dict.fromkeys(range(node.lineno, end + 1), (node.lineno, end))
    return {line: start for line, (start, _) in first.items()}


@functools.cache
def _code(file: str, line: int) -> str:
    """The statement that begins at this line, as it stands there."""
    lines, first = Path(file).read_text(encoding="utf-8").splitlines(), _statements(file)
    end = line
    while first.get(end + 1) == line:
        end += 1
    return inspect.cleandoc("\n" + "\n".join(lines[line - 1 : end]))


def _maker(model: nn.Module, name: str) -> tuple[str, str, str, int]:
    """Of a parameter the module, «__init__», the file and the line that makes it: self.weight = …, or self.q_proj = …

    Where no line of ours makes it, as inside nn.Linear, it is the line that makes what holds it.
    """
    path, _, attribute = name.rpartition(".")
    while True:
        for kind in type(model.get_submodule(path)).__mro__:
            if kind.__module__.startswith("llama.") and attribute in (lines := _made_in(kind)):
                return path, "__init__", inspect.getsourcefile(kind), lines[attribute]
        assert path, f"no line makes {name}"
        path, _, attribute = path.rpartition(".")


@functools.cache
def _made_in(kind: type) -> dict[str, int]:
    """Attributes that `__init__` of a class sets, with the line."""
    if "__init__" not in vars(kind):
        return {}
    lines, start = inspect.getsourcelines(kind.__init__)
    found = {}
    for node in ast.walk(ast.parse(inspect.cleandoc("\n" + "".join(lines)))):
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.setdefault(node.attr, start + node.lineno - 1)
    return found


class _Letters:
    """Letters of axes, from the sizes of the same tensor in two passes of 1 and 3 texts of T and `longer` tokens."""

    def __init__(self, config: LlamaConfig, T: int, longer: int):
        H, G, K = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.growing = {(1, 3): "B", (T, longer): "T", (T - 1, longer - 1): "T-1", (T, 3 * longer): "B·T"}
        heads = [(H, "H"), (G, "G")]
        features = [(config.vocab_size, "V"), (config.intermediate_size, "F"), (config.hidden_size, "D"), (K, "K"),
                    (H * K, "H·K"), (G * K, "G·K"), (K // 2, "K/2")]
        self.last, self.before = ([*reversed(kinds)] for kinds in (features + heads, heads + features))

    def of(self, shape: Sequence[int], other: Sequence[int]) -> tuple[str, ...]:
        """Where two letters have one size, the last axis has features, and those before it heads."""
        names = []
        for axis, pair in enumerate(zip(shape, other, strict=True), start=1):
            fixed = dict(self.last if axis == len(shape) else self.before)              # of equal sizes the last stays
            names.append(self.growing.get(pair) or (fixed.get(pair[0]) if pair[0] > 1 else None) or str(pair[0]))
        return tuple(names)


def _record(made: _Made, letters: tuple[str, ...], gradients: dict[int, Tensor | None]) -> TensorRecord:
    tensor, gradient = made.tensor.detach(), gradients.get(id(made.tensor))
    finite = tensor.double().flatten()
    finite = finite[finite.isfinite()]
    mean, std, least, most = ((finite.mean(), finite.std(correction=0), finite.min(), finite.max()) if len(finite)
                              else (None,) * 4)
    norm = None if gradient is None else gradient.float().norm()
    return TensorRecord(made.name, tuple(tensor.shape), letters, str(tensor.dtype).removeprefix("torch."),
                        *(None if number is None else number.item() for number in (mean, std, least, most)),
                        tensor.numel() - len(finite), None if norm is None else norm.item(), made.module,
                        made.function, Path(made.file).resolve().relative_to(cli.PROJECT_ROOT).as_posix(), made.line,
                        _code(made.file, made.line))


@contextmanager
def _all_learn(model: nn.Module) -> Iterator[None]:
    """Every parameter asks for a gradient, so that every tensor has one."""
    frozen = [parameter for parameter in model.parameters()
              if parameter.is_floating_point() and not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)


# ---- the command -----------------------------------------------------------------------------------------------------


def main() -> None:
    parser = cli.Parser(
        "python -m llama.trace", "Every tensor of one forward and backward pass, beside the line that makes it.",
        most=("text", "layer", "all", "model", "adapter", "json"),
        example='python -m llama.trace "The capital of France is"')
    parser.add_argument("text", metavar="TEXT", help="what the model reads, and learns to predict")
    parser.add_argument("--layer", type=Range(0, MANY), action="append", metavar="N",
                        help="show this block; may be repeated (default: 0)")
    parser.add_argument("--all", action="store_true", help="show every block")
    cli.add_flags(parser, flags.ModelFlags, skip=("compile",))
    arguments = parser.parse_args()
    if arguments.all and arguments.layer:
        raise ValueError("--layer names blocks to show and --all shows every one; give one of them")
    model = flags.load(cli.from_flags(flags.ModelFlags, arguments), purpose="measure")
    require_llama(model.config, "these views are", "give the folder of one")
    if model.tokenizer is None:
        raise ValueError("this model has no tokenizer, so it reads no text; give a model folder")
    L = model.config.num_hidden_layers
    layers = range(L) if arguments.all else sorted(set(arguments.layer or [0]))
    if layers[-1] >= L:
        raise ValueError(f"--layer {layers[-1]}: this model has the layers 0 to {L - 1}")
    ids = encode_prompt(model.tokenizer, arguments.text, special=True)
    tensors, parameters = ([record for record in records if _is_shown(record, layers)]
                           for records in trace(model, ids))
    if arguments.json:
        print(json.dumps({"ids": ids, "pieces": [model.tokenizer.piece(token) for token in ids],
                          "layers": list(layers), "tensors": as_json(tensors), "parameters": as_json(parameters)},
                         ensure_ascii=False))
        return
    print(visible(f"{len(ids)} tokens: {' '.join(model.tokenizer.piece(token) for token in ids)}\n"
                  f"what is shown of layers: {', '.join(map(str, layers))}, of 0 to {L - 1}\n"))
    print(table(tensors))
    print("\nparameters, and their gradients\n")
    print(table(parameters))


def _is_shown(record: TensorRecord, layers: Sequence[int]) -> bool:
    first, _, rest = record.module.partition(".")
    return first != "layers" or int(rest.partition(".")[0]) in layers


def as_json(records: Sequence[TensorRecord]) -> list[dict[str, Any]]:
    """Their fields by name. JSON has no number for a norm that is none: it is «inf» or «nan» then."""
    fields = [asdict(record) for record in records]
    for each in fields:
        if each["gradient_norm"] is not None and not math.isfinite(each["gradient_norm"]):
            each["gradient_norm"] = str(each["gradient_norm"])
    return fields


def table(records: Sequence[TensorRecord]) -> str:
    """A statement with its link, then a line for each tensor that it makes."""
    lines, place = [], None
    for record in records:
        if place != (place := (record.file, record.line, record.module)):
            within = f", in {record.module}" if record.module else ""
            lines += [f"{record.file}:{record.line}  {record.function}{within}",
                      *(f"    {line}" for line in record.code.splitlines())]
        numbers = [("mean", record.mean), ("std", record.std), ("min", record.min), ("max", record.max),
                   ("|gradient|", record.gradient_norm)]
        lines.append("        " + pad_to_width(record.name.rpartition(".")[2], 20)
                     + pad_to_width(" ".join(record.letters), 14) + f"{' '.join(map(str, record.shape)):<16} "
                     + f"{record.dtype:<9}" + "".join(f"{name} {number:<10.3g} " for name, number in numbers
                                                      if number is not None)
                     + (f"not finite: {record.others}" if record.others else ""))
    return "\n".join(line.rstrip() for line in lines)


if __name__ == "__main__":
    cli.run(main)
