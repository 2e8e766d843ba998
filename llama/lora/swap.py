"""LoRA on a model: on, off, merged, unmerged, saved and loaded. What it computes is in layers.py.

A swap from outside: `add_lora` puts a `LoRALinear` around chosen linear layers of a built model and freezes the rest,
`remove_lora` takes it off; `merge_lora` folds it into the weights, and `unmerge_lora` takes that back to the last bit.
Several adapters can sit on a model; the active ones add up. An embedding or a head that an adapter learns whole is
replaced by a float32 copy. Nothing happens on train() or eval(), but for dropout.

Try: in `merge_lora`, leave out the untying; tests/test_lora.py
(test_two_ways_merged_equals_adapter_and_unmerge_restores) fails: a folder that calls them tied holds no head.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from llama.config import LlamaConfig
from llama.heads import Head, check_editable, head_config
from llama.lora.layers import DoRA, LoRALinear, LoRAPart, ModulesToSaveWrapper, Wrapper
from llama.lora.rows import RowsPart, TrainableRows
from llama.lora.targets import TIED, LoRAConfig, drop_missing, select_modules
from llama.model import Llama

log = logging.getLogger(__name__)


def add_lora(model: Llama, config: LoRAConfig, *, name: str = "default",
             generator: torch.Generator | None = None) -> None:
    """Put a new adapter on the model, beside those that are active; from now on nothing but this one learns.

    B is zero, so the model still computes what it did. A tied head stays tied: if embeddings or head are in
    `modules_to_save`, both are learned, as the one matrix that they are. A head of labels is always learned, whole.

    Raises ValueError for a name that is taken, and for a target that is no linear layer, with the nearest names.
    """
    if head_config(model) is not None:
        config = replace(config, modules_to_save=tuple(dict.fromkeys((*config.modules_to_save, model.head_name))))
    if config.targets == LoRAConfig.targets:                        # not asked for by name: a GPT has no gate
        config = drop_missing(config, plain_modules(model))
    attach(model, config, name, tied=model.config.tie_word_embeddings, generator=generator)


def set_active(model: Llama, names: str | Sequence[str]) -> None:
    """Use these adapters, added up, and no others. They learn, nothing else does. No name: the base as it is.

    Raises ValueError for an unknown name, and for two adapters that each replace the same matrix.
    """
    names = (names,) if isinstance(names, str) else tuple(dict.fromkeys(names))
    for name in names:
        check_known(model, name)
    for path, wrapper in wrappers(model).items():
        here = [name for name in names if name in wrapper.adapters]
        if isinstance(wrapper, ModulesToSaveWrapper | TrainableRows) and len(here) > 1:
            raise ValueError(f"adapters {' and '.join(here)} each replace {path}: only one of them can be active")
    for wrapper in wrappers(model).values():
        wrapper.active = tuple(name for name in names if name in wrapper.adapters)
    _learn_only(model, names)


def remove_lora(model: Llama, name: str) -> None:
    """Take an adapter off and forget it. The base is what it was before, but frozen (see `freeze.unfreeze`)."""
    check_known(model, name)
    for path, wrapper in wrappers(model).items():
        if name in wrapper.adapters:
            del wrapper.adapters[name]
            if isinstance(wrapper, ModulesToSaveWrapper) and name in wrapper.biases:
                del wrapper.biases[name]
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


def adapter_configs(model: nn.Module) -> dict[str, LoRAConfig]:
    """What each adapter learns, by its name."""
    return {name: part.config for wrapper in wrappers(model).values() if not isinstance(wrapper, ModulesToSaveWrapper)
            for name, part in wrapper.adapters.items()}


@contextmanager
def without_adapters(model: Llama) -> Iterator[None]:
    """In the body the model is what its adapters were learned on."""
    active = adapter_names(model, active=True)
    set_active(model, [])
    try:
        yield
    finally:
        set_active(model, active)


def wrappers(model: nn.Module) -> dict[str, Wrapper]:
    """Every wrapped module, by the path of what it wraps."""
    return {path: module for path, module in model.named_modules() if isinstance(module, Wrapper)}


@dataclass
class MergeRecord:
    """What `unmerge_lora` puts back: the wrappers taken off, each with the parameters that were below it."""

    sites: list[tuple[str, Wrapper, dict[str, nn.Parameter]]]
    config: LlamaConfig
    source: Any


def check_mergeable(model: Llama) -> None:
    """Raise ValueError for adapters on quantised layers, into whose few bits what they learned would not fit."""
    for path, wrapper in wrappers(model).items():
        if not isinstance(wrapper.base, nn.Linear | nn.Embedding | Head):
            raise ValueError(f"{path} is a {type(wrapper.base).__name__}, into which no adapter can be folded: save "
                             "the adapter, put it on the model in floats, merge, and quantise the result")


@torch.no_grad()
def merge_lora(model: Llama, *, keep_undo: bool = True) -> None:
    """Fold the active adapters into the weights and take the wrappers off: a plain Llama again, as fast and as small.

    Subtracting what was added would not give the old bits back, so the changed weights are kept for `unmerge_lora`,
    which costs their size once more. Without `keep_undo` they go, and with them the adapters that are not active.

    A tied head that must now differ from the embeddings is untied, and that is said.
    Raises ValueError where no adapter is active, or a base is quantised: the order is merge, then quantise.
    """
    if not adapter_names(model, active=True):
        raise ValueError("no active adapter to merge: add_lora, load_adapter or set_active comes first")
    check_mergeable(model)
    record = MergeRecord([], model.config, model.source)
    for path, wrapper in wrappers(model).items():
        if keep_undo:
            record.sites.append((path, wrapper, dict(wrapper.base.named_parameters())))
        if wrapper.active:
            wrapper.base.weight = nn.Parameter(wrapper.merged(wrapper.weight.dtype), requires_grad=False)
            if isinstance(wrapper, ModulesToSaveWrapper) and wrapper.biases:
                wrapper.base.bias = nn.Parameter(wrapper.merged_bias(wrapper.weight.dtype), requires_grad=False)
        model.set_submodule(path, wrapper.base)
    if model.config.tie_word_embeddings:
        if torch.equal(model.embed_tokens.weight, model.lm_head.weight):
            model.tie_weights()
        else:
            model.config = replace(model.config, tie_word_embeddings=False)
            log.warning("the merged adapter changes head and embeddings differently: they are no longer tied")
    model.source = None                                             # the files there are no longer this model
    model.merged = record if keep_undo else None


def unmerge_lora(model: Llama) -> None:
    """Undo `merge_lora`: the weights from before, bit for bit, and the adapters on them as they were."""
    record, device = getattr(model, "merged", None), model.device
    if record is None:
        raise ValueError("nothing to unmerge: no adapter was merged, or it was merged with keep_undo=False")
    for _, wrapper, originals in record.sites:
        for key, original in originals.items():
            setattr(wrapper.base, key, original)
    model.config, model.source, model.merged = record.config, record.source, None
    model.tie_weights()
    for path, wrapper, _ in record.sites:
        model.set_submodule(path, wrapper)
    model.to(device)                                                # it may have moved in the meantime


# ---- on and off ------------------------------------------------------------------------------------------------------


def attach(model: Llama, config: LoRAConfig, name: str, *, tied: bool, generator: torch.Generator | None) -> None:
    """`add_lora`; `tied`: embeddings and head that are learned whole are one matrix, not one each."""
    check_editable(model)
    _check_free(model, name)
    active = adapter_names(model, active=True)
    adapted, whole = adapted_modules(model, config, tied=tied)
    config = replace(config, rows=rows_to_learn(model, config))
    shared = TIED if config.rows and model.config.tie_word_embeddings else tuple(config.rows)
    rows = {path: module for path, module in plain_modules(model).items() if path in shared}
    if both := rows.keys() & (adapted.keys() | whole.keys()):
        raise ValueError(f"{min(both)} is to be learned by rows and in another way at once; choose one")
    for kind, places in ((LoRALinear, adapted), (ModulesToSaveWrapper, whole), (TrainableRows, rows)):
        for path, module in places.items():
            if isinstance(module, Wrapper) and not isinstance(module, kind):
                raise ValueError(f"{path}: adapter '{next(iter(module.adapters))}' learns it in another way (whole, by "
                                 f"rows, or by LoRA) than '{name}' would; remove_lora one of them")
            if isinstance(module, ModulesToSaveWrapper | TrainableRows) and module.active:
                raise ValueError(f"{path} is replaced by adapter '{module.active[0]}' already; two such adapters can "
                                 "be swapped, but not stacked: set_active(model, []) first")
    if quantised := [path for path, module in whole.items() if not module.weight.is_floating_point()]:
        raise ValueError(f"{quantised[0]} is quantised, so there are no floats to learn whole; leave it out of "
                         "modules_to_save, or take the model in floats")

    for path in adapted:
        wrapper, kind = _wrapped(model, path, LoRALinear), DoRA if config.dora else LoRAPart
        wrapper.adapters[name] = kind(wrapper.base, config, path=path, generator=generator).to(model.device)
        wrapper.train(model.training)                               # else a loaded adapter would drop inputs in use
    copy = None
    for path, module in whole.items():
        if copy is None or not tied:
            copy = nn.Parameter(module.weight.detach().to(torch.float32, copy=True))
        wrapper = _wrapped(model, path, ModulesToSaveWrapper)
        wrapper.adapters[name] = copy
        if (bias := getattr(wrapper.base, "bias", None)) is not None:
            wrapper.biases[name] = nn.Parameter(bias.detach().to(torch.float32, copy=True))
    part = None
    for path, module in rows.items():
        if part is None or not model.config.tie_word_embeddings:
            base = module.base if isinstance(module, TrainableRows) else module
            part = RowsPart(base, config.rows[path], config)
        _wrapped(model, path, TrainableRows).adapters[name] = part
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
        for parameter in adapter_tensors(model, name).values():
            parameter.requires_grad_(True)


def adapter_tensors(model: nn.Module, name: str) -> dict[str, nn.Parameter]:
    """An adapter's parameters by the names of `peft_folder.py`."""
    return _tensors(model, name, lambda part: part.tensors())


def stored_tensors(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    """The same as a folder holds them: with what a start took from W beside what was learned (starts.py)."""
    return _tensors(model, name, lambda part: part.stored())


def _tensors(model: nn.Module, name: str, of_part: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for path, wrapper in wrappers(model).items():
        if name not in wrapper.adapters:
            continue
        part = wrapper.adapters[name]
        if isinstance(wrapper, TrainableRows) and any(part.rows is other for other in tensors.values()):
            continue                                                # a tied head's, which PEFT writes once
        if isinstance(wrapper, ModulesToSaveWrapper):
            tensors[f"{path}.weight"] = part
            if name in wrapper.biases:
                tensors[f"{path}.bias"] = wrapper.biases[name]
        else:
            tensors |= {f"{path}.{key}": parameter for key, parameter in of_part(part).items()}
    return tensors


# ---- what fits where -------------------------------------------------------------------------------------------------


def check_known(model: Llama, name: str) -> None:
    if name not in (known := adapter_names(model)):
        raise ValueError(f"the model has no adapter '{name}'; it has {', '.join(known) or 'none'}")


def _check_free(model: Llama, name: str) -> None:
    if not name or "." in name or hasattr(nn.ParameterDict(), name):
        raise ValueError(f"an adapter cannot be called '{name}'; take letters and digits, without a dot")
    if name in adapter_names(model):
        raise ValueError(f"the model has an adapter '{name}' already; give another name, or remove_lora the old one")
    if getattr(model, "merged", None):
        raise ValueError("an adapter was merged that unmerge_lora can still take back; do that first, or merge with "
                         "keep_undo=False")


def plain_modules(model: Llama) -> dict[str, nn.Module]:
    """Every module of the plain model by its path; a wrapper stands for what it wraps."""
    inside = tuple(f"{path}." for path in wrappers(model))
    return {path: module for path, module in model.named_modules() if path and not path.startswith(inside)}


def adapted_modules(model: Llama, config: LoRAConfig, *, tied: bool) -> \
        tuple[dict[str, nn.Module], dict[str, nn.Module]]:
    """The modules that get a low-rank part, and those that are learned whole, by path."""
    modules = plain_modules(model)
    linear = [path for path, module in modules.items()
              if hasattr(module.base if isinstance(module, Wrapper) else module, "in_features")]
    adapted, whole = select_modules(config, modules, linear, tied=tied)
    if absent := [path for path in whole if path not in modules]:
        raise ValueError(f"modules_to_save names '{absent[0]}', and this model has none: its head is "
                         f"{model.head_name}")
    return {path: modules[path] for path in adapted}, {path: modules[path] for path in whole}


def new_rows(model: Any) -> dict[str, tuple[int, ...]]:
    """`LoRAConfig.rows` for the pieces that the model's vocabulary was grown by, in the embedding and a head of tokens.

    Raises ValueError where its tokenizer's files name none (tokenizer/extend.py records them).
    """
    ids = tuple(range(model.tokenizer.first_new_id, model.tokenizer.vocab_size))
    if not ids:
        raise ValueError("the model's vocabulary was not grown, so no rows are new; grow it with python -m "
                         "tokenizer.extend, and give the model its rows with python -m llama.resize")
    head = {} if head_config(model) is not None or model.config.tie_word_embeddings else {TIED[1]: ids}
    return {TIED[0]: ids} | head


def rows_to_learn(model: Llama, config: LoRAConfig) -> dict[str, tuple[int, ...]]:
    """The ids of rows that are learned, by the path of what has them; of a tied embedding and head under the first.

    Raises ValueError for rows that there are not.
    """
    modules = plain_modules(model)
    rows = {path: ids for path, ids in config.rows.items() if path in modules}          # a head of labels has none
    for path, ids in rows.items():
        if max(ids) >= (count := modules[path].weight.shape[0]):
            raise ValueError(f"row {max(ids):,} of {path} is to be learned, and it has {count:,}; was the model given "
                             "rows for its grown vocabulary (python -m llama.resize)?")
    if not (rows and model.config.tie_word_embeddings):
        return rows
    if len(set(rows.values())) > 1:
        raise ValueError("embeddings and head are tied, and share their rows; give both the same ids")
    return {TIED[0]: next(iter(rows.values()))}
