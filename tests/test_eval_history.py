"""What is said of a run whose evaluation data end worse than they began."""

import json
import math

import pytest
import torch
from torch import nn

from llama.lora import LoRAConfig, add_lora, remove_lora
from llama.tasks.instruction import InstructionTask
from llama.trainer import Trainer
from llama.training.eval_history import EvalHistory
from llama.training.optimizer import TrainConfig
from llama.training.run_state import RunFolder

EXAMPLES = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}], "place": f"here:{i}"}
            for i, (q, a) in enumerate([("Hi", "Hello!"), ("Bye", "Bye."), ("Add 1 and 2", "3")])]


def _trainer(model, **config):
    output, resume = config.pop("output", None), config.pop("resume", False)
    return Trainer(model, InstructionTask(chat_format="chatml"), EXAMPLES, EXAMPLES[:2], output=output, resume=resume,
                   config=TrainConfig(**{"batch_size": 3, "schedule": "constant", "warmup": 0.0} | config))


def test_worked_example_a_run_that_ends_worse_than_it_began(tiny_model, capsys):
    """A rate of 30 throws every weight far away: the first evaluation stays the lowest, whatever comes then."""
    result = _trainer(tiny_model, epochs=3, lr=30.0).train()
    before, after = result["eval_before"]["loss"], result["eval"]["loss"]
    assert result["eval_worse"] is True and before < after
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == ("the result is worse on the evaluation data than the model was before training: loss "
                        f"{after:.4f}, before {before:.4f}; start anew with an --lr below 30")


def test_property_a_run_that_ends_better_is_not_accused(tiny_model, capsys):
    result = _trainer(tiny_model, epochs=3, lr=5e-3).train()
    assert result["eval_worse"] is False and result["eval"]["loss"] < result["eval_before"]["loss"]
    assert "worse" not in capsys.readouterr().err
    without = Trainer(tiny_model, InstructionTask(chat_format="chatml"), EXAMPLES, config=TrainConfig(lr=30.0)).train()
    assert (without["eval_before"], without["eval"], without["eval_worse"]) == ({}, {}, False)


@pytest.mark.parametrize("scores, worse", [
    ([2.0, 3.0, 2.5], True), ([2.0, 3.0, 1.9], False), ([2.0, 2.0], False), ([2.0, math.nan], True), ([2.0], False)])
def test_worked_example_the_last_against_the_first(scores, worse):
    history = EvalHistory(RunFolder(None))
    for step, loss in enumerate(scores):
        history.add(step, {"loss": loss}, {"w": torch.ones(1)}, nn.Identity())
    assert history.worse() is worse
    again = EvalHistory(RunFolder(None))
    again.load(history.state() | {"best": (math.inf, 0, 0)})        # without a folder nothing was kept of the best
    assert (again.before, again.last) == (history.before, history.last)
    again.load({"best": (math.inf, 0, 0), "scores": {"loss": 9.0}})                     # as states were before
    assert again.worse() is False


def test_two_ways_a_resumed_run_keeps_what_came_before_its_first_step(tiny_model, tmp_path, capsys):
    def run(steps, *, resume=False):
        torch.manual_seed(5)
        add_lora(tiny_model, LoRAConfig(rank=2))
        result = _trainer(tiny_model, epochs=4, max_steps=steps, lr=30.0, output=tmp_path / "x", resume=resume).train()
        remove_lora(tiny_model, "default")
        return result

    first = run(2)
    capsys.readouterr()
    resumed = run(4, resume=True)
    assert resumed["eval_before"] == first["eval_before"] and "step 0:" not in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "x.training" / "metrics.jsonl").open(encoding="utf-8")]
    evaluations = {line["step"]: line["eval"] for line in lines if "eval" in line}
    assert list(evaluations) == [0, 1, 2, 3, 4] and evaluations[0] == first["eval_before"]
