"""Adversarial training: embeddings moved, example by example, to where the loss grows fastest, within a small ball.

    x  the embeddings of one example, (T, D);  L(δ)  its loss on x + δ;  ‖δ‖ ≤ ε ‖x‖, Euclidean, over all of T and D

    δ₀ = 0, or drawn within the ball by a part `start` of it;  δₜ₊₁ = Π(δₜ + α ‖x‖ ∇L(δₜ) / ‖∇L(δₜ)‖)

    fgm      ½ (L(δ₀) + L(δ₁))                  Miyato, Dai and Goodfellow 2017, arXiv:1605.07725, eq. 5 and 6
    pgd      L(δₖ)                              Madry and others 2018, arXiv:1706.06083, eq. 2.1
    freelb   (L(δ₀) + … + L(δₖ₋₁)) / k          Zhu and others 2020, arXiv:1909.11764, algorithm 1

So all three climb the same hill, and differ in which points of the climb are learned: FGM is FreeLB with k = 2. ε is a
part of ‖x‖, where Miyato bring all embeddings to variance 1 first: in both, large embeddings buy no safety. Only the
positions count in ‖x‖ that the loss depends on, so padding changes nothing, and packed rows are perturbed apart.

Graphs of points that are learned are held until the backward pass: FreeLB takes k times the activations, FGM twice,
PGD once; all take a forward and nearly a backward pass more for every step of the climb.

Try: divide by the norm over the whole batch; tests/test_adversarial.py
(test_property_an_example_is_perturbed_as_if_it_were_alone) fails.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from llama.runtime.ranges import Range, check_ranges
from llama.tasks.task import Batch
from llama.training.embeddings import on_embeddings
from llama.training.fsdp import unshard
from llama.training.objective import Wrapper
from llama.training.packing import sample_of_position

STRIDE = 2.5            # steps together may go so many times as far as the ball's border (Madry and others, figure 6)


@dataclass(frozen=True)
class AdversarialConfig:
    """How embeddings are perturbed; epsilon and start are parts, of the embeddings' norm and of epsilon."""

    kind: Literal["fgm", "pgd", "freelb"] = "fgm"
    epsilon: Annotated[float, "", Range(1e-6, 10.0)] = 0.05
    steps: Annotated[int, "", Range(1, 64)] = 3
    start: Annotated[float, "", Range(0.0, 1.0)] = 0.0

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.kind == "freelb" and self.steps < 2:
            raise ValueError("freelb with 1 step learns unperturbed examples alone; give 2 steps or more")

    @property
    def climbs(self) -> int:
        """Inner gradients."""
        return {"fgm": 1, "pgd": self.steps, "freelb": self.steps - 1}[self.kind]

    @property
    def learned(self) -> range:
        """The points of the climb, from 0 on, of whose losses the mean is learned."""
        return range(self.climbs if self.kind == "pgd" else 0, self.climbs + 1)


class Adversarial(Wrapper):
    """The objective inside, on perturbed embeddings. The outermost wrapper: shards are gathered again by the root."""

    def __init__(self, objective: nn.Module, config: AdversarialConfig):
        super().__init__(objective)
        self.config = config

    @property
    def graphs(self) -> int:
        return len(self.config.learned) * self.objective.graphs

    def forward(self, batch: Batch) -> tuple[Tensor, int]:
        if not self.model.training:
            return self.objective(batch)
        config, learned = self.config, self.config.learned
        delta = self._start(batch)
        losses = []
        for point in range(config.climbs + 1):
            seen: list[Tensor] = []
            with on_embeddings(self.model, lambda x, seen=seen, delta=delta: _shifted(x, delta, seen)):
                loss, targets = self.objective(batch)
            if point in learned:
                losses.append(loss)
            if point < config.climbs:
                gradient, = torch.autograd.grad(loss, delta, retain_graph=point in learned, allow_unused=True,
                                                materialize_grads=True)
                unshard(self)                                       # the inner gradient lets go of the root's shards
                delta = climbed(delta.detach(), gradient, seen[0], sample_of_position(batch), alpha=STRIDE
                                * config.epsilon / config.climbs, epsilon=config.epsilon).requires_grad_()
        return torch.stack(losses).mean(), targets

    def _start(self, batch: Batch) -> Tensor:
        """δ₀ as a leaf, (B, T, D) float32: 0, or random and about as long as that part of the ball's radius."""
        B, T = batch["tokens"].shape
        delta = torch.zeros(B, T, self.model.config.hidden_size, device=batch["tokens"].device)
        if self.config.start:
            with torch.no_grad():
                x = self.model.embed_tokens(batch["tokens"])
            delta = delta.uniform_(-1, 1) * 3**0.5 * self.config.start * self.config.epsilon * _rms(x)
        return delta.requires_grad_()


def climbed(delta: Tensor, gradient: Tensor, x: Tensor, sample: Tensor, *, alpha: float, epsilon: float) -> Tensor:
    """δ one step of α ‖x‖ up the gradient, and back to ‖δ‖ = ε ‖x‖ where it is longer. Norms are those of samples.

    delta, gradient, x (B, T, D);  sample (B, T), of `sample_of_position`;  ->  (B, T, D) float32
    """
    read = gradient.any(-1, keepdim=True)                           # what the loss depends on: no padding
    scale = _norms(x.detach().float() * read, sample)
    delta = delta * read + alpha * scale * gradient / _norms(gradient, sample).clamp(min=1e-30)
    return delta * (epsilon * scale / _norms(delta, sample).clamp(min=1e-30)).clamp(max=1.0)


def _norms(values: Tensor, sample: Tensor) -> Tensor:
    """At each position the norm of its sample, (B, T, 1)."""
    squares = values.square().sum(-1).flatten()                     # (B T,)
    sums = squares.new_zeros(int(sample.max()) + 1).index_add_(0, sample.flatten(), squares)
    return sums.sqrt()[sample].unsqueeze(-1)


def _rms(x: Tensor) -> Tensor:
    return x.float().square().mean(-1, keepdim=True).sqrt()         # (B, T, 1)


def _shifted(x: Tensor, delta: Tensor, seen: list[Tensor]) -> Tensor:
    seen.append(x)
    return x + delta.to(x.dtype)
