"""Texts by which a run is watched, beside the data that it is judged on: what it does to each, and guards that end it.

A model that learns Chinese forgets English, and its loss on Chinese does not show it. So texts of what must stay are
scored before the first step and with every evaluation, as plain text whatever is learned, in bits per byte, which no
vocabulary flatters. Where those of a guard exceed so many times what they were before, the run ends, and its result is
the best evaluation that kept within.

    english.txt  before 1.259 bits per byte, guard 1.05        step 200: 1.301    step 400: 1.330, more than 1.322

Try: hold each against the evaluation before it; tests/test_watched_texts.py
(test_worked_example_a_guard_holds_against_what_was_before) fails: a model may forget slowly.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from llama.datasets.language_modeling import LanguageModelingDataset
from llama.model import Llama
from llama.tasks.generation import TextGenerationTask
from llama.training.digest import samples_digest
from llama.training.evaluation import evaluate
from llama.training.objective import Plain

Scores = dict[str, float]


@dataclass(frozen=True)
class WatchedText:
    """guard: how many times its bits per byte before the first step may be reached, 1 or more; 0 for no limit."""

    name: str
    dataset: LanguageModelingDataset
    guard: float = 0.0


class WatchedTexts:
    """What has been found in each text, by step. Raises ValueError for two of one name, and where one holds nothing."""

    def __init__(self, texts: Sequence[WatchedText], model: Llama):
        self.task, self.tokenizer = TextGenerationTask(), model.tokenizer
        if texts:
            self.task.bind(model)
        self.guards = {text.name: text.guard for text in texts}
        if len(self.guards) < len(texts):
            name = next(text.name for i, text in enumerate(texts) if text.name in {other.name for other in texts[:i]})
            raise ValueError(f"two watched texts are called '{name}'; give one of them another name")
        self.samples = {text.name: self.task.samples(text.dataset, self.tokenizer) for text in texts}
        special = set(self.tokenizer.special_ids.values()) if texts else set()          # they stand for no byte
        if empty := [name for name, samples in self.samples.items() if not any(
                set(sample.ids[1:]) - special for sample in samples)]:
            raise ValueError(f"the watched text '{empty[0]}' holds no token to predict; give more of it")
        self.found: dict[int, dict[str, Scores]] = {}

    def evaluate(self, objective: Plain, *, step: int, batch_size: int) -> dict[str, Scores]:
        """Score all texts after this step and print a line each. All processes."""
        with _reading_text(objective, self.task):
            found = {name: evaluate(objective, samples, self.tokenizer, batch_size=batch_size)
                     for name, samples in self.samples.items()}
        self.found[step] = found
        for name, scores in found.items():
            guard = f", guard {self.guards[name]}" if self.guards[name] else ""
            times = f" ({self._times(name, step):.3f} times those before{guard})" if step else ""
            print(f"step {step}: {name} {scores['bits_per_byte']:.4f} bits per byte{times}, perplexity "
                  f"{scores['perplexity']:.4f}", file=sys.stderr)
        return found

    def crossed(self, step: int) -> str:
        """Which guard does not hold after this step, in words; "" where all do, or where nothing was evaluated."""
        for name, guard in self.guards.items():
            if guard and step in self.found and not self._times(name, step) <= guard:
                now, before = (self.found[each][name]["bits_per_byte"] for each in (step, 0))
                return (f"the guard of {name} does not hold after step {step}: {now:.4f} bits per byte are "
                        f"{now / before:.3f} times the {before:.4f} before training, and at most {guard} are allowed")
        return ""

    def _times(self, name: str, step: int) -> float:
        return self.found[step][name]["bits_per_byte"] / self.found[0][name]["bits_per_byte"]

    def settings(self) -> dict[str, Any]:
        """What a resumed run must have in common with the one before; guards may be others."""
        return {f"watched text {name}": samples_digest(samples) for name, samples in self.samples.items()}

    def result(self, step: int) -> dict[str, dict[str, Scores]]:
        """name -> scores before training, and of a result that is that of `step`."""
        return {name: {"before": self.found[0][name], "after": self.found[step][name]} for name in self.guards
                if step in self.found}


@contextmanager
def _reading_text(objective: Plain, task: TextGenerationTask) -> Iterator[None]:
    """The objective is the root that shards know, so it is asked for another loss, not replaced."""
    own, objective.task = objective.task, task
    try:
        yield
    finally:
        objective.task = own
