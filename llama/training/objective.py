"""What training minimises: modules around the model whose forward pass returns a loss summed over targets.

The objective is the root module that parallel wrappers wrap. It works on hidden states, so that the head is applied to
supervised rows alone, a chunk at a time: with a vocabulary of 50,000, logits of every position in float32 are most of
the memory of a step.

Try: return the mean instead of the sum; tests/test_trainer.py (accumulation with ragged lengths) fails, because
micro-batches with few targets would then weigh as much as those with many.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from llama.fast.agreement import losses_agree
from llama.fast.fused_cross_entropy import LOGITS_AT_ONCE, fused_linear_cross_entropy, supports_head
from llama.model import Llama
from llama.tasks.task import Batch, Task, cross_entropy
from llama.training.packing import mask_of


class Plain(nn.Module):
    """The task's loss over the rows that it says count: of the next token, or of labels.

    readable  by its definition, `chunked_cross_entropy`, without asking whether `fused_linear_cross_entropy` computes
              the same
    graphs, held  for estimates of memory: forward passes whose activations are there at once, bytes beside the model
    """

    graphs, held = 1, 0

    def __init__(self, model: Llama, task: Task, *, readable: bool = False):
        super().__init__()
        self.model, self.task = model, task
        self.fused = not readable and loss_agrees()

    @property
    def innermost(self) -> "Plain":
        """The objective that is no wrapper."""
        return self

    def forward(self, batch: Batch) -> tuple[Tensor, int]:
        """Loss in nats summed over targets, float32, and the number of targets."""
        targets = self.task.targets(batch)                          # (N, …)
        return self.loss(self.states(batch), targets), self.task.count(targets)

    def states(self, batch: Batch) -> Tensor:
        """What the head sees of the rows that count, (N, D)."""
        return states_of(self.model, self.task, batch)

    def loss(self, states: Tensor, targets: Tensor) -> Tensor:
        """The task's loss of these states, summed."""
        head = self.task.head(self.model)
        if self.fused and has_token_loss(self.task, self.model):
            return fused_linear_cross_entropy(states, targets, head)
        return chunked_cross_entropy(states, targets, head, self.task.loss)

    def scores(self, batch: Batch) -> Tensor:
        """What a head of labels says of the rows that count; through the objective, as it may be sharded."""
        return self.task.scores(self.model, batch)


class Wrapper(nn.Module):
    """An objective around another: while the model learns, it asks that one on other embeddings, or more than once.

    What evaluates asks the inner one alone, through it: a wrapper says in `forward` what it does in training mode.
    """

    def __init__(self, objective: nn.Module):
        super().__init__()
        self.objective = objective

    @property
    def innermost(self) -> Plain:
        return self.objective.innermost

    @property
    def model(self) -> Llama:
        return self.objective.model

    @property
    def task(self) -> Task:
        return self.objective.task

    @task.setter
    def task(self, task: Task) -> None:
        self.objective.task = task

    @property
    def graphs(self) -> int:
        return self.objective.graphs

    @property
    def held(self) -> int:
        return self.objective.held

    def scores(self, batch: Batch) -> Tensor:
        return self.objective.scores(batch)


def states_of(model: Llama, task: Task, batch: Batch) -> Tensor:
    """A model's last states in the rows that count, as the head sees them: (N, D)."""
    hidden = model.hidden(batch["tokens"], positions=batch.get("positions"), mask=mask_of(model, batch))
    return task.states(hidden, batch)


def has_token_loss(task: Task, model: Llama) -> bool:
    """Whether the loss is that of the next token, through a head that `fused_linear_cross_entropy` knows."""
    return type(task).loss is Task.loss and supports_head(task.head(model))


@cache
def loss_agrees() -> bool:
    """Whether `fused_linear_cross_entropy` computes what its definition gives, as it stands; else a line says so.

    Whoever edits `cross_entropy`, `Task.loss` or `_loss` is to see the edit at work. (Of one chunk, for the first
    checkpoint of a process costs a second of imports.)
    """
    return losses_agree(lambda h, targets, head: _loss(h, targets, head, Task().loss), fused_linear_cross_entropy,
                        "tasks/task.py (cross_entropy) and training/objective.py")


Loss = Callable[[Tensor, Tensor], Tensor]


def chunked_cross_entropy(hidden: Tensor, targets: Tensor, head: Any, loss: Loss = cross_entropy, *,
                          chunk: int = 0) -> Tensor:
    """Sum of -log softmax(head(hidden))[target] without holding the logits of more than `chunk` rows.

    Logits are forgotten after each chunk and computed again in the backward pass.

    hidden (N, D);  targets (N, …), int64;  ->  () float32, 0 for N = 0
    loss   of logits (N, V) in float32 and their targets, summed: whose cross-entropy, if not a token's
    chunk  rows at a time; 0 takes as many as make LOGITS_AT_ONCE numbers
    """
    return chunked_sum(lambda h, y: _loss(h, y, head, loss), hidden, targets, head=head, chunk=chunk)


def chunked_sum(function: Callable[..., Tensor], *rows: Tensor, head: Any, chunk: int = 0) -> Tensor:
    """Sum of `function` over chunks of `rows`, tensors of one length N each, computed again in the backward pass.

    chunk  rows at a time; 0 takes as many as make LOGITS_AT_ONCE numbers of `head`
    """
    chunk = chunk or max(1, LOGITS_AT_ONCE // head.weight.shape[0])
    total = rows[0].new_zeros((), dtype=torch.float32)
    for some in zip(*(each.split(chunk) for each in rows), strict=True):
        total = total + checkpoint(function, *some, use_reentrant=False)
    return total


def _loss(hidden: Tensor, targets: Tensor, head: Any, loss: Loss) -> Tensor:
    return loss(head(hidden).float(), targets)
