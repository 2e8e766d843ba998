"""LoRA: the layers, the swap, and PEFT's folders. `from llama.lora import add_lora, LoRAConfig, load_adapter`."""

from llama.lora.files import load_adapter, save_adapter
from llama.lora.swap import (
    adapter_configs,
    adapter_names,
    add_lora,
    has_lora,
    merge_lora,
    remove_lora,
    set_active,
    unmerge_lora,
)
from llama.lora.targets import LoRAConfig

__all__ = ["LoRAConfig", "adapter_configs", "adapter_names", "add_lora", "has_lora", "load_adapter", "merge_lora",
           "remove_lora", "save_adapter", "set_active", "unmerge_lora"]
