"""Knowledge distillation: a student learns what a teacher finds likely, beside what is right.

    p = softmax(z_teacher / τ), q = softmax(z_student / τ), in each row that is learned

    L = (1 - w) L_task + w τ² D                                     Hinton, Vinyals and Dean 2015, arXiv:1503.02531

    forward    D = KL(p‖q)             covers all that the teacher would say                          (as there)
    reverse    D = KL(q‖p)             keeps to what the teacher finds likely      (Gu and others, arXiv:2306.08543)
    symmetric  D = ½ (KL(p‖q) + KL(q‖p))                                           (Jeffreys)

    and with a weight h of its own, where the two are as wide, h · mean over D of (s - t)², s and t the last states
    in those rows (as TinyBERT's hidden states, arXiv:1909.10351, eq. 8, without a projection)

For τ² the gradient of D on z_student is about as large at every τ: it is τ (q - p) for KL(p‖q). Alternatives are those
that the task's loss decides between: the vocabulary, labels, yes and no for each of several labels, the rows of a
window. The teacher is any model with the same vocabulary, or what it said, from a file (teacher_cache.py): then what is
not among its k likeliest ids is one alternative more, on both sides, which makes D smaller and never larger.

Try: leave τ² out; tests/test_distillation.py (test_two_ways_the_gradient_is_that_of_the_equation) fails.
"""

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import torch
from torch import Tensor

from llama.heads import head_config
from llama.model import Llama
from llama.runtime.ranges import Range, check_ranges
from llama.tasks.task import Batch, Task
from llama.training.objective import Plain, chunked_sum, states_of
from tokenizer.base import Tokenizer


@dataclass(frozen=True)
class DistillConfig:
    """How much of what is learned from a teacher: `weight` w, `temperature` τ, `hidden` h of the equations."""

    divergence: Literal["forward", "reverse", "symmetric"] = "forward"
    temperature: Annotated[float, "", Range(0.01, 100.0)] = 1.0
    weight: Annotated[float, "", Range(0.0, 1.0)] = 0.5
    hidden: Annotated[float, "", Range(0.0, 1e6)] = 0.0

    def __post_init__(self) -> None:
        check_ranges(self)


class Teacher(Protocol):
    """Says what it knows of the N rows of a batch, in tensors that can be cut in chunks, and lays both sides out.

    held  bytes
    """

    held: int

    def rows(self, batch: Batch) -> tuple[Tensor, ...]:
        """(N, …) each."""

    def log_probs(self, scores: Tensor, targets: Tensor, *rows: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """log p and log q of the same alternatives, for scores (n, C) of the student and a chunk of rows."""


class ModelTeacher:
    """A model that is asked in every pass. It is no part of the objective: it is not learned, sharded or saved."""

    def __init__(self, model: Llama, task: Task):
        self.model, self.task = model.eval().requires_grad_(False), task
        head = head_config(model)
        self.held = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
        self.order = [head.labels.index(label) for label in task.labels] if head else None

    @torch.no_grad()
    def rows(self, batch: Batch) -> tuple[Tensor]:
        return (states_of(self.model, self.task, batch),)           # (N, D)

    @torch.no_grad()
    def scores(self, states: Tensor) -> Tensor:
        """(n, C) float32, labels in the order of the student's."""
        scores = self.task.head(self.model)(states).float()
        return scores if self.order is None else scores[:, self.order]

    def log_probs(self, scores: Tensor, targets: Tensor, states: Tensor, *, temperature: float
                  ) -> tuple[Tensor, Tensor]:
        theirs = self.scores(states)
        both = min(scores.shape[1], theirs.shape[1])                # some tables have rows beyond the vocabulary
        p, q = (self.task.log_probs(each[:, :both] / temperature, targets) for each in (theirs, scores))
        return p, q


class Distilled(Plain):
    """The task's loss, and how far the model is from its teacher."""

    def __init__(self, model: Llama, task: Task, teacher: Teacher, config: DistillConfig, *, readable: bool = False):
        super().__init__(model, task, readable=readable)
        self.config = config
        self._teacher = (teacher,)                                  # in a tuple: no submodule
        self.held = teacher.held

    def forward(self, batch: Batch) -> tuple[Tensor, int]:
        if not self.model.training:
            return super().forward(batch)
        config, (teacher,) = self.config, self._teacher
        states, targets, head = self.states(batch), self.task.targets(batch), self.task.head(self.model)
        rows = teacher.rows(batch)

        def apart(states: Tensor, targets: Tensor, *rows: Tensor) -> Tensor:
            p, q = teacher.log_probs(head(states).float(), targets, *rows, temperature=config.temperature)
            return divergence(p, q, config.divergence)

        loss = config.weight * config.temperature**2 * chunked_sum(apart, states, targets, *rows, head=head)
        if config.weight < 1:
            loss = loss + (1 - config.weight) * self.loss(states, targets)
        if config.hidden:
            loss = loss + config.hidden * (states.float() - rows[0].float()).square().mean(-1).sum()
        return loss, self.task.count(targets)


def divergence(p: Tensor, q: Tensor, kind: str) -> Tensor:
    """Of log-probabilities p of the teacher and q of the student, summed over all rows."""
    difference = p - q
    weight = {"forward": p.exp(), "reverse": -q.exp(), "symmetric": (p.exp() - q.exp()) / 2}
    return (weight[kind] * difference).sum()


def check_teacher(teacher: Llama, model: Llama, task: Task, config: DistillConfig) -> None:
    """Raise ValueError for a teacher that does not speak of what the student learns."""
    check_vocabulary(teacher.tokenizer, model.tokenizer)
    theirs, own = head_config(teacher), head_config(model)
    if (theirs is None) != (own is None):
        raise ValueError(f"the teacher has {'no head' if theirs is None else 'a head'} of labels, and the student "
                         f"{'one' if own else 'none'}; tune the teacher for the same task first (finetune.py --task "
                         f"{getattr(task, 'name', 'generation')})")
    if own and set(theirs.labels) != set(own.labels):
        raise ValueError(f"the teacher's labels are {', '.join(theirs.labels):.80}, and the student's "
                         f"{', '.join(own.labels):.80}; they must be the same")
    reading = [(head.kind, head.attention, head.multi_label, head.pooling) for head in (theirs, own) if head]
    if len(set(reading)) > 1:
        raise ValueError("the teacher's head is read otherwise than the student's (kind, attention, several labels, "
                         f"pooling: {reading[0]} and {reading[1]}); give --attention and --pooling as the teacher has "
                         "them")
    if config.hidden and teacher.config.hidden_size != model.config.hidden_size:
        raise ValueError(f"the teacher's states have {teacher.config.hidden_size} numbers and the student's "
                         f"{model.config.hidden_size}, so they cannot be matched; leave --distill-hidden out")


def check_vocabulary(theirs: Tokenizer | None, own: Tokenizer) -> None:
    """Raise ValueError where an id stands for something else to the teacher."""
    if theirs is None:
        raise ValueError("the teacher has no tokenizer, so nobody knows what its ids mean; give a model folder")
    size, other = own.vocab_size, theirs.vocab_size
    at = next((i for i in range(min(size, other)) if own.token_bytes(i) != theirs.token_bytes(i)), min(size, other))
    if size != other or at < size:
        there, here = (repr(each.token_bytes(at))[1:] if at < each.vocab_size else "nothing" for each in (theirs, own))
        raise ValueError(f"the teacher's vocabulary is another ({other:,} pieces against the student's {size:,}; id "
                         f"{at:,} is {there} and {here}); a teacher must have the student's own, as the model has that "
                         "it was cut from (python -m llama.methods.cut)")
