"""What a LoRA adapter is on disk: PEFT's folder, adapter_config.json and adapter_model.safetensors, in and out.

PEFT names a tensor after the module that it wraps, `base_model.model.` before it; here names are those of memory:
`layers.0.self_attn.q_proj.lora_A.weight`, or `embed_tokens.weight` for a matrix that is learned whole. The fingerprint
of the base lies in the header of the tensor file: for a key of ours in the JSON, PEFT would complain at every load.

Try: read without `_refuse_options`; tests/test_adapters.py (test_refusal_options_that_are_not_built_here) fails, and
an adapter of another kind would load as plain LoRA and write like a badly trained model.
"""

import math
import os
import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from llama.checkpoint import misfit
from weights.huggingface import memory_name, read_json, stored_name, to_json, write_safetensors

CONFIG, TENSORS, TEMPLATE = "adapter_config.json", "adapter_model.safetensors", "chat_template.jinja"
PREFIX = "base_model.model."
FINGERPRINT = "base_fingerprint"                                    # key in the header of the tensor file

# The keys that are read here, and those that tell about an adapter without changing what it computes.
READ = {"peft_type", "r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "ensure_weight_tying",
        "bias", "init_lora_weights", "base_model_name_or_path"}
ABOUT = {"task_type", "inference_mode", "peft_version", "revision", "auto_mapping", "runtime_config", "megatron_core",
         "qalora_group_size"}
STARTS = (True, False, None, "gaussian", "orthogonal", "eva")       # others (pissa, olora …) change the base as well


@dataclass(frozen=True)
class LoRAConfig:
    """What a LoRA adapter learns."""

    rank: Annotated[int, "R, the rank of what is added to a matrix"] = 8
    alpha: Annotated[float, "what is added is scaled by alpha / rank"] = 16.0
    dropout: Annotated[float, "part of an adapter's inputs set to 0 while it learns"] = 0.0
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
            raise ValueError("targets names no layer; give at least one, such as q_proj")


@dataclass
class Adapter:
    """All that the folder holds. `tied`: embeddings and head in modules_to_save are one matrix."""

    config: LoRAConfig
    tensors: dict[str, Tensor]
    tied: bool = False
    base: str = ""                                                  # name of the model it was learned on
    fingerprint: str = ""                                           # of that model's files; "" if not known
    chat_template: str = ""                                         # Jinja, of the format it was learned in; "" if none


def write_adapter(folder: str | Path, adapter: Adapter) -> None:
    """Write a whole adapter folder, or nothing. An older one of that name goes only once the new one is complete.

    Raises ValueError if there is no tensor to write, or if `folder` exists and is no adapter folder.
    """
    if not adapter.tensors:
        raise ValueError(f"{folder}: the adapter is empty: there is no tensor to save")
    folder = Path(os.path.abspath(folder))
    if os.path.lexists(folder) and not (folder / CONFIG).is_file():
        if not folder.is_dir() or any(folder.iterdir()):
            raise ValueError(f"{folder} exists and is no adapter folder (it has no {CONFIG}); give another name")
    partial, aside = (folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.{end}") for end in ("partial", "old"))
    partial.mkdir(parents=True)
    try:
        stored = {PREFIX + stored_name(name): tensor for name, tensor in adapter.tensors.items()}
        ledger = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in stored.items()]
        metadata = {FINGERPRINT: adapter.fingerprint} if adapter.fingerprint else None
        write_safetensors(partial / TENSORS, ledger, stored.items(), metadata)
        (partial / CONFIG).write_bytes(to_json(_to_peft(adapter)))
        if adapter.chat_template:
            (partial / TEMPLATE).write_text(adapter.chat_template, encoding="utf-8", newline="")
        if folder.exists():
            os.rename(folder, aside)
        os.rename(partial, folder)
    except BaseException:                                           # also Ctrl-C: the older one comes back
        if aside.exists() and not folder.exists():
            os.rename(aside, folder)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def read_adapter(folder: str | Path) -> Adapter:
    """The adapter in a folder written here or by PEFT.

    Raises FileNotFoundError or ValueError, naming the file, for what is missing, damaged, empty, or not built here.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} is no adapter folder: there is no {CONFIG} in it")
    values = read_json(folder / CONFIG)
    _refuse_options(values, folder / CONFIG)
    config = _from_peft(values, folder / CONFIG)
    path = folder / TENSORS
    if not path.is_file():
        pickled = "; adapter_model.bin is a pickle, which can run code: save it as safetensors" \
            if (folder / "adapter_model.bin").exists() else "; copy the adapter folder again"
        raise FileNotFoundError(f"{path} is missing{pickled}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {memory_name(name.removeprefix(PREFIX)): file.get_tensor(name) for name in file.keys()}
            fingerprint = (file.metadata() or {}).get(FINGERPRINT, "")
    except (SafetensorError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged or cut short ({error}); copy it again") from None
    if not tensors:
        raise ValueError(f"{path}: the adapter is empty: it holds no tensor and would change nothing; train it again")
    tied = bool(values.get("ensure_weight_tying"))
    template = (folder / TEMPLATE).read_bytes().decode(errors="replace") if (folder / TEMPLATE).is_file() else ""
    return Adapter(config, tensors, tied, str(values.get("base_model_name_or_path") or ""), fingerprint, template)


def check_tensors(folder: str | Path, tensors: dict[str, Tensor], expected: dict[str, tuple[int, ...]],
                  bases: dict[str, Tensor], *, hidden_size: int) -> None:
    """See that `tensors` are those `expected`, all of them and in their shapes, and no others.

    bases  the model's own matrices below targets, where the folder holds them too: PEFT writes the base's head beside
           an adapter of the head. They must be the same, up to rounding to bfloat16

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
        if not torch.equal(tensors[name].bfloat16(), ours.cpu().bfloat16()):
            raise ValueError(f"{folder}: {name} is not this model's; the adapter belongs to another base")


def _to_peft(adapter: Adapter) -> dict[str, Any]:
    config = adapter.config
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": adapter.base,
        "r": config.rank,
        "lora_alpha": int(config.alpha) if config.alpha == int(config.alpha) else config.alpha,
        "lora_dropout": config.dropout,
        "target_modules": list(config.targets),
        "modules_to_save": list(config.modules_to_save) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }
    # Only newer PEFTs know this key; older ones refuse unknown keys, so it is written where it says something.
    return values | ({"ensure_weight_tying": True} if adapter.tied else {})


def _from_peft(values: dict[str, Any], path: Path) -> LoRAConfig:
    if missing := [key for key in ("r", "lora_alpha", "target_modules") if values.get(key) is None]:
        raise ValueError(f"{path}: lacks {', '.join(missing)}; copy the adapter folder again")
    for key in ("target_modules", "modules_to_save"):
        if not isinstance(values.get(key) or [], list) or not all(isinstance(name, str) for name in values[key] or []):
            raise ValueError(f"{path}: {key} is {values[key]!r}; here it must be a list of names")
    targets, saved = ([name.removeprefix("model.") for name in values.get(key) or []]
                      for key in ("target_modules", "modules_to_save"))
    try:
        return LoRAConfig(values["r"], values["lora_alpha"], values.get("lora_dropout") or 0.0,
                          tuple(dict.fromkeys(targets)), tuple(dict.fromkeys(saved)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _refuse_options(values: dict[str, Any], path: Path) -> None:
    """Whatever is neither known nor switched off may change what the adapter computes: refused by its name."""
    if (kind := values.get("peft_type")) != "LORA":
        raise ValueError(f"{path}: peft_type is {kind!r}; only 'LORA' is built here")
    if values.get("bias", "none") != "none":
        raise ValueError(f"{path}: bias is {values['bias']!r}; only 'none' is built here")
    if (start := values.get("init_lora_weights")) not in STARTS:
        raise ValueError(f"{path}: init_lora_weights is {start!r}, which changes the base too; let PEFT convert the "
                         "adapter to plain LoRA when it saves (path_initial_model_for_weight_conversion)")
    for key, value in values.items():
        if key not in READ | ABOUT and value:
            raise ValueError(f"{path}: {key} is {value!r}, an option that is not built here; let PEFT merge the "
                             "adapter into its base, and load the merged folder")
