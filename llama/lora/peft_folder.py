"""What a LoRA adapter is on disk: PEFT's folder, adapter_config.json and adapter_model.safetensors, in and out. The
adapter_model.bin of older ones is read, as plain data (weights/formats/torch_file.py).

PEFT names a tensor after the module that it wraps, `base_model.model.` before it; here names are those of memory:
`layers.0.self_attn.q_proj.lora_A.weight`, or `embed_tokens.weight` for a matrix that is learned whole. The fingerprint
of the base lies in the header of the tensor file: for a key of ours in the JSON, PEFT would complain at every load.

Where rows of embedding and head are all that is learned, the folder is of PEFT's other type, TRAINABLE_TOKENS, since
its LORA must have a low-rank part. There a tied head's rows are written beside the embedding's.

Try: read without `_refuse_options`; tests/test_peft_folder.py (test_refusal_options_that_are_not_built_here) fails, and
an adapter of another kind would load as plain LoRA and write like a badly trained model.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from llama.heads import KINDS, SPAN, HeadConfig
from llama.lora.rows import DELTA
from llama.lora.targets import TIED, LoRAConfig, Names
from tokenizer.checked_json import (
    ANYTHING,
    FLAG,
    TEXT,
    check_fields,
    check_value,
    either,
    listed,
    mapped,
    number,
    read_value,
    record,
    whole,
)
from weights.formats.atomic_write import atomic_folder
from weights.formats.huggingface import memory_name, misfit, read_json, stored_name, to_json, write_safetensors
from weights.formats.tensor_files import tensors_of

CONFIG, TENSORS, TEMPLATE = "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"
BIN = "adapter_model.bin"                                           # of older PEFTs; read where there is no other
PREFIX = "base_model.model."
ROWS, DELTA_ALONE = "TRAINABLE_TOKENS", "trainable_tokens_delta"     # the type of rows alone, and their name there
EMBEDDING, HEAD_NAME = TIED
FINGERPRINT, HEAD = "base_fingerprint", "head"                      # keys in the header of the tensor file

# Keys of adapter_config.json: those read here, those that tell about an adapter without changing what it computes, and
# those that change it in ways that are not built here. These, and keys unknown to us, are refused where they are set.
READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "layers_to_transform",
        "layers_pattern", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "modules_to_save",
        "ensure_weight_tying", "bias", "init_lora_weights", "base_model_name_or_path", "trainable_token_indices"}
READ_OF_ROWS = {"peft_type", "target_modules", "token_indices", "base_model_name_or_path", "init_weights"}
ABOUT = {"task_type", "inference_mode", "peft_version", "revision", "auto_mapping", "runtime_config", "megatron_core",
         "qalora_group_size", "eva_config"}
NOT_BUILT = {
    "fan_in_fan_out": "matrices stored as (in, out)",
    "lora_bias": "a bias beside B",
    "target_parameters": "adapted tensors that are no layer's",
    "layer_replication": "blocks used several times",
    "alora_invocation_tokens": "an adapter that starts working at certain tokens",
    "arrow_config": "adapters chosen by token",
    "use_qalora": "inputs pooled before A",
    "use_bdlora": "A or B in diagonal blocks",
    "velora_config": "activations compressed for the backward pass",
    "monteclora_config": "A and B drawn at random",
    "kasa_config": "a base whose small singular values were cut off",
    "loftq_config": "a base that was quantised for the adapter",
    "corda_config": "a base from which the adapter's start was taken",
    "lora_ga_config": "a base from which the adapter's start was taken",
    "megatron_config": "layers of Megatron",
}
STARTS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")               # others change the base as well


_HEAD = record({"labels": listed(TEXT)}, {"kind": TEXT, "attention": TEXT, "pooling": TEXT, "multi_label": FLAG,
                                          "about": mapped(ANYTHING)})
_NAMES = either(TEXT, listed(TEXT))
FIELDS = {"peft_type": TEXT, "r": whole(1), "lora_alpha": number(above=0), "lora_dropout": number(0),
          "target_modules": _NAMES, "exclude_modules": _NAMES, "layers_to_transform": either(whole(), listed(whole())),
          "rank_pattern": mapped(whole(1)), "alpha_pattern": mapped(number(above=0)), "use_rslora": FLAG,
          "trainable_token_indices": either(listed(whole()), mapped(listed(whole()))), "token_indices": listed(whole()),
          "use_dora": FLAG, "modules_to_save": listed(TEXT), "ensure_weight_tying": FLAG, "bias": TEXT,
          "init_lora_weights": either(FLAG, TEXT), "layers_pattern": _NAMES, "base_model_name_or_path": TEXT}


@dataclass
class Adapter:
    """All that the folder holds. `tied`: embeddings and head in modules_to_save are one matrix."""

    config: LoRAConfig
    tensors: dict[str, Tensor]
    tied: bool = False
    base: str = ""                                                  # name of the model it was learned on
    fingerprint: str = ""                                           # of that model's files; "" if not known
    chat_template: str = ""                                         # Jinja, of the format it was learned in; "" if none
    head: HeadConfig | None = None                                  # of labels, which is among the tensors
    below: str = "model."                                           # see weights.formats.huggingface.below_head


def write_adapter(folder: str | Path, adapter: Adapter) -> None:
    """Write a whole adapter folder, or nothing. An older one of that name goes only once the new one is complete.

    Raises ValueError if there is no tensor to write, or if `folder` exists and is no adapter folder.
    """
    if not adapter.tensors:
        raise ValueError(f"{folder}: the adapter is empty: there is no tensor to save")
    folder = Path(folder)
    if os.path.lexists(folder) and not (folder / CONFIG).is_file():
        if not folder.is_dir() or any(folder.iterdir()):
            raise ValueError(f"{folder} exists and is no adapter folder (it has no {CONFIG}); give another name")
    tensors = adapter.tensors if adapter.config.targets else _without_lora(adapter)
    stored = {PREFIX + stored_name(name, adapter.below): tensor for name, tensor in tensors.items()}
    ledger = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in stored.items()]
    metadata = {FINGERPRINT: adapter.fingerprint} if adapter.fingerprint else {}
    if adapter.head:
        metadata[HEAD] = json.dumps(asdict(adapter.head), ensure_ascii=False)
    with atomic_folder(folder) as partial:
        write_safetensors(partial / TENSORS, ledger, stored.items(), metadata)
        (partial / CONFIG).write_bytes(to_json(_to_peft(adapter)))
        if adapter.chat_template:
            (partial / TEMPLATE).write_text(adapter.chat_template, encoding="utf-8", newline="")


def recorded_base(folder: str | Path) -> str:
    """The folder or name that an adapter's config gives for the model below it; "" where it gives none."""
    path = Path(folder) / "adapter_config.json"
    return str(read_json(path).get("base_model_name_or_path") or "") if path.is_file() else ""


def read_adapter(folder: str | Path) -> Adapter:
    """The adapter in a folder written here or by PEFT.

    Raises FileNotFoundError or ValueError, naming the file, for what is missing, damaged, empty, or not built here.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        remedy = "it is a model, which --model takes" if (folder / "config.json").is_file() else \
            "give one that finetune.py --lora wrote"
        raise FileNotFoundError(f"{folder} is no adapter folder: there is no {CONFIG} in it; {remedy}")
    values = read_json(folder / CONFIG)
    check_fields(values, FIELDS, str(folder / CONFIG))
    _refuse_options(values, folder / CONFIG)
    alone = values["peft_type"] == ROWS
    config = _rows_from_peft(values, folder / CONFIG) if alone else config_from_peft(values, folder / CONFIG)
    path = next((folder / name for name in (TENSORS, BIN) if (folder / name).is_file()), None)
    if path is None:
        raise FileNotFoundError(f"{folder / TENSORS} is missing, and so is {BIN}; copy the adapter folder again")
    tensors = {memory_name(name.removeprefix(PREFIX)): tensor.read() for name, tensor in tensors_of(path).items()}
    metadata = _metadata(path) if path.name == TENSORS else {}
    if alone:
        tensors = _as_with_lora(tensors, config)
    if not tensors:
        raise ValueError(f"{path}: the adapter is empty: it holds no tensor and would change nothing; train it again")
    tied = bool(values.get("ensure_weight_tying"))
    template = (folder / TEMPLATE).read_bytes().decode(errors="replace") if (folder / TEMPLATE).is_file() else ""
    return Adapter(config, tensors, tied, str(values.get("base_model_name_or_path") or ""),
                   metadata.get(FINGERPRINT, ""), template, _head(metadata.get(HEAD), tensors, path))


def _metadata(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def _head(recorded: str | None, tensors: dict[str, Tensor], path: Path) -> HeadConfig | None:
    """The head of labels in an adapter; PEFT's folders say no more of it than its shape."""
    try:
        if recorded:
            return HeadConfig(**check_value(read_value(recorded, HEAD), _HEAD, HEAD))
        for kind, each in KINDS.items():
            if f"{each.name}.weight" in tensors and (f"{each.name}.bias" in tensors) == each.bias:
                count = len(tensors[f"{each.name}.weight"])
                return HeadConfig(SPAN if kind == "spans" else tuple(f"LABEL_{i}" for i in range(count)), kind)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: the head of labels in it is damaged ({error}); copy it again") from None
    return None


def check_tensors(folder: str | Path, tensors: dict[str, Tensor], expected: dict[str, tuple[int, ...]],
                  bases: dict[str, Tensor], *, hidden_size: int) -> None:
    """See that `tensors` are those `expected`, all of them and in their shapes, and no others.

    bases  the model's own matrices where the folder holds them too: PEFT writes the base's head beside an adapter of
           the head, and embeddings beside any. They must be the same, up to rounding to bfloat16; of a quantised base
           there is nothing to compare them with

    Raises ValueError, listing what is missing, unknown, or does not fit.
    """
    wrong = {name: tensor for name, tensor in tensors.items() if expected.get(name, tensor.shape) != tensor.shape}
    for name, tensor in wrong.items():
        if tensor.dim() == 2 and expected[name][1] == hidden_size != tensor.shape[1]:
            raise ValueError(f"{folder}: the adapter was made for a base with hidden size {tensor.shape[1]}, "
                             f"this model has {hidden_size}")
    if wrong:
        name, tensor = next(iter(wrong.items()))
        raise ValueError(f"{folder}: {name} has the shape {tuple(tensor.shape)}, but model and {CONFIG} ask for "
                         f"{expected[name]}")
    missing, unknown = expected.keys() - tensors.keys(), tensors.keys() - expected.keys() - bases.keys()
    if missing or unknown:
        raise ValueError(f"{folder}: the adapter does not fit this model: it {misfit(missing, unknown)}")
    for name, ours in bases.items():
        if ours.is_floating_point() and not (tensors[name].shape == ours.shape and
                                             torch.equal(tensors[name].bfloat16(), ours.detach().cpu().bfloat16())):
            raise ValueError(f"{folder}: {name} is not this model's; the adapter belongs to another base, or learned "
                             "its embeddings without saying so (modules_to_save): let PEFT merge it into its base")


def _to_peft(adapter: Adapter) -> dict[str, Any]:
    config = adapter.config
    about = {"task_type": KINDS[adapter.head.kind].task_type if adapter.head else "CAUSAL_LM",
             "base_model_name_or_path": adapter.base}
    if not config.targets:
        ids = next(iter(config.rows.values()))
        return {"peft_type": ROWS, **about, "target_modules": list(config.rows), "token_indices": list(ids),
                "init_weights": True, "inference_mode": True}
    values = {
        "peft_type": "LORA",
        **about,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": _listed(config.targets),
        "exclude_modules": _listed(config.exclude) or None,
        "layers_to_transform": list(config.layers) or None,
        "rank_pattern": dict(config.rank_pattern),
        "alpha_pattern": dict(config.alpha_pattern),
        "modules_to_save": list(config.modules_to_save) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": config.rslora,
        "use_dora": config.dora,
        "inference_mode": True,
    }
    # Only newer PEFTs know these keys; older ones refuse unknown keys, so they are written where they say something.
    if adapter.tied and config.modules_to_save:
        values["ensure_weight_tying"] = True
    if config.rows:
        values["trainable_token_indices"] = {name: list(ids) for name, ids in config.rows.items()}
    return values


def _listed(names: Names) -> list[str] | str:
    return names if isinstance(names, str) else list(names)


def config_from_peft(values: dict[str, Any], path: str | Path) -> LoRAConfig:
    """What an adapter learns, by the keys of PEFT's LoraConfig. `path` is named in errors."""
    if missing := [key for key in ("r", "lora_alpha", "target_modules") if values.get(key) is None]:
        raise ValueError(f"{path}: lacks {', '.join(missing)}; copy the adapter folder again")
    targets, exclude = (_names(values, key, path, pattern=True) for key in ("target_modules", "exclude_modules"))
    saved = _names(values, "modules_to_save", path, pattern=False)
    layers = values.get("layers_to_transform")
    layers = [layers] if isinstance(layers, int) else layers or []
    try:
        return LoRAConfig(
            rank=values["r"], alpha=values["lora_alpha"], dropout=values.get("lora_dropout") or 0.0,
            targets=targets, exclude=exclude, layers=tuple(layers),
            rslora=bool(values.get("use_rslora")), dora=bool(values.get("use_dora")),
            modules_to_save=tuple(dict.fromkeys(name.removeprefix("model.") for name in saved)),
            rank_pattern=values.get("rank_pattern") or {}, alpha_pattern=values.get("alpha_pattern") or {},
            rows=_rows(values.get("trainable_token_indices")))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _rows(indices: list[int] | dict[str, list[int]] | None) -> dict[str, tuple[int, ...]]:
    """A list is of the embedding's; a module is named whole or by its end."""
    named = {EMBEDDING: indices} if isinstance(indices, list) else indices or {}
    return {name.removeprefix("model."): tuple(ids) for name, ids in named.items() if ids}


def _rows_from_peft(values: dict[str, Any], path: str | Path) -> LoRAConfig:
    """The same by the keys of TrainableTokensConfig."""
    targets = values.get("target_modules") or [EMBEDDING]
    names = [targets] if isinstance(targets, str) else targets
    try:
        return LoRAConfig(targets=(), rows=_rows({name: values.get("token_indices") or [] for name in names}))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _without_lora(adapter: Adapter) -> dict[str, Tensor]:
    """The tensors by the names of TRAINABLE_TOKENS."""
    tensors = {name.replace(DELTA, DELTA_ALONE): tensor for name, tensor in adapter.tensors.items()}
    tied = {f"{HEAD_NAME}.{DELTA_ALONE}": tensor for tensor in tensors.values()} if adapter.tied else {}
    return tensors | tied


def _as_with_lora(tensors: dict[str, Tensor], config: LoRAConfig) -> dict[str, Tensor]:
    """The inverse of `_without_lora`: the rows of a tied head are those of the embedding."""
    tensors = {name.replace(DELTA_ALONE, DELTA): tensor for name, tensor in tensors.items()}
    embedding, head = tensors.get(f"{EMBEDDING}.{DELTA}"), tensors.get(f"{HEAD_NAME}.{DELTA}")
    if HEAD_NAME not in config.rows and head is not None and embedding is not None and torch.equal(head, embedding):
        del tensors[f"{HEAD_NAME}.{DELTA}"]
    return tensors


def _names(values: dict[str, Any], key: str, path: str | Path, *, pattern: bool) -> Names:
    names = values.get(key) or []
    if pattern and isinstance(names, str):
        return names
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path}: {key} is {names!r}; here it must be a list of names{' or a pattern' * pattern}")
    return tuple(dict.fromkeys(names))


def _refuse_options(values: dict[str, Any], path: Path) -> None:
    """Whatever is neither known nor switched off may change what the adapter computes: refused by its name."""
    if (kind := values.get("peft_type")) not in ("LORA", ROWS):
        raise ValueError(f"{path}: peft_type is {kind!r}; only 'LORA' and '{ROWS}' are built here")
    read = READ if kind == "LORA" else READ_OF_ROWS
    if values.get("bias", "none") != "none":
        raise ValueError(f"{path}: bias is {values['bias']!r} (biases of the base that are learned); only 'none' is "
                         "built here")
    if (start := values.get("init_lora_weights")) not in STARTS:
        raise ValueError(f"{path}: init_lora_weights is {start!r}, which changes the base too; let PEFT convert the "
                         "adapter to plain LoRA when it saves (path_initial_model_for_weight_conversion)")
    if values.get("layers_pattern") not in (None, "", [], "layers", ["layers"]):
        raise ValueError(f"{path}: layers_pattern is {values['layers_pattern']!r}; the blocks of a Llama are 'layers'")
    for key, value in values.items():
        if key not in read | ABOUT and value:
            what = f" ({NOT_BUILT[key]})" if key in NOT_BUILT else ""
            raise ValueError(f"{path}: {key} is {value!r}, an option that is not built here{what}; let PEFT merge the "
                             "adapter into its base, and load the merged folder")
