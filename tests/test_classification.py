import json
import math
from dataclasses import replace

import pytest
import torch

import finetune
import llama
from llama.checkpoint import PretrainedLlama, load_model
from llama.config import preset
from llama.datasets.records import RecordDataset
from llama.evaluate import main as evaluate_main
from llama.heads import HeadConfig, add_head
from llama.lora import LoRAConfig, add_lora
from llama.tasks.classification import ClassificationTask
from llama.tasks.generation import TextGenerationTask
from llama.tasks.labelled import Labelled, in_parts, stride_windows
from llama.trainer import Trainer
from llama.training.data_checks import examine
from llama.training.evaluation import add_up, evaluate, evaluate_dataset
from llama.training.inspect_samples import show_sample
from llama.training.objective import Plain
from llama.training.optimizer import TrainConfig
from llama.training.packing import pack
from llama.training.results import errors, write_predictions

TEXTS = ["天气很好。", "The lazy dog sleeps, and the fox goes home.", "x", "你好，世界！今天天气很好。"]
REVIEWS = [{"text": text, "label": label, "place": f"r:{i}"} for i, (text, label) in
           enumerate([("天气很好。", "pos"), ("The dog sleeps.", "neg"), ("很好", "pos"), ("lazy", "neg")], 1)]
SEVERAL = [{"text": "天气很好。", "labels": ["a", "b"], "place": "s:1"},
           {"text": "The dog", "labels": [], "place": "s:2"}, {"text": "x", "labels": ["b"], "place": "s:3"}]


def prepared(model, data=REVIEWS, **options):
    task = ClassificationTask(**options)
    task.prepare(model, data)
    with torch.no_grad():
        model.score.weight *= 20                                    # apart enough that rows cannot be confused
    return task


def trained(model, task, data, folder=None, **config):
    return Trainer(model, task, data, data, "adam", TrainConfig(**{"lr": 0.01, "batch_size": 4, **config}),
                   output=folder).train()


def test_worked_example_the_last_id_is_read(tiny_model):
    task = prepared(tiny_model)
    samples = task.samples(REVIEWS, tiny_model.tokenizer)
    assert [sample.loss_mask for sample in samples] == [[False] * (len(s.ids) - 1) + [True] for s in samples]
    assert [sample.goals for sample in samples] == [[1], [0], [1], [0]] and task.labels == ("neg", "pos")
    batch = task.collate(samples)
    scores = task.scores(tiny_model, batch)
    for sample, row in zip(samples, scores, strict=True):
        torch.testing.assert_close(tiny_model(torch.tensor([sample.ids]))[0, -1], row)
    assert [index.tolist() for index in task.rows(batch)] == [[0, 1, 2, 3], [len(s.ids) - 1 for s in samples]]


def test_worked_example_the_mean_of_all_rows_is_scored(tiny_model, tmp_path):
    task = prepared(tiny_model, pooling="mean")
    samples = task.samples(REVIEWS, tiny_model.tokenizer)
    batch = task.collate(samples)
    for sample, row in zip(samples, task.scores(tiny_model, batch), strict=True):
        torch.testing.assert_close(tiny_model(torch.tensor([sample.ids]))[0].mean(0), row, atol=1e-5, rtol=1e-5)
    losses = [Plain(tiny_model, task)(batch)[0], task.loss(task.scores(tiny_model, batch), batch["targets"])]
    losses.append(Plain(tiny_model, task)(pack(task, samples))[0])
    assert [loss.item() for loss in losses] == pytest.approx([losses[0].item()] * 3, rel=1e-5)
    tiny_model.save(tmp_path / "mean")
    loaded, same = load_model(tmp_path / "mean"), ClassificationTask()
    assert same.detailed(loaded, TEXTS) == task.detailed(tiny_model, TEXTS) and same.pooling == "mean"
    with pytest.raises(ValueError, match="pooling mean, for neg, pos; this task asks .* causal, pooling last"):
        ClassificationTask(pooling="last").predict(loaded, TEXTS)


@pytest.mark.parametrize("attention, pooling", [("causal", "last"), ("full", "last"), ("full", "mean")])
def test_property_padding_changes_nothing(tiny_model, attention, pooling):
    task = prepared(tiny_model, attention=attention, pooling=pooling)
    together = task.detailed(tiny_model, TEXTS, batch_size=4)
    alone = [task.detailed(tiny_model, [text])[0] for text in TEXTS]
    for a, b in zip(together, alone, strict=True):
        assert a["predicted"] == b["predicted"] and a["confidence"] == pytest.approx(b["confidence"], abs=1e-5)


def test_property_full_attention_lets_the_first_position_see_the_last(tiny_model):
    tokens = torch.tensor([[5, 6, 7], [5, 6, 8]])
    for attention, differ in (("causal", False), ("full", True)):
        task = ClassificationTask(("a", "b"), attention=attention)
        mask = task.collate([task.encode({"text": TEXTS[0]}, tiny_model.tokenizer)]).get("mask")
        assert (mask is not None) == differ
        states = tiny_model.hidden(tokens, mask=None if mask is None else mask[..., :3])
        assert torch.equal(states[0, 0], states[1, 0]) != differ


def test_worked_example_losses_by_hand(tiny_model):
    scores = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]])
    one = ClassificationTask(("a", "b"))
    assert one.loss(scores, torch.tensor([0, 1])).item() == pytest.approx(math.log(2) + math.log(4 / 3))
    assert one.count(torch.tensor([0, 1])) == 2
    many = ClassificationTask(("a", "b"), multi_label=True)
    goals = torch.tensor([[1, 0], [0, 1]])
    assert many.loss(scores, goals).item() == pytest.approx(3 * math.log(2) + math.log(4 / 3))
    assert many.count(goals) == 4


def test_two_ways_scores_of_evaluation_equal_those_by_hand(tiny_model):
    task = prepared(tiny_model)
    samples = task.samples(REVIEWS, tiny_model.tokenizer)
    scores = evaluate(Plain(tiny_model, task), samples, tiny_model.tokenizer, batch_size=3)
    logs = [tiny_model(torch.tensor([s.ids]))[0, -1].log_softmax(-1) for s in samples]
    pairs = [(log, sample.goals[0]) for log, sample in zip(logs, samples, strict=True)]
    assert scores["loss"] == pytest.approx(-sum(log[goal].item() for log, goal in pairs) / 4)
    assert scores["accuracy"] == sum(int(log.argmax()) == goal for log, goal in pairs) / 4
    assert set(scores) == {"loss", "accuracy", "macro_f1", "micro_f1", "mcc", "calibration_error"}
    loss, count = Plain(tiny_model, task)(task.collate(samples))
    assert (loss / count).item() == pytest.approx(scores["loss"], rel=1e-5)


def test_worked_example_the_eight_lines_on_this_task(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_model.save("tiny")
    (tmp_path / "train.tsv").write_text("天气很好。\tpos\nThe dog sleeps.\tneg\n" * 4, encoding="utf-8")

    model = llama.get_model("tiny")
    task = llama.ClassificationTask(labels=["pos", "neg"])
    trainer = Trainer(model=model, task=task, train_dataset=RecordDataset("train.tsv"),
                      eval_dataset=RecordDataset("train.tsv"), optimizer="adam", config=TrainConfig(lr=0.01, epochs=6))
    result = trainer.train()
    model.save("model.pt")
    model = llama.load_model("model.pt")

    assert result["eval"]["accuracy"] == 1.0
    assert llama.ClassificationTask().predict(model, ["天气很好。", "The dog sleeps."]) == ["pos", "neg"]


@pytest.mark.parametrize("attention", ["causal", "full"])
def test_two_ways_saved_and_loaded_predicts_the_same(tiny_model, tmp_path, attention):
    trained(tiny_model, ClassificationTask(attention=attention), REVIEWS, tmp_path / "out", epochs=3)
    task = ClassificationTask()
    assert task.detailed(load_model(tmp_path / "out"), TEXTS) == task.detailed(tiny_model, TEXTS)
    assert task.attention == attention


def test_worked_example_several_labels_or_none(tiny_model, tmp_path):
    task = ClassificationTask(multi_label=True)
    result = trained(tiny_model, task, SEVERAL, tmp_path / "out", epochs=40)
    assert result["eval"]["accuracy"] == result["eval"]["micro_f1"] == 1.0
    again = load_model(tmp_path / "out")
    assert ClassificationTask(multi_label=True).predict(again, [each["text"] for each in SEVERAL]) == [
        ["a", "b"], [], ["b"]]
    with pytest.raises(ValueError, match="this task asks for"):
        ClassificationTask().predict(again, ["x"])
    sure = task.detailed(again, ["x"])[0]["confidence"]
    probabilities = again(torch.tensor([again.tokenizer.encode("x")]))[0, -1].sigmoid()
    assert sure == pytest.approx(torch.maximum(probabilities, 1 - probabilities).prod().item(), abs=1e-5)


def test_property_the_checks_before_training_see_labels(tiny_model):
    task = prepared(tiny_model, max_length=16)
    long = [*REVIEWS, {"text": "The quick brown fox jumps over the lazy dog. " * 9, "label": "neg", "place": "r:5"}]
    samples = task.samples(long, tiny_model.tokenizer)
    report = examine(task, long, samples, tiny_model.tokenizer, vocab_size=tiny_model.config.vocab_size)
    report.refuse()
    counts = report.counts
    assert (counts.samples, counts.supervised_tokens, counts.truncated, counts.fully_masked) == (5, 5, 1, 0)
    assert counts.tokens == sum(len(sample.ids) for sample in samples) and len(samples[-1].ids) == 16
    assert samples[-1].ids == tiny_model.tokenizer.encode(long[-1]["text"])[:16]
    lines = show_sample(samples[0], tiny_model.tokenizer, colour=False).split("\n")
    assert lines[-2].endswith("pos") and "●" in lines[-2] and not any("●" in line for line in lines[1:-2])


def test_property_windows_cover_all_and_keep_their_room():
    generator = torch.Generator().manual_seed(0)
    for _ in range(300):
        room, overlap, n = (int(torch.randint(low, high, (1,), generator=generator))
                            for low, high in ((1, 12), (0, 9), (0, 30)))
        sizes = torch.randint(0, room + 1, (n,), generator=generator).tolist()
        found = stride_windows(sizes, room, overlap)
        assert [i for begin, end in found for i in range(begin, end)] or not sizes
        assert all(begin < end and sum(sizes[begin:end]) <= room for begin, end in found)
        for (a, b), (c, d) in zip(found, found[1:], strict=False):
            assert a < c <= b < d and sum(sizes[c:b]) <= overlap
        assert not sizes or (found[0][0], found[-1][1]) == (0, n)
    assert stride_windows([1] * 10, 4, 2) == [(0, 4), (2, 6), (4, 8), (6, 10)]


def test_worked_example_predictions_and_errors(tiny_model, tmp_path):
    task = prepared(tiny_model)
    totals = add_up(Plain(tiny_model, task), task.samples(REVIEWS, tiny_model.tokenizer), tiny_model.tokenizer,
                    batch_size=2)
    results = task.results(totals)
    assert [result["place"] for result in results] == ["r:1", "r:2", "r:3", "r:4"]
    write_predictions(tmp_path / "p.jsonl", results)
    assert [json.loads(line) for line in (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()] == results
    wrong = [result for result in results if not result["correct"]]
    text = errors(results, 1)
    assert text.startswith(f"{len(wrong)} of 4 are not right") and wrong[0]["text"] in text
    assert errors([{**results[0], "correct": False, "text": "a\x1b[2J", "gold": ["a"], "predicted": []}], 5) == (
        "1 of 1 are not right\n\nr:1  a [2J\n  right      «a»\n  predicted  nothing")
    details, table = task.report(results)
    assert sum(sum(row) for row in details["confusion"]["matrix"]) == 4 and "precision" in table


def test_worked_example_characters_that_the_vocabulary_lacks_are_told(tiny_model, caplog):
    """Of 龘 three ids say a byte each, and none a character."""
    tokenizer, task = tiny_model.tokenizer, prepared(tiny_model)
    for text, part in (("The dog", 0.0), ("龘" * 9, 1.0)):
        caplog.clear()
        samples = task.samples([{"text": text, "label": "pos"}], tokenizer)
        assert in_parts(samples, tokenizer) == part
        assert ("100 % of the tokens are parts of characters that this vocabulary lacks" in caplog.text) == bool(part)
    assert in_parts([], tokenizer) == 0


def test_worked_example_a_label_that_the_model_does_not_know_is_an_error(tiny_model, caplog):
    """As scikit-learn counts it; the loss is that of the others."""
    task, meh = prepared(tiny_model), {"text": "a", "label": "meh", "place": "r:9"}
    scores, results = evaluate_dataset(Plain(tiny_model, task), [*REVIEWS, meh])
    assert "1 of 5 examples have labels that the model does not know, and count as errors: first 'meh' in r:9" in \
        caplog.text
    known, right = evaluate_dataset(Plain(tiny_model, task), REVIEWS)
    assert scores["loss"] == pytest.approx(known["loss"]) and scores["accuracy"] == known["accuracy"] * 4 / 5
    assert results[:4] == right and results[4]["gold"] == "meh" and not results[4]["correct"]
    details, _ = task.report(results)
    assert details["confusion"]["labels"] == ["neg", "pos", "meh"] and sum(details["confusion"]["matrix"][2]) == 1
    other = PretrainedLlama(preset("test", vocab_size=tiny_model.config.vocab_size), tiny_model.tokenizer)
    several = prepared(other, [{"text": "a", "labels": ["x", "y"]}], multi_label=True)
    assert several.samples([{"text": "a", "labels": ["x", "z"]}], tiny_model.tokenizer)[0].goals == [[1, 0]]


def test_worked_example_the_commands(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_model.save("tiny")
    (tmp_path / "t.tsv").write_text("天气很好。\tpos\nThe dog sleeps.\tneg\n" * 4, encoding="utf-8")
    common = ["--data", "t.tsv", "--model", "tiny", "--device", "cpu", "--dtype", "float32", "--max-length", "64"]
    monkeypatch.setattr("sys.argv", ["finetune.py", "--lora", "--task", "sentiment", "--eval-data", "t.tsv", "--output",
                                     "a", "--epochs", "12", "--lr", "0.02", "--attention", "full", *common])
    finetune.main()
    out = capsys.readouterr()
    trained = json.loads(out.out.splitlines()[-1])["eval"]
    assert "python -m llama.evaluate --adapter a --model tiny --task sentiment --data FILE" in out.err
    assert "python -m llama.predict --adapter a --model tiny TEXT" in out.err
    monkeypatch.setattr("sys.argv", ["evaluate", "--task", "sentiment", "--adapter", "a", "--predictions", "p.jsonl",
                                     "--show-errors", "3", "--json", *common])
    evaluate_main()
    out = capsys.readouterr()
    scores = json.loads(out.out)
    assert {name: scores[name] for name in trained} == pytest.approx(trained, abs=1e-4)
    assert scores["accuracy"] == 1.0 and "0 of 8 are not right" in out.err
    assert len((tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()) == 8
    monkeypatch.setattr("sys.argv", ["evaluate", "--task", "generation", "--show-errors", "3", *common])
    with pytest.raises(ValueError, match="--task generation has none"):
        evaluate_main()


def test_refusal_of_data_and_models_that_do_not_fit(tiny_model, tiny_tokenizer):
    with pytest.raises(ValueError, match="attention is 'both'; it must be one of causal, full"):
        ClassificationTask(attention="both")
    with pytest.raises(ValueError, match="the data holds 1 different labels .pos.; from two on"):
        ClassificationTask().prepare(tiny_model, REVIEWS[:1])
    with pytest.raises(ValueError, match="f:1: it has text, place, and nothing that says what is right"):
        ClassificationTask().prepare(tiny_model, [{"text": "a", "place": "f:1"}])
    with pytest.raises(ValueError, match="no head of labels for classification; tune one"):
        ClassificationTask().predict(tiny_model, ["a"])
    task = prepared(tiny_model)
    meh = {"text": "a", "label": "meh", "place": "r:9"}
    with pytest.raises(ValueError, match="r:9: 'meh' is none of those that are learned .neg, pos.; mend it, or give"):
        ClassificationTask().prepare(tiny_model, [*REVIEWS, meh])
    with pytest.raises(ValueError, match="r:9: none of 1 examples has a label that the model knows .neg, pos."):
        task.samples([meh], tiny_tokenizer)
    with pytest.raises(ValueError, match="this task asks for sequence, causal, for a, b"):
        ClassificationTask(("a", "b")).predict(tiny_model, ["a"])
    with pytest.raises(ValueError, match="causal attention, for neg, pos; this task asks for sequence, full"):
        ClassificationTask(attention="full").predict(tiny_model, ["a"])
    assert ClassificationTask(("pos", "neg")).predict(tiny_model, ["x"])[0] in ("pos", "neg")
    with pytest.raises(ValueError, match="so it writes no text"):
        TextGenerationTask().bind(tiny_model)
    with pytest.raises(ValueError, match="the prompt is empty"):
        task.predict(tiny_model, [""])
    lora = PretrainedLlama(replace(preset("test"), vocab_size=tiny_tokenizer.vocab_size))
    lora.tokenizer = tiny_tokenizer
    add_lora(lora, LoRAConfig(rank=2))
    with pytest.raises(ValueError, match="add the head first, then LoRA"):
        Trainer(lora, ClassificationTask(), REVIEWS)
    tokens = PretrainedLlama(preset("test", vocab_size=tiny_tokenizer.vocab_size))
    add_head(tokens, HeadConfig(("O", "B-PER"), "tokens"))
    with pytest.raises(ValueError, match="the model's head is of kind tokens"):
        ClassificationTask().bind(tokens)


def test_property_an_epoch_visits_every_text_once_and_like_lengths_together():
    lengths = torch.randint(1, 200, (1000,), generator=torch.Generator().manual_seed(0)).tolist()
    samples = [Labelled([0] * n, [True] * n) for n in lengths]
    order = ClassificationTask().order(samples, 8, torch.Generator().manual_seed(1))
    assert sorted(order.tolist()) == list(range(1000)) and order.tolist() != list(range(1000))
    again = ClassificationTask().order(samples, 8, torch.Generator().manual_seed(1))
    assert torch.equal(order, again) and not torch.equal(order, ClassificationTask().order(
        samples, 8, torch.Generator().manual_seed(2)))
    padded = sum(8 * max(lengths[i] for i in step) for step in order[:1000].view(-1, 8).tolist())
    assert sum(lengths) > 0.85 * padded                             # at random, it is near one half
