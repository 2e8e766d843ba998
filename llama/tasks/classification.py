"""Classification, sentiment among it: one label for a text, or with `multi_label` any number of them.

    ids       服 务 很 好 。
    row               ↑  its scores, one a label: softmax and one is taken; or each by itself, those above one half

The row of the last id is read. Under causal attention it alone has seen the whole text. Hugging Face's class reads it,
too, so a folder from here gives the same scores there. Nothing is appended to the text for the same reason: an end that
is also the padding id is taken for padding by that class, which would read the row before.

With pooling "mean" the mean of all rows is scored instead. A model that is trained from nothing learns faster by it,
since every token hears at once what was wrong; elsewhere the folder gives other scores then.

Try: read the first row; tests/test_classification.py (test_worked_example_the_last_id_is_read) fails.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from llama.generation import encode_prompt
from llama.heads import POOLINGS
from llama.metrics.calibration import expected_calibration_error
from llama.metrics.classification import classification_scores, confusion_matrix, label_counts, multilabel_scores
from llama.runtime.progress import pad_to_width
from llama.tasks.labelled import Example, Labelled, LabelledTask, Result, counts_table
from llama.tasks.task import IGNORE_INDEX, Batch
from tokenizer.base import Tokenizer

SHOWN = 12                                                          # labels of a confusion matrix that still fit


class ClassificationTask(LabelledTask):
    """Texts with a "label" each, or with `multi_label` with "labels". A longer one loses its end.

    `predict` gives a label for each text, or with `multi_label` a list of labels; `detailed` also the "confidence" of
    each: its probability.

    pooling  "last" row or "mean" of all; "" takes that of the model's head, or else last
    """

    kind, name = "sequence", "classification"

    def __init__(self, labels: Iterable[str] = (), *, multi_label: bool = False, attention: str = "",
                 pooling: str = "", max_length: int = 512):
        super().__init__(labels, attention=attention, max_length=max_length)
        if pooling and pooling not in POOLINGS:
            raise ValueError(f"pooling is '{pooling}'; it must be one of {', '.join(POOLINGS)}")
        self.multi_label, self.pooling = multi_label, pooling

    def several(self) -> bool:
        return self.multi_label

    def is_labelled(self, example: Example) -> bool:
        return self._right(example) is not None

    def labels_of(self, dataset: Sequence[Example]) -> list[str]:
        return sorted({label for example in dataset for label in self._right(example) or ()})

    def unknown(self, example: Example) -> list[str]:
        return [label for label in self._right(example) or () if label not in self.labels]

    def pieces(self, example: Example, tokenizer: Tokenizer) -> list[Labelled]:
        ids, right = encode_prompt(tokenizer, example["text"]), self._right(example)
        if self.multi_label:
            goal: Any = [int(label in (right or ())) for label in self.labels]
        else:
            goal = self.labels.index(right[0]) if right and not self.unknown(example) else IGNORE_INDEX
        lost = max(0, len(ids) - self.max_length)
        ids = ids[: self.max_length]
        return [Labelled(ids, [False] * (len(ids) - 1) + [True], example.get("place", ""), lost=lost, goals=[goal],
                         notes={len(ids) - 1: ", ".join(right)} if right else {}, example=example)]

    def states(self, hidden: Tensor, batch: Batch) -> Tensor:
        if self.pooling != "mean":
            return super().states(hidden, batch)
        sizes = batch["sizes"].tolist()
        if "positions" in batch:                                    # packed: all texts in one row
            texts = hidden[0].split(sizes)
        else:
            texts = [row[:size] for row, size in zip(hidden, sizes, strict=True)]
        return torch.stack([text.float().mean(0) for text in texts]).to(hidden.dtype)   # (B, D)

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        if self.multi_label:
            return functional.binary_cross_entropy_with_logits(scores, targets.float(), reduction="sum")
        return super().loss(scores, targets)

    def count(self, targets: Tensor) -> int:
        return len(targets) if targets.is_floating_point() else super().count(targets)  # probabilities of mixed texts

    def log_probs(self, scores: Tensor, targets: Tensor) -> Tensor:
        if self.multi_label:                                        # each is there, or is not
            return functional.logsigmoid(torch.stack([scores, -scores], -1))
        return super().log_probs(scores, targets)

    def decode(self, samples: Sequence[Labelled], scores: Sequence[Tensor]) -> Result:
        example, row = samples[0].example, scores[0][0]
        right = self._right(example)
        if self.multi_label:
            sure = row.sigmoid()
            predicted = [label for label, p in zip(self.labels, sure.tolist(), strict=True) if p > 0.5]
            confidence = torch.maximum(sure, 1 - sure).prod().item()                    # that all of them are right
            gold = right
        else:
            confidence, best = row.softmax(-1).max(-1)
            predicted, confidence = self.labels[best], confidence.item()
            gold = right[0] if right else None
        found = {"place": example.get("place", ""), "text": example["text"], "predicted": predicted,
                 "confidence": round(confidence, 6)}
        if right is None:
            return found
        correct = set(predicted) == set(gold) if self.multi_label else predicted == gold
        return found | {"gold": gold, "correct": correct}

    def compute_metrics(self, results: Sequence[Result]) -> dict[str, float]:
        """As llama/metrics has them, and `calibration_error`: how far confidence and accuracy are apart."""
        gold, predicted = ([result[key] for result in results] for key in ("gold", "predicted"))
        scores = (multilabel_scores if self.multi_label else classification_scores)(gold, predicted)
        return scores | {"calibration_error": expected_calibration_error(
            [result["confidence"] for result in results], [result["correct"] for result in results])}

    def report(self, results: Sequence[Result]) -> tuple[dict[str, Any], str]:
        gold, predicted = ([result[key] for result in results] for key in ("gold", "predicted"))
        if self.multi_label:
            counts = label_counts(gold, predicted)
        else:
            counts = label_counts([[label] for label in gold], [[label] for label in predicted])
        as_json: dict[str, Any] = {"by_label": {label: each.scores() for label, each in counts.items()}}
        text = counts_table("label", counts)
        if not self.multi_label and len(self.labels) <= SHOWN:
            labels = list(dict.fromkeys((*self.labels, *gold)))     # behind them those that it cannot find
            matrix = confusion_matrix(gold, predicted, labels)
            as_json["confusion"] = {"labels": labels, "matrix": matrix}
            text += "\n\nright, and what was predicted (columns in the same order)\n" + "\n".join(
                pad_to_width(label[:12], 24) + "".join(f"{count:>10,}" for count in row)
                for label, row in zip(labels, matrix, strict=True))
        return as_json, text

    def _right(self, example: Example) -> list[str] | None:
        """The labels that an example has; None if it does not say."""
        if self.multi_label:
            return example.get("labels")
        return [example["label"]] if "label" in example else None
