"""Answers to questions: the piece of a text that answers one, or none (arXiv:1606.05250; with none, arXiv:1806.03822).

    ids      谁 来 了 ？ ⏎ 小 驼 昨 天 来 了 。 ⏎
    start                   ↑                 ↑           two scores a row: an answer begins here, ends here;
    end                        ↑              ↑           both on the last id: there is no answer in this window

The question comes first, since under causal attention only what follows it knows it, and «none» is read at the very
last id, which has seen all. A text that is too long is read in windows that overlap. In each, start and end are chosen
among the rows of the text and the last one, so that their log-probabilities can be compared between windows: the best
span of all wins, unless «none» beats it in every window by `threshold`.

An answer is found as ids and given as characters (tokenizer/offsets.py), so that no character is ever cut in parts. A
token that joins the end of an answer with what follows makes it longer than it is; how often that is so is said.

Try: let an end come before its start; tests/test_question_answering.py
(test_two_ways_best_span_equals_trying_all) fails.
"""

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from llama.generation import encode_prompt
from llama.heads import SPAN
from llama.metrics.answers import answer_scores
from llama.metrics.language import is_chinese
from llama.tasks.labelled import Example, Labelled, LabelledTask, Result, stride_windows
from llama.tasks.task import Batch, Totals
from tokenizer.base import Tokenizer
from tokenizer.offsets import Offsets, encode_with_offsets

log = logging.getLogger(__name__)

BREAK = "\n"                                                        # between question and text, and behind the text


class Span(NamedTuple):
    """context[start:end] as an answer, with its log-probability among the spans of its window."""

    score: float
    start: int
    end: int


class QuestionAnsweringTask(LabelledTask):
    """Questions with their "question", "context" and "answers", as llama.datasets.squad gives them.

    `predict` takes pairs of a question and a text and gives answers, "" where the text holds none; `detailed` also
    "start", the character where one stands, and the log-probabilities of it and of «none».

    overlap       ids that neighbouring windows share
    longest       ids of an answer at most
    unanswerable  whether «none» may be the answer; None: if the learned data had such questions
    threshold     by how much the log-probability of «none» must exceed that of the best span
    language      "en" or "zh": whose definition of a match; "" goes by the letters of the right answers
    """

    kind, name = "spans", "qa"

    def __init__(self, *, attention: str = "", max_length: int = 512, overlap: int = 128, longest: int = 128,
                 unanswerable: bool | None = None, threshold: float = 0.0, language: str = ""):
        super().__init__(SPAN, attention=attention, max_length=max_length)
        if overlap < 0 or longest < 1:
            raise ValueError(f"overlap is {overlap} and longest {longest}; windows overlap by 0 ids or more, and an "
                             "answer has at least 1")
        self.overlap, self.longest, self.threshold = overlap, longest, threshold
        self.unanswerable, self.language = unanswerable, language

    def is_labelled(self, example: Example) -> bool:
        return "answers" in example

    def example(self, given: tuple[str, str]) -> Example:
        return dict(zip(("question", "context"), given, strict=True))

    def nothing(self, example: Example) -> Result:
        return {"place": example.get("place", ""), "id": example.get("id", ""), "text": example["question"],
                "predicted": "", "start": 0, "score": 0.0, "score_of_none": 0.0}

    def labels_of(self, dataset: Sequence[Example]) -> Sequence[str]:
        return SPAN

    def about(self, dataset: Sequence[Example]) -> dict[str, Any]:
        return {"unanswerable": any(not example["answers"] for example in dataset)}

    def remember(self, about: Any) -> None:
        if self.unanswerable is None:
            self.unanswerable = bool(about.get("unanswerable", True))

    def pieces(self, example: Example, tokenizer: Tokenizer) -> list[Labelled]:
        around, place = tokenizer.encode_continuation(BREAK), example.get("place", "")
        asked = encode_prompt(tokenizer, example["question"])
        lost = max(0, len(asked) - self.max_length // 2)            # the text shall have at least half of the room
        asked = asked[: len(asked) - lost] + around
        ids, offsets = encode_with_offsets(tokenizer, example["context"])
        right = self._right(example, offsets)
        room = self.max_length - len(asked) - len(around)
        pieces = []
        for begin, end in stride_windows([1] * len(ids), room, min(self.overlap, room // 2)):
            row = asked + ids[begin:end] + around
            learned = [False] * len(asked) + [True] * (end - begin) + [False] * (len(around) - 1) + [True]
            first, last = end - begin, end - begin                  # rows counted from the first of the text: «none»
            if right and begin <= right[0] and right[1] < end:
                first, last = right[0] - begin, right[1] - begin
            goals = [[int(i == first), int(i == last)] for i in range(end - begin + 1)]
            notes = self._notes([i for i, learn in enumerate(learned) if learn], first, last, none=end - begin)
            pieces.append(Labelled(row, learned, place, lost=lost, goals=goals, example=example,
                                   notes=notes if "answers" in example else {}, places=offsets[begin:end]))
        return pieces

    def samples(self, dataset: Sequence[Example], tokenizer: Tokenizer) -> list[Labelled]:
        """All windows; says for how many answers no span of ids is exactly right."""
        samples = super().samples(dataset, tokenizer)
        answered = [sample for sample in samples if sample.example.get("answers") and sample.goals[-1] == [0, 0]]
        if blurred := sum(self._as_learned(sample) != sample.example["answers"][0]["text"].strip()
                          for sample in answered):
            log.warning("%d of %d answers begin or end within a token, and are learned with all of it", blurred,
                        len(answered))
        return samples

    @staticmethod
    def _as_learned(sample: Labelled) -> str:
        places = [place for place, goal in zip(sample.places, sample.goals, strict=False) if any(goal)]
        return sample.example["context"][places[0][0] : places[-1][1]].strip()

    @staticmethod
    def _right(example: Example, offsets: Offsets) -> tuple[int, int] | None:
        """The first and the last id of the first right answer."""
        if not example.get("answers"):
            return None
        start = example["answers"][0]["start"]
        end = start + len(example["answers"][0]["text"])
        inside = [i for i, (begin, behind) in enumerate(offsets) if begin < end and start < behind]
        return (inside[0], inside[-1]) if inside else None

    @staticmethod
    def _notes(rows: list[int], first: int, last: int, *, none: int) -> dict[int, str]:
        if first == none:
            return {rows[none]: "no answer here"}
        return {rows[first]: "start"} | {rows[last]: "end" if last != first else "start, end"}

    def collate(self, samples: Sequence[Labelled]) -> Batch:
        """Targets are (N, 3): the number of the window, and whether an answer begins and ends in this row."""
        batch = super().collate(samples)
        return batch | {"targets": torch.cat([self.rows(batch)[0][:, None], batch["targets"]], dim=1)}

    def joined(self, batches: Sequence[Batch]) -> Batch:
        whole = super().joined(batches)
        numbers = torch.arange(len(batches)).repeat_interleave(torch.tensor([len(b["targets"]) for b in batches]))
        return whole | {"targets": torch.cat([numbers[:, None], whole["targets"][:, 1:]], dim=1)}

    def loss(self, scores: Tensor, targets: Tensor) -> Tensor:
        """-log softmax over the rows of each window, of where the answer begins and of where it ends."""
        window, marks = targets[:, 0], targets[:, 1:]
        assert marks.sum() == 2 * len(window.unique()), "a window was torn apart"
        sizes = window.unique_consecutive(return_counts=True)[1].tolist()
        total = scores.new_zeros(())
        for some, right in zip(scores.split(sizes), marks.split(sizes), strict=True):
            total = total + functional.cross_entropy(some.T, right.T.argmax(-1), reduction="sum")
        return total

    def log_probs(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Over the rows of each window, where one of them is the first of the answer, and one the last."""
        sizes = targets[:, 0].unique_consecutive(return_counts=True)[1].tolist()
        return torch.cat([some.log_softmax(0) for some in scores.split(sizes)])

    def count(self, targets: Tensor) -> int:
        return int(targets[:, 1:].sum())

    def decode(self, samples: Sequence[Labelled], scores: Sequence[Tensor]) -> Result:
        example, answers, none = samples[0].example, [], 0.0
        for sample, rows in zip(samples, scores, strict=True):
            logs = rows.log_softmax(0)                              # (n + 1, 2)
            score, first, last = best_span(logs[:-1, 0], logs[:-1, 1], self.longest)
            answers.append(Span(score, sample.places[first][0], sample.places[last][1]))
            none = min(none, logs[-1].sum().item())
        answer = max(answers, key=lambda each: each.score)          # the first, if there are several
        if self.unanswerable and none > answer.score + self.threshold:
            answer = Span(none, 0, 0)
        start, text = answer.start, example["context"][answer.start : answer.end]
        found = {"place": example.get("place", ""), "id": example.get("id", ""), "text": example["question"],
                 "predicted": text.strip(), "start": start + len(text) - len(text.lstrip()),
                 "score": round(answer.score, 6), "score_of_none": round(none, 6)}
        return found | ({"gold": [each["text"] for each in example["answers"]]} if "answers" in example else {})

    def results(self, totals: Totals) -> list[Result]:
        results = super().results(totals)
        if all("gold" in result for result in results):
            language = self._language(results)
            for result in results:
                match = answer_scores([result["gold"]], [result["predicted"]], language=language)
                result["correct"] = match["exact_match"] == 1
        return results

    def compute_metrics(self, results: Sequence[Result]) -> dict[str, float]:
        """As SQuAD defines them, or CMRC: see llama/metrics/answers.py."""
        return answer_scores(*([result[key] for result in results] for key in ("gold", "predicted")),
                             language=self._language(results))

    def _language(self, results: Sequence[Result]) -> str:
        """That of the right answers; of the questions, if none is right."""
        right = [answer for result in results for answer in result["gold"]]
        return self.language or ("zh" if is_chinese(right or [result["text"] for result in results]) else "en")


def best_span(begins: Tensor, ends: Tensor, longest: int) -> tuple[float, int, int]:
    """The first and last row with the largest sum of both scores, the last not before the first; of equal ones the
    first. At most `longest` rows.

    begins, ends  (n,), n at least 1
    """
    n = len(begins)
    sums = begins[:, None] + ends                                   # (n, n)
    allowed = torch.ones(n, n, dtype=torch.bool).triu().tril(longest - 1)
    best = int(sums.masked_fill(~allowed, float("-inf")).argmax())
    return sums.flatten()[best].item(), best // n, best % n
