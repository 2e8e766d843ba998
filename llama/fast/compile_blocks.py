"""Blocks compiled for training by torch.compile: what stands between the matrix products becomes a few loops in C++.

    compile_blocks(model)                # after `use_custom_autograd` and before the first step, which then takes half
                                         a minute
    compilations()                       # how often torch has compiled since
    uncompile_blocks(model)

The length of a batch is a symbol in the compiled code, so ragged batches need no code of their own: all blocks, and all
lengths, share one. Attention stays outside, since the documents of a packed row differ with every step.

Try: compile with dynamic=False; tests/test_compile_blocks.py (test_property_other_lengths_need_no_other_code) fails.
"""

import os
import shutil
from typing import Any

import torch

from llama.fast.custom_autograd import FusedAttention
from llama.model import Llama

COMPILERS = ("g++", "clang++", "c++")


def compile_blocks(model: Llama, *, backend: str = "inductor") -> None:
    """Raises ValueError where torch's code for this device cannot be built."""
    compilers = (os.environ.get("CXX"), *COMPILERS)
    if model.device.type == "cpu" and backend == "inductor" and not any(name and shutil.which(name)
                                                                         for name in compilers):
        raise ValueError("--compile needs a C++ compiler, and none is here (g++ or clang++); install one, or leave it "
                         "out")
    attend = torch.compiler.disable(FusedAttention.quick_attend)
    for layer in model.layers:
        if isinstance(layer.self_attn, FusedAttention):
            layer.self_attn.quick_attend = attend
        layer.forward = torch.compile(layer.forward, dynamic=True, backend=backend)


def uncompile_blocks(model: Llama) -> None:
    """The inverse. What `checkpoint_activations` has put there goes as well."""
    for layer in model.layers:
        layer.__dict__.pop("forward", None)
        layer.self_attn.__dict__.pop("quick_attend", None)


def compilations() -> int:
    """Pieces of code that torch has compiled in this process."""
    counters: Any = torch._dynamo.utils.counters
    return counters["stats"]["unique_graphs"]
