import json
import math
import os
import signal

import pytest
import torch
from safetensors.torch import load_file, save_file

from llama import trainer as trainer_module
from llama.checkpoint import load_model
from llama.config import preset
from llama.datasets.language_modeling import LanguageModelingDataset
from llama.lora import LoRAConfig, add_lora, remove_lora
from llama.model import Llama
from llama.runtime.interrupt import ENDINGS
from llama.tasks.generation import TextGenerationTask
from llama.tasks.instruction import InstructionTask
from llama.trainer import Trainer
from llama.training.objective import Plain
from llama.training.optimizer import TrainConfig
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
    lines = [json.loads(line) for line in (tmp_path / "parts.training" / "metrics.jsonl").open()]
    assert [line["step"] for line in lines] == list(range(1, 13))


def test_property_each_epoch_visits_every_sample_once_in_an_order_of_its_own(tiny_model):
    trainer = _train(tiny_model, TrainConfig(epochs=2, batch_size=4))
    epochs = [[i for step in steps for i in trainer._samples_of_step(step)] for steps in ((0, 1), (2, 3))]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(6)) and epochs[0] != epochs[1]


def test_two_ways_saved_result_equals_the_model_in_memory_and_best_is_kept(tiny_model, tmp_path):
    output = tmp_path / "model"
    config = TrainConfig(epochs=20, batch_size=6, lr=0.3, schedule="constant", eval_every=1, patience=3, warmup=0.0)
    result = Trainer(tiny_model, _task(), EXAMPLES, EXAMPLES, config=config, output=output).train()
    scores = [json.loads(line)["eval"]["loss"] for line in (tmp_path / "model.training" / "metrics.jsonl").open()
              if "eval" in json.loads(line)]
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
    assert 0 < trainer.best_step < trainer.step                     # 0.3 diverges
    again = trainer_module.evaluate(Plain(tiny_model, _task()), trainer.samples, tiny_model.tokenizer, batch_size=6)
    assert again["loss"] == pytest.approx(trainer.best, rel=1e-5) == result["eval"]["loss"]


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
    with pytest.raises(RuntimeError, match=r"step 3: .* \(the state after step 2 is kept in .*last.pt\); look at them"):
        trainer.train()
    state = load_torch_file(tmp_path / "x.training" / "last.pt", "state")
    assert state["step"] == 2 and all(torch.equal(kept[name], tensor) for name, tensor in state["learned"].items())


def test_refusal_resume_with_other_data_other_batches_or_nothing(tiny_model, tmp_path):
    with pytest.raises(ValueError, match="nothing to resume"):
        _train(tiny_model, output=tmp_path / "x", resume=True)
    _train(tiny_model, output=tmp_path / "x").train()
    with pytest.raises(ValueError, match="another number of samples, data; resume with number of samples = 6"):
        Trainer(tiny_model, _task(), EXAMPLES[:5], config=TrainConfig(batch_size=2), output=tmp_path / "x", resume=True)
    with pytest.raises(ValueError, match="another data; resume with the same"):
        Trainer(tiny_model, _task(), EXAMPLES[:5] + EXAMPLES[:1], config=TrainConfig(batch_size=2),
                output=tmp_path / "x", resume=True)
    with pytest.raises(ValueError, match="another batch_size, lr; resume with batch_size = 2, lr = 0.0002"):
        _train(tiny_model, TrainConfig(batch_size=3, lr=1.0), output=tmp_path / "x", resume=True)
    with pytest.raises(ValueError, match="another optimizer; resume with optimizer = adamw"):
        _train(tiny_model, TrainConfig(batch_size=2), optimizer="sgd", output=tmp_path / "x", resume=True)
    longer = _train(tiny_model, TrainConfig(epochs=5, batch_size=2, save_every=1), output=tmp_path / "x", resume=True)
    assert longer.step == 6 and longer.total_steps == 15


def test_refusal_resume_on_another_base_or_with_another_adapter(tiny_model, tmp_path):
    add_lora(tiny_model, LoRAConfig(rank=2))
    _train(tiny_model, TrainConfig(batch_size=6), output=tmp_path / "x").train()
    remove_lora(tiny_model, "default")
    add_lora(tiny_model, LoRAConfig(rank=2, alpha=3.0))
    with pytest.raises(ValueError, match="is of a run with another adapter"):
        _train(tiny_model, TrainConfig(batch_size=6), output=tmp_path / "x", resume=True)
    remove_lora(tiny_model, "default")
    tiny_model.norm.weight.data[0] += 1
    add_lora(tiny_model, LoRAConfig(rank=2))
    with pytest.raises(ValueError, match="is of a run with another frozen part of the model"):
        _train(tiny_model, TrainConfig(batch_size=6), output=tmp_path / "x", resume=True)


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
