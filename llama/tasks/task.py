"""What a task is: an encoding of examples, the rows of the output that count, and a score.

    example  --encode-->  Sample  --collate-->  Batch  --rows-->  where the loss is taken  --score-->  numbers

A model reads tokens = ids[:-1] and predicts targets = ids[1:], so what is learned about a token is learned one row
earlier. Forgetting this shift, a model learns to copy its input, and the loss falls to 0 within minutes.

Try: in `collate`, let targets be ids[:-1]; tests/test_tasks.py (test_worked_example_collate_shifts_and_pads) fails.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IGNORED = -100                                                      # the target where nothing is learned, as in torch

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """One example as the model sees it.

    ids      L of them
    learned  L: whether the model is to predict this id; the first is given, never predicted
    place    where it came from, for people
    cut      how many ids were left out at the beginning, because the sample was too long
    """

    ids: list[int]
    learned: list[bool]
    place: str = ""
    cut: int = 0

    @property
    def targets(self) -> int:
        """How many ids are learned."""
        return sum(self.learned[1:])


@dataclass
class Totals:
    """Sums over a data set, from which `Task.score` makes numbers per target and per byte."""

    loss: float = 0.0           # nats
    targets: int = 0
    bytes: int = 0              # of UTF-8 that the targets stand for


class Task:
    """What a model is trained for. This base scores as language models do; a subclass says `encode` and `prompt`."""

    def encode(self, example: dict[str, Any], tokenizer: Any) -> Sample:
        """One example of a data set as ids, and which of them are learned."""
        raise NotImplementedError

    def prompt(self, text: str, tokenizer: Any) -> list[int]:
        """The ids that ask the model for what `predict` returns."""
        raise NotImplementedError

    def samples(self, dataset: Sequence[dict[str, Any]], tokenizer: Any) -> Sequence[Sample]:
        """Everything that there is to learn in a data set."""
        return [self.encode(example, tokenizer) for example in dataset]

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """{"tokens", "targets"}, both (B, T) int64, T from the longest sample, rows padded on their right.

        Padding needs no mask: causal attention never looks to the right, and padded rows have no target.
        """
        T = max(len(sample.ids) for sample in samples) - 1
        tokens = torch.zeros(len(samples), T, dtype=torch.int64)
        targets = torch.full((len(samples), T), IGNORED)
        for sample, row, goal in zip(samples, tokens, targets, strict=True):
            ids, end = torch.tensor(sample.ids), len(sample.ids) - 1
            row[:end] = ids[:-1]
            goal[:end] = ids[1:].where(torch.tensor(sample.learned[1:]), IGNORED)
        return {"tokens": tokens, "targets": targets}

    def rows(self, batch: Batch) -> tuple[Tensor, ...]:
        """What indexes (B, T) to leave the N positions that count."""
        return (batch["targets"] != IGNORED).nonzero(as_tuple=True)

    def bytes_of(self, targets: Tensor, tokenizer: Any) -> int:
        """How many bytes of text these targets stand for, ignored ones left out; special tokens stand for none.

        Where a vocabulary spells a space before each text (SentencePiece), that byte counts too, one a document.
        """
        if getattr(self, "_sized", None) is not tokenizer:
            special = set(tokenizer.special_ids.values())
            sizes = [0 if i in special else len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)]
            self._sized, self._sizes = tokenizer, torch.tensor(sizes)
        return int(self._sizes[targets[targets != IGNORED].cpu()].sum())

    def score(self, totals: Totals) -> dict[str, float]:
        """`loss` in nats a target, `perplexity` = e^loss, and `bits_per_byte`, which tokenizers cannot flatter.

        A tokenizer of fewer, longer tokens has a higher loss on the same text; divided by bytes they compare.
        """
        if not totals.targets:
            raise ValueError("nothing to score: the data holds no target; give data with something to learn")
        loss = totals.loss / totals.targets
        scores = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}               # e^710 is past all floats
        if totals.bytes:
            scores["bits_per_byte"] = totals.loss / math.log(2) / totals.bytes
        return scores

    def predict(self, model: Any, inputs: Sequence[str], **options: Any) -> list[str]:
        """What the model writes for each input. Options: fields of SamplingConfig, and those of generation.generate."""
        from llama.generation import generate
        from llama.sampling import taken_from

        prompts = [self.prompt(text, model.tokenizer) for text in inputs]
        completions = generate(model, prompts, tokenizer=model.tokenizer, sampling=taken_from(options), **options)
        return [completion.text for completion in completions]


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}
