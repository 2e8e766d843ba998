"""Texts that a run is watched by, and guards that end it."""

import json

import pytest
from conftest import TEXT

from llama.checkpoint import load_model
from llama.datasets.language_modeling import LanguageModelingDataset
from llama.tasks.classification import ClassificationTask
from llama.tasks.generation import TextGenerationTask
from llama.tasks.instruction import InstructionTask
from llama.trainer import Trainer
from llama.training.evaluation import evaluate
from llama.training.objective import Plain
from llama.training.optimizer import TrainConfig
from llama.training.watched_texts import WatchedText, WatchedTexts

ENGLISH = LanguageModelingDataset([TEXT[0]] * 3, block_size=16)
CHINESE = LanguageModelingDataset([TEXT[1]] * 8, block_size=16)


def run(model, guard, *, output=None, resume=False, lr=0.02, steps=12, task=None, data=CHINESE, **config):
    watch = [WatchedText("english", ENGLISH, guard), WatchedText("code", LanguageModelingDataset([TEXT[2]]))]
    trainer = Trainer(model, task or TextGenerationTask(), data, data, output=output, resume=resume, watch=watch,
                      config=TrainConfig(lr=lr, batch_size=4, max_steps=steps, epochs=99, eval_every=1, warmup=0.0,
                                         schedule="constant", **config))
    return trainer, trainer.train


def bits(model, dataset=ENGLISH):
    task = TextGenerationTask()
    return evaluate(Plain(model, task), task.samples(dataset, model.tokenizer), model.tokenizer,
                    batch_size=4)["bits_per_byte"]


def test_worked_example_a_guard_holds_against_what_was_before(tiny_model):
    texts = WatchedTexts([WatchedText("a", ENGLISH, 1.05), WatchedText("b", ENGLISH)], tiny_model)
    texts.found = {step: {"a": {"bits_per_byte": a}, "b": {"bits_per_byte": 9.0 * step + 1}} for step, a in
                   enumerate([2.0, 2.1, 2.11, float("nan")])}
    assert [bool(texts.crossed(step)) for step in (0, 1, 2, 3, 4)] == [False, False, True, True, False]
    assert texts.crossed(2) == ("the guard of a does not hold after step 2: 2.1100 bits per byte are 1.055 times the "
                                "2.0000 before training, and at most 1.05 are allowed")


def test_property_a_run_ends_at_a_guard_and_its_result_kept_within(tiny_model, tmp_path, capsys):
    """The tiny model knows nothing, so that it gets worse at English at once: it learns to say Chinese alone."""
    before = bits(tiny_model)
    trainer, train = run(tiny_model, 1.02, output=tmp_path / "x")
    result = train()
    assert 1 < trainer.step < 12 and trainer.history.best_step == trainer.step - 1
    said = capsys.readouterr().err
    assert f"the guard of english does not hold after step {trainer.step}" in said
    assert f"the result is that of step {trainer.step - 1}" in said and "step 0: english" in said
    english = result["watched"]["english"]
    assert english["before"]["bits_per_byte"] == pytest.approx(before)
    saved = bits(load_model(tmp_path / "x"))
    assert saved == pytest.approx(english["after"]["bits_per_byte"], rel=1e-5) and before < saved <= 1.02 * before
    lines = [json.loads(line) for line in (tmp_path / "x.training" / "metrics.jsonl").open(encoding="utf-8")]
    assert {tuple(line["watched"]) for line in lines if "eval" in line} == {("english", "code")}


def test_refusal_of_a_result_where_no_evaluation_kept_within(tiny_model, tmp_path):
    _, train = run(tiny_model, 1.0001, output=tmp_path / "x", lr=0.5)
    with pytest.raises(RuntimeError, match="after step 1: .* no evaluation before kept within it, so nothing is saved"):
        train()
    assert not (tmp_path / "x").exists()


def test_property_a_resumed_run_holds_against_the_beginning(tiny_model, tmp_path, capsys):
    state = {name: value.clone() for name, value in tiny_model.state_dict().items()}

    def again(guard, steps, output, *, resume=False):
        tiny_model.load_state_dict(state)
        trainer, train = run(tiny_model, guard, output=tmp_path / output, steps=steps, save_every=1, resume=resume)
        return trainer, train()

    whole, result = again(1.02, 12, "whole")
    again(1.02, 1, "parts")
    parts, resumed = again(1.02, 12, "parts", resume=True)
    assert (parts.step, resumed["watched"], resumed["eval"]) == (whole.step, result["watched"], result["eval"])
    assert again(1.02, 99, "parts", resume=True)[0].step == whole.step                  # still crossed
    assert again(9.0, whole.step + 2, "parts", resume=True)[0].step == whole.step + 2   # a guard may be another
    tiny_model.load_state_dict(state)
    with pytest.raises(ValueError, match="another watched text code; resume with the same watched text code"):
        Trainer(tiny_model, TextGenerationTask(), CHINESE, CHINESE, output=tmp_path / "parts", resume=True,
                watch=[WatchedText("english", ENGLISH), WatchedText("code", CHINESE)], config=whole.config)
    with pytest.raises(ValueError, match="another watched text english, watched text code; resume with the same"):
        Trainer(tiny_model, TextGenerationTask(), CHINESE, CHINESE, output=tmp_path / "parts", resume=True,
                config=whole.config)                                # a guard does not vanish


def test_two_ways_text_is_watched_while_answers_are_learned(tiny_model):
    talk = [{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "你好。"}], "place": "x"}]
    trainer, train = run(tiny_model, 0.0, steps=2, task=InstructionTask(chat_format="chatml"), data=talk * 4)
    result = train()
    after = result["watched"]["english"]["after"]["bits_per_byte"]
    assert type(trainer.objective.task) is InstructionTask
    assert result["eval"]["loss"] > 0 and after == pytest.approx(bits(tiny_model), rel=1e-5)


def test_refusal_of_texts_that_cannot_be_watched(tiny_model):
    with pytest.raises(ValueError, match="two watched texts are called 'a'"):
        WatchedTexts([WatchedText("a", ENGLISH), WatchedText("a", CHINESE)], tiny_model)
    with pytest.raises(ValueError, match="'short' holds no token to predict; give more of it"):
        WatchedTexts([WatchedText("short", LanguageModelingDataset(["a"]))], tiny_model)    # and an end: of no byte
    with pytest.raises(ValueError, match="give evaluation data, too"):
        Trainer(tiny_model, TextGenerationTask(), CHINESE, watch=[WatchedText("a", ENGLISH)])
    labels = [{"text": "a", "label": "+", "place": "1"}, {"text": "b", "label": "-", "place": "2"}]
    with pytest.raises(ValueError, match="head"):
        Trainer(tiny_model, ClassificationTask(), labels, labels, watch=[WatchedText("a", ENGLISH)])
