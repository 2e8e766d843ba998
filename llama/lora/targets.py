"""What a LoRA adapter learns, and which modules of a model those are: PEFT's rules, so that its folders mean the same.

Rules are asked about the name that a module has on disk: `model.layers.0.self_attn.q_proj`. Names in a list fit all of
it, or its end after a dot; a pattern is a regular expression and must fit all of it; the keys of `rank_pattern` and
`alpha_pattern` are regular expressions that must fit its end.

Try: let `fits` search for a pattern instead of matching the whole name; tests/test_lora_targets.py
(test_two_ways_chosen_modules_are_those_of_peft) fails, and an adapter made elsewhere would miss tensors here.
"""

import difflib
import json
import logging
import math
import re
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from llama.lora.starts import STARTS
from llama.runtime.ranges import Range, check_ranges
from weights.formats.huggingface import stored_name

log = logging.getLogger(__name__)

ALL_LINEAR = "all-linear"                                           # PEFT's word: every linear layer but the head
TIED = ("embed_tokens", "lm_head")                                  # one matrix, where they are tied
WHOLE = (*TIED, "score", "qa_outputs")                              # what modules_to_save may name; see heads.py
ELSEWHERE = "classifier"                                            # PEFT adds it to score; no Llama has such a head

Names = tuple[str, ...] | str                                       # names, or one pattern

RANKS, ALPHAS = Range(1, 65_536), Range(1e-6, 1e6)


@dataclass(frozen=True)
class LoRAConfig:
    """What a LoRA adapter learns."""

    rank: Annotated[int, "R, the rank of what is added to a matrix", RANKS] = 8
    alpha: Annotated[float, "what is added is scaled by alpha / rank", ALPHAS] = 16.0
    dropout: Annotated[float, "part of an adapter's inputs set to 0 while it learns", Range(0.0, 0.99)] = 0.0
    targets: Annotated[Names, "linear layers to adapt: ends of names, a pattern for whole names, or all-linear"] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    exclude: Annotated[Names, "layers not to adapt, by ends of names or a pattern"] = ()
    layers: Annotated[tuple[int, ...], "adapt these blocks only, counted from 0", Range(0, 10**6)] = ()
    rslora: Annotated[bool, "scale by alpha / √rank, so that a high rank learns as fast (arXiv:2312.03732)"] = False
    dora: Annotated[bool, "learn the length of each row apart from its direction (arXiv:2402.09353)"] = False
    lora_init: Annotated[Literal["default", "pissa", "olora", "loftq"],
                         "where A and B begin: A at random and B at 0, at a part of the matrix itself (PiSSA, OLoRA), "
                         "or at what few bits lose of it (LoftQ)"] = "default"
    modules_to_save: Annotated[tuple[str, ...], "learned and saved whole: embed_tokens, lm_head; labels always"] = ()
    rank_pattern: Annotated[Mapping[str, int], "another rank where the end of the name fits, or its beginning before a "
                            "dot: layers.0.=16,down_proj=4"] = field(default_factory=dict)
    alpha_pattern: Annotated[Mapping[str, float], "another alpha, in the same way"] = field(default_factory=dict)
    rows: Annotated[Mapping[str, tuple[int, ...]], "rows of embed_tokens and lm_head to learn, by ids (rows.py)"] = \
        field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, ranks in {"rank": {"": self.rank}, "rank_pattern": self.rank_pattern}.items():
            if not all(rank in RANKS for rank in ranks.values()):
                raise ValueError(f"{name} is {getattr(self, name)!r}; a rank must be {RANKS}")
        for name, alphas in {"alpha": {"": self.alpha}, "alpha_pattern": self.alpha_pattern}.items():
            if not all(alpha in ALPHAS for alpha in alphas.values()):
                raise ValueError(f"{name} is {getattr(self, name)!r}; an alpha must be {ALPHAS}")
        check_ranges(self)
        for name in ("targets", "exclude", "modules_to_save"):
            names = getattr(self, name)
            if not isinstance(names, str) and not all(isinstance(part, str) and part for part in names):
                raise ValueError(f"{name} is {names!r}; it must hold names of modules")
        if isinstance(self.modules_to_save, str):
            raise ValueError(f"modules_to_save is {self.modules_to_save!r}; it must hold names of modules")
        if unknown := set(self.rows) - set(TIED):
            raise ValueError(f"rows names '{min(unknown)}'; only {' and '.join(TIED)} have rows by id")
        for name, ids in self.rows.items():
            if not ids or len(set(ids)) < len(ids) or min(ids) < 0:
                raise ValueError(f"rows of {name} are {ids!r:.60}; give ids, each once")
        if not self.targets and not self.rows:
            raise ValueError("targets names no layer; give at least one, such as q_proj")
        if not self.targets and (self.modules_to_save or len(set(self.rows.values())) > 1):
            raise ValueError("rows alone are learned by the same ids in embeddings and head, no module whole beside "
                             "(as in PEFT); give targets, such as q_proj")
        for name, patterns in self._patterns().items():
            for pattern in patterns:
                _check_pattern(name, pattern)
        if self.layers and isinstance(self.targets, str):
            raise ValueError(f"layers goes with targets by name, not with '{self.targets}'; put the numbers of the "
                             "blocks into the pattern")

    def rank_of(self, path: str) -> int:
        """R of the part beside the module at `path`."""
        return _by_pattern(self.rank_pattern, path, self.rank)

    def scale_of(self, path: str) -> float:
        """What B A x is multiplied by there."""
        rank = self.rank_of(path)
        return _by_pattern(self.alpha_pattern, path, self.alpha) / (math.sqrt(rank) if self.rslora else rank)

    def stored(self) -> "LoRAConfig":
        """As a folder says it: of a start that was taken from W, a plain LoRA of twice the rank and the same scale."""
        if self.lora_init not in STARTS:
            return replace(self, lora_init="default")
        alphas = math.sqrt(2) if self.rslora else 2                 # α/√R or α/R
        return replace(
            self, lora_init="default", rank=2 * self.rank, alpha=alphas * self.alpha,
            rank_pattern={pattern: 2 * rank for pattern, rank in self.rank_pattern.items()},
            alpha_pattern={pattern: alphas * alpha for pattern, alpha in self.alpha_pattern.items()})

    def _patterns(self) -> dict[str, Iterable[str]]:
        either = {name: [value] for name in ("targets", "exclude") if isinstance(value := getattr(self, name), str)}
        return {**either, "rank_pattern": self.rank_pattern, "alpha_pattern": self.alpha_pattern}


def select_modules(config: LoRAConfig, paths: Collection[str], linear: Collection[str], *,
           tied: bool) -> tuple[list[str], list[str]]:
    """Of the modules `paths`, those that get a low-rank part, and those that are learned whole.

    linear  the paths of linear layers, the only ones that can have a low-rank part
    tied    embeddings and head are one matrix, and learned as one

    Raises ValueError for a name or pattern that no linear layer fits, with the nearest, and for contradictions.
    """
    _rehearse(config, paths)
    whole = _learned_whole(config, tied=tied)
    adapted = _targeted(config, paths, linear)
    if not isinstance(config.targets, str) and (both := set(adapted) & set(whole)):
        raise ValueError(f"{min(both)} is a target and learned whole at once"
                         f"{' (head and embeddings are tied)' if tied else ''}; choose one")
    adapted = [path for path in adapted if path not in whole]
    if not adapted and config.targets:
        raise ValueError(f"targets {config.targets!r} are all excluded (exclude {config.exclude!r}, layers "
                         f"{config.layers!r}); nothing would be adapted")
    return adapted, whole


def drop_missing(config: LoRAConfig, paths: Collection[str]) -> LoRAConfig:
    """Without the targets that fit none of the modules `paths`, or only one that is learned whole.

    PEFT's lists are often made for many models at once, and what is learned whole it leaves out by itself.
    """
    config = replace(config, modules_to_save=tuple(name for name in config.modules_to_save if name != ELSEWHERE))
    if isinstance(config.targets, str):
        return config
    paths = [path for path in paths if path not in config.modules_to_save]
    targets = tuple(target for target in config.targets if any(fits((target,), path) for path in paths))
    return replace(config, targets=targets or config.targets)


def _targeted(config: LoRAConfig, paths: Collection[str], linear: Collection[str]) -> list[str]:
    if isinstance(config.targets, str) and config.targets.lower() == ALL_LINEAR:
        found = [path for path in linear if path not in WHOLE]
    elif isinstance(config.targets, str):
        found = [path for path in paths if fits(config.targets, path) and not fits(config.exclude, path)]
        if not found:
            raise ValueError(f"targets: the pattern '{config.targets}' fits no module's whole name; a name here is "
                             f"{_stored(next(iter(linear)))}")
        if other := [path for path in found if path not in linear]:
            raise ValueError(f"targets: the pattern '{config.targets}' fits {_stored(other[0])}, "
                             "which is no linear layer")
    else:
        for target in config.targets:
            _check_target(target, paths, linear)
        found = [path for path in linear if fits(config.targets, path) and _in_layers(config, path)]
    return [path for path in found if not fits(config.exclude, path)]


def fits(names: Names, path: str) -> bool:
    """Whether a list of names, or a pattern, takes in the module at `path`."""
    module = _stored(path)
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _in_layers(config: LoRAConfig, path: str) -> bool:
    """A name that is given whole is meant, whatever `layers` says: so it is in PEFT."""
    if not config.layers or _stored(path) in config.targets:
        return True
    number = re.match(r"layers\.(\d+)\.", path)
    return number is not None and int(number[1]) in config.layers


def _learned_whole(config: LoRAConfig, *, tied: bool) -> list[str]:
    names = list(dict.fromkeys(config.modules_to_save))
    if unknown := set(names) - set(WHOLE):
        raise ValueError(f"modules_to_save names '{min(unknown)}'; only {', '.join(WHOLE)} can be learned whole")
    if tied and names and set(names) != set(TIED):
        log.warning("head and embeddings are tied: both are learned, as the one matrix that they are")
        return list(TIED)
    return names


def _check_target(target: str, paths: Collection[str], linear: Collection[str]) -> None:
    if any(fits((target,), path) for path in linear):
        return
    names = list(dict.fromkeys(path.rpartition(".")[2] for path in linear))
    near = difflib.get_close_matches(target, names, n=3) or names
    is_other = any(fits((target,), path) for path in paths)
    raise ValueError(f"target '{target}' is {'no linear layer' if is_other else 'the name of no layer'}; "
                     f"linear layers here are {', '.join(near)}")


def _stored(path: str) -> str:
    return stored_name(f"{path}.weight").removesuffix(".weight")


def _by_pattern(patterns: Mapping[str, Any], path: str, otherwise: Any) -> Any:
    """The value of the first pattern that fits the end of the name, after a dot or from its beginning."""
    module = _stored(path)
    return next((value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module)), otherwise)


def _rehearse(config: LoRAConfig, paths: Collection[str]) -> None:
    """See in another process that the patterns come to an end: an adapter of a stranger brings its own, and one like
    (.+)+x tries more ways than there is time. What ends there ends here, since it is asked the same.

    Raises ValueError for patterns that take longer than a few seconds.
    """
    patterns = {name: list(each) for name, each in config._patterns().items() if list(each) not in ([], [ALL_LINEAR])}
    if not patterns:
        return
    work = [[name, pattern if name in ("targets", "exclude") else rf"(.*\.)?({pattern})$", list(map(_stored, paths))]
            for name, each in patterns.items() for pattern in each]
    try:
        subprocess.run([sys.executable, "-I", "-S", "-c", _MATCH_ALL], input=json.dumps(work), text=True,
                       encoding="utf-8", timeout=_PATIENCE, check=True)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{' and '.join(patterns)}: the patterns {patterns!r:.200} did not come to an end within "
                         f"{_PATIENCE} s; write them without a repetition inside a repetition") from None


_PATIENCE = 5                                                       # seconds, for what takes thousandths
_MATCH_ALL = """import json, re, sys
for name, pattern, modules in json.load(sys.stdin):
    for module in modules:
        (re.fullmatch if name in ("targets", "exclude") else re.match)(pattern, module)
"""


def _check_pattern(name: str, pattern: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{name}: '{pattern}' is no regular expression ({error})") from None
