"""What tasks with a head of labels share: no id is predicted, every learned row is scored against labels of its own.

    example  --pieces-->  samples  --collate-->  batch  --scores-->  rows of numbers  --decode-->  what was found

A subclass says how an example becomes samples (one, or a window after the other), what its labels are, how rows of
scores are decoded, and how what was found is scored. The head is a swap on the model (llama/heads.py), and carries what
a task must know to use it again: the labels, and whether positions see the whole text.

Try: leave the mask out of `collate`; tests/test_classification.py (test_property_padding_changes_nothing) fails with
full attention, where a text could see the padding beside it.
"""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from llama.checkpoint import PretrainedLlama
from llama.heads import ATTENTIONS, HeadConfig, add_head, head_config
from llama.masks import bidirectional_mask
from llama.metrics.counts import Counts
from llama.model import Llama
from llama.runtime.progress import pad_to_width
from llama.tasks.task import IGNORE_INDEX, Batch, Sample, Task, Totals, sort_by_length, to_device
from tokenizer.base import Tokenizer

log = logging.getLogger(__name__)

LIKE = 32               # steps whose texts are sorted by length
MANY_PARTS = 0.2        # of the ids: that parts of characters are so many is said

Example = dict[str, Any]
Result = dict[str, Any]


@dataclass(frozen=True)
class Labelled(Sample):
    """A text, or a window of one, with labels.

    goals    N: for each learned id what is right there, as whole numbers; IGNORE_INDEX where nobody says
    notes    position -> the same in words
    number   of the example in its data set
    places   where in the text of the example the learned ids stand, for tasks that point there
    """

    shift: ClassVar[int] = 0

    goals: list[Any] = field(default_factory=list)
    notes: dict[int, str] = field(default_factory=dict)
    number: int = 0
    places: list[tuple[int, int]] = field(default_factory=list, repr=False, compare=False)

    def note(self, position: int) -> str:
        return self.notes.get(position, "")


class LabelledTask(Task):
    """A task whose model has a head of labels.

    labels      what there is to find; () takes those of the model's head, or else of the data that is learned
    attention   "causal" or "full" (every position sees the whole text); "" takes that of the model's head, or causal
    max_length  ids of a sample, if the model's context has room for so many
    """

    kind: str                                                       # of head: a key of heads.KINDS
    name: str                                                       # of the task, for people
    pooling = ""                                                    # of a head for texts: see classification.py

    def __init__(self, labels: Iterable[str] = (), *, attention: str = "", max_length: int = 512):
        if attention and attention not in ATTENTIONS:
            raise ValueError(f"attention is '{attention}'; it must be one of {', '.join(ATTENTIONS)}")
        if max_length < 16:
            raise ValueError(f"max_length is {max_length}; texts need room for at least 16 ids")
        self.labels, self.attention, self.max_length = tuple(labels), attention, max_length

    # What a subclass says

    def pieces(self, example: Example, tokenizer: Tokenizer) -> list[Labelled]:
        """The samples of one example, none for an empty one."""
        raise NotImplementedError

    def is_labelled(self, example: Example) -> bool:
        """Whether an example says what is right."""
        raise NotImplementedError

    def example(self, given: Any) -> Example:
        """One of the inputs of `predict` as an example of which nobody says what is right."""
        return {"text": given}

    def nothing(self, example: Example) -> Result:
        """What was found in an example that holds nothing to read."""
        return {"place": example.get("place", ""), "text": example["text"], "predicted": []}

    def labels_of(self, dataset: Sequence[Example]) -> Iterable[str]:
        """What there is to find in a data set."""
        raise NotImplementedError

    def unknown(self, example: Example) -> list[str]:
        """What an example says is right and is none of the labels: nothing that is found can be that."""
        return []

    def decode(self, samples: Sequence[Labelled], scores: Sequence[Tensor]) -> Result:
        """What was found in an example, from the scores (N, C) of its samples: "predicted", and what else there is.

        Where the example says what is right, also "gold" and "correct".
        """
        raise NotImplementedError

    def compute_metrics(self, results: Sequence[Result]) -> dict[str, float]:
        """Scores of what was found, beside the loss."""
        raise NotImplementedError

    def report(self, results: Sequence[Result]) -> tuple[dict[str, Any], str]:
        """More than a number each: for JSON, and as a text to print."""
        return {}, ""

    def about(self, dataset: Sequence[Example]) -> dict[str, Any]:
        """What the head is to remember of the data that it learned, beside its labels."""
        return {}

    def remember(self, about: Any) -> None:
        """The inverse of `about`."""

    # What all have in common

    def head(self, model: Llama) -> nn.Module:
        return model.head

    def bind(self, model: Llama) -> None:
        head = head_config(model)
        if head is None:
            raise ValueError(f"the model has no head of labels for {self.name}; tune one with finetune.py --task "
                             f"{self.name}, or give --adapter with the folder of one")
        asked = self.asked(head.labels)
        if head != HeadConfig(asked, self.kind, self.attention or head.attention, self.several(), head.about,
                              self.pooling or head.pooling):
            pooling = self.pooling or head.pooling
            differ = pooling != head.pooling
            raise ValueError(f"the model's head is of kind {head.kind}, {head.attention} attention, "
                             f"{f'pooling {head.pooling}, ' * differ}for {', '.join(head.labels):.60}; this task asks "
                             f"for {self.kind}, {self.attention or head.attention}, "
                             f"{f'pooling {pooling}, ' * differ}for {', '.join(asked):.60}; give what the model was "
                             "tuned for, or tune the model below it")
        self.labels, self.attention, self.pooling = head.labels, head.attention, head.pooling
        self.max_length = min(self.max_length, model.config.context)
        self.remember(head.about)

    def asked(self, there: tuple[str, ...]) -> tuple[str, ...]:
        """The labels that a head must have, where one with the labels `there` is; their order is the head's."""
        return there if set(self.labels) in (set(), set(there)) else self.labels

    def several(self) -> bool:
        """Whether a text may have any number of labels."""
        return False

    def check(self, dataset: Sequence[Example]) -> None:
        """Raise ValueError for an example that does not say what is right, before anything runs."""
        if (example := next((each for each in dataset if not self.is_labelled(each)), None)) is not None:
            raise ValueError(f"{example.get('place', 'an example')}: it has {', '.join(example)}, and nothing that "
                             f"says what is right in a task of {self.name}; see llama/datasets for the fields")

    def prepare(self, model: Llama, dataset: Any, *, seed: int = 0) -> None:
        """Give the model a new head, unless it has one, which is then learned further.

        Raises ValueError for a head that is another task's, if the data names no two labels, and for an example of it
        that does not say what is right.
        """
        LabelledTask.check(self, dataset)
        if head_config(model) is None:
            labels = self.labels or tuple(self.labels_of(dataset))
            if len(labels) < 2 and not self.several():
                raise ValueError(f"the data holds {len(labels)} different labels ({', '.join(labels) or 'none'}); from "
                                 "two on there is something to learn")
            add_head(model, HeadConfig(labels, self.kind, self.attention or "causal", self.several(),
                                       self.about(dataset), self.pooling or "last"),
                     generator=torch.Generator().manual_seed(seed))
        self.bind(model)
        if example := next(filter(self.unknown, dataset), None):
            raise ValueError(f"{example.get('place', 'an example')}: '{self.unknown(example)[0]:.40}' is none of those "
                             f"that are learned ({', '.join(self.labels):.80}); mend it, or give all with --labels")

    def encode(self, example: Example, tokenizer: Tokenizer) -> Labelled:
        return self.pieces(example, tokenizer)[0]

    def reencode(self, sample: Labelled, example: Example, tokenizer: Tokenizer) -> Labelled:
        """Of a text in windows, the window that stands where the sample's does; the sample where there is none."""
        own = [piece.ids for piece in self.pieces(sample.example, tokenizer)]
        piece = next(iter(self.pieces(example, tokenizer)[own.index(sample.ids) :]), sample)
        return replace(piece, number=sample.number)

    def samples(self, dataset: Sequence[Example], tokenizer: Tokenizer) -> list[Labelled]:
        if unknown := [example for example in dataset if self.unknown(example)]:
            first = unknown[0].get("place", "an example")
            log.warning("%d of %d examples have labels that the model does not know, and count as errors: first '%s' "
                        "in %s", len(unknown), len(dataset), self.unknown(unknown[0])[0], first)
        samples = self._numbered(dataset, tokenizer)
        if unknown and all(goal == IGNORE_INDEX for sample in samples for goal in sample.goals):
            raise ValueError(f"{first}: none of {len(dataset)} examples has a label that the model knows "
                             f"({', '.join(self.labels):.80}); give data for these, or tune the model for those of the "
                             "data")
        if cut := sum(sample.lost > 0 for sample in samples):
            log.warning("%d of %d samples were longer than %d tokens and lost their end; --max-length sets this", cut,
                        len(samples), self.max_length)
        if (share := in_parts(samples, tokenizer)) > MANY_PARTS:
            log.warning("%.0f %% of the tokens are parts of characters that this vocabulary lacks, saying little; take "
                        "a model that knows them (traditional characters become simplified by python -m llama.clean "
                        "--characters t2s)", 100 * share)
        return samples

    def _numbered(self, examples: Sequence[Example], tokenizer: Tokenizer) -> list[Labelled]:
        return [replace(sample, number=number) for number, example in enumerate(examples)
                for sample in self.pieces(example, tokenizer)]

    def order(self, samples: Sequence[Labelled], together: int, generator: torch.Generator) -> Tensor:
        """At random, but of some steps in a row each gets texts of like length: rows are padded to the longest of
        their batch, and of texts as they come, more than half of a batch is padding.
        """
        steps, order = [], torch.randperm(len(samples), generator=generator)
        for some in order.split(LIKE * together):
            alike = sorted(some.tolist(), key=lambda i: len(samples[i].ids))
            steps += [alike[start : start + together] for start in range(0, len(alike), together)]
        whole = [step for step in steps if len(step) == together]
        steps = [whole[i] for i in torch.randperm(len(whole), generator=generator).tolist()] + steps[len(whole) :]
        return torch.tensor([i for step in steps for i in step], dtype=torch.int64)

    def collate(self, samples: Sequence[Labelled]) -> Batch:
        """"tokens" (B, T), "sizes" (B,), which are "learned"; "targets" of those, in their order; with full "mask".

        Rows are padded on the right: causal attention never looks there, and full attention is told by a mask.
        """
        lengths = torch.tensor([len(sample.ids) for sample in samples])
        T = int(lengths.max())
        tokens = torch.zeros(len(samples), T, dtype=torch.int64)
        learned = torch.zeros(len(samples), T, dtype=torch.bool)
        for sample, row, marks in zip(samples, tokens, learned, strict=True):
            row[: len(sample.ids)] = torch.tensor(sample.ids)
            marks[: len(sample.ids)] = torch.tensor(sample.loss_mask)
        batch = {"tokens": tokens, "learned": learned, "sizes": lengths,
                 "targets": torch.tensor([goal for sample in samples for goal in sample.goals])}
        return batch | ({"mask": bidirectional_mask(lengths, T)} if self.attention == "full" else {})

    def joined(self, batches: Sequence[Batch]) -> Batch:
        rows = super().joined([{name: batch[name] for name in ("tokens", "learned", "sizes")} for batch in batches])
        return rows | {"targets": torch.cat([batch["targets"] for batch in batches])}

    def rows(self, batch: Batch) -> tuple[Tensor, ...]:
        return batch["learned"].nonzero(as_tuple=True)

    def targets(self, batch: Batch) -> Tensor:
        return batch["targets"]

    def count(self, targets: Tensor) -> int:
        return int((targets != IGNORE_INDEX).sum())                 # of several labels a text, each is a decision

    # From scores to what was found

    @torch.no_grad()
    def scores(self, model: Llama, batch: Batch) -> Tensor:
        """(N, C) float32, for the rows that count."""
        hidden = model.hidden(batch["tokens"], mask=batch.get("mask"))
        return self.head(model)(self.states(hidden, batch)).float()

    def accumulate(self, totals: Totals, objective: Any, samples: Sequence[Labelled], some: Sequence[int],
              tokenizer: Tokenizer) -> None:
        batch = to_device(self.collate([samples[i] for i in some]), objective.model.device)
        scores, targets = objective.scores(batch), self.targets(batch)
        totals.loss += self.loss(scores, targets).item()
        totals.targets += self.count(targets)
        totals.found |= _by_sample(samples, some, scores)
        totals.results = None

    def results(self, totals: Totals) -> list[Result]:
        """What was found in each example, in the order of the examples; windows of one are brought together."""
        if totals.results is None:
            found = [pair for _, pair in sorted(totals.found.items(), key=lambda item: item[0])]
            pairs_of = groupby(found, lambda pair: pair[0].number)
            totals.results = [self.decode(*zip(*pairs, strict=True)) for _, pairs in pairs_of]
        return totals.results

    def score(self, totals: Totals) -> dict[str, float]:
        results = self.results(totals)
        if not totals.targets or not all("gold" in result for result in results):
            raise ValueError("nothing to score: the data does not say what is right; give data with labels")
        return {"loss": totals.loss / totals.targets, **self.compute_metrics(results)}

    def predict(self, model: PretrainedLlama, inputs: Sequence[Any], *, batch_size: int = 16) -> list[Any]:
        """What is found in each input."""
        results = self.detailed(model, inputs, batch_size=batch_size)
        if cut := sum("lost" in result for result in results):
            log.warning("%d of %d texts were longer than %d tokens and lost their end; max_length sets this", cut,
                        len(results), self.max_length)
        return [result["predicted"] for result in results]

    def detailed(self, model: PretrainedLlama, inputs: Sequence[Any], *, batch_size: int = 16) -> list[Result]:
        """The same as "predicted", with all that is known of it: see `decode`; of one too long, the ids "lost"."""
        self.bind(model)                                            # the head may say how a text becomes an example
        examples = [self.example(given) for given in inputs]
        results = self.found(model, examples, batch_size=batch_size)
        return [result or self.nothing(example) for example, result in zip(examples, results, strict=True)]

    def found(self, model: PretrainedLlama, examples: Sequence[Example], *,
              batch_size: int = 16) -> list[Result | None]:
        """The same for examples of which nobody says what is right; None for one that holds no text."""
        self.bind(model)
        samples = self._numbered(examples, model.tokenizer)
        totals, was_training = Totals(), model.training
        model.eval()
        for some in sort_by_length(samples, batch_size):
            batch = to_device(self.collate([samples[i] for i in some]), model.device)
            totals.found |= _by_sample(samples, some, self.scores(model, batch))
        model.train(was_training)
        numbers = dict.fromkeys(sample.number for sample in samples)
        results = dict(zip(numbers, self.results(totals), strict=True))
        for sample in samples:
            if sample.lost:
                results[sample.number]["lost"] = sample.lost        # of several windows each has lost the same
        return [results.get(number) for number in range(len(examples))]


def in_parts(samples: Sequence[Sample], tokenizer: Tokenizer) -> float:
    """Which part of their ids are bytes of characters that are no piece of the vocabulary."""
    counts = Counter(id for sample in samples for id in sample.ids)
    parts = sum(count for id, count in counts.items() if tokenizer.is_part(id))
    return parts / max(1, counts.total())


def _by_sample(samples: Sequence[Labelled], some: Sequence[int], scores: Tensor) -> dict[int, tuple[Labelled, Tensor]]:
    pieces = scores.cpu().split([samples[i].targets for i in some])
    return {i: (samples[i], piece) for i, piece in zip(some, pieces, strict=True)}


def counts_table(what: str, counts: Mapping[str, Counts]) -> str:
    """Precision, recall and F1 of each label or type, a line each."""
    lines = [f"{what:<24}{'precision':>10}{'recall':>10}{'f1':>10}{'right':>10}"]
    return "\n".join(lines + [f"{pad_to_width(name[:12], 24)}"
                              f"{each.precision:>10.4f}{each.recall:>10.4f}{each.f1:>10.4f}"
                              f"{each.gold:>10,}" for name, each in counts.items()])


def stride_windows(sizes: Sequence[int], room: int, overlap: int) -> list[tuple[int, int]]:
    """Runs of units, (begin, end), that cover all of them in order; each holds `room` ids at most, and shares as many
    units with the one before as `overlap` ids allow.

    sizes  ids of each unit, none more than `room`
    """
    found, begin = [], 0
    while begin < len(sizes):
        end, size = begin, 0
        while end < len(sizes) and size + sizes[end] <= room:
            size += sizes[end]
            end += 1
        found.append((begin, end))
        if end == len(sizes):
            break
        begin, shared, most = end, 0, min(overlap, room - sizes[end])                   # the next must have room, too
        while begin - 1 > found[-1][0] and shared + sizes[begin - 1] <= most:
            begin -= 1
            shared += sizes[begin]
    return found
