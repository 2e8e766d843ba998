"""Freezing: choose which parameters learn, and see in a table what that amounts to.

A frozen parameter gets no gradient and no place in the optimiser: its value stays to the last bit, and of the memory of
training it costs only itself.

Try: drop the line that forgets gradients; tests/test_freeze.py (test_property_an_optimiser_made_before_moves_nothing)
fails: an optimiser that was made earlier still holds the parameter and moves it once more.
"""

import difflib
import logging
import re
from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import groupby

from torch import nn

from llama.lora.swap import has_lora
from llama.model import Llama

log = logging.getLogger(__name__)

PARTS = {"embeddings": "embed_tokens", "norms": "*norm.*", "blocks": "layers",
         "head": "lm_head|score|qa_outputs"}


def freeze(model: Llama, *, layers: int = 0, pattern: str = "", embeddings: bool = False, all_but: str = "") -> None:
    """Stop parameters from learning; what is frozen already stays so (`unfreeze` is the inverse).

    layers      the first N blocks, the last -N if below 0
    pattern     by name: shell wildcards over the whole name ("layers.1?.mlp.*"), or any run of its dotted parts
                ("q_proj", "layers.0"), or a key of FEATURES; several with commas between
    embeddings  the token embeddings
    all_but     everything but what fits this pattern: "norms", "head", "norms,head" …

    A tied head and the embeddings are one matrix and learn or freeze together, which is said.

    Raises ValueError, with nothing changed, for more blocks than there are, a pattern that fits no name (with the
    nearest), and where nothing would be left to learn.
    """
    if not (layers or pattern or embeddings or all_but):
        raise ValueError("nothing to freeze was named: give layers, pattern, embeddings or all_but")
    if all_but and (layers or pattern or embeddings):
        raise ValueError(f"all_but='{all_but}' freezes everything else already; leave the other choices out")
    L = len(model.layers)
    if abs(layers) > L:
        raise ValueError(f"{abs(layers)} blocks cannot be frozen: the model has {L}")

    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if all_but:
        chosen = set(names) - _matching(names, all_but)
    else:
        blocks = range(layers) if layers > 0 else range(L + layers, L)
        chosen = {name for name in names if any(name.startswith(f"layers.{i}.") for i in blocks)}
        chosen |= _matching(names, pattern) if pattern else set()
        chosen |= _matching(names, "embeddings") if embeddings else set()

    frozen = []
    for parameter, aliases in _parameters(model):
        some = [name in chosen for name in aliases]
        if any(some) and not all(some):                             # tied: what is asked for by name decides
            log.warning("%s are one matrix (tied): both %s", " and ".join(aliases), "learn" if all_but else "freeze")
        if all(some) if all_but else any(some):
            frozen.append(parameter)
    ids = {id(parameter) for parameter in frozen}
    if not any(parameter.requires_grad and id(parameter) not in ids for parameter in model.parameters()):
        raise ValueError("that would freeze everything: nothing would be left to learn")
    for parameter in frozen:
        parameter.requires_grad_(False)
        parameter.grad = None                                       # else an optimiser would move it once more


def unfreeze(model: Llama) -> None:
    """Let every parameter learn again. Raises ValueError under LoRA, where only the adapters are saved."""
    if has_lora(model):
        raise ValueError("the base below an adapter stays frozen, as only the adapter is saved; set_active lets "
                         "adapters learn again, merge_lora and remove_lora take them off")
    model.requires_grad_(True)


def trainable_parameters(model: Llama) -> str:
    """What learns and how much: a row for each part, for neighbouring blocks that are alike, and for the whole."""
    counts: dict[str, tuple[int, int]] = {}
    for parameter, aliases in _parameters(model):
        part, size = _part(aliases[0]), parameter.numel()
        total, learning = counts.get(part, (0, 0))
        counts[part] = total + size, learning + size * parameter.requires_grad
    rows = [(_title(model, parts), *(sum(column) for column in zip(*(counts[part] for part in parts), strict=True)))
            for parts in _alike(counts)]
    rows.append(("total", *(sum(column) for column in zip(*counts.values(), strict=True))))

    width = max(len(title) for title, _, _ in rows)
    lines = [f"{'part':<{width}}  {'parameters':>15}  {'learning':>15}"]
    for title, total, learning in rows:
        lines.append(f"{title:<{width}}  {total:>15,}  {learning:>15,}  {learning / total:>7.2%}")
    return "\n".join(lines)


def _parameters(model: nn.Module) -> list[tuple[nn.Parameter, list[str]]]:
    """Every parameter with its names: two where it is tied."""
    found: dict[int, tuple[nn.Parameter, list[str]]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found.setdefault(id(parameter), (parameter, []))[1].append(name)
    return list(found.values())


def _matching(names: list[str], patterns: str) -> set[str]:
    matching = set()
    for pattern in patterns.split(","):
        wanted = PARTS.get(pattern, pattern)
        found = {name for name in names for each in wanted.split("|")
                 if fnmatchcase(name, each) or f".{each}." in f".{name}."}
        if not found:
            known = dict.fromkeys([*PARTS, *(part for name in names for part in name.split(".")), *names])
            near = difflib.get_close_matches(pattern, known, n=3, cutoff=0.4) or PARTS
            raise ValueError(f"no parameter's name fits '{pattern}'; near are {', '.join(near)}")
        matching |= found
    return matching


def _part(name: str) -> str:
    """The row of the table that a parameter belongs to; blocks by their numbers."""
    if adapter := re.search(r"\.adapters\.([^.]+)", name):         # of any wrapper
        return f"adapter '{adapter[1]}'"
    if fnmatchcase(name, PARTS["norms"]):
        return "norms"
    if block := re.match(r"layers\.(\d+)\.", name):
        return block[1]
    part = name.split(".")[0]
    return "embeddings" if part == "embed_tokens" else "head" if part in PARTS["head"].split("|") else part


def _alike(counts: dict[str, tuple[int, int]]) -> Iterator[list[str]]:
    """The parts in the order of the model, adapters last; runs of blocks with equal counts are together."""
    blocks = [part for part in counts if part.isdigit()]
    others = [part for part in counts if part not in blocks]
    order = ["embeddings", "blocks", "norms", "head"]
    for part in sorted([*others, "blocks"], key=lambda part: order.index(part) if part in order else len(order)):
        if part == "blocks":
            yield from (list(run) for _, run in groupby(blocks, key=counts.__getitem__))
        else:
            yield [part]


def _title(model: Llama, parts: list[str]) -> str:
    if parts[0].isdigit():
        return f"block {parts[0]}" if len(parts) == 1 else f"blocks {parts[0]}–{parts[-1]} ({len(parts)})"
    tied = model.head.weight is model.embed_tokens.weight
    return "embeddings, head (tied)" if parts == ["embeddings"] and tied else parts[0]
