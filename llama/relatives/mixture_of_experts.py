"""A mixture of experts: many feed-forward parts, of which each token takes a few (Shazeer et al., arXiv:1701.06538).

    scores   = softmax(x Wᵍ)                          one for each of E experts
    chosen   = the k largest, weighted so that they sum to 1, as in Mixtral (arXiv:2401.04088, section 2.1)
    y        = Σ weight_i · expert_i(x)               over the chosen alone

Parameters grow with E, the work of a token with k. It is a swap from outside: `use_experts(model, …)` puts one in the
place of each block's `MLP`, and model.py says nothing of it. Left alone, a router sends everything to whichever expert
happened to learn first; `Balanced` adds a loss that is least when all are asked alike (Fedus et al., arXiv:2101.03961,
eq. 4–6). What it costs: docs/relatives.md, and

    python -m llama.relatives.ablation --only llama "mixture of experts"

Try: let `balance_loss` forget the probabilities, which alone have a gradient; tests/test_mixture_of_experts.py
(test_property_balance_has_a_gradient) fails.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from llama.config import LlamaConfig
from llama.model import MLP, Llama
from llama.tasks.task import Batch, Task
from llama.training.objective import Plain


class MixtureOfExperts(nn.Module):
    """In the place of an `MLP`: `gate` chooses for each token `top_k` of the `experts`, each an `MLP` of its own."""

    def __init__(self, config: LlamaConfig, *, experts: int, top_k: int):
        super().__init__()
        if not 1 <= top_k <= experts:
            raise ValueError(f"top_k is {top_k} and experts {experts}; a token takes from 1 to all of them")
        self.top_k = top_k
        self.gate = nn.Linear(config.hidden_size, experts, bias=False)
        self.experts = nn.ModuleList(MLP(config) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(0, -2)                                   # (N, D)
        weights, chosen = route(self.gate(tokens), self.top_k)      # (N, k) both
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, places = (chosen == number).nonzero(as_tuple=True)
            out.index_add_(0, rows, expert(tokens[rows]) * weights[rows, places, None].to(x.dtype))
        return out.view_as(x)


def route(logits: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Which experts a token takes, and with what weights: (N, E) -> two of (N, k); weights are float32, their sum 1.

    softmax over all and then divided by what the chosen have is softmax over the chosen alone.
    """
    weights, chosen = logits.float().softmax(dim=-1).topk(top_k, dim=-1)
    return weights / weights.sum(-1, keepdim=True), chosen


def balance_loss(logits: Tensor, top_k: int) -> Tensor:
    """E · Σ f_i P_i: f_i expert i's share of the choices, P_i its mean probability (arXiv:2101.03961, eq. 4).

    1 where all are alike, up to E where one gets everything. Choices have no gradient, probabilities do.

    logits  (N, E) of a router
    """
    scores = logits.float().softmax(dim=-1)
    E = scores.shape[-1]
    chosen = scores.topk(top_k, dim=-1).indices
    f = torch.bincount(chosen.flatten(), minlength=E) / chosen.numel()                  # eq. 5, for k choices a token
    return E * (f * scores.mean(0)).sum()                                               # eq. 6 is the mean


def use_experts(model: Llama, *, experts: int, top_k: int, intermediate_size: int = 0) -> None:
    """Swap every block's `MLP` for a mixture with random weights; from `model.init_weights` on it is a new model.

    intermediate_size  F of an expert; 0 takes F / k, so that a token costs what it did
    """
    F = intermediate_size or model.config.intermediate_size // top_k
    for layer in model.layers:
        layer.mlp = MixtureOfExperts(replace(model.config, intermediate_size=F), experts=experts, top_k=top_k)
    model.to(device=model.device, dtype=model.dtype)
    model.init_weights()


def active_parameters(model: nn.Module) -> int:
    """The numbers that one token is multiplied by: all of them, less the experts that it does not take."""
    spared = 0
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):
            each = sum(parameter.numel() for parameter in module.experts[0].parameters())
            spared += each * (len(module.experts) - module.top_k)
    return sum(parameter.numel() for parameter in model.parameters()) - spared


@contextmanager
def watch_routers(model: nn.Module) -> Iterator[list[tuple[Tensor, int]]]:
    """In the body, what routers say of each token: a list that grows by (logits (N, E), top_k) with every layer."""
    said: list[tuple[Tensor, int]] = []
    hooks = [module.gate.register_forward_hook(lambda gate, inputs, logits, k=module.top_k: said.append((logits, k)))
             for module in model.modules() if isinstance(module, MixtureOfExperts)]
    try:
        yield said
    finally:
        for hook in hooks:
            hook.remove()


class Balanced(Plain):
    """The task's loss, and while the model trains `weight` times the mean balance loss of its routers for each target.

    weight  α; 0.01 balances, and is too small to matter to the rest (arXiv:2101.03961, section 2.2)
    """

    def __init__(self, model: Llama, task: Task, *, readable: bool = False, weight: float = 0.01):
        super().__init__(model, task, readable=readable)
        self.weight = weight

    def forward(self, batch: Batch) -> tuple[Tensor, int]:
        with watch_routers(self.model) as said:
            loss, count = super().forward(batch)
        if self.training and said:
            loss = loss + self.weight * count * torch.stack([balance_loss(*each) for each in said]).mean()
        return loss, count
