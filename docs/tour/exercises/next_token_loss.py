"""Exercise of docs/tour/11-loss.md: python -m pytest docs/tour/exercises/test_11_next_token_loss.py"""

from torch import Tensor


def next_token_loss(logits: Tensor, ids: Tensor, loss_mask: Tensor) -> Tensor:
    """The mean of -log p over the ids that are to be learned, in nats. Row t of the logits has read ids 0 … t.

    logits  (T, V);  ids  (T,) int64;  loss_mask  (T,) bool, True where the id is learned; the first never is
    ->      ()
    """
    raise NotImplementedError
