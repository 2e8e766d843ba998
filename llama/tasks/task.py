"""What a task is: an encoding of examples, the rows of the output that count, and a score.

    example  --encode-->  Sample  --collate-->  Batch  --rows-->  where the loss is taken  --score-->  numbers

A model reads tokens = ids[:-1] and predicts targets = ids[1:], so what is learned about a token is learned one row
earlier. Forgetting this shift, a model learns to copy its input, and the loss falls to 0 within minutes. Tasks with a
head of labels (labelled.py) have no shift.

Try: in `collate`, let targets be ids[:-1]; tests/test_tasks.py (test_worked_example_collate_shifts_and_pads) fails.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from llama.checkpoint import PretrainedLlama
from llama.heads import require_lm_head
from llama.model import Llama
from tokenizer.base import Tokenizer

IGNORE_INDEX = -100  # the target where nothing is learned, as in torch

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Sample:
    """One example as the model sees it.

    ids      L of them
    loss_mask  L: whether the model is to predict this id; the first is given, never predicted
    place    where it came from, for people
    cut      how many ids were left out before what is learned, because the sample was too long
    lost     how many at the end, and with them perhaps what ends an answer
    example  what it was made of, as it was written
    shift    row t is scored against id t + shift
    """

    shift: ClassVar[int] = 1

    ids: list[int]
    loss_mask: list[bool]
    place: str = ""
    cut: int = 0
    lost: int = 0
    example: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def targets(self) -> int:
        """How many ids are learned."""
        return sum(self.loss_mask[self.shift :])

    @property
    def reads(self) -> int:
        """How many ids the model reads: of those that it predicts the last is never read."""
        return len(self.ids) - self.shift

    @property
    def parts(self) -> tuple["Sample", ...]:
        """What there is to show, one after the other: the sample itself, and what stands beside it in a batch."""
        return (self,)

    def note(self, position: int) -> str:
        """What is to be said about an id, where that is not the id itself."""
        return ""


@dataclass
class Totals:
    """Sums over a data set, from which `Task.score` makes numbers per target and per byte."""

    loss: float = 0.0           # nats
    targets: int = 0
    bytes: int = 0              # of UTF-8 that the targets stand for
    characters: int = 0         # that begin in those bytes
    found: dict[int, tuple[Sample, Tensor]] = field(default_factory=dict)   # by number: with a head of labels, (N, C)
    results: list[dict[str, Any]] | None = None                             # and what that says, once it was decoded


def cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    """-log softmax(scores)[target], summed: (N, C) and (N,) -> ()."""
    return functional.cross_entropy(scores, targets, reduction="sum")


class Task:
    """What a model is trained for. This base scores as language models do; a subclass says `encode` and `prompt`.

    checks  names in llama/training/data_checks.py of what must hold of every sample before it is trained on
    packs   whether a sample may hold the end of one document and the beginning of the next
    trained  whether there is anything to learn; what is no such task is asked alone
    """

    checks: tuple[str, ...] = ("masked", "doubled-bos", "vocabulary")
    packs = False
    trained = True

    def encode(self, example: dict[str, Any], tokenizer: Tokenizer) -> Sample:
        """One example of a data set as ids, and which of them are learned."""
        raise NotImplementedError

    def reencode(self, sample: Sample, example: dict[str, Any], tokenizer: Tokenizer) -> Sample:
        """What a sample of this task would be if its example were written so."""
        return self.encode(example, tokenizer)

    def prompt(self, text: str, tokenizer: Tokenizer) -> list[int]:
        """The ids that ask the model for what `predict` returns."""
        raise NotImplementedError

    def prompts(self, example: dict[str, Any], tokenizer: Tokenizer) -> Iterable[list[int]]:
        """What generation would be given before each answer of an example; each must begin the example's ids."""
        return ()

    def ends(self, tokenizer: Tokenizer) -> set[int]:
        """The ids at which generation stops."""
        return set(tokenizer.eos_ids)

    def bind(self, model: Llama) -> None:
        """Fit the task to a model that is there, to score it or to predict with it. Raises ValueError if none does."""
        require_lm_head(model)

    def prepare(self, model: Llama, dataset: Any, *, seed: int = 0) -> None:
        """Fit model and task to each other, and to the data that is to be learned. Before LoRA, if there is to be."""
        self.bind(model)

    def check(self, dataset: Sequence[dict[str, Any]]) -> None:
        """Raise ValueError for data that cannot be judged, before anything runs."""

    def samples(self, dataset: Sequence[dict[str, Any]], tokenizer: Tokenizer) -> Sequence[Sample]:
        """Everything that there is to learn in a data set."""
        return [self.encode(example, tokenizer) for example in dataset]

    def order(self, samples: Sequence[Sample], together: int, generator: torch.Generator) -> Tensor:
        """In which order an epoch learns its samples, `together` of them a step."""
        return torch.randperm(len(samples), generator=generator)

    def collate(self, samples: Sequence[Sample]) -> Batch:
        """{"tokens", "targets"}, both (B, T) int64, T from the longest sample, rows padded on their right.

        Padding needs no mask: causal attention never looks to the right, and padded rows have no target.
        """
        T = max(len(sample.ids) for sample in samples) - 1
        tokens = torch.zeros(len(samples), T, dtype=torch.int64)
        targets = torch.full((len(samples), T), IGNORE_INDEX)
        for sample, row, goal in zip(samples, tokens, targets, strict=True):
            ids, end = torch.tensor(sample.ids), len(sample.ids) - 1
            row[:end] = ids[:-1]
            goal[:end] = ids[1:].where(torch.tensor(sample.loss_mask[1:], dtype=torch.bool), IGNORE_INDEX)
        return {"tokens": tokens, "targets": targets}

    def joined(self, batches: Sequence[Batch]) -> Batch:
        """Batches of one sample each as one, laid end to end in a single row (packing.py)."""
        return {name: torch.cat([batch[name] for batch in batches], dim=-1) for name in batches[0]}

    def rows(self, batch: Batch) -> tuple[Tensor, ...]:
        """What indexes (B, T) to leave the N positions that count."""
        return (batch["targets"] != IGNORE_INDEX).nonzero(as_tuple=True)

    def states(self, hidden: Tensor, batch: Batch) -> Tensor:
        """What the head sees of the last layer's states: (B, T, D) -> (N, D)."""
        return hidden[self.rows(batch)]

    def targets(self, batch: Batch) -> Tensor:
        """What is right in those rows: (N,) ids."""
        return batch["targets"][self.rows(batch)]

    def count(self, targets: Tensor) -> int:
        """How many decisions the loss is summed over."""
        return len(targets)

    def head(self, model: Llama) -> nn.Module:
        """What makes scores of states."""
        return model.lm_head

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """In nats, summed over the targets: (N, C) float32 and (N, …) -> ()."""
        return cross_entropy(scores, targets)

    def log_probs(self, scores: Tensor, targets: Tensor) -> Tensor:
        """log of what the loss takes scores (N, C) for: of all that each decision could be, in any layout."""
        return scores.log_softmax(-1)

    def loss_mask(self, samples: Sequence[Sample]) -> list[list[bool]]:
        """For each id of each sample whether the loss asks for it, read off their batch."""
        learned = [[False] * len(sample.ids) for sample in samples]
        for b, t in zip(*(index.tolist() for index in self.rows(self.collate(samples))), strict=True):
            learned[b][t + samples[b].shift] = True
        return learned

    def accumulate(self, totals: Totals, objective: Any, samples: Sequence[Sample], some: Sequence[int],
              tokenizer: Tokenizer) -> None:
        """Run some of the samples as a batch and add to the totals what `score` asks for."""
        batch = self.collate([samples[i] for i in some])
        loss, targets = objective(to_device(batch, objective.model.device))
        totals.loss += loss.item()
        totals.targets += targets
        for name, size in self.sizes_of(batch["targets"], tokenizer).items():
            setattr(totals, name, getattr(totals, name) + size)

    def sizes_of(self, targets: Tensor, tokenizer: Tokenizer) -> dict[str, int]:
        """How many "bytes" and "characters" these targets stand for; ignored ones and special tokens stand for none.

        A character counts where its first byte is, for an id may hold a part of one. Where a vocabulary spells a space
        before each text (SentencePiece), that counts too, one a document.
        """
        if getattr(self, "_sized", None) is not tokenizer:
            special = set(tokenizer.special_ids.values())
            spelled = [b"" if i in special else tokenizer.token_bytes(i) for i in range(tokenizer.vocab_size)]
            first = [sum(byte & 0xC0 != 0x80 for byte in some) for some in spelled]     # 0b10…… goes on
            self._sized, self._sizes = tokenizer, torch.tensor([[len(some) for some in spelled], first])
        sizes = self._sizes[:, targets[targets != IGNORE_INDEX].cpu()].sum(1).tolist()
        return dict(zip(("bytes", "characters"), sizes, strict=True))

    def score(self, totals: Totals) -> dict[str, float]:
        """`loss` in nats a target, `perplexity` = e^loss, and `bits_per_byte`, which tokenizers cannot flatter.

        A tokenizer of fewer, longer tokens has a higher loss on the same text; divided by bytes they compare, and by
        characters (`bits_per_character`) with what is published for Chinese.
        """
        if not totals.targets:
            raise ValueError("nothing to score: the data holds no target; give data with something to learn")
        loss = totals.loss / totals.targets
        scores = {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}               # e^710 is past all floats
        if totals.bytes:
            scores["bits_per_byte"] = totals.loss / math.log(2) / totals.bytes
        if totals.characters:
            scores["bits_per_character"] = totals.loss / math.log(2) / totals.characters
        return scores

    def predict(self, model: PretrainedLlama, inputs: Sequence[str], **options: Any) -> list[str]:
        """What the model writes for each input. Options: fields of SamplingConfig, and those of generation.generate."""
        from llama.generation import generate
        from llama.sampling import pop_config

        prompts = [self.prompt(text, model.tokenizer) for text in inputs]
        completions = generate(model, prompts, tokenizer=model.tokenizer, sampling=pop_config(options), **options)
        return [completion.text for completion in completions]


def sort_by_length(samples: Sequence[Sample], batch_size: int) -> Iterator[list[int]]:
    """Batches, as numbers of samples; the largest comes first, so that memory runs out at once or never."""
    order = sorted(range(len(samples)), key=lambda i: -len(samples[i].ids))
    return (order[start : start + batch_size] for start in range(0, len(order), batch_size))


def to_device(batch: Batch, device: torch.device | str) -> Batch:
    if torch.device(device).type == "cuda":                         # from pinned memory, without waiting for it
        return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}
    return {name: tensor.to(device) for name, tensor in batch.items()}
