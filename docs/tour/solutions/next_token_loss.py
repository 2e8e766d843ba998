"""A solution of the exercise of docs/tour/11-loss.md."""

from torch import Tensor


def next_token_loss(logits: Tensor, ids: Tensor, loss_mask: Tensor) -> Tensor:
    log_p = logits[:-1].float().log_softmax(-1)                     # (T - 1, V): the last row has nothing to predict
    right = log_p.gather(-1, ids[1:, None]).squeeze(-1)             # (T - 1,)
    return -right[loss_mask[1:]].mean()
