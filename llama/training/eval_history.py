"""What the evaluations of a run have found: before its first step, at best, and how many since then were no better.

The result of a run is that of its best evaluation. The one before the first step is no candidate, but what the result
is held against: a rate that is too high makes a model worse, and the losses of training, which fall all the same, do
not show it.

Try: in `worse` compare with the best instead of the first; tests/test_eval_history.py
(test_worked_example_a_run_that_ends_worse_than_it_began) fails.
"""

import math
import sys
from typing import Any

from torch import Tensor, nn

from llama.runtime import distributed
from llama.training.run_state import RunFolder, in_shards, read_state, restore, write_state

Scores = dict[str, float]


class EvalHistory:
    """`last` are the scores of the newest evaluation, `before` those of step 0; both are empty until there are any.

    What was learned by the best is kept in the run's folder, or where it has none, in memory.
    """

    def __init__(self, folder: RunFolder):
        self.folder = folder
        self.before: Scores = {}
        self.last: Scores = {}
        self.best, self.best_step, self.since_best = math.inf, 0, 0
        self.kept: dict[str, Any] = {}                              # as best.pt

    def add(self, step: int, scores: Scores, learned: dict[str, Tensor], objective: nn.Module, *,
            allowed: bool = True) -> None:
        """What is not `allowed` is not the best, however good (watched_texts.py). All processes."""
        if step == 0:
            self.before = scores
            return
        self.last = scores
        if not (allowed and scores["loss"] < self.best):
            self.since_best += 1
            return
        self.best, self.best_step, self.since_best = scores["loss"], step, 0
        state = {"step": step, "scores": scores}
        if self.folder.output:
            write_state(self.folder.best(step), state, learned, objective)
            self.folder.prune()
        else:
            self.kept = state | {"learned": {name: parameter.clone() for name, parameter in learned.items()}}

    def restore_best(self, learned: dict[str, Tensor], objective: nn.Module) -> None:
        """Take back what was learned since the best evaluation. All processes."""
        state = self.kept
        if self.folder.output:
            state = read_state(self.folder.best(self.best_step), in_shards=in_shards(learned))
        restore(state, learned, objective)
        self.last = state["scores"]
        print(f"the result is that of step {self.best_step}, which evaluated best", file=sys.stderr)

    def worse(self) -> bool:
        """Whether the evaluation data have ended with a higher loss than they began with, or with none."""
        return bool(self.before and self.last) and not self.last["loss"] <= self.before["loss"]

    def tell_if_worse(self, lr: float) -> None:
        if self.worse():
            print(f"the result is worse on the evaluation data than the model was before training: loss "
                  f"{self.last['loss']:.4f}, before {self.before['loss']:.4f}; start anew with an --lr below {lr:g}",
                  file=sys.stderr)

    def state(self) -> dict[str, Any]:
        """What a resumed run goes on from; the inverse of `load`."""
        return {"best": (self.best, self.best_step, self.since_best), "scores": self.last, "scores_before": self.before}

    def load(self, state: dict[str, Any]) -> None:
        """Says so where what was best is not there any more. All processes."""
        self.best, self.best_step, self.since_best = state["best"]
        self.last, self.before = state["scores"], state.get("scores_before", {})        # older states have none
        if self.best_step and not distributed.broadcast(self.folder.best(self.best_step).exists()):
            print(f"{self.folder.best(self.best_step)} is not there; what evaluates best from here on counts",
                  file=sys.stderr)
            self.best, self.best_step, self.since_best = math.inf, 0, 0
