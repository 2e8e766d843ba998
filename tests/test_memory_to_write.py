import pytest
import torch

from llama.cache import KVCache
from llama.commands.memory_to_write import cache_bytes, less, memory_to_write
from llama.quantization.swap import quantize
from llama.runtime.room import OutOfMemory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_two_ways_keys_and_values(tiny_model, dtype):
    cache = KVCache(tiny_model.config, 3, 10, dtype=dtype, device="cpu")
    tiny_model(torch.ones(3, 10, dtype=torch.int64), cache=cache)
    kept = sum(getattr(layer, name)[:, :, :10].numel() * getattr(layer, name).itemsize
               for layer in cache.layers for name in layer.stored)
    assert kept == 30 * cache_bytes(tiny_model.config, dtype)


def test_property_named_flags_fit(tiny_model):
    token = cache_bytes(tiny_model.config, torch.float32)
    said = less(tiny_model, rows=100, longest=10, new=90, dtype=None, free=100 * 100 * token * 0.55)
    assert all(flag in said for flag in ("--cache-dtype int8", "--batch-size 50 (or as few", "--max-new-tokens 40"))
    quantize(tiny_model, bits=8, report=False)
    said = less(tiny_model, rows=1, longest=10, new=90, dtype=torch.int8, free=100)
    assert said.endswith("take a smaller model, or more memory")


def test_refusal_says_how_many_texts_of_what_length(tiny_model):
    with pytest.raises(OutOfMemory, match="out of memory while writing 9 texts of up to 30 tokens at once, where"), \
            memory_to_write(tiny_model, rows=9, longest=10, new=20, dtype=None):
        torch.empty(2**60)
