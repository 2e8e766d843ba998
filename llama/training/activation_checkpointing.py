"""Keep less for the backward pass and compute it again: time for memory (arXiv:1604.06174).

Try: wrap `module.forward` instead of its class's; tests/test_trainer.py fails where one is wrapped already.
"""

from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from llama.model import Llama


def checkpoint_activations(model: Llama) -> None:
    """From now on keep only the blocks' inputs for the backward pass and compute the rest again: time for memory.

    Non-reentrant, because the reentrant kind gives LoRA no gradient, silently, when the embeddings are frozen.
    """
    for layer in model.layers:
        _checkpoint(layer)


def checkpoint_mlps(model: Llama) -> None:
    """The same for the feed-forward parts alone: they keep the most, for half of the work."""
    for layer in model.layers:
        _checkpoint(layer.mlp)


def _checkpoint(module: nn.Module) -> None:
    readable = partial(_forward, module)                            # not module.forward, which may be wrapped already
    module.forward = partial(checkpoint, readable, use_reentrant=False)


def _forward(module: nn.Module, *inputs: Any) -> Any:
    return type(module).forward(module, *inputs)
