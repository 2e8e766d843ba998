import pytest

import llama
from llama.datasets.language_modeling import LanguageModelingDataset
from llama.trainer import Trainer


def test_worked_example_the_eight_lines_of_the_short_api(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model.save("tiny")
    for name in ("train.txt", "eval.txt"):
        (tmp_path / name).write_text("The quick brown fox jumps over the lazy dog.\n\n" * 20)

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


def test_refusal_a_door_that_is_not_there():
    with pytest.raises(AttributeError, match="its doors are get_model"):
        _ = llama.nothing
    for name in llama.DOORS:
        assert callable(getattr(llama, name))
