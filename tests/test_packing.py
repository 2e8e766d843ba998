import pytest
import torch

from llama.checkpoint import PretrainedLlama
from llama.config import RopeScaling, preset
from llama.fast import custom_autograd
from llama.heads import remove_head
from llama.lora import LoRAConfig, add_lora
from llama.masks import document_mask
from llama.tasks.classification import ClassificationTask
from llama.tasks.question_answering import QuestionAnsweringTask
from llama.tasks.tagging import NERTask
from llama.tasks.task import Sample, Task
from llama.training.objective import Plain
from llama.training.packing import micro_batches, pack, pack_or_pad, should_pack

SAMPLES = [Sample([1, 2, 3, 4, 5], [False, False, True, True, True]), Sample([6, 7, 8], [False, True, True]),
           Sample([9, 10], [False, True])]


def test_worked_example_a_packed_row():
    batch = pack(Task(), SAMPLES)
    assert batch["tokens"].tolist() == [[1, 2, 3, 4, 6, 7, 9]]
    assert batch["targets"].tolist() == [[-100, 3, 4, 5, 7, 8, 10]]
    assert batch["positions"].tolist() == [[0, 1, 2, 3, 0, 1, 0]] and batch["lengths"].tolist() == [4, 2, 1]
    assert document_mask(torch.tensor([2, 1])).tolist() == [[True, False, False], [True, True, False],
                                                            [False, False, True]]


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("lora", [False, True], ids=["all weights", "LoRA"])
def test_two_ways_packed_equals_padded(quick, lora, tiny_model):
    if lora:
        add_lora(tiny_model, LoRAConfig(rank=2))
    objective, results = Plain(tiny_model, Task()), []
    for batch in (Task().collate(SAMPLES), pack(Task(), SAMPLES)):
        if quick and "lengths" in batch:
            custom_autograd.use_custom_autograd(tiny_model)
        tiny_model.zero_grad()
        loss, targets = objective(batch)
        loss.backward()
        results.append((loss.detach(), {n: p.grad for n, p in tiny_model.named_parameters() if p.grad is not None}))
        assert targets == 6
    torch.testing.assert_close(results[0][0], results[1][0])
    for name, gradient in results[0][1].items():
        torch.testing.assert_close(results[1][1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)


def test_two_ways_packed_texts_with_labels(tiny_model):
    """Of each task with a head: one label a text, several, a tag a token, spans of windows."""
    text = "天气很好。The dog sleeps."
    words = {"tokens": ["天", "气", "好"], "starts": [0, 1, 3], "text": "天气很好", "tags": ["B-LOC", "I-LOC", "O"]}
    one = [{"text": text[:n], "label": "ab"[n % 2], "labels": ["ab"[n % 2]] * (n > 2)} for n in (2, 9, 5)]
    cases = [(ClassificationTask(), one), (ClassificationTask(multi_label=True, pooling="mean"), one),
             (NERTask(), [words, {**words, "tokens": ["天"], "starts": [0], "tags": ["O"]}]),
             (QuestionAnsweringTask(max_length=16), [{"question": "谁？", "context": text * 3, "answers": [
                 {"text": "很好", "start": 2}]}, {"question": "谁来？", "context": text, "answers": []}])]
    for task, data in cases:
        task.prepare(tiny_model, data)
        samples, losses = task.samples(data, tiny_model.tokenizer), []
        for batch in (task.collate(samples), pack(task, samples)):
            losses.append(Plain(tiny_model, task)(batch))
        assert len(samples) >= 2 and losses[0][1] == losses[1][1]
        torch.testing.assert_close(losses[0][0], losses[1][0], rtol=1e-4, atol=1e-5)
        remove_head(tiny_model)


def test_property_micro_batches_hold_neighbours_in_length_and_every_sample_once():
    samples = [Sample([0] * n, [False] + [True] * (n - 1)) for n in (3, 9, 4, 8, 2)]
    found = micro_batches(samples, 2)
    assert [[len(sample.ids) for sample in some] for some in found] == [[9, 8], [4, 3], [2]]


def test_property_no_row_beyond_the_context_and_no_packing_without_need():
    assert "lengths" in pack_or_pad(Task(), SAMPLES, room=7)
    assert pack_or_pad(Task(), SAMPLES, room=6)["tokens"].shape == (3, 4)
    assert pack_or_pad(Task(), SAMPLES[:1] * 2, room=100)["tokens"].shape == (2, 4)


def test_refusal_where_packing_would_compute_something_else(tiny_model):
    assert [should_pack(tiny_model, Task(), wish) for wish in ("auto", "on", "off")] == [True, True, False]
    task = ClassificationTask()
    task.attention = "full"
    assert not should_pack(tiny_model, task, "auto")
    with pytest.raises(ValueError, match="--pack: this task looks through whole texts"):
        should_pack(tiny_model, task, "on")
    assert not should_pack(PretrainedLlama(preset("test", sliding_window=4)), Task(), "auto")
    scaled = PretrainedLlama(preset("test", rope_scaling=RopeScaling("dynamic", 2.0)))
    with pytest.raises(ValueError, match="--pack: dynamic scaling turns a row's positions by the longest text"):
        should_pack(scaled, Task(), "on")
