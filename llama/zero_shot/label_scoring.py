"""Which label a text has, by what the model itself finds likely to be answered.

    score(label) = mean over the label's ids of  log p(id | the question about this text)
                 - the same                       log p(id | the question about an empty text)

The mean, or long labels would lose; the difference, or labels that are frequent words would win whatever the text says
(contextual calibration, Zhao and others 2021, arXiv:2102.09690, there with «N/A» and a division; a difference of
logarithms is one). Of several labels a text has those that it makes likelier than no text does.

Try: leave the empty text out; tests/test_zero_shot.py (test_two_ways_scores_equal_those_of_plain_forward_passes) fails.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llama.checkpoint import PretrainedLlama
from llama.decoding.loglikelihood import loglikelihood
from llama.tasks.labelled import Example, Result
from llama.tasks.opinion import OpinionTask, dated
from llama.zero_shot.prompting import PromptedPredictor

REQUEST = ("下面的文字属于哪一类：{labels}？只回答类别。",
           "Which label fits the text: {labels}? Answer with the label alone.")


class Labels(PromptedPredictor):
    """Asks for the label of each text."""

    def __init__(self, task: Any, examples: Sequence[Example], **options: Any):
        super().__init__(task, examples, **options)
        if len(task.labels) < (1 if task.several() else 2):
            there = f"there is one label alone, {task.labels[0]}" if task.labels else "there are no labels"
            raise ValueError(f"{there}, and of two or more one is chosen; without training nobody else names them: "
                             "give all there are, --labels a,b or ClassificationTask(labels=…)")
        if unknown := set(self.words) - set(task.labels):
            raise ValueError(f"words are given for {', '.join(sorted(unknown))}, labels are {', '.join(task.labels)}")

    def open(self, model: PretrainedLlama) -> None:
        super().open(model)
        self.names = [self.words.get(label, label) for label in self.task.labels]
        self.empty: dict[bool, Tensor] = {}

    def answer(self, example: Example) -> Result:
        text = example["text"]
        scores = self.calibrated(text)
        right = self.task._right(example)
        if self.task.several():
            sure = scores.sigmoid()
            predicted: Any = [label for label, p in zip(self.task.labels, sure.tolist(), strict=True) if p > 0.5]
            confidence, gold = torch.maximum(sure, 1 - sure).prod().item(), right
        else:
            confidence, best = (each.item() for each in scores.softmax(-1).max(-1))
            predicted, gold = self.task.labels[best], right[0] if right else None
        found = {"place": example.get("place", ""), "text": text, "predicted": predicted,
                 "confidence": round(confidence, 6)}
        if right is not None:
            same = set(predicted) == set(gold) if self.task.several() else predicted == gold
            found |= {"gold": gold, "correct": same}
        return dated(found, example) if isinstance(self.task, OpinionTask) and "date" in example else found

    def calibrated(self, text: str) -> Tensor:
        """(C,): above 0 where this text makes a label likelier than no text does."""
        chinese = self.chinese(text)
        if chinese not in self.empty:
            self.empty[chinese] = self.likelihood("", chinese)
        return self.likelihood(text, chinese) - self.empty[chinese]

    def likelihood(self, text: str, chinese: bool) -> Tensor:
        """(C,): the mean log-probability of each label's ids as the answer."""
        turns = self.turns([(self.asked(example["text"], chinese), self.told(example)) for example in self.examples],
                           self.asked(text, chinese))
        prefix = self.prompt(turns)
        rows = [self.continuation(turns, name, prefix) for name in self.names]
        return torch.stack([each.mean() for each in
                            loglikelihood(self.model, prefix, rows, tokenizer=self.tokenizer, reader=self.reader)])

    def continuation(self, turns: Any, name: str, prefix: list[int]) -> list[int]:
        """The ids of a label as an answer, without what closes it."""
        ids, learned = self.chat.encode([*turns, {"role": "assistant", "content": name}], self.tokenizer)
        end = len(ids) - learned[::-1].index(True)
        return ids[len(prefix) : end - (ids[end - 1] == self.closing)]

    def asked(self, text: str, chinese: bool) -> str:
        request = self.said(REQUEST, chinese).replace("{labels}", ("、" if chinese else ", ").join(self.names))
        return f"{request}\n\n{self.cut(text)}"

    def told(self, example: Example) -> str:
        names = [self.words.get(label, label) for label in self.task._right(example)]
        return ", ".join(names) or "-"
