"""LoRA: learn W + α/R · B A with thin B and A while W stays as it is (arXiv:2106.09685, eq. 3).

A swap from outside: `add_lora` puts a `LoRALinear` around chosen linear layers of a built model and freezes the rest;
`remove_lora` takes it off again; `merge_lora` folds it in and `unmerge_lora` takes that back, to the last bit. Several
adapters can sit on a model: the active ones add up. What should be learned whole (embeddings, head) is replaced by a
float32 copy. Nothing happens on train() or eval(), but for the dropout.

Try: start B like A instead of with zeros; tests/test_lora.py (test_property_a_new_adapter_changes_nothing) fails, and
training would begin by repairing the damage.
"""

import difflib
import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from llama.adapters import read_adapter, write_adapter
from llama.checkpoint import fingerprint
from llama.config import LlamaConfig
from llama.model import Llama

log = logging.getLogger(__name__)

MATRICES = ("embed_tokens", "lm_head")                              # one matrix where the head is tied


@dataclass(frozen=True)
class LoRAConfig:
    """What a LoRA adapter learns."""

    rank: Annotated[int, "R, the rank of what is added to a matrix"] = 8
    alpha: Annotated[float, "what is added is scaled by alpha / rank"] = 16.0
    dropout: Annotated[float, "part of an adapter's inputs zeroed while learning"] = 0.0
    targets: Annotated[tuple[str, ...], "linear layers to adapt, by the end of their names"] = (
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    modules_to_save: Annotated[tuple[str, ...], "learned and saved whole: embed_tokens, lm_head"] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.rank, int) or self.rank < 1:
            raise ValueError(f"rank is {self.rank!r}; it must be a whole number of at least 1")
        if not isinstance(self.alpha, int | float) or not 0 < self.alpha < math.inf:
            raise ValueError(f"alpha is {self.alpha!r}; it must be a number above 0")
        if not isinstance(self.dropout, int | float) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout!r}; it must be at least 0 and below 1")
        for name in ("targets", "modules_to_save"):
            if not all(isinstance(part, str) and part for part in getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must hold names of modules")
        if not self.targets:
            raise ValueError("targets names no layer; give at least one, such as q_proj,v_proj")


class LowRank(nn.Module):
    """x ↦ α/R · B A x, in the dtype of `x`, with A (R, in) and B (out, R) kept in float32 for small updates."""

    def __init__(self, in_features: int, out_features: int, config: LoRAConfig, *,
                 generator: torch.Generator | None = None):
        super().__init__()
        self.config, self.scale = config, config.alpha / config.rank
        A = torch.empty(config.rank, in_features, dtype=torch.float32)
        nn.init.kaiming_uniform_(A, a=math.sqrt(5), generator=generator)    # as in PEFT: U(-1/√in, 1/√in)
        self.lora_A = nn.Parameter(A)
        self.lora_B = nn.Parameter(torch.zeros(out_features, config.rank, dtype=torch.float32))
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.linear(self.dropout(x), self.lora_A.to(x.dtype))         # (..., R)
        return functional.linear(inner, self.lora_B.to(x.dtype)) * self.scale

    def delta(self) -> Tensor:
        """What this adds to the weight it sits on, (out, in), float32."""
        return self.scale * (self.lora_B.float() @ self.lora_A.float())


class LoRALinear(nn.Module):
    """base(x) plus every active adapter's part. `base` is anything with the face of nn.Linear."""

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

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    def merged(self) -> Tensor:
        """The base's weight with the active adapters in it, added in float32, in the base's dtype."""
        weight = self.base.weight.detach().float()
        for name in self.active:
            weight = weight + self.adapters[name].delta()
        return weight.to(self.base.weight.dtype)


class Replaced(nn.Module):
    """An embedding or a head that an adapter learns whole: its float32 copy works, the original waits in `base`."""

    def __init__(self, base: nn.Embedding | nn.Linear):
        super().__init__()
        self.base = base
        self.adapters = nn.ParameterDict()
        self.active: tuple[str, ...] = ()                           # one name at most

    def forward(self, x: Tensor) -> Tensor:
        if not self.active:
            return self.base(x)
        weight = self.adapters[self.active[0]]
        if isinstance(self.base, nn.Embedding):
            return functional.embedding(x, weight).to(self.base.weight.dtype)
        return functional.linear(x, weight.to(x.dtype))

    @property
    def weight(self) -> Tensor:
        return self.base.weight                                     # so that the model's dtype stays the base's

    def merged(self) -> Tensor:
        return (self.adapters[self.active[0]] if self.active else self.base.weight).detach().to(self.base.weight.dtype)


Wrapper = LoRALinear | Replaced


# ---- on and off ------------------------------------------------------------------------------------------------------


def add_lora(model: Llama, config: LoRAConfig, *, name: str = "default",
             generator: torch.Generator | None = None) -> None:
    """Put a new adapter on the model, beside active ones if there are any; from now on nothing else learns.

    B is zero, so the model computes what it did. Where the head is tied and embeddings or head are in
    `modules_to_save`, both are learned, as the one matrix that they are.

    Raises ValueError for a name that is taken, and for targets that fit no linear layer, with the nearest names.
    """
    _attach(model, config, name, tied=model.config.tie_word_embeddings, generator=generator)


def set_active(model: Llama, names: Sequence[str]) -> None:
    """Use these adapters, added up, and no others; they learn, nothing else does. None: the base alone."""
    names = (names,) if isinstance(names, str) else tuple(names)
    known = adapter_names(model)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"no adapter is called '{unknown[0]}'; there are: {', '.join(known) or 'none'}")
    for path, wrapper in wrappers(model):
        here = [name for name in names if name in wrapper.adapters]
        if isinstance(wrapper, Replaced) and len(here) > 1:
            raise ValueError(f"adapters {' and '.join(here)} each replace {path}; only one of them can be active")
    model.requires_grad_(False)
    for _, wrapper in wrappers(model):
        wrapper.active = tuple(name for name in names if name in wrapper.adapters)
        for name in wrapper.active:
            wrapper.adapters[name].requires_grad_(True)


def remove_lora(model: Llama, name: str) -> None:
    """Take an adapter off and forget it. The base is as it was before, but frozen: see `freeze.unfreeze`."""
    if name not in adapter_names(model):
        raise ValueError(f"no adapter is called '{name}'; there are: {', '.join(adapter_names(model)) or 'none'}")
    for path, wrapper in wrappers(model):
        if name in wrapper.adapters:
            del wrapper.adapters[name]
            wrapper.active = tuple(other for other in wrapper.active if other != name)
            if not len(wrapper.adapters):
                model.set_submodule(path, wrapper.base)


def has_lora(model: nn.Module) -> bool:
    """Whether adapters sit on the model (merged ones are no longer there)."""
    return any(True for _ in wrappers(model))


def adapter_names(model: nn.Module) -> list[str]:
    """The adapters on the model, in the order of their coming."""
    return list(dict.fromkeys(name for _, wrapper in wrappers(model) for name in wrapper.adapters))


def active_names(model: nn.Module) -> list[str]:
    return list(dict.fromkeys(name for _, wrapper in wrappers(model) for name in wrapper.active))


def wrappers(model: nn.Module) -> list[tuple[str, Wrapper]]:
    """Every wrapped module, by the path of what it wraps."""
    return [(path, module) for path, module in model.named_modules() if isinstance(module, Wrapper)]


def _attach(model: Llama, config: LoRAConfig, name: str, *, tied: bool, generator: torch.Generator | None) -> None:
    """`add_lora`; `tied` says whether a replaced embedding and head are one matrix, or each its own."""
    before, active = adapter_names(model), active_names(model)
    if not name or "." in name or hasattr(nn.ParameterDict(), name) or hasattr(nn.ModuleDict(), name):
        raise ValueError(f"an adapter cannot be called '{name}'; use letters and digits, without a dot")
    if name in before:
        raise ValueError(f"the model has an adapter '{name}' already; give another name, or remove_lora it first")
    if getattr(model, "merged", None):
        raise ValueError("the model holds a merged adapter that unmerge_lora could take back, and that would be lost; "
                         "unmerge it first, or merge it with forget=True")
    adapted, saved = _matching(model, config.targets), _saved(model, config.modules_to_save, tied=tied)
    if both := adapted.keys() & saved.keys():
        raise ValueError(f"{min(both)} cannot be a target and learned whole (modules_to_save"
                         f"{', by the tie of head and embeddings' if tied else ''}); choose one")
    for kind, modules in ((LoRALinear, adapted), (Replaced, saved)):
        for path, module in modules.items():
            if isinstance(module, Wrapper) and not isinstance(module, kind):
                raise ValueError(f"{path}: adapter '{next(iter(module.adapters))}' learns it in another way "
                                 f"(as a target, or whole) than '{name}' would; remove_lora one of them")
    if taken := [path for path, module in saved.items() if isinstance(module, Replaced) and module.active]:
        raise ValueError(f"adapter '{active[0]}' already replaces {taken[0]}; set_active(model, []) first: "
                         "two such adapters can be swapped, not stacked")

    for path, module in adapted.items():
        wrapper = _wrap(model, path, LoRALinear)
        wrapper.adapters[name] = LowRank(module.in_features, module.out_features, config,
                                         generator=generator).to(model.device)
    copies = {path: nn.Parameter(_bare(module).weight.detach().to(torch.float32, copy=True))
              for path, module in saved.items()}
    if tied and copies:
        copies["lm_head"] = copies["embed_tokens"]
    for path, copy in copies.items():
        _wrap(model, path, Replaced).adapters[name] = copy
    set_active(model, [*active, name])
    model.requires_grad_(False)
    for _, wrapper in wrappers(model):
        if name in wrapper.adapters:
            wrapper.adapters[name].requires_grad_(True)


def _wrap(model: Llama, path: str, kind: type) -> Any:
    module = model.get_submodule(path)
    if not isinstance(module, kind):
        module = kind(module)
        model.set_submodule(path, module)
    return module


def _bare(module: nn.Module) -> nn.Module:
    return module.base if isinstance(module, Wrapper) else module


def _modules(model: Llama) -> dict[str, nn.Module]:
    """Every module by its path in the plain model; a wrapper stands for what it wraps."""
    inside = tuple(f"{path}." for path, _ in wrappers(model))
    return {path: module for path, module in model.named_modules() if path and not path.startswith(inside)}


def _matching(model: Llama, targets: Sequence[str]) -> dict[str, nn.Module]:
    """The linear layers whose path is a target or ends in one."""
    modules = _modules(model)
    linear = {path: module for path, module in modules.items() if hasattr(_bare(module), "in_features")}
    found = {}
    for target in targets:
        some = {path: module for path, module in linear.items() if f".{path}".endswith(f".{target}")}
        if not some:
            names = sorted({path.rpartition(".")[2] for path in linear})
            near = difflib.get_close_matches(target, names, n=3) or names
            other = any(f".{path}".endswith(f".{target}") for path in modules)
            why = "is no linear layer (modules_to_save learns embeddings whole)" if other else "is no module's name"
            raise ValueError(f"target '{target}' {why}; linear layers here are {', '.join(near)}")
        found |= some
    return found


def _saved(model: Llama, names: Sequence[str], *, tied: bool) -> dict[str, nn.Module]:
    if unknown := [name for name in names if name not in MATRICES]:
        raise ValueError(f"modules_to_save names '{unknown[0]}'; what can be learned whole is {' and '.join(MATRICES)}")
    if tied and names and set(names) != set(MATRICES):
        log.warning("the head is tied to the embeddings: both are learned, as one matrix")
        names = MATRICES
    return {name: model.get_submodule(name) for name in names}


# ---- merging ---------------------------------------------------------------------------------------------------------


@dataclass
class Merged:
    """What `unmerge_lora` needs: the wrappers that were taken off, with the weights below them as they were."""

    sites: list[tuple[str, Wrapper, nn.Parameter]]
    config: LlamaConfig
    source: Any


def merge_lora(model: Llama, *, forget: bool = False) -> None:
    """Fold the active adapters into the weights and take the wrappers off: a plain Llama, as fast and as large.

    The sum is computed in float32 and rounded to the weights' dtype. So that `unmerge_lora` can be exact, the original
    weights are kept, which costs their size again; `forget` lets them go, and with them every adapter not active.

    A tied head that would differ from the embeddings afterwards is untied, and that is said.
    Raises ValueError where there is no active adapter, or where a base is quantised: the order is merge, then quantise.
    """
    if not active_names(model):
        raise ValueError("there is no active adapter to merge; add_lora, load_adapter or set_active first")
    sites = wrappers(model)
    for path, wrapper in sites:
        if not isinstance(wrapper.base, nn.Linear | nn.Embedding):
            raise ValueError(f"{path} is a {type(wrapper.base).__name__}, which an adapter cannot be folded into; "
                             "merge first, then quantise")
    record = Merged([], model.config, model.source)
    for path, wrapper in sites:
        original = wrapper.base.weight
        if wrapper.active:
            wrapper.base.weight = nn.Parameter(wrapper.merged(), requires_grad=False)
        if not forget:
            record.sites.append((path, wrapper, original))
        model.set_submodule(path, wrapper.base)
    if model.config.tie_word_embeddings:
        if torch.equal(model.embed_tokens.weight, model.lm_head.weight):
            model.tie()
        else:
            model.config = replace(model.config, tie_word_embeddings=False)
            log.warning("the merged adapter changes the head and the embeddings differently: they are no longer tied")
    model.source = None                                             # the files there are another model's now
    model.merged = None if forget else record


def unmerge_lora(model: Llama) -> None:
    """Undo `merge_lora`: the original weights bit for bit, the adapters on them again, the same ones active."""
    record = getattr(model, "merged", None)
    if record is None:
        raise ValueError("there is nothing to unmerge: no adapter was merged, or it was merged with forget=True")
    device = model.device
    for _, wrapper, original in record.sites:
        wrapper.base.weight = original
    model.config, model.source, model.merged = record.config, record.source, None
    model.tie()
    for path, wrapper, _ in record.sites:
        model.set_submodule(path, wrapper)
    model.to(device)                                                # where the plain model may have moved meanwhile


# ---- folders ---------------------------------------------------------------------------------------------------------


def save_adapter(model: Llama, folder: str | Path, *, name: str = "default", base: str | None = None) -> None:
    """Write one adapter as PEFT's folder, whole or not at all, with the fingerprint of the files it was learned on.

    base  what to record as the base's name; default the path that the model was loaded from

    Raises ValueError if there is no such adapter.
    """
    if name not in adapter_names(model):
        raise ValueError(f"no adapter is called '{name}', so there is nothing to save; "
                         f"there are: {', '.join(adapter_names(model)) or 'none'}")
    if below := [other for other in active_names(model) if other != name]:
        log.warning("'%s' is saved without %s, active beside it; to use it as it was learned, load both",
                    name, ", ".join(below))
    tensors, saved = {}, {}
    for path, wrapper in wrappers(model):
        if name in wrapper.adapters and isinstance(wrapper, Replaced):
            saved[path] = tensors[f"{path}.weight"] = wrapper.adapters[name]
        elif name in wrapper.adapters:
            tensors[f"{path}.lora_A.weight"] = wrapper.adapters[name].lora_A
            tensors[f"{path}.lora_B.weight"] = wrapper.adapters[name].lora_B
            config = wrapper.adapters[name].config
    values = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM",
        "base_model_name_or_path": str(base or model.source or ""),
        "r": config.rank, "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": list(config.targets), "modules_to_save": list(saved) or None,
        "bias": "none", "fan_in_fan_out": False, "use_rslora": False, "use_dora": False, "init_lora_weights": True,
        "inference_mode": True,
    }
    if len({id(copy) for copy in saved.values()}) < len(saved):
        values["ensure_weight_tying"] = True                        # newer PEFTs alone know the key, so only if needed
    write_adapter(folder, values, {key: tensor.detach() for key, tensor in tensors.items()},
                  fingerprint=fingerprint(model.source) if model.source else "")


def load_adapter(model: Llama, folder: str | Path, *, name: str = "default") -> None:
    """Put an adapter from PEFT's folder, ours or another's, on the model: `add_lora` with its tensors.

    Raises ValueError for an adapter of another base (by fingerprint or by shape), with tensors missing or unknown, or
    with an option that is not built here; then the model is as it was.
    """
    values, tensors, base = read_adapter(folder)
    _check_base(model, folder, values, base)
    config = _config(model, folder, values)
    tied = bool(values.get("ensure_weight_tying")) and model.config.tie_word_embeddings
    active, learning = active_names(model), [p for p in model.parameters() if p.requires_grad]
    _attach(model, config, name, tied=tied, generator=torch.Generator())
    try:
        _fill(model, folder, name, tensors)
    except ValueError:
        remove_lora(model, name)
        set_active(model, active)
        for parameter in learning:
            parameter.requires_grad_(True)
        raise


def _check_base(model: Llama, folder: str | Path, values: dict[str, Any], recorded: str) -> None:
    if not recorded or model.source is None:
        log.warning("%s: whether it was learned on this very model is not known%s", folder,
                    "" if recorded else ", as it records no fingerprint of its base")
    elif (here := fingerprint(model.source)) != recorded:
        raise ValueError(f"{folder}: the adapter was learned on {values.get('base_model_name_or_path')!r} (fingerprint "
                         f"{recorded[:12]}…), but this model is {str(model.source)!r} ({here[:12]}…); give its own base")


def _config(model: Llama, folder: str | Path, values: dict[str, Any]) -> LoRAConfig:
    """PEFT's config as ours; targets that no model like this has (lists made for many models) are left out."""
    try:
        targets, saved = (dict.fromkeys(name.removeprefix("model.") for name in values.get(key) or ())
                          for key in ("target_modules", "modules_to_save"))
        config = LoRAConfig(values["r"], values["lora_alpha"], values.get("lora_dropout") or 0.0,
                            tuple(targets), tuple(saved))
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{folder}: adapter_config.json cannot be understood: {error}") from None
    paths = _modules(model)
    present = [target for target in config.targets if any(f".{path}".endswith(f".{target}") for path in paths)]
    return replace(config, targets=tuple(present) or config.targets)


@torch.no_grad()
def _fill(model: Llama, folder: str | Path, name: str, tensors: dict[str, Tensor]) -> None:
    """Copy `tensors` into the adapter, strictly: every one of either side must fit one of the other."""
    expected: dict[str, Tensor] = {}
    for path, wrapper in wrappers(model):
        if name in wrapper.adapters and isinstance(wrapper, Replaced):
            expected[f"{path}.weight"] = wrapper.adapters[name]
        elif name in wrapper.adapters:
            expected[f"{path}.lora_A.weight"] = wrapper.adapters[name].lora_A
            expected[f"{path}.lora_B.weight"] = wrapper.adapters[name].lora_B
    # With the head a target, PEFT also writes the base's own head, as `lm_head.base_layer.weight`.
    bases = {key: model.get_submodule(key.removesuffix(".base_layer.weight")).weight for key in tensors
             if key.removesuffix(".base_layer.weight") in dict(wrappers(model))}
    missing, unknown = expected.keys() - tensors.keys(), tensors.keys() - expected.keys() - bases.keys()
    if missing or unknown:
        parts = [f"lacks {_some(missing)}"] * bool(missing) + [f"also holds {_some(unknown)}"] * bool(unknown)
        raise ValueError(f"{folder}: the adapter does not fit this model: it {' and '.join(parts)}")
