"""Preferences: of two answers to one conversation, which one is the better.

    chosen    <|im_start|>user … <|im_end|> <|im_start|>assistant  ● ● ● ● ●
    rejected  <|im_start|>user … <|im_end|> <|im_start|>assistant  ● ● ●

A pair is two rows of a batch, the B chosen ones first, then the B rejected ones; what is learned of both (● above) are
the answers. Losses over pairs are in llama/methods/preferences.py; those that hold a model against the one that it
began as, as DPO does, find that one's log-likelihoods here, in `reference`.

Try: take the prompts as each answer has them fitted; tests/test_preferences.py
(test_property_both_answers_answer_the_same) fails: of a long question the shorter answer would see more.
"""

import hashlib
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from llama.tasks.instruction import InstructionTask, Result
from llama.tasks.task import IGNORE_INDEX, Batch, Sample, Task, Totals, to_device
from tokenizer.base import Tokenizer

UNKNOWN = (math.nan, math.nan)
LOGPS, LOSS, REWARDS = slice(0, 2), 2, slice(3, 5)                  # columns of what an objective's `scores` says


@dataclass(frozen=True)
class Pair(Sample):
    """The chosen answer as a sample, and the rejected one beside it; both begin with the same prompt."""

    rejected: Sample = field(default_factory=lambda: Sample([], []))

    @property
    def targets(self) -> int:
        """Of both; nothing where either has none, for then there is nothing to compare."""
        sides = (super().targets, self.rejected.targets)
        return sum(sides) if all(sides) else 0

    @property
    def reads(self) -> int:
        return super().reads + self.rejected.reads

    @property
    def parts(self) -> tuple[Sample, ...]:
        return self, replace(self.rejected, place=f"{self.place}, rejected")

    @property
    def key(self) -> str:
        """By which the pair is known, whatever file it lies in."""
        both = (array("q", [len(side.ids), *side.ids, *side.loss_mask]).tobytes() for side in (self, self.rejected))
        return hashlib.sha256(b"".join(both)).hexdigest()


class PreferenceTask(InstructionTask):
    """Pairs of llama.datasets.preferences, in a chat format; see InstructionTask for its options.

    reference  by the key of a pair, the log-likelihoods in nats of its chosen and its rejected answer under the model
               that training begins with
    """

    checks = (*InstructionTask.checks, "rejected")
    paired = True                                                   # two rows of a batch each, so nothing is packed
    writes = False                                                  # an answer of its own would be neither of the two

    def __init__(self, *options: Any, **more: Any):
        super().__init__(*options, **more)
        self.reference: dict[str, tuple[float, float]] = {}

    def encode(self, example: dict[str, Any], tokenizer: Tokenizer) -> Pair:
        asked = example["messages"]

        def side(name: str, before: Any) -> Sample:
            return super(PreferenceTask, self).encode({**example, "messages": [*before, example[name]]}, tokenizer)

        chosen, rejected = side("chosen", asked), side("rejected", asked)
        prompts = [each.example["messages"][:-1] for each in (chosen, rejected)]
        if prompts[0] != prompts[1]:                                # the longer answer leaves the prompt less room
            if chosen.cut < rejected.cut:
                chosen = replace(side("chosen", prompts[1]), cut=rejected.cut)
            else:
                rejected = replace(side("rejected", prompts[0]), cut=chosen.cut)
        return Pair(chosen.ids, chosen.loss_mask, chosen.place, chosen.cut, chosen.lost, chosen.example,
                    replace(rejected, place=""))

    def stored(self, pairs: Iterator[tuple[Sample, dict[str, Any]]], tokenizer: Tokenizer) -> list[Pair]:
        return [pair for pair, _ in pairs]

    def collate(self, samples: Sequence[Pair]) -> Batch:
        """{"tokens", "targets"} (2 B, T), chosen before rejected, and "reference" (B, 2), NaN where it is not known."""
        batch = super().collate([*samples, *(pair.rejected for pair in samples)])
        return batch | {"reference": torch.tensor([self.reference.get(pair.key, UNKNOWN) for pair in samples])}

    def targets(self, batch: Batch) -> Tensor:
        """(B, 2, T), so that as many as there are pairs are counted."""
        return batch["targets"].unflatten(0, (2, -1)).transpose(0, 1)

    def loss_mask(self, samples: Sequence[Pair]) -> list[list[bool]]:
        """That of the chosen answers; of the rejected ones the check "rejected" asks."""
        learned = self.collate(samples)["targets"][: len(samples)] != IGNORE_INDEX
        return [[False, *row[: len(pair.ids) - 1].tolist()] for pair, row in zip(samples, learned, strict=True)]

    def accumulate(self, totals: Totals, objective: Any, samples: Sequence[Pair], some: Sequence[int],
                   tokenizer: Tokenizer) -> None:
        batch = self.collate([samples[i] for i in some])
        scores = objective.scores(to_device(batch, objective.model.device)).float().cpu()         # (B, 5)
        totals.loss += scores[:, LOSS].sum().item()
        totals.targets += len(scores)
        totals.found |= {i: (samples[i], row) for i, row in zip(some, scores, strict=True)}

    def score(self, totals: Totals) -> dict[str, float]:
        """`loss` a pair; `accuracy`, in how many pairs the chosen answer has the higher implicit reward; `margin`, by
        how much in the mean; and both rewards."""
        if not totals.found:
            raise ValueError("nothing to score: the data holds no pair; give data that does")
        chosen, rejected = torch.stack([row[REWARDS] for _, row in totals.found.values()]).double().unbind(1)
        return {"loss": totals.loss / totals.targets, "accuracy": (chosen > rejected).double().mean().item(),
                "margin": (chosen - rejected).mean().item(), "chosen_reward": chosen.mean().item(),
                "rejected_reward": rejected.mean().item()}

    def answered(self, *_: Any, **__: Any) -> list[Result]:
        return []


def check_pairs(task: Task) -> None:
    """Raise ValueError where a loss over pairs is to be taken of a task that has none."""
    if not isinstance(task, PreferenceTask):
        raise ValueError(f"a loss over pairs needs a PreferenceTask, and this is a {type(task).__name__}")
