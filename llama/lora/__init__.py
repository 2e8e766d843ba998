"""LoRA: the layers, the swap, and PEFT's folders. `from llama.lora import add_lora, LoRAConfig, load_adapter`.

A name is imported when it is first used, so that who asks whether a model has adapters (llama/freeze.py) does not load
the readers of all forms of files.
"""

import importlib
from typing import Any

LAZY_EXPORTS = {
    "LoRAConfig": "llama.lora.targets",
    "add_lora": "llama.lora.swap",
    "remove_lora": "llama.lora.swap",
    "merge_lora": "llama.lora.swap",
    "unmerge_lora": "llama.lora.swap",
    "set_active": "llama.lora.swap",
    "has_lora": "llama.lora.swap",
    "adapter_names": "llama.lora.swap",
    "adapter_configs": "llama.lora.swap",
    "save_adapter": "llama.lora.files",
    "load_adapter": "llama.lora.files",
}


def __dir__() -> list[str]:
    return sorted([*globals(), *LAZY_EXPORTS])


def __getattr__(name: str) -> Any:
    if name not in LAZY_EXPORTS:
        raise AttributeError(f"module 'llama.lora' has no attribute '{name}'; it hands on {', '.join(LAZY_EXPORTS)}")
    return getattr(importlib.import_module(LAZY_EXPORTS[name]), name)
