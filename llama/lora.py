"""LoRA: learn a thin B A beside a matrix W that stays as it is, W x + α/R · B A x (arXiv:2106.09685, eq. 3).

A swap from outside: `add_lora` puts a `LoRALinear` around chosen linear layers of a built model and freezes the rest,
`remove_lora` takes it off; `merge_lora` folds it into the weights, and `unmerge_lora` takes that back to the last bit.
Several adapters can sit on a model; the active ones add up. An embedding or a head that an adapter learns whole is
replaced by a float32 copy. Nothing happens on train() or eval(), but for dropout.

Try: start B as A starts; tests/test_lora.py (test_property_a_new_adapter_changes_nothing) fails, and training would
begin with repairing the damage.
"""

import difflib
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llama.adapters import Adapter, LoRAConfig, check_tensors, read_adapter, write_adapter
from llama.checkpoint import fingerprint
from llama.config import LlamaConfig
from llama.model import Llama

log = logging.getLogger(__name__)

WHOLE = ("embed_tokens", "lm_head")                                 # what modules_to_save may name


class LowRank(nn.Module):
    """x ↦ α/R · B A x in the dtype of `x`; A (R, in) and B (out, R) are float32, or small updates would be lost."""

    def __init__(self, in_features: int, out_features: int, config: LoRAConfig, *,
                 generator: torch.Generator | None = None):
        super().__init__()
        A = torch.empty(config.rank, in_features, dtype=torch.float32)
        nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)            # U(-1/√in, 1/√in), as in PEFT
        self.lora_A = nn.Parameter(A)
        self.lora_B = nn.Parameter(torch.zeros(out_features, config.rank, dtype=torch.float32))
        self.dropout = nn.Dropout(config.dropout)
        self.scale = config.alpha / config.rank
        self.config = config

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.linear(self.dropout(x), self.lora_A.to(x.dtype))         # (…, R)
        return functional.linear(inner, self.lora_B.to(x.dtype)) * self.scale

    def delta(self) -> Tensor:
        """The same as a matrix to add to W: (out, in), float32."""
        return self.scale * (self.lora_B.float() @ self.lora_A.float())


class LoRALinear(nn.Module):
    """base(x) and the active adapters' parts, added up. `base` is anything with the face of nn.Linear."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.in_features, self.out_features = base.in_features, base.out_features
        self.base = base
        self.adapters = nn.ModuleDict()
        self.active: tuple[str, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        for name in self.active:
            y = y + self.adapters[name](x)
        return y

    def merged(self) -> Tensor:
        """W with the active parts in it, added in float32 and rounded once."""
        parts = (self.adapters[name].delta() for name in self.active)
        return sum(parts, start=self.weight.float()).to(self.weight.dtype)

    @property
    def weight(self) -> Tensor:
        return self.base.weight


class Replaced(nn.Module):
    """An embedding or a head that an adapter learns whole: a float32 copy at work, the original waiting in `base`."""

    def __init__(self, base: nn.Embedding | nn.Linear):
        super().__init__()
        self.base = base
        self.adapters = nn.ParameterDict()
        self.active: tuple[str, ...] = ()                           # one at most

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return self.base(x)
        copy = self.adapters[self.active[0]]
        if isinstance(self.base, nn.Embedding):
            return functional.embedding(x, copy).to(self.weight.dtype)
        return functional.linear(x, copy.to(x.dtype))

    def merged(self) -> Tensor:
        return self.adapters[self.active[0]].to(self.weight.dtype, copy=True)

    @property
    def weight(self) -> Tensor:
        return self.base.weight                                     # the model's dtype stays the base's


Wrapper = LoRALinear | Replaced


def add_lora(model: Llama, config: LoRAConfig, *, name: str = "default",
             generator: torch.Generator | None = None) -> None:
    """Put a new adapter on the model, beside those that are active; from now on nothing but this one learns.

    B is zero, so the model still computes what it did. A tied head stays tied: if embeddings or head are in
    `modules_to_save`, both are learned, as the one matrix that they are.

    Raises ValueError for a name that is taken, and for a target that is no linear layer, with the nearest names.
    """
    _attach(model, config, name, tied=model.config.tie_word_embeddings, generator=generator)


def set_active(model: Llama, names: str | Sequence[str]) -> None:
    """Use these adapters, added up, and no others. They learn, nothing else does. No name: the base as it is.

    Raises ValueError for an unknown name, and for two adapters that each replace the same matrix.
    """
    names = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
    for name in names:
        _check_known(model, name)
    for path, wrapper in wrappers(model).items():
        here = [name for name in names if name in wrapper.adapters]
        if isinstance(wrapper, Replaced) and len(here) > 1:
            raise ValueError(f"adapters {' and '.join(here)} each replace {path}: only one of them can be active")
    for wrapper in wrappers(model).values():
        wrapper.active = tuple(name for name in names if name in wrapper.adapters)
    _learn_only(model, names)


def remove_lora(model: Llama, name: str) -> None:
    """Take an adapter off and forget it. The base is what it was before, but frozen (see `freeze.unfreeze`)."""
    _check_known(model, name)
    for path, wrapper in wrappers(model).items():
        if name in wrapper.adapters:
            del wrapper.adapters[name]
            wrapper.active = tuple(other for other in wrapper.active if other != name)
            if not len(wrapper.adapters):
                model.set_submodule(path, wrapper.base)


def has_lora(model: nn.Module) -> bool:
    """Whether adapters sit on the model. Merged ones no longer do."""
    return bool(wrappers(model))


def adapter_names(model: nn.Module, *, active: bool = False) -> list[str]:
    """The adapters on the model, or the active ones alone, in the order in which they came."""
    return list(dict.fromkeys(name for wrapper in wrappers(model).values()
                              for name in (wrapper.active if active else wrapper.adapters)))


def wrappers(model: nn.Module) -> dict[str, Wrapper]:
    """Every wrapped module, by the path of what it wraps."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Wrapper)}


@dataclass
class Merged:
    """What `unmerge_lora` puts back: the wrappers taken off, each with the weight that was below it."""

    sites: list[tuple[str, Wrapper, nn.Parameter]]
    config: LlamaConfig
    source: Any


@torch.no_grad()
def merge_lora(model: Llama, *, forget: bool = False) -> None:
    """Fold the active adapters into the weights and take the wrappers off: a plain Llama again, as fast and as small.

    Subtracting what was added would not give the old bits back, so the changed weights are kept for `unmerge_lora`,
    which costs their size once more. `forget` lets them go, and with them the adapters that are not active.

    A tied head that must now differ from the embeddings is untied, and that is said.
    Raises ValueError where no adapter is active, or a base is quantised: the order is merge, then quantise.
    """
    if not adapter_names(model, active=True):
        raise ValueError("no active adapter to merge: add_lora, load_adapter or set_active comes first")
    for path, wrapper in wrappers(model).items():
        if not isinstance(wrapper.base, nn.Linear | nn.Embedding):
            raise ValueError(f"{path} is a {type(wrapper.base).__name__}, into which no adapter can be folded; "
                             "merge first, then quantise")
    record = Merged([], model.config, model.source)
    for path, wrapper in wrappers(model).items():
        if not forget:
            record.sites.append((path, wrapper, wrapper.base.weight))
        if wrapper.active:
            wrapper.base.weight = nn.Parameter(wrapper.merged(), requires_grad=False)
        model.set_submodule(path, wrapper.base)
    if model.config.tie_word_embeddings:
        if torch.equal(model.embed_tokens.weight, model.lm_head.weight):
            model.tie()
        else:
            model.config = replace(model.config, tie_word_embeddings=False)
            log.warning("the merged adapter changes head and embeddings differently: they are no longer tied")
    model.source = None                                             # the files there are no longer this model
    model.merged = None if forget else record


def unmerge_lora(model: Llama) -> None:
    """Undo `merge_lora`: the weights from before, bit for bit, and the adapters on them as they were."""
    record, device = getattr(model, "merged", None), model.device
    if record is None:
        raise ValueError("nothing to unmerge: no adapter was merged, or it was merged with forget=True")
    for _, wrapper, original in record.sites:
        wrapper.base.weight = original
    model.config, model.source, model.merged = record.config, record.source, None
    model.tie()
    for path, wrapper, _ in record.sites:
        model.set_submodule(path, wrapper)
    model.to(device)                                                # it may have moved in the meantime


def save_adapter(model: Llama, folder: str | Path, *, name: str = "default", base: str = "") -> None:
    """Write one adapter as PEFT's folder, whole or not at all, with chat template and fingerprint of the model below.

    base  the name to record for that model; default the path that it was loaded from

    Raises ValueError if the model has no adapter of that name.
    """
    _check_known(model, name)
    if beside := [other for other in adapter_names(model, active=True) if other != name]:
        log.warning("%s: '%s' was active together with %s, which is not in it: to get the same, load both",
                    folder, name, ", ".join(beside))
    copies = {path: wrapper.adapters[name] for path, wrapper in wrappers(model).items()
              if isinstance(wrapper, Replaced) and name in wrapper.adapters}
    config = next(wrapper.adapters[name].config for wrapper in wrappers(model).values()
                  if isinstance(wrapper, LoRALinear) and name in wrapper.adapters)
    write_adapter(folder, Adapter(
        replace(config, modules_to_save=tuple(copies)),
        {key: parameter.detach() for key, parameter in _tensors(model, name).items()},
        tied=len(set(copies.values())) < len(copies),
        base=str(base or model.source or ""),
        fingerprint=fingerprint(model.source) if model.source else "",
        chat_template=(model.tokenizer and model.tokenizer.chat_template) or "",
    ))


def load_adapter(model: Llama, folder: str | Path, *, name: str = "default") -> None:
    """Put the adapter in a folder, ours or PEFT's, on the model: `add_lora`, then its tensors, strictly.

    Without a fingerprint to compare, that is said, and shapes alone decide whether adapter and model fit.

    Raises ValueError for the adapter of another model, for tensors that are missing, unknown or of the wrong shape, and
    for what `read_adapter` refuses. Then the model is as it was.
    """
    adapter = read_adapter(folder)
    _check_base(model, adapter, folder)
    config = replace(adapter.config, targets=_present(model, adapter.config.targets))
    tied = adapter.tied and model.config.tie_word_embeddings
    try:
        adapted, whole = _places(model, config, tied=tied)
    except ValueError as error:
        raise ValueError(f"{folder}: the adapter's {error}") from None
    expected = {f"{path}.weight": tuple(module.weight.shape) for path, module in whole.items()}
    for path, module in adapted.items():
        expected[f"{path}.lora_A.weight"] = (config.rank, module.in_features)
        expected[f"{path}.lora_B.weight"] = (module.out_features, config.rank)
    bases = {f"{path}.base_layer.weight": module.weight.detach() for path, module in adapted.items()
             if f"{path}.base_layer.weight" in adapter.tensors}
    check_tensors(folder, adapter.tensors, expected, bases, hidden_size=model.config.hidden_size)
    _attach(model, config, name, tied=tied, generator=torch.Generator())            # leaves the global one alone
    with torch.no_grad():
        for key, parameter in _tensors(model, name).items():
            parameter.copy_(adapter.tensors[key])
    if model.tokenizer and adapter.chat_template:
        model.tokenizer.chat_template = adapter.chat_template       # it is asked in the format that it was tuned in


# ---- on and off ------------------------------------------------------------------------------------------------------


def _attach(model: Llama, config: LoRAConfig, name: str, *, tied: bool, generator: torch.Generator | None) -> None:
    """`add_lora`; `tied`: embeddings and head that are learned whole are one matrix, not one each."""
    _check_free(model, name)
    active = adapter_names(model, active=True)
    adapted, whole = _places(model, config, tied=tied)
    for kind, places in ((LoRALinear, adapted), (Replaced, whole)):
        for path, module in places.items():
            if isinstance(module, Wrapper) and not isinstance(module, kind):
                raise ValueError(f"{path}: adapter '{next(iter(module.adapters))}' learns it in another way (whole, or "
                                 f"by LoRA) than '{name}' would; remove_lora one of them")
            if isinstance(module, Replaced) and module.active:
                raise ValueError(f"{path} is replaced by adapter '{module.active[0]}' already; two such adapters can "
                                 "be swapped, but not stacked: set_active(model, []) first")

    for path, module in adapted.items():
        part = LowRank(module.in_features, module.out_features, config, generator=generator)
        _wrapped(model, path, LoRALinear).adapters[name] = part.to(model.device)
    copy = None
    for path, module in whole.items():
        if copy is None or not tied:
            copy = nn.Parameter(module.weight.detach().to(torch.float32, copy=True))
        _wrapped(model, path, Replaced).adapters[name] = copy
    set_active(model, [*active, name])
    _learn_only(model, [name])


def _wrapped(model: Llama, path: str, kind: type) -> Any:
    module = model.get_submodule(path)
    if not isinstance(module, kind):
        module = kind(module)
        model.set_submodule(path, module)
    return module


def _learn_only(model: Llama, names: Iterable[str]) -> None:
    model.requires_grad_(False)
    for name in names:
        for parameter in _tensors(model, name).values():
            parameter.requires_grad_(True)


def _tensors(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """An adapter's parameters by the names of `adapters.py`."""
    tensors = {}
    for path, wrapper in wrappers(model).items():
        if name not in wrapper.adapters:
            continue
        part = wrapper.adapters[name]
        if isinstance(wrapper, Replaced):
            tensors[f"{path}.weight"] = part
        else:
            tensors[f"{path}.lora_A.weight"] = part.lora_A
            tensors[f"{path}.lora_B.weight"] = part.lora_B
    return tensors


# ---- what fits where -------------------------------------------------------------------------------------------------


def _check_known(model: Llama, name: str) -> None:
    if name not in (known := adapter_names(model)):
        raise ValueError(f"the model has no adapter '{name}'; it has {', '.join(known) or 'none'}")


def _check_free(model: Llama, name: str) -> None:
    if not name or "." in name or hasattr(nn.ParameterDict(), name):
        raise ValueError(f"an adapter cannot be called '{name}'; take letters and digits, without a dot")
    if name in adapter_names(model):
        raise ValueError(f"the model has an adapter '{name}' already; give another name, or remove_lora the old one")
    if getattr(model, "merged", None):
        raise ValueError("an adapter was merged that unmerge_lora can still take back; do that first, or merge with "
                         "forget=True")


def _plain_modules(model: Llama) -> dict[str, nn.Module]:
    """Every module of the plain model by its path; a wrapper stands for what it wraps."""
    inside = tuple(f"{path}." for path in wrappers(model))
    return {path: module for path, module in model.named_modules() if path and not path.startswith(inside)}


def _ends_in(path: str, target: str) -> bool:
    return f".{path}".endswith(f".{target}")


def _present(model: Llama, targets: tuple[str, ...]) -> tuple[str, ...]:
    """Without the targets that no module of this model has: PEFT's lists are often made for many models at once."""
    return tuple(t for t in targets if any(_ends_in(path, t) for path in _plain_modules(model))) or targets


def _places(model: Llama, config: LoRAConfig, *, tied: bool) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """The modules that get a low-rank part, and those that are learned whole, by path."""
    modules = _plain_modules(model)
    linear = {path: module for path, module in modules.items()
              if hasattr(module.base if isinstance(module, Wrapper) else module, "in_features")}
    adapted = {}
    for target in config.targets:
        found = {path: module for path, module in linear.items() if _ends_in(path, target)}
        if not found:
            names = list(dict.fromkeys(path.rpartition(".")[2] for path in linear))
            near = difflib.get_close_matches(target, names, n=3) or names
            is_other = any(_ends_in(path, target) for path in modules)
            raise ValueError(f"target '{target}' is {'no linear layer' if is_other else 'the name of no layer'}; "
                             f"linear layers here are {', '.join(near)}")
        adapted |= found

    names = dict.fromkeys(config.modules_to_save)
    if unknown := names.keys() - WHOLE:
        raise ValueError(f"modules_to_save names '{min(unknown)}'; only {' and '.join(WHOLE)} can be learned whole")
    if tied and names and names.keys() != set(WHOLE):
        log.warning("head and embeddings are tied: both are learned, as the one matrix that they are")
        names = dict.fromkeys(WHOLE)
    if both := adapted.keys() & names:
        raise ValueError(f"{min(both)} is a target and learned whole at once"
                         f"{' (head and embeddings are tied)' if tied else ''}; choose one")
    return adapted, {path: modules[path] for path in names}


def _check_base(model: Llama, adapter: Adapter, folder: str | Path) -> None:
    if not adapter.fingerprint:
        log.warning("%s: no fingerprint of the base is recorded, so only shapes tell whether this is its model", folder)
    elif not model.source:
        log.warning("%s: this model comes from no file, so only shapes tell whether the adapter is its own", folder)
    elif (here := fingerprint(model.source)) != adapter.fingerprint:
        raise ValueError(f"{folder}: the adapter was learned on {adapter.base or 'another model'} "
                         f"(fingerprint {adapter.fingerprint[:12]}), not on {model.source} ({here[:12]}); "
                         "give the model that it belongs to")
