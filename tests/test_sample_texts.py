"""Texts that a model writes while it learns."""

import copy
import json

import pytest
import torch

from llama.datasets.language_modeling import LanguageModelingDataset
from llama.heads import HeadConfig, add_head
from llama.plot import read_run
from llama.tasks.classification import ClassificationTask
from llama.tasks.generation import TextGenerationTask
from llama.tasks.instruction import InstructionTask
from llama.trainer import Trainer
from llama.training.optimizer import TrainConfig
from llama.training.sample_texts import GIVEN, SampleTexts

EXAMPLES = [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}], "place": f"here:{i}"}
            for i, (q, a) in enumerate([("Hi", "Hello!"), ("你是谁？", "我是小驼。"), ("Count", "one two three"),
                                        ("Bye", "Bye.")])]
CHAT = {"task": lambda: InstructionTask(chat_format="chatml"), "data": EXAMPLES}


def lines(output):
    return [json.loads(line) for line in (output.with_name(output.name + ".training") / "metrics.jsonl").read_text(
        encoding="utf-8").splitlines()]


def test_worked_example_a_text_goes_on_where_the_answer_does(tiny_model):
    task = CHAT["task"]()
    texts = SampleTexts(task.samples(EXAMPLES, tiny_model.tokenizer), task, count=2).write(tiny_model, 0)
    assert [text["gold"].strip() for text in texts] == ["Hello!", "one two three"]      # spread over all samples
    assert texts[0]["prompt"].endswith("user\nHi\nassistant\n") and texts[0].keys() == {"prompt", "text", "gold"}


def test_worked_example_of_running_text_some_is_given(tiny_model):
    task, tokenizer = TextGenerationTask(), tiny_model.tokenizer
    data = LanguageModelingDataset(["The quick brown fox jumps over the lazy dog. " * 9], block_size=32)
    samples = task.samples(data, tokenizer)
    (text,) = SampleTexts(samples, task, count=1).write(tiny_model, 0)
    assert text["prompt"] == tokenizer.decode(samples[0].ids[:GIVEN])
    assert text["gold"] == tokenizer.decode(samples[0].ids[GIVEN:])


def test_property_a_model_that_learns_its_data_writes_them(tiny_model, tmp_path, capsys):
    """Without evaluation data, too; and what draws the curve is not taken aback."""
    config = TrainConfig(epochs=30, batch_size=2, lr=2e-2, sample_texts=2, eval_every=30,
                         save_every=30)
    Trainer(tiny_model, CHAT["task"](), EXAMPLES[:2], config=config, output=tmp_path / "out").train()
    written = [line for line in lines(tmp_path / "out") if "samples" in line]
    assert [line["step"] for line in written] == [0, 30]
    texts, gold = ([[text[name].strip() for text in line["samples"]] for line in written] for name in ("text", "gold"))
    assert texts[0] != gold[0] and texts[1] == gold[1] == ["Hello!", "我是小驼。"]
    assert "it writes 'Hello!'" in capsys.readouterr().err
    assert len(read_run(tmp_path / "out").steps) == 30 and "cannot be read" not in capsys.readouterr().err


@pytest.mark.parametrize("more", [{}, {"checkpoint_activations": True}, {"word_dropout": 0.2}],
                         ids=["plain", "checkpointed", "word dropout"])
def test_two_ways_a_run_that_writes_learns_what_it_would_learn_otherwise(tiny_model, more):
    begun, learned = copy.deepcopy(tiny_model.state_dict()), []
    for count in (0, 2):
        tiny_model.load_state_dict(begun)
        config = TrainConfig(epochs=1, batch_size=2, lr=1e-2, sample_texts=count, eval_every=1, **more)
        Trainer(tiny_model, CHAT["task"](), EXAMPLES, EXAMPLES[:2], config=config).train()
        learned.append(copy.deepcopy(tiny_model.state_dict()))
    assert all(torch.equal(learned[0][name], learned[1][name]) for name in begun)
    assert not torch.equal(learned[0]["norm.weight"], begun["norm.weight"])


def test_refuses_labels_and_shards(tiny_model):
    add_head(tiny_model, HeadConfig(("good", "bad"), "sequence"))
    with pytest.raises(ValueError, match="--sample-texts 1: a model with a head of labels writes no text"):
        SampleTexts([], ClassificationTask(), count=1)
