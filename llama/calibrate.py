"""4 bits for what a model reads: each block's inputs are measured on a text, and its matrices rounded to suit them.

    python -m llama.quantize --bits 4 --data corpus.txt --model weights/NAME --output weights/NAME-int4

Block by block: what its matrices are multiplied with, then the rounding (`rounding.to_int4_for`), then what comes out
of the rounded block, for the next one; so later blocks make up for what earlier ones lost. Some thousand tokens
suffice: they tell but which inputs go together.

Try: give the next block what came out before rounding; tests/test_calibrate.py
(test_property_later_blocks_see_what_earlier_ones_lost) fails.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llama.datasets.language_modeling import LanguageModelingDataset
from llama.model import Block, Llama, rotary_tables, within_window
from llama.quantize import check_floats, install, relative_error, round_floats
from llama.rounding import to_int4_for

LENGTH = 512                                                        # tokens of a text that see each other
TOKENS = 16384                                                      # that are looked at, at most


@torch.no_grad()
def quantize_for(model: Llama, ids: Sequence[int], *, length: int = 0) -> dict[str, float]:
    """`quantize(model, bits=4)` with the blocks' matrices rounded for a text. In place.

    ids     of the text; the first 16,384 are used. Twice their hidden states are kept, and the moments of a block
    length  tokens that see each other; 0 takes 512. More than in training would be inputs that nobody gives
    ->      the relative error ‖W - Ŵ‖ / ‖W‖ of each layer: larger than without a text, for it is not what is made small

    Raises ValueError for a model that is quantised, and for less text than one block of tokens.
    """
    check_floats(model)
    length = min(length or LENGTH, model.config.context)
    count = min(len(ids), TOKENS) // length
    if not count:
        raise ValueError(f"the text has {len(ids)} tokens; give at least {length}, better some {TOKENS:,}")
    tokens = torch.tensor(ids[: count * length], device=model.device).view(count, length)
    cos, sin = rotary_tables(torch.arange(length, device=model.device), model.config)
    mask = within_window(None, length, length, model.config.sliding_window, model.device)
    surroundings = cos, sin, mask, None                             # what a block gets beside its states
    states = [model.embed_tokens(row[None]) for row in tokens]      # (1, T, D) each
    errors = {}
    for number, block in enumerate(model.layers):
        moments = input_moments(block, states, surroundings)
        for path, linear in [(path, part) for path, part in block.named_modules() if isinstance(part, nn.Linear)]:
            packed = to_int4_for(linear.weight, moments[path])
            errors[f"layers.{number}.{path}"] = relative_error(linear.weight, packed)
            install(model, f"layers.{number}.{path}", packed, linear.weight.dtype)
        states = [block(x, *surroundings) for x in states]
    return errors | round_floats(model, bits=4)


def input_moments(block: Block, states: Sequence[Tensor], surroundings: tuple) -> dict[str, Tensor]:
    """For each linear layer of a block by its path, the sum of x xᵀ over its inputs: (C, C) float32."""
    moments: dict[str, Tensor] = {}

    def add(path: str, x: Tensor) -> None:
        x = x.flatten(0, -2).float()                                # (T, C)
        moments[path] = moments[path].addmm_(x.T, x) if path in moments else x.T @ x

    # q, k and v read the same, and so do gate and up: one of them is asked for all.
    asked = {"self_attn.q_proj": ("self_attn.k_proj", "self_attn.v_proj"), "self_attn.o_proj": (),
             "mlp.gate_proj": ("mlp.up_proj",), "mlp.down_proj": ()}
    hooks = [block.get_submodule(path).register_forward_pre_hook(lambda layer, given, path=path: add(path, given[0]))
             for path in asked]
    try:
        for x in states:
            block(x, *surroundings)
    finally:
        for hook in hooks:
            hook.remove()
    return moments | {other: moments[path] for path, others in asked.items() for other in others}


def read_ids(model: Llama, files: Sequence[str]) -> list[int]:
    """Tokens of text files, as many as `quantize_for` looks at. Raises ValueError without a tokenizer."""
    if model.tokenizer is None:
        raise ValueError("this model has no tokenizer, so it reads no text; leave --data out")
    ids: list[int] = []
    for example in LanguageModelingDataset(*files):
        ids += model.tokenizer.encode(example["text"], eos=True)
        if len(ids) >= TOKENS:
            break
    return ids[:TOKENS]
