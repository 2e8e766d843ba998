import importlib

import pytest

import llama
from llama.datasets.language_modeling import LanguageModelingDataset
from llama.trainer import Trainer
from llama.training.optimizer import TrainConfig


def test_worked_example_the_eight_lines_of_the_short_api(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model.save("tiny")
    for name in ("train.txt", "eval.txt"):
        (tmp_path / name).write_text("The quick brown fox jumps over the lazy dog.\n\n" * 20, encoding="utf-8")

    model = llama.get_model("tiny")
    task = llama.TextGenerationTask()
    trainer = Trainer(model=model, task=task, train_dataset=LanguageModelingDataset("train.txt", block_size=32),
                      eval_dataset=LanguageModelingDataset("eval.txt", block_size=32), optimizer="adam")
    result = trainer.train()
    model.save("model.pt")
    again = llama.load_model("model.pt")

    assert result["eval"]["perplexity"] > 1
    text = model.generate("The quick", max_new_tokens=5, temperature=0)
    assert text and again.generate("The quick", max_new_tokens=5, temperature=0) == text


REVIEWS = [{"text": "天气很好", "label": "good", "place": "r:1"},
           {"text": "The lazy dog", "label": "bad", "place": "r:2"}]
NEWS = [{"text": "小驼在北京", "tokens": list("小驼在北京"), "tags": ["B-PER", "I-PER", "O", "B-LOC", "I-LOC"],
         "starts": list(range(5)), "place": "n:1"}]
WORDS = [NEWS[0] | {"tags": ["B", "E", "S", "B", "E"]}]
PAIRS = [{"source": "dog", "target": "驼", "place": "p:1"}]
QUESTIONS = [{"id": "1", "question": "谁？", "context": "小驼在北京", "answers": [{"text": "小驼", "start": 0}],
              "place": "q:1"}]
ENTITIES = [("小驼", "PER", 0, 2), ("北京", "LOC", 3, 5)]


@pytest.mark.parametrize(("name", "options", "data", "given", "found"), [
    ("ClassificationTask", {"labels": ("good", "bad")}, REVIEWS, "天气很好", "good"),
    ("OpinionTask", {}, REVIEWS, "The lazy dog", "bad"),
    ("NERTask", {}, NEWS, "小驼在北京", ENTITIES),
    ("SegmentationTask", {}, WORDS, "小驼在北京", ["小驼", "在", "北京"]),
    ("QuestionAnsweringTask", {}, QUESTIONS, ("谁？", "小驼在北京"), "小驼"),
    ("TranslationTask", {"chat_format": "chatml"}, PAIRS, "dog", "驼"),
])
def test_worked_example_the_same_lines_for_every_task(tiny_model, tmp_path, name, options, data, given, found):
    task = getattr(llama, name)(**options)
    Trainer(tiny_model, task, data * 4, optimizer="adam", config=TrainConfig(epochs=30, lr=0.01, batch_size=8)).train()
    tiny_model.save(tmp_path / "model.pt")
    model = llama.load_model(tmp_path / "model.pt")
    again = getattr(llama, name)(**options)
    writing = {"temperature": 0.0, "max_new_tokens": 4} if name == "TranslationTask" else {}
    assert again.predict(model, [given], **writing) == [found]


def test_refusal_a_door_that_is_not_there():
    with pytest.raises(AttributeError, match="its doors are get_model"):
        _ = llama.nothing
    for name in llama.LAZY_EXPORTS:
        door = getattr(llama, name)
        assert callable(door) or door is importlib.import_module(f"llama.{name}")
