"""What writing texts takes in memory, and by which flags it would fit: keys and values, for all texts at once.

Try: count query heads for key-value heads; tests/test_memory_to_write.py (test_two_ways_keys_and_values) fails.
"""

from contextlib import AbstractContextManager

import torch

from llama.config import LlamaConfig
from llama.model import Llama
from llama.quantization.swap import is_quantized
from llama.runtime.room import SURE, free_memory, memory_for, size


def memory_to_write(model: Llama, *, rows: int, longest: int, new: int,
                    dtype: torch.dtype | None) -> AbstractContextManager[None]:
    """In the body, a lack of memory says what would need less.

    rows  texts at once;  longest  tokens of a prompt;  new  tokens to write;  dtype  of the cache, None: the model's
    """
    free = free_memory(model.device)
    tokens = min(longest + new, model.config.context)
    what = f"writing {rows} texts of up to {tokens} tokens at once"
    return memory_for(what, lambda: less(model, rows=rows, longest=longest, new=new, dtype=dtype, free=free))


def less(model: Llama, *, rows: int, longest: int, new: int, dtype: torch.dtype | None, free: float) -> str:
    """Which flags would fit into `free` bytes, or into fewer than are taken; first those that change no text."""
    dtype = dtype or model.dtype
    slots = min(longest + new, model.config.context)
    token = cache_bytes(model.config, dtype)
    needed = rows * slots * token
    room = min(free, 0.9 * needed) / SURE
    found = []
    if (fewer := int(room / (slots * token))) and rows > 1:
        found.append(f"--batch-size {fewer} (or as few --beams)")
    if dtype != torch.int8 and rows * slots * cache_bytes(model.config, torch.int8) <= room:
        found.append("--cache-dtype int8")
    if not is_quantized(model) and needed - sum(each.nbytes for each in model.parameters()) / 2 <= room:
        found.append("--quantize int8")
    if (shorter := int(room / (rows * token)) - longest) > 0:
        found.append(f"--max-new-tokens {shorter}")
    fit = f"these would fit: {'; '.join(found)}" if found else "take a smaller model, or more memory"
    return f"keys and values take {size(needed)}; {fit}"


def cache_bytes(config: LlamaConfig, dtype: torch.dtype) -> int:
    """Keys and values of one token in all layers; in 8 bits with a float32 scale for each head's."""
    width = config.head_dim * dtype.itemsize + (4 if dtype == torch.int8 else 0)
    return config.num_hidden_layers * 2 * config.num_key_value_heads * width
