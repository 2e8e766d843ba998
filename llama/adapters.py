"""PEFT's adapter folder, in and out: adapter_config.json and adapter_model.safetensors. Knows files, knows no model.

PEFT names a tensor after the module that it wraps, `base_model.model.` before it; here names are those of memory:
`layers.0.self_attn.q_proj.lora_A.weight`, or `embed_tokens.weight` for a matrix that was learned whole. The fingerprint
of the base lies in the header of the tensor file: a key of ours in the JSON would make PEFT complain at every load.

Try: leave out `_refuse_unknown_options`; tests/test_lora.py (test_refusal_options_that_cannot_be_honoured) fails, and a
DoRA adapter would load as plain LoRA and write nonsense that looks like a badly trained model.
"""

import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from weights.huggingface import memory_name, read_json, stored_name, to_json, write_safetensors

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
FINGERPRINT = "base_fingerprint"                                   # key in the header of the tensor file

READ = {"r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "ensure_weight_tying"}
# Says where the adapter comes from or how it was started, and changes nothing in what it computes.
ABOUT = {"peft_type", "task_type", "bias", "init_lora_weights", "base_model_name_or_path", "revision", "auto_mapping",
         "inference_mode", "peft_version", "megatron_core", "qalora_group_size", "runtime_config"}
PLAIN_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")  # the other ways to start change the base, too


def write_adapter(folder: str | Path, config: dict[str, Any], tensors: dict[str, Tensor], *, fingerprint: str) -> None:
    """Write a whole adapter folder, or nothing. One that exists disappears only once the new one is complete.

    fingerprint  of the base's files, "" where it is not known

    Raises ValueError if there are no tensors, or if `folder` exists and is no adapter folder.
    """
    if not tensors:
        raise ValueError(f"{folder}: the adapter is empty: it holds no tensor, so there is nothing to save")
    folder = Path(os.path.abspath(folder))
    if folder.exists() and not (folder / CONFIG).is_file() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is no adapter folder (it has no {CONFIG}); give another name")
    partial, aside = (folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.{end}") for end in ("partial", "old"))
    partial.mkdir(parents=True)
    try:
        stored = {PREFIX + stored_name(name): tensor for name, tensor in tensors.items()}
        ledger = [(name, tuple(tensor.shape), tensor.dtype) for name, tensor in stored.items()]
        write_safetensors(partial / TENSORS, ledger, stored.items(), {FINGERPRINT: fingerprint} if fingerprint else {})
        (partial / CONFIG).write_bytes(to_json(config))
        if folder.exists():
            os.rename(folder, aside)
        os.rename(partial, folder)
    except BaseException:                                          # also Ctrl-C: the old one is put back
        if aside.exists() and not folder.exists():
            os.rename(aside, folder)
        raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(aside, ignore_errors=True)


def read_adapter(folder: str | Path) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """The folder's config, its tensors by name in memory, and the fingerprint of the base, "" if none is recorded.

    Raises FileNotFoundError or ValueError, naming the file, for what is missing, damaged, empty, or no LoRA of ours.
    """
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(f"{folder} is no adapter folder: it holds no {CONFIG}")
    config = read_json(folder / CONFIG)
    _refuse_unknown_options(config, folder / CONFIG)
    path = folder / TENSORS
    if not path.is_file():
        pickled = " (adapter_model.bin is a pickle, which can run code; save it as safetensors)" \
            if (folder / "adapter_model.bin").exists() else ""
        raise FileNotFoundError(f"{path} is missing; an adapter is its config and this file{pickled}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {memory_name(name.removeprefix(PREFIX)): file.get_tensor(name) for name in file.keys()}
            fingerprint = (file.metadata() or {}).get(FINGERPRINT, "")
    except (SafetensorError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged or cut short ({error}); copy it again") from None
    if not tensors:
        raise ValueError(f"{path}: the adapter is empty: it holds no tensor, so it would change nothing")
    return config, tensors, fingerprint


def _refuse_unknown_options(config: dict[str, Any], path: Path) -> None:
    """Whatever is not known here and not switched off may change the arithmetic, so it is refused by its name."""
    if (kind := config.get("peft_type")) != "LORA":
        raise ValueError(f"{path}: peft_type is {kind!r}; only 'LORA' is built here")
    if missing := [key for key in ("r", "lora_alpha", "target_modules") if config.get(key) is None]:
        raise ValueError(f"{path}: lacks {', '.join(missing)}; copy the adapter folder again")
    if not isinstance(config["target_modules"], list):
        raise ValueError(f"{path}: target_modules is {config['target_modules']!r}; here it must be a list of names")
    if config.get("bias", "none") != "none":
        raise ValueError(f"{path}: bias is {config['bias']!r}; only 'none' is built here")
    if (start := config.get("init_lora_weights", True)) not in PLAIN_STARTS:
        raise ValueError(f"{path}: init_lora_weights is {start!r}, which changes the base as well; "
                         "convert it to plain LoRA with PEFT (path_initial_model_for_weight_conversion)")
    for key, value in config.items():
        if key not in READ | ABOUT and value:
            raise ValueError(f"{path}: {key} is {value!r}, an option that is not built here; merge with PEFT instead")
