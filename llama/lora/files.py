"""Adapters in folders: PEFT's, with what is needed beside its tensors to know the model that it belongs to.

Try: let `load_adapter` skip `_check_base`; tests/test_peft_folder.py and tests/test_lora.py say what it would take.
"""

import logging
from dataclasses import replace
from pathlib import Path

import torch

from llama.checkpoint import config_dict, fingerprint, refuse_non_finite
from llama.heads import HeadConfig, add_head, head_config, remove_head
from llama.lora.layers import ModulesToSaveWrapper
from llama.lora.peft_folder import Adapter, check_tensors, read_adapter, write_adapter
from llama.lora.rows import DELTA
from llama.lora.swap import (
    adapted_modules,
    adapter_configs,
    adapter_names,
    adapter_tensors,
    attach,
    check_known,
    plain_modules,
    rows_to_learn,
    stored_tensors,
    wrappers,
)
from llama.lora.targets import TIED, drop_missing
from llama.model import Llama
from weights.formats.huggingface import below_head

log = logging.getLogger(__name__)


def save_adapter(model: Llama, folder: str | Path, *, name: str = "default", base: str = "") -> None:
    """Write one adapter as PEFT's folder, whole or not at all, with chat template and fingerprint of the model below.

    base  the name to record for that model; default the path that it was loaded from

    Raises ValueError if the model has no adapter of that name.
    """
    check_known(model, name)
    if beside := [other for other in adapter_names(model, active=True) if other != name]:
        log.warning("%s: '%s' was active together with %s, which is not in it: to get the same, load both",
                    folder, name, ", ".join(beside))
    copies = {path: wrapper.adapters[name] for path, wrapper in wrappers(model).items()
              if isinstance(wrapper, ModulesToSaveWrapper) and name in wrapper.adapters}
    write_adapter(folder, Adapter(
        replace(adapter_configs(model)[name].stored(), modules_to_save=tuple(copies)),
        {key: tensor.detach() for key, tensor in stored_tensors(model, name).items()},
        tied=model.config.tie_word_embeddings if not copies else len(set(copies.values())) < len(copies),
        base=str(base or model.source or ""),
        fingerprint=fingerprint(model.source) if model.source else "",
        chat_template=(model.tokenizer and model.tokenizer.chat_template) or "",
        head=head_config(model),
        below=below_head(config_dict(model)["architectures"]),
    ))


def load_adapter(model: Llama, folder: str | Path, *, name: str = "default") -> None:
    """Put the adapter in a folder, ours or PEFT's, on the model: `add_lora`, then its tensors, strictly.

    One with a head of labels brings that head, which stays when the adapter is removed. Without a fingerprint to
    compare, that is said, and shapes alone decide whether adapter and model fit.

    Raises ValueError for the adapter of another model, for tensors that are missing, unknown or of the wrong shape, and
    for what `read_adapter` refuses. Then the model is as it was.
    """
    adapter = read_adapter(folder)
    _check_base(model, adapter, folder)
    attach_adapter(model, adapter, name=name, place=folder)


def attach_adapter(model: Llama, adapter: Adapter, *, name: str, place: str | Path) -> None:
    """`load_adapter` for one that was read already from `place`, without asking whose it is."""
    brought = _bring_head(model, adapter.head, place)
    try:
        _put_on(model, adapter, name, place)
    except ValueError:
        if brought:
            remove_head(model)
        raise


def _bring_head(model: Llama, head: HeadConfig | None, place: str | Path) -> bool:
    """Give the model the head that an adapter was learned with. Whether it had none before."""
    there = head_config(model)
    if head is None or there is None:
        if head is not None:
            add_head(model, head, generator=torch.Generator())
        return head is not None
    unnamed = all(label == f"LABEL_{i}" for i, label in enumerate(head.labels))         # as PEFT's folders are
    if there.kind != head.kind or len(there.labels) != len(head.labels) or not (unnamed or there == head):
        raise ValueError(f"{place}: the adapter was learned with a head of kind {head.kind} for "
                         f"{', '.join(head.labels):.60}, the model has one of kind {there.kind} for "
                         f"{', '.join(there.labels):.60}; give the model below, without a head")
    return False


def _put_on(model: Llama, adapter: Adapter, name: str, place: str | Path) -> None:
    config = drop_missing(adapter.config, plain_modules(model))
    tied = adapter.tied and model.config.tie_word_embeddings
    try:
        adapted, whole = adapted_modules(model, config, tied=tied)
        rows = rows_to_learn(model, config)
    except ValueError as error:
        raise ValueError(f"{place}: the adapter's {error}") from None
    expected = {f"{path}.{key}": tuple(parameter.shape) for path, module in whole.items()
                for key, parameter in getattr(module, "base", module).named_parameters()}
    for path, module in adapted.items():
        rank = config.rank_of(path)
        expected[f"{path}.lora_A.weight"] = (rank, module.in_features)
        expected[f"{path}.lora_B.weight"] = (module.out_features, rank)
        if config.dora:
            expected[f"{path}.lora_magnitude_vector"] = (module.out_features,)
    expected |= {f"{path}.{DELTA}": (len(ids), model.config.hidden_size) for path, ids in rows.items()}
    bases = {f"{path}.base_layer.weight": module.weight.detach() for path, module in adapted.items()
             if f"{path}.base_layer.weight" in adapter.tensors}
    bases |= {f"{path}.weight": model.get_submodule(path).weight for path in TIED       # save_embedding_layers
              if f"{path}.weight" in adapter.tensors.keys() - expected.keys()}
    for key, tensor in adapter.tensors.items():
        refuse_non_finite(key, tensor, place)
    check_tensors(place, adapter.tensors, expected, bases, hidden_size=model.config.hidden_size)
    for path in adapted:
        A, B = (adapter.tensors[f"{path}.lora_{letter}.weight"].abs().max().float() for letter in "AB")
        largest = config.scale_of(path) * config.rank_of(path) * A * B                      # that α/r · B A can have
        refuse_non_finite(f"the adapter's product B A for {path}", largest, place)
    attach(model, config, name, tied=tied, generator=torch.Generator())            # leaves the global one alone
    with torch.no_grad():
        for key, parameter in adapter_tensors(model, name).items():
            parameter.copy_(adapter.tensors[key])
    if model.tokenizer and adapter.chat_template:
        model.tokenizer.chat_template = adapter.chat_template       # it is asked in the format that it was tuned in


def _check_base(model: Llama, adapter: Adapter, folder: str | Path) -> None:
    if not adapter.fingerprint:
        log.warning("%s: no fingerprint of the base is recorded, so only shapes tell whether this is its model", folder)
    elif not model.source:
        log.warning("%s: this model comes from no file, so only shapes tell whether the adapter is its own", folder)
    elif (here := fingerprint(model.source)) != adapter.fingerprint:
        raise ValueError(f"{folder}: the adapter was learned on {adapter.base or 'another model'} "
                         f"(fingerprint {adapter.fingerprint[:12]}), not on {model.source} ({here[:12]}); "
                         "give the model that it belongs to")
