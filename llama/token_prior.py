"""New rows whose pieces are foretold as often as they occur, before anything is learned.

A head without biases has one all the same: the last norm's output h is nearly the same everywhere (in SmolLM2 its mean
m has 97 % of its length). A row w that moves by b m / |m|² changes its logit, w · h, by about b in every place, and by
a fiftieth of b in length. So the log of a piece's frequency, which training would have to find for each of thousands
of rows, is put there in closed form:

    b  ←  b + (log p / P - log q / Q) / c     p: how often a piece occurs, q: how often it is foretold, in the mean
                                              P, Q: the same of all old pieces together

c, the largest m · h / |m|², keeps steps short enough (as in generalized iterative scaling; Darroch and Ratcliff, 1972).
Where embedding and head are tied, the piece is read with that small step, too.

The gradient of every row is nearly along m, too, so Adam, which makes all numbers of a step alike, moves the logits of
all new pieces together, and the faster the rows learn the wilder: by 0.2 a step in SmolLM2 at a rate of 5e-4. Rows that
begin as likely as they are frequent need no step along m: `hold_frequencies` leaves it out, and they may learn faster.

Try: let `of_old` sum the counts of all pieces; tests/test_token_prior.py
(test_property_each_new_piece_is_foretold_as_often_as_it_occurs) fails.
"""

import torch
from torch import Tensor

from llama.checkpoint import PretrainedLlama
from llama.generation import eval_mode
from llama.lora.swap import without_adapters

WINDOWS, WINDOW = 8, 128                                            # where it is looked what the model foretells
PASSES = 8
UNSEEN = 0.5                                                        # of a time: a new piece that the texts lack


@torch.no_grad()
def match_frequencies(model: PretrainedLlama, ids: Tensor, new: range) -> None:
    """Move the head's rows of the pieces `new` so that each is as likely, in the mean over places, as in a text.

    ids  (n,) of the text, in the model's vocabulary, at least one
    """
    counts = torch.bincount(ids, minlength=new.stop)
    of_old = counts[: new.start].sum() + UNSEEN
    wanted = ((counts[new.start : new.stop] + UNSEEN) / of_old).log().to(model.device)      # (pieces,) log p / P
    states = _states(model, ids)                                                            # (N, D)
    mean = states.mean(0)
    direction = mean / mean.square().sum()
    along = states @ direction                                                              # (N,), 1 in the mean
    head = model.lm_head.weight
    logits = states @ head.float().t()                                                      # (N, V)
    others = logits.index_fill(1, torch.arange(new.start, new.stop, device=model.device), -torch.inf).logsumexp(-1)
    logits, bias = logits[:, new.start : new.stop], torch.zeros_like(wanted)
    for _ in range(PASSES):
        moved = logits + along[:, None] * bias
        total = torch.logaddexp(moved.logsumexp(-1), others)
        foretold = (moved - total[:, None]).logsumexp(0) - (others - total).logsumexp(0)    # log q / Q
        bias += (wanted - foretold) / along.max()
    head[new.start : new.stop] += (bias[:, None] * direction).to(head.dtype)


@torch.no_grad()
def hold_frequencies(model: PretrainedLlama, ids: Tensor) -> None:
    """Let the rows that an adapter learns in the head stay as likely, in the mean, as they are: from now on their
    gradients have no part along the mean of what the head sees.

    ids  (n,) of a text, in the model's vocabulary, at least one
    """
    with without_adapters(model):                                   # so that a run which goes on finds the same mean
        mean = _states(model, ids).mean(0)
    model.lm_head.part.hold(mean)


def _states(model: PretrainedLlama, ids: Tensor) -> Tensor:
    """What the head sees, float32, in windows that are spread over the texts: (N, D)."""
    width = min(WINDOW, len(ids), model.config.context)
    count = min(WINDOWS, len(ids) // width)
    starts = torch.linspace(0, len(ids) - width, count).long()
    with eval_mode(model):
        states = model.hidden(torch.stack([ids[start : start + width] for start in starts]).to(model.device))
    return states.flatten(0, 1).float()
