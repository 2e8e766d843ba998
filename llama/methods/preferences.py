"""Learning from preferences: raise the chosen answer above the rejected one, without a model of rewards.

With r the implicit reward of an answer y to a prompt x, |y| its tokens, σ the logistic function:

    DPO     r = β (log π(y|x) - log π₀(y|x))       -log σ(r₊ - r₋)                     (arXiv:2305.18290, eq. 7)
    SimPO   r = β / |y| log π(y|x)                 -log σ(r₊ - r₋ - γ)                 (arXiv:2405.14734, eq. 6)
    ORPO    p = exp(1 / |y| log π(y|x))            -log p₊ - β log σ(log odds p₊ - log odds p₋),  odds p = p / (1 - p)
                                                                                       (arXiv:2403.07691, eq. 6, 7)

π₀ is the model that training began with. Its log-likelihoods do not change, so they are taken once, before the first
step, and kept beside the run's states: a third of the time of each epoch is saved, and no second model is held.

Try: leave π₀ out of DPO; tests/test_preferences.py (test_worked_example_dpo_by_hand) fails, and answers that were
likely before are pushed up as if they had been preferred.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from llama.fast.fused_cross_entropy import LOGITS_AT_ONCE
from llama.lora.swap import adapter_names, without_adapters
from llama.model import Llama
from llama.runtime import distributed
from llama.runtime.ranges import FACTORS, Range, check_ranges
from llama.tasks.preference import LOGPS, Pair, PreferenceTask, check_pairs
from llama.tasks.task import Batch, Task
from llama.training.evaluation import add_up
from llama.training.objective import Plain
from tokenizer.base import Tokenizer
from weights.formats.atomic_write import atomic_file

USUAL_BETA = {"dpo": 0.1, "simpo": 2.0, "orpo": 0.1}                # of the papers
SURE = -1e-6                                                        # a mean log-likelihood nearer to 0 has no odds
REFERENCE = "reference.json"                                        # in OUTPUT.training


@dataclass(frozen=True)
class PreferenceConfig:
    """How pairs are learned, with --task preference."""

    preference_loss: Annotated[Literal["dpo", "simpo", "orpo"], "the loss over pairs; dpo holds the model against "
                               "itself before training, the others against nothing"] = "dpo"
    beta: Annotated[float, "how strongly rewards (orpo: odds) count; 0 takes the paper's, 0.1, and of simpo 2",
                    FACTORS] = 0.0
    margin: Annotated[float, "simpo: by how much the chosen answer's reward is to be the higher",
                      Range(0.0, 1e3)] = 1.0

    def __post_init__(self) -> None:
        check_ranges(self)

    @property
    def strength(self) -> float:
        return self.beta or USUAL_BETA[self.preference_loss]


# ---- the losses: of log-likelihoods (B, 2) in nats, chosen and rejected, and their numbers of tokens -----------------


def dpo(logps: Tensor, reference: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """Loss (B,) and implicit rewards (B, 2)."""
    rewards = beta * (logps - reference)
    return -functional.logsigmoid(rewards[:, 0] - rewards[:, 1]), rewards


def simpo(logps: Tensor, tokens: Tensor, beta: float, margin: float) -> tuple[Tensor, Tensor]:
    rewards = beta * logps / tokens
    return -functional.logsigmoid(rewards[:, 0] - rewards[:, 1] - margin), rewards


def orpo(logps: Tensor, tokens: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """The rewards are β log p. In the loss of the chosen answer its prompt does not count, as the paper has it."""
    mean = logps / tokens
    low = mean.clamp(max=SURE)
    odds = low - torch.log(-torch.expm1(low))                       # log (p / (1 - p))
    return -mean[:, 0] - beta * functional.logsigmoid(odds[:, 0] - odds[:, 1]), beta * mean


class Preference(Plain):
    """A loss over pairs, summed, and their number. Text that is no pair, such as what is watched, is scored as text."""

    def __init__(self, model: Llama, task: Task, *, config: PreferenceConfig | None = None, readable: bool = False):
        super().__init__(model, task, readable=readable)
        check_pairs(task)
        self.config = config or PreferenceConfig()

    def forward(self, batch: Batch) -> tuple[Tensor, int]:
        if "reference" not in batch:
            return super().forward(batch)
        if self.config.preference_loss == "dpo" and batch["reference"].isnan().any():
            raise ValueError("what the model said before training is not known of these pairs; call remember_reference "
                             "before the first step, or take a loss that needs none, simpo or orpo")
        loss, _, _ = self._compare(batch)
        return loss.sum(), len(loss)

    def scores(self, batch: Batch) -> Tensor:
        """Of each pair both log-likelihoods, the loss, and both implicit rewards: (B, 5)."""
        loss, rewards, logps = self._compare(batch)
        return torch.cat([logps, loss[:, None], rewards], dim=1)

    def _compare(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Loss (B,), rewards and log-likelihoods (B, 2)."""
        rows = self.task.rows(batch)
        hidden = self.model.hidden(batch["tokens"])[rows]                               # (N, D)
        each = loglikelihoods(hidden, batch["targets"][rows], self.task.head(self.model))
        B2 = len(batch["tokens"])                                                       # 2 B
        logps = each.new_zeros(B2).index_add(0, rows[0], each).view(2, -1).t()          # (B, 2)
        tokens = torch.bincount(rows[0], minlength=B2).view(2, -1).t()
        kind, beta = self.config.preference_loss, self.config.strength
        if kind == "dpo":
            loss, rewards = dpo(logps, batch["reference"], beta)
        elif kind == "simpo":
            loss, rewards = simpo(logps, tokens, beta, self.config.margin)
        else:
            loss, rewards = orpo(logps, tokens, beta)
        return loss, rewards, logps


def loglikelihoods(hidden: Tensor, targets: Tensor, head: nn.Module) -> Tensor:
    """log softmax(head(hidden))[target], (N, D) and (N,) -> (N,) float32; logits a chunk at a time, made again for the
    gradient."""
    chunk = max(1, LOGITS_AT_ONCE // head.weight.shape[0])
    return torch.cat([checkpoint(_of_chunk, *some, head, use_reentrant=False)
                      for some in zip(hidden.split(chunk), targets.split(chunk), strict=True)])


def _of_chunk(hidden: Tensor, targets: Tensor, head: nn.Module) -> Tensor:
    return -functional.cross_entropy(head(hidden).float(), targets, reduction="none")


# ---- what the model said before --------------------------------------------------------------------------------------


def remember_reference(objective: Preference, pairs: Sequence[Pair], tokenizer: Tokenizer, *, batch_size: int) -> None:
    """Take the log-likelihoods of pairs that are not known yet under the model as it is now. All processes."""
    task: PreferenceTask = objective.task
    unknown = list({pair.key: pair for pair in pairs if pair.key not in task.reference}.values())
    found = add_up(objective, unknown, tokenizer, batch_size=batch_size).found.values()
    task.reference |= {pair.key: tuple(row[LOGPS].tolist()) for pair, row in found}


def begin(trainer: Any, test_data: Any = None, *, resume: bool = False, steps: int = 0) -> None:
    """`remember_reference` for all data of a run, before its first step; a resumed run reads what was kept of it.

    steps  only for the first so many, where a run is only to be measured

    Raises ValueError where there is nothing kept to go on with.
    """
    objective, task = trainer.objective, trainer.task
    if objective.innermost.config.preference_loss != "dpo":
        return
    tokenizer, path = trainer.model.tokenizer, trainer.folder.path(REFERENCE) if trainer.output else None
    pairs = [trainer.samples[i] for step in range(steps) for i in trainer._samples_of_step(step)] if steps else \
        [*trainer.samples, *(trainer.eval_samples or ()), *(task.samples(test_data, tokenizer) if test_data else ())]
    if resume:
        task.reference = _read(path)
        if any(pair.key not in task.reference for pair in pairs):
            raise ValueError(f"{path} says nothing of some pairs, and the model that training began with is no longer "
                             "here to be asked; give the data of before, or start anew with --overwrite")
        return
    remember_reference(objective, pairs, tokenizer, batch_size=trainer.config.batch_size)
    if path and distributed.is_rank0():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(json.dumps(task.reference).encode())
    distributed.barrier()


def _read(path: Path) -> dict[str, tuple[float, float]]:
    try:
        return {key: (float(chosen), float(rejected)) for key, (chosen, rejected) in
                json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, TypeError, AttributeError):
        raise ValueError(f"{path} cannot be read, and it says what the model said before training; start anew with "
                         "--overwrite") from None


def against_base(model: Llama, task: PreferenceTask, config: PreferenceConfig, data: Any, *, batch_size: int
                 ) -> Preference:
    """What scores pairs of a model with adapters against the model below them.

    Raises ValueError where a loss needs that, and there are none.
    """
    objective = Preference(model, task, config=config)
    if config.preference_loss == "dpo":
        if not adapter_names(model, active=True):
            raise ValueError("dpo holds a model against the one that it was before, which only an adapter still has; "
                             "name it with --adapter, or take --preference-loss simpo or orpo")
        with without_adapters(model):
            remember_reference(objective, task.samples(data, model.tokenizer), model.tokenizer, batch_size=batch_size)
    return objective
