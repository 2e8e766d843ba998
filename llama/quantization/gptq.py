"""4 bits for what a model reads: each block's inputs are measured on a text, and its matrices rounded to suit them.

    python -m llama.quantize --bits 4 --data corpus.txt --model weights/NAME --output weights/NAME-int4

Block by block: what its matrices are multiplied with, then the rounding (`round_by_gptq`), then what comes out
of the rounded block, for the next one; so later blocks make up for what earlier ones lost. Some thousand tokens
suffice: they tell but which inputs go together.

Try: give the next block what came out before rounding; tests/test_gptq.py
(test_property_later_blocks_see_what_earlier_ones_lost) fails.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from llama.masks import clip_to_window
from llama.model import Block, Llama, rotary_tables
from llama.quantization.rounding import ROUNDS, check_range, nearest, search
from llama.quantization.swap import check_floats, quantize_remaining, relative_error, replace_layer
from weights.formats.quantized_matrix import GROUP, QuantizedMatrix, pack_nibbles

LENGTH = 512                                                        # tokens of a text that see each other
SWEEPS = 4
DAMPING = 0.01                                                      # of the mean moment, added to the diagonal
TOKENS = 16384                                                      # that are looked at, at most


@torch.no_grad()
def quantize_by_gptq(model: Llama, ids: Sequence[int], *, length: int = 0) -> dict[str, float]:
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
    mask = clip_to_window(None, length, length, model.config.sliding_window, model.device)
    surroundings = cos, sin, mask, None                             # what a block gets beside its states
    states = [model.embed_tokens(row[None]) for row in tokens]      # (1, T, D) each
    errors = {}
    for number, block in enumerate(model.layers):
        moments = input_hessians(block, states, surroundings)
        for path, linear in [(path, part) for path, part in block.named_modules() if isinstance(part, nn.Linear)]:
            packed = round_by_gptq(linear.weight, moments[path])
            errors[f"layers.{number}.{path}"] = relative_error(linear.weight, packed)
            replace_layer(model, f"layers.{number}.{path}", packed, linear.weight.dtype)
        states = [block(x, *surroundings) for x in states]
    return errors | quantize_remaining(model, bits=4)


def input_hessians(block: Block, states: Sequence[Tensor], surroundings: tuple) -> dict[str, Tensor]:
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


def round_by_gptq(weight: Tensor, moments: Tensor, *, turns: int = SWEEPS) -> QuantizedMatrix:
    """`to_int4` for a matrix whose inputs are known: makes ‖(W - Ŵ) x‖ small, on average over them.

    Columns are rounded one after the other. The output changes least if the loss e of column i moves each column j
    after it by -e u_ij / u_ii, where u is the upper Cholesky factor of the inverse of `moments` (GPTQ, algorithm 1).
    Inputs that do not go together leave it at `to_int4`. Then scales, minima and q take turns to make the same loss
    less, each given the others.

    weight   (R, C), any float dtype, C a multiple of 32
    moments  (C, C) float32: the sum of x xᵀ over the inputs
    turns    through all groups; 0 leaves it at GPTQ

    Raises ValueError for weights that are not finite, or beyond float16.
    """
    check_range(weight)
    weight = weight.float()
    damping = DAMPING * moments.diagonal().mean().clamp(min=1e-12)  # fewer inputs than columns leave it singular
    moments = moments + damping * torch.eye(len(moments), device=moments.device)
    q, scale, minimum = _gptq_columns(weight.clone(), moments)
    for _ in range(turns):
        _coordinate_descent(weight, moments, q, scale, minimum)
    return QuantizedMatrix(pack_nibbles(q), scale, minimum)


def _gptq_columns(weight: Tensor, moments: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q (R, groups, 32), scale and minimum (R, groups), by GPTQ; takes `weight` apart."""
    u = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(moments)), upper=True)
    groups = []
    for start in range(0, weight.shape[1], GROUP):
        group, here = weight[:, start : start + GROUP], u[start : start + GROUP]
        scale, minimum = search(group.contiguous(), ROUNDS)[1:3]
        losses = torch.empty_like(group)
        q = torch.empty_like(group)
        for i in range(GROUP):
            column = nearest(group[:, i : i + 1], scale, minimum)
            q[:, i] = column.q.squeeze(-1)
            rounded = q[:, i] * scale.float() + minimum.float()
            losses[:, i] = (group[:, i] - rounded) / here[i, start + i]
            group[:, i + 1 :] -= losses[:, i : i + 1] * here[i, start + i + 1 : start + GROUP]
        weight[:, start + GROUP :] -= losses @ here[:, start + GROUP :]
        groups.append((q, scale, minimum))
    return tuple(torch.stack(part, dim=1) for part in zip(*groups, strict=True))


def _coordinate_descent(weight: Tensor, moments: Tensor, q: Tensor, scale: Tensor, minimum: Tensor) -> None:
    """Less of ‖(W - Ŵ) x‖², in place, group after group, all others as they are: the best line, then each best q.

    half  (R, C)  (Ŵ - W) M, half the loss's gradient: a step d of some columns changes the loss by 2 d·half + d M d
    """
    half = (QuantizedMatrix(pack_nibbles(q), scale, minimum).dequantize() - weight) @ moments
    for k in range(q.shape[1]):
        part = slice(k * GROUP, (k + 1) * GROUP)
        here, m = half[:, part].clone(), moments[part, part]        # (R, 32), (32, 32)
        before = q[:, k] * scale[:, k, None].float() + minimum[:, k, None].float()
        scale[:, k], minimum[:, k] = _refit_scale_and_min(q[:, k], scale[:, k], minimum[:, k], here, m)
        start, step = minimum[:, k].float(), scale[:, k].float()
        here += (q[:, k] * step[:, None] + start[:, None] - before) @ m
        for i in range(GROUP):
            old = q[:, k, i] * step + start
            q[:, k, i] = nearest((old - here[:, i] / m[i, i])[:, None], scale[:, k], minimum[:, k]).q.squeeze(-1)
            here += (q[:, k, i] * step + start - old)[:, None] * m[i]
        half += (q[:, k] * step[:, None] + start[:, None] - before) @ moments[part]


def _refit_scale_and_min(q: Tensor, scale: Tensor, minimum: Tensor, half: Tensor,
                         moments: Tensor) -> tuple[Tensor, Tensor]:
    """Scale and minimum (R,) of one group that make the loss least, given q: Newton's step, kept where it helps."""
    qm = q @ moments
    a, b, c = (qm * q).sum(-1), qm.sum(-1), moments.sum()           # the loss's second derivatives, halved
    to_scale, to_minimum = -(q * half).sum(-1), -half.sum(-1)
    determinant = (a * c - b * b).clamp(min=1e-6 * a * c + 1e-30)   # q all alike: any line goes through them
    new_scale = (scale.float() + (to_scale * c - to_minimum * b) / determinant).half()
    new_minimum = (minimum.float() + (to_minimum * a - to_scale * b) / determinant).half()
    step = q * (new_scale.float() - scale.float())[:, None] + (new_minimum.float() - minimum.float())[:, None]
    helps = (2 * step * half + step @ moments * step).sum(-1) < 0
    return torch.where(helps, new_scale, scale), torch.where(helps, new_minimum, minimum)
