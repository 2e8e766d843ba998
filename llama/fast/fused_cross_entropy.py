"""The next token's loss with its gradient made on the way: (tokens × vocabulary) numbers are never there in float32.

With L = Σ log Σ exp(z) - z[target] over the logits z = W h, the gradient is dz = softmax(z) - onehot(target), known as
soon as z is. So some rows at a time become logits, in the dtype of the states; a few of those at a time become float32,
their loss, and dz, which takes the logits' place; then dh = Wᵀ dz and dW = dz hᵀ. Nothing is computed twice, and only
dh (and dW, if the head learns, or its rows of some ids: llama/lora/rows.py) is kept for the backward pass.

Try: leave out what is subtracted at the targets; tests/test_fused_cross_entropy.py
(test_two_ways_loss_and_gradients_equal_autograd) fails.
"""

from typing import Any

import torch
from torch import Tensor, nn

LOGITS_AT_ONCE = 2**24                                              # 341 rows of SmolLM2's; 32 MB in bfloat16
FLOATS_AT_ONCE = 2**19                                              # 2 MB: a few passes over them stay in a CPU's cache


def fused_linear_cross_entropy(hidden: Tensor, targets: Tensor, head: nn.Module) -> Tensor:
    """-log softmax(head(hidden))[target], summed: (N, D) and (N,) int64 -> () float32.

    head  a linear layer without bias, in floats or frozen in few bits, or either with learned rows (see
          `supports_head`)
    """
    return _TokenLoss.apply(hidden, targets, head.weight, getattr(head, "rows", None), head)


def supports_head(head: nn.Module) -> bool:
    """Whether `fused_linear_cross_entropy` can be had for this head."""
    if getattr(head, "bias", None) is not None:
        return False
    return type(head) is nn.Linear or hasattr(head, "grad_input")


def floats_at_once(device: torch.device) -> int:
    """On a GPU as many as there are logits: each piece more would be a launch of every kernel."""
    return FLOATS_AT_ONCE if device.type == "cpu" else LOGITS_AT_ONCE


class _TokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, targets: Tensor, weight: Tensor, rows: Tensor | None,
                head: nn.Module) -> Tensor:
        wants_hidden, _, wants_weight, wants_rows, _ = ctx.needs_input_grad
        wants = wants_hidden or wants_weight or wants_rows
        total = hidden.new_zeros((), dtype=torch.float32)
        dhidden = torch.empty_like(hidden) if wants_hidden else None
        dweight = torch.zeros_like(weight) if wants_weight else None
        drows = torch.zeros_like(rows) if wants_rows else None
        for some in _pieces(len(hidden), weight.shape[0], LOGITS_AT_ONCE):
            logits = head(hidden[some])
            for few in _pieces(len(logits), weight.shape[0], floats_at_once(hidden.device)):
                total += _loss_and_gradient(logits[few], targets[some][few], gradient=wants)
            if wants_rows:
                drows += head.grad_rows(logits, hidden[some])
            if wants_hidden:
                dhidden[some] = head.grad_input(logits) if hasattr(head, "grad_input") else logits @ weight
            if wants_weight:
                dweight.addmm_(logits.t(), hidden[some])
        ctx.save_for_backward(dhidden, dweight, drows)
        return total

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        made = (None if each is None else each * dloss.to(each.dtype) for each in ctx.saved_tensors)
        dhidden, dweight, drows = made
        return dhidden, None, dweight, drows, None


def _loss_and_gradient(logits: Tensor, targets: Tensor, *, gradient: bool) -> Tensor:
    """The loss of some rows, summed; with `gradient`, dz takes the place of the logits."""
    z = logits.float()
    right = z.gather(1, targets[:, None])
    highest = z.amax(1, keepdim=True)
    z = z.sub_(highest) if z is not logits else z - highest         # float32 logits are no copy
    z.exp_()
    sums = z.sum(1, keepdim=True)
    loss = (sums.log() + highest - right).sum()
    if gradient:
        logits.copy_(z.div_(sums))
        logits.scatter_add_(1, targets[:, None], logits.new_full((len(targets), 1), -1.0))
    return loss


def _pieces(rows: int, columns: int, most: int) -> list[slice]:
    """As few equal runs of rows as hold no more than `most` numbers each."""
    count = max(1, -(-rows * columns // most))
    size = max(1, -(-rows // count))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]
