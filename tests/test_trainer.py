import errno
import itertools
import json
import math
import os
import signal
import sys
import unittest.mock
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama import trainer as trainer_module
from llama.checkpoint import load_model
from llama.config import preset
from llama.datasets.language_modeling import LanguageModelingDataset
from llama.lora import LoRAConfig, add_lora, remove_lora
from llama.model import Llama
from llama.quantization.swap import quantize
from llama.runtime import cli, run_lock
from llama.runtime.interrupt import ENDINGS
from llama.tasks.generation import TextGenerationTask
from llama.tasks.instruction import InstructionTask
from llama.trainer import Trainer
from llama.training import run_state
from llama.training.objective import Plain
from llama.training.optimizer import TrainConfig
from weights.formats import atomic_write
from weights.formats.torch_file import load_torch_file

TURNS = [("Hi", "Hello!"), ("你是谁？", "我是小驼。"), ("Count", "one two three four five six"), ("Bye", "Bye."),
         ("Add 1 and 2", "3"), ("天气", "今天天气很好。")]
EXAMPLES = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}], "place": f"here:{i}"}
            for i, (q, a) in enumerate(TURNS)]


def _task():
    return InstructionTask(chat_format="chatml")


def _train(model, config=None, **more):
    return Trainer(model, _task(), EXAMPLES, config=config or TrainConfig(epochs=2, batch_size=2), **more)


def _weights(model):
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_property_training_lowers_the_loss(tiny_model):
    trainer = Trainer(tiny_model, _task(), EXAMPLES, EXAMPLES, config=TrainConfig(epochs=30, batch_size=6, lr=5e-3))
    first = trainer_module.evaluate(Plain(tiny_model, _task()), trainer.samples, tiny_model.tokenizer, batch_size=6)
    result = trainer.train()
    assert result["eval"]["loss"] < 0.5 * first["loss"]
    assert result["train"]["steps"] == 30 and result["train"]["peak_memory"] > 1e6


def test_two_ways_accumulated_micro_batches_equal_one_batch(tiny_model):
    before = _weights(tiny_model)
    results = []
    for batch_size, accumulate in ((6, 1), (2, 3), (1, 6)):
        for name, parameter in tiny_model.named_parameters():
            parameter.data.copy_(before[name])
        config = TrainConfig(batch_size=batch_size, accumulate=accumulate, max_steps=1, warmup=0.0, clip=0.0, lr=0.1)
        _train(tiny_model, config, optimizer="sgd").train()
        results.append(_weights(tiny_model))
    for other in results[1:]:
        for name, weight in results[0].items():
            torch.testing.assert_close(weight, other[name], rtol=1e-5, atol=1e-6)
    assert any(not torch.equal(before[name], results[0][name]) for name in before)


def test_property_frozen_parameters_do_not_move_by_a_bit(tiny_model):
    tiny_model.layers[0].requires_grad_(False)
    before = _weights(tiny_model)
    _train(tiny_model, dtype=torch.bfloat16).train()
    for name, weight in _weights(tiny_model).items():
        assert torch.equal(weight, before[name]) == name.startswith("layers.0.")


@pytest.mark.parametrize("number", ENDINGS)
def test_two_ways_a_resumed_run_ends_where_an_uninterrupted_one_does(number, tiny_model, tmp_path, monkeypatch):
    before = _weights(tiny_model)
    config = TrainConfig(epochs=4, batch_size=2, save_every=1)
    _train(tiny_model, config, output=tmp_path / "whole").train()
    whole = _weights(tiny_model)

    for name, parameter in tiny_model.named_parameters():
        parameter.data.copy_(before[name])
    interrupted = _train(tiny_model, config, output=tmp_path / "parts")
    update = interrupted._update

    def update_until_interrupted(indices):
        if interrupted.step == 5:
            os.kill(os.getpid(), number)                            # in the middle of a step: it is finished first
        return update(indices)

    monkeypatch.setattr(interrupted, "_update", update_until_interrupted)
    with pytest.raises(KeyboardInterrupt) as ended:
        interrupted.train()
    assert getattr(ended.value, "signal", signal.SIGINT) == number
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert not (tmp_path / "parts").exists()
    for name, parameter in tiny_model.named_parameters():
        parameter.data.copy_(before[name])
    resumed = _train(tiny_model, config, output=tmp_path / "parts", resume=True)
    assert resumed.step == 6
    resumed.train()
    for name, weight in _weights(tiny_model).items():
        assert torch.equal(weight, whole[name]), name
    lines = [json.loads(line) for line in (tmp_path / "parts.training" / "metrics.jsonl").open(encoding="utf-8")]
    assert [line["step"] for line in lines] == list(range(1, 13))


def test_property_each_epoch_visits_every_sample_once_in_an_order_of_its_own(tiny_model):
    trainer = _train(tiny_model, TrainConfig(epochs=2, batch_size=4))
    epochs = [[i for step in steps for i in trainer._samples_of_step(step)] for steps in ((0, 1), (2, 3))]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(6)) and epochs[0] != epochs[1]


def test_two_ways_saved_result_equals_the_model_in_memory_and_best_is_kept(tiny_model, tmp_path):
    output = tmp_path / "model"
    config = TrainConfig(epochs=20, batch_size=6, lr=0.3, schedule="constant", eval_every=1, patience=3, warmup=0.0)
    result = Trainer(tiny_model, _task(), EXAMPLES, EXAMPLES, config=config, output=output).train()
    metrics = tmp_path / "model.training" / "metrics.jsonl"
    scores = [json.loads(line)["eval"]["loss"] for line in metrics.open(encoding="utf-8") if "eval" in json.loads(line)]
    assert result["eval"]["loss"] == min(scores) and result["train"]["steps"] < 20              # 0.3 diverges: patience
    again = load_model(output)
    for name, weight in _weights(again).items():
        assert torch.equal(weight, _weights(tiny_model)[name])
    samples = [_task().encode(example, tiny_model.tokenizer) for example in EXAMPLES]
    evaluated = trainer_module.evaluate(Plain(again, _task()), samples, again.tokenizer, batch_size=4)
    assert evaluated["loss"] == pytest.approx(min(scores), rel=1e-5)


def test_two_ways_the_best_is_kept_without_a_folder_too(tiny_model):
    config = TrainConfig(epochs=20, batch_size=6, lr=0.3, schedule="constant", eval_every=1, patience=3, warmup=0.0)
    trainer = Trainer(tiny_model, _task(), EXAMPLES, EXAMPLES, config=config)
    result = trainer.train()
    assert 0 < trainer.history.best_step < trainer.step                     # 0.3 diverges
    again = trainer_module.evaluate(Plain(tiny_model, _task()), trainer.samples, tiny_model.tokenizer, batch_size=6)
    assert again["loss"] == pytest.approx(trainer.history.best, rel=1e-5) == result["eval"]["loss"]


@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "model"])
def test_refusal_a_result_that_is_not_on_the_disk(adapter, tiny_model, tmp_path, monkeypatch, capsys):
    """A save that loses something must not be reported as done: here, one number changes on its way to the disk."""
    if adapter:
        add_lora(tiny_model, LoRAConfig(rank=2))
    name = "save_adapter" if adapter else "save_model"
    save = getattr(trainer_module, name)

    def save_and_damage(model, folder):
        save(model, folder)
        path = next(folder.glob("*.safetensors"))
        tensors = load_file(path)
        next(iter(tensors.values())).view(-1)[3] += 0.5
        save_file(tensors, path, metadata={"format": "pt"})

    monkeypatch.setattr(trainer_module, name, save_and_damage)
    with pytest.raises(RuntimeError, match=r"x does not hold the model in memory: .*weight differs by up to 5.0e-01"):
        _train(tiny_model, output=tmp_path / "x").train()
    assert "loaded again" not in capsys.readouterr().err


def test_worked_example_a_result_an_epoch_when_asked(tiny_model, tmp_path):
    add_lora(tiny_model, LoRAConfig(rank=2))
    _train(tiny_model, TrainConfig(epochs=2, batch_size=6, save_epochs=True), output=tmp_path / "a").train()
    assert {path.name for path in tmp_path.iterdir()} == {"a", "a.training", "a_epoch1", "a_epoch2"}
    assert (tmp_path / "a_epoch1" / "adapter_model.safetensors").exists()


def test_property_the_result_of_an_epoch_is_there_before_the_state_behind_it(tiny_model, tmp_path, monkeypatch):
    """A run that goes on from that state would not write it again."""
    monkeypatch.setattr(Trainer, "_save_state", lambda self: sys.exit("killed"))
    with pytest.raises(SystemExit):
        _train(tiny_model, TrainConfig(epochs=2, batch_size=6, save_epochs=True), output=tmp_path / "a").train()
    assert {path.name for path in tmp_path.iterdir()} == {"a.training", "a_epoch1"}


def test_worked_example_results_of_epochs_without_an_output_are_in_models(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model.source = "weights/small-one.pt"
    _train(tiny_model, TrainConfig(epochs=2, batch_size=6, save_epochs=True)).train()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*")) == [
        "models/small-one_epoch1", "models/small-one_epoch2"]
    assert load_model("models/small-one_epoch2").config == tiny_model.config


def test_refusal_a_loss_that_is_not_finite_stops_and_names_step_and_samples(tiny_model):
    tiny_model.norm.weight.data[0] = math.nan
    with pytest.raises(RuntimeError, match=r"step 1: the loss is nan .* on samples here:\d"):
        _train(tiny_model).train()


def test_property_what_was_learned_before_a_loss_that_is_not_finite_is_kept(tiny_model, tmp_path, monkeypatch):
    trainer = _train(tiny_model, output=tmp_path / "x")
    update, kept = trainer._update, {}

    def update_until_it_bursts(indices):
        if trainer.step == 2:
            kept.update(_weights(tiny_model))
            burst = tiny_model.norm.weight.sum() * math.nan
            monkeypatch.setattr(trainer.objective, "forward", lambda batch: (burst, 1))
        return update(indices)

    monkeypatch.setattr(trainer, "_update", update_until_it_bursts)
    with pytest.raises(RuntimeError, match=r"step 3: .* \(the state after step 2 is kept in .*last-2.pt\); look"):
        trainer.train()
    state = load_torch_file(tmp_path / "x.training" / "last-2.pt", "state")
    assert state["step"] == 2 and all(torch.equal(kept[name], tensor) for name, tensor in state["learned"].items())


def test_two_ways_skipped_steps_change_nothing_and_are_counted_over_a_resume(tiny_model, tmp_path, monkeypatch, capsys):
    config = TrainConfig(epochs=2, batch_size=2, save_every=1, skip_nonfinite=2)
    before = _weights(tiny_model)

    def bursting(steps, **more):
        for name, parameter in tiny_model.named_parameters():
            parameter.data.copy_(before[name])
        trainer = _train(tiny_model, config, output=tmp_path / "x", **more)
        forward, weights = trainer.objective.forward, {}

        def burst(batch):
            loss, count = forward(batch)
            weights[trainer.step] = _weights(tiny_model)
            return loss * (math.nan if trainer.step in steps else 1), count

        monkeypatch.setattr(trainer.objective, "forward", burst)
        return trainer, weights

    trainer, weights = bursting({1, 3, 4})
    with pytest.raises(RuntimeError, match=r"step 5: the loss is nan .*; it began in the head or the loss"):
        trainer.train()
    assert all(torch.equal(weights[1][name], weights[2][name]) for name in before)
    assert any(not torch.equal(weights[2][name], weights[3][name]) for name in before)
    said = capsys.readouterr().err
    assert "skipped, 1 of 2: step 2: the loss is nan and its gradient nan, on samples here:" in said
    resumed, _ = bursting(set(), resume=True)
    assert resumed.step == 4 and resumed.skipped == 2
    assert resumed.train()["train"]["skipped"] == 2
    lines = [json.loads(line) for line in (tmp_path / "x.training" / "metrics.jsonl").open(encoding="utf-8")]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line.get("skipped", 0) for line in lines] == [0, 1, 0, 2, 0, 0] and "loss" not in lines[1]


def test_property_what_is_poisoned_is_not_saved(tiny_model, tmp_path):
    trainer = _train(tiny_model, TrainConfig(epochs=2, batch_size=2, save_every=1), output=tmp_path / "x")
    update = trainer._update

    def overflow(indices):
        done = update(indices)
        if trainer.step == 2:
            tiny_model.norm.weight.data[0] = math.inf               # as an update that is too large would
        return done

    trainer._update = overflow
    with pytest.raises(RuntimeError, match="after step 3 norm.weight holds NaN or infinity, so nothing of it is saved"):
        trainer.train()
    assert run_state.RunFolder(tmp_path / "x").steps("last")[0] == 2
    with pytest.raises(RuntimeError, match=r"step 4: .*; it began in norm, whose weight holds NaN or infinity; look"):
        trainer.train()                                             # nor by the failure that follows
    assert run_state.RunFolder(tmp_path / "x").steps("last")[0] == 2


@pytest.mark.parametrize("harm", ["last", "best"])
def test_two_ways_a_run_resumed_from_the_state_before_ends_where_an_uninterrupted_one_does(
        harm, tiny_model, tmp_path, capsys):
    """A bit of what was learned flips while nobody looks; with dropout, so that random numbers matter."""
    def run(output, steps, *, resume=False):
        torch.manual_seed(5)
        add_lora(tiny_model, LoRAConfig(rank=2, dropout=0.2))
        config = TrainConfig(epochs=4, max_steps=steps, batch_size=2, save_every=2, eval_every=1, schedule="constant",
                             lr=0.01)
        result = Trainer(tiny_model, _task(), EXAMPLES, EXAMPLES[:3], config=config, output=output, resume=resume)
        scores = result.train()["eval"]
        remove_lora(tiny_model, "default")
        return scores

    expected = run(tmp_path / "whole", 12)
    run(tmp_path / "parts", 8)
    states = tmp_path / "parts.training"
    names = sorted(path.name for path in states.glob("*.pt"))       # which step was best, not every torch agrees on
    assert names in [["best-6.pt", f"best-{best}.pt", "last-6.pt", "last-8.pt"] for best in (7, 8)]
    damaged = states / {"best": names[1], "last": "last-8.pt"}[harm]
    learned = next(iter(load_torch_file(damaged, "state")["learned"].values())).numpy().tobytes()
    content = bytearray(damaged.read_bytes())
    content[content.index(learned) + 5] ^= 4
    damaged.write_bytes(content)
    capsys.readouterr()
    assert run(tmp_path / "parts", 12, resume=True) == expected
    said = capsys.readouterr().err
    assert f"{damaged} is damaged; so the run goes on from the state after step 6\nresuming after step 6 of 12" in said
    whole, parts = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())
    lines = [json.loads(line) for line in (states / "metrics.jsonl").open(encoding="utf-8")]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))


class Failing:
    """The system's calls that put something on the disk, of which the n-th fails."""

    def __init__(self, monkeypatch, nth, error):
        self.nth, self.error, self.made = nth, error, 0
        for name in ("fsync", "replace"):
            monkeypatch.setattr(os, name, self.counting(getattr(os, name)))
        for module in (atomic_write, run_state):
            monkeypatch.setattr(module, "open", self.open, raising=False)

    def counting(self, call):
        def counted(*given):
            self.made += 1
            if self.made == self.nth:
                raise self.error
            return call(*given)
        return counted

    def open(self, *given, **more):
        file = open(*given, **more)
        failing = unittest.mock.MagicMock(wraps=file)
        failing.__enter__.return_value, failing.__exit__ = failing, lambda *raised: file.close()
        failing.write = self.counting(file.write)
        return failing


FULL = OSError(errno.ENOSPC, "No space left on device")
READ_ONLY = OSError(errno.EROFS, "Read-only file system", "x")
DENIED = PermissionError(errno.EACCES, "Permission denied", "x")


@pytest.mark.parametrize("part", range(16))
def test_property_a_write_that_fails_takes_nothing_that_is_safe(part, tiny_model, tmp_path, monkeypatch, capsys):
    """The n-th write, fsync or rename of a run: one sentence, 1, the last good state whole, to go on from."""
    before = _weights(tiny_model)
    config = TrainConfig(epochs=2, batch_size=2, save_every=1, eval_every=2)

    def run(output, *, resume=False):
        for name, parameter in tiny_model.named_parameters():
            parameter.data.copy_(before[name])
        Trainer(tiny_model, _task(), EXAMPLES, EXAMPLES[:2], config=config, output=output, resume=resume).train()

    with monkeypatch.context() as watched:
        calls = Failing(watched, 0, FULL)
        run(tmp_path / "whole")
    whole, output = _weights(tiny_model), tmp_path / "parts"
    with monkeypatch.context() as broken, pytest.raises(SystemExit) as ended:
        Failing(broken, 1 + part * (calls.made - 1) // 15, [FULL, READ_ONLY, DENIED][part % 3])
        capsys.readouterr()
        cli.run(lambda: run(output))
    run_lock.release(output)
    said = capsys.readouterr().err
    assert ended.value.code == 1 and "Traceback" not in said
    folder = run_state.RunFolder(output)
    step = max(folder.steps("last"), default=0)
    kept = f"the state after step {step} is kept, and the same command with --resume" if step else "no state was kept"
    assert FULL.strerror in said or READ_ONLY.strerror in said or DENIED.strerror in said
    assert kept in said.splitlines()[-1]
    assert not [path for path in [*tmp_path.iterdir(), *folder.path("").iterdir()] if path.name.startswith(".")]
    run(output, resume=bool(step))
    assert all(torch.equal(weight, whole[name]) for name, weight in _weights(tiny_model).items())


def test_refusal_resume_under_other_conditions_names_each(tiny_model, tmp_path):
    def trainer(*, task=None, data=EXAMPLES, evaluated=EXAMPLES[:3], vocabulary="--vocab-size 400", **more):
        given = {"config": TrainConfig(epochs=2, batch_size=2), "resume": True} | more
        return Trainer(tiny_model, task or _task(), data, evaluated, output=tmp_path / "x",
                       settings={"vocabulary": vocabulary}, **given)

    with pytest.raises(ValueError, match="nothing to resume"):
        trainer()
    trainer(config=TrainConfig(max_steps=1, batch_size=2), resume=False).train()
    conditions = {
        "number of samples, data; resume with number of samples = 6, the same data": {"data": EXAMPLES[:5]},
        "data; resume with the same data": {"data": EXAMPLES[:5] + EXAMPLES[:1]},
        "batch_size, lr; resume with batch_size = 2, lr = 0.0002":
            {"config": TrainConfig(batch_size=3, lr=1.0)},
        "optimizer; resume with optimizer = adamw": {"optimizer": "sgd"},
        "evaluation data; resume with the same evaluation data": {"evaluated": EXAMPLES[1:4]},
        "number of evaluation samples, evaluation data; resume with number of evaluation samples = 3":
            {"evaluated": None},
        "max_length; resume with max_length = 512": {"task": InstructionTask("chatml", max_length=400)},
        "vocabulary; resume with vocabulary = --vocab-size 400": {"vocabulary": "--vocab-size 300"},
    }
    for words, other in conditions.items():
        with pytest.raises(ValueError, match=f"last-1.pt is of a run with another {words}"):
            trainer(**other)
    longer = trainer(config=TrainConfig(epochs=5, batch_size=2, save_every=1, eval_every=2, patience=3))
    assert longer.step == 1 and longer.total_steps == 15
    with pytest.raises(ValueError, match="last-1.pt is of a run with another dtype; resume with dtype = float32"):
        trainer(dtype=torch.bfloat16)


def test_refusal_resume_where_one_of_many_samples_is_another(tiny_model, tmp_path):
    data, config = EXAMPLES * 400, TrainConfig(max_steps=1, batch_size=2)
    Trainer(tiny_model, _task(), data, config=config, output=tmp_path / "x").train()
    with pytest.raises(ValueError, match="another data; resume with the same data"):
        Trainer(tiny_model, _task(), data[:1001] + [EXAMPLES[0]] + data[1002:], config=config, output=tmp_path / "x",
                resume=True)


def test_refusal_resume_on_another_base_or_with_another_adapter(tiny_model, tmp_path):
    config = TrainConfig(batch_size=6)
    add_lora(tiny_model, LoRAConfig(rank=2))
    _train(tiny_model, config, output=tmp_path / "x").train()
    remove_lora(tiny_model, "default")
    add_lora(tiny_model, LoRAConfig(rank=2, alpha=3.0))
    with pytest.raises(ValueError, match="is of a run with another adapter; resume with the same adapter"):
        _train(tiny_model, config, output=tmp_path / "x", resume=True)
    remove_lora(tiny_model, "default")
    last = tiny_model.layers[1].mlp.down_proj.weight.data[-1]
    last[-1] *= 1 + 2**-23                                          # the very last number, by its last bit
    add_lora(tiny_model, LoRAConfig(rank=2))
    with pytest.raises(ValueError, match="another frozen part of the model; resume with the same frozen part"):
        _train(tiny_model, config, output=tmp_path / "x", resume=True)
    remove_lora(tiny_model, "default")
    add_lora(tiny_model.bfloat16(), LoRAConfig(rank=2))             # as --dtype bfloat16 loads a base
    with pytest.raises(ValueError, match="another dtype, frozen part of the model; resume with dtype = float32"):
        _train(tiny_model, config, output=tmp_path / "x", resume=True)


def test_refusal_resume_on_another_base_in_few_bits(tiny_model, tmp_path):
    quantize(tiny_model, bits=8, report=False)
    add_lora(tiny_model, LoRAConfig(rank=2))
    _train(tiny_model, TrainConfig(batch_size=6), output=tmp_path / "x").train()
    remove_lora(tiny_model, "default")
    numbers = tiny_model.layers[1].mlp.down_proj.weight.data
    numbers.view(-1)[-1] ^= 1
    add_lora(tiny_model, LoRAConfig(rank=2))
    with pytest.raises(ValueError, match="another frozen part of the model"):
        _train(tiny_model, TrainConfig(batch_size=6), output=tmp_path / "x", resume=True)


def test_worked_example_a_run_whose_best_was_deleted_goes_on_without_it(tiny_model, tmp_path, capsys):
    def trainer(steps, *, resume=False):
        config = TrainConfig(epochs=9, max_steps=steps, batch_size=6, lr=0.3, schedule="constant", warmup=0.0)
        return Trainer(tiny_model, _task(), EXAMPLES, EXAMPLES, config=config, output=tmp_path / "x", resume=resume)

    first = trainer(3)
    first.train()
    best = tmp_path / "x.training" / f"best-{first.history.best_step}.pt"
    best.unlink()
    again = trainer(6, resume=True)
    assert f"{best} is not there; what evaluates best from here on counts" in capsys.readouterr().err
    again.train()
    assert again.history.best_step > 3


def test_worked_example_a_run_that_minutes_ended_goes_on_with_more_of_them(tiny_model, tmp_path, monkeypatch, capsys):
    """Each look at the clock takes it ten seconds further: two steps in 15 seconds, and four in 25."""
    ticks = itertools.count(0, 10)
    monkeypatch.setattr(trainer_module, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    config = TrainConfig(epochs=2, batch_size=2, lr=0.1, minutes=15 / 60, save_every=1)
    assert _train(tiny_model, config, output=tmp_path / "x").train()["train"]["steps"] == 2
    said = capsys.readouterr().err
    assert f"0.25 minutes are over, after {2 / math.ceil(len(EXAMPLES) / 2):.2g} of 2 epochs; to learn on, give the " \
           f"same command with --resume --output {tmp_path / 'x'} and more --minutes\n" in said
    more = _train(tiny_model, replace(config, minutes=35 / 60), output=tmp_path / "x", resume=True)
    assert more.train()["train"]["steps"] == 4


@pytest.mark.parametrize("field, value", [("epochs", 0), ("lr", 0.0), ("lr", math.nan), ("warmup", 2.0),
                                          ("minutes", -1)])
def test_refusal_impossible_settings(field, value):
    with pytest.raises(ValueError, match=field):
        TrainConfig(**{field: value})


def test_refusal_a_model_without_tokenizer_and_data_without_samples(tiny_model):
    with pytest.raises(ValueError, match="no sample"):
        Trainer(tiny_model, _task(), [])
    tiny_model.tokenizer = None
    with pytest.raises(ValueError, match="no tokenizer"):
        _train(tiny_model)


def test_refusal_of_a_model_without_a_tokenizer():
    with pytest.raises(ValueError, match="the model has no tokenizer; take llama.get_model"):
        Trainer(Llama(preset("test")), TextGenerationTask(), LanguageModelingDataset(["text"]))
