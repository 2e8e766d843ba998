import json
import math
from itertools import product

import pytest
import torch

from llama.checkpoint import load_model
from llama.datasets.squad import SquadDataset
from llama.tasks.labelled import Labelled
from llama.tasks.question_answering import QuestionAnsweringTask, best_span
from llama.trainer import Trainer
from llama.training.data_checks import examine
from llama.training.evaluation import evaluate
from llama.training.objective import Plain
from llama.training.optimizer import TrainConfig
from tokenizer import bpe

CONTEXT = "今天小驼来了。天气很好。"
QUESTIONS = [{"id": "1", "question": "谁来了？", "context": CONTEXT, "answers": [{"text": "小驼", "start": 2}],
              "place": "q: 1"},
             {"id": "2", "question": "天气？", "context": CONTEXT, "answers": [{"text": "很好", "start": 9}],
              "place": "q: 2"}]
NOTHING = {"id": "3", "question": "The dog?", "context": CONTEXT, "answers": [], "place": "q: 3"}
LONG = {"id": "4", "question": "who?", "context": "The lazy dog sleeps. " * 8 + "The fox jumps. " + "dog dog. " * 9,
        "answers": [{"text": "fox", "start": 172}], "place": "q: 4"}


def prepared(model, data, **options):
    task = QuestionAnsweringTask(**options)
    task.prepare(model, data)
    with torch.no_grad():
        model.qa_outputs.weight *= 20
    return task


def trained(model, task, data, folder=None, epochs=40):
    config = TrainConfig(lr=0.01, batch_size=4, epochs=epochs, eval_every=40)
    return Trainer(model, task, data, data, "adam", config, output=folder).train()


def test_worked_example_where_an_answer_begins_and_ends():
    """A tokenizer of bytes alone: a Chinese character is three ids, and its answer begins at the first of them."""
    letters = bpe.train(["text"], 259)
    sample = QuestionAnsweringTask().encode(QUESTIONS[0], letters)
    asked = len(letters.encode("谁来了？\n"))
    assert letters.decode(sample.ids) == f"谁来了？\n{CONTEXT}\n"
    assert sample.loss_mask == [False] * asked + [True] * (3 * 12) + [True]
    assert sample.goals.index([1, 0]) == 6 and sample.goals.index([0, 1]) == 11 and sum(map(sum, sample.goals)) == 2
    assert sample.notes == {asked + 6: "start", asked + 11: "end"}
    assert sample.places[6:12] == [(2, 3)] * 3 + [(3, 4)] * 3
    nothing = QuestionAnsweringTask().encode(NOTHING, letters)
    assert nothing.goals[-1] == [1, 1] and nothing.notes == {len(nothing.ids) - 1: "no answer here"}


def test_property_found_spans_snap_to_characters():
    """Whichever ids are chosen, no character is cut."""
    letters = bpe.train(["text"], 259)
    task = QuestionAnsweringTask()
    sample = task.encode({**QUESTIONS[0], "context": "我 é好"}, letters)
    n = sample.targets - 1
    for first, last in product(range(n), range(n)):
        scores = torch.full((n + 1, 2), -9.0)
        scores[first, 0] = scores[last, 1] = 9.0
        answer = task.decode([sample], [scores])["predicted"]
        assert answer in "我 é好" and "\ufffd" not in answer
        if first <= last:
            places = sample.places
            assert answer == "我 é好"[places[first][0] : places[last][1]].strip()


def test_two_ways_best_span_equals_trying_all():
    generator = torch.Generator().manual_seed(0)
    for n in (1, 2, 5, 9):
        for longest in (1, 3, 20):
            begins, ends = torch.randn(2, n, generator=generator)
            spans = [(i, j) for i in range(n) for j in range(i, min(n, i + longest))]
            best = max(spans, key=lambda span: begins[span[0]] + ends[span[1]])
            assert best_span(begins, ends, longest) == ((begins[best[0]] + ends[best[1]]).item(), *best)


def test_worked_example_loss_over_the_rows_of_each_window():
    task = QuestionAnsweringTask()
    scores = torch.tensor([[0.0, 0.0], [math.log(2), 0.0], [0.0, 0.0], [0.0, 5.0]])
    targets = torch.tensor([[0, 1, 0], [0, 0, 1], [1, 0, 0], [1, 1, 1]])
    expected = math.log(3) + math.log(2) + math.log(2) - math.log(math.exp(5) / (1 + math.exp(5)))
    assert task.loss(scores, targets).item() == pytest.approx(expected) and task.count(targets) == 4


def test_two_ways_the_loss_of_a_batch_is_that_of_its_windows(tiny_model):
    task = prepared(tiny_model, [*QUESTIONS, LONG], max_length=48, overlap=8)
    samples = task.samples([*QUESTIONS, LONG], tiny_model.tokenizer)
    together, number = Plain(tiny_model, task)(task.collate(samples))
    alone = sum(Plain(tiny_model, task)(task.collate([sample]))[0] for sample in samples)
    assert number == 2 * len(samples) and len(samples) > 4
    torch.testing.assert_close(together, alone)


def test_worked_example_windows_over_a_long_text(tiny_model):
    tokenizer = tiny_model.tokenizer
    samples = QuestionAnsweringTask(max_length=48, overlap=8).pieces(LONG, tokenizer)
    whole = tokenizer.encode_continuation(LONG["context"])
    asked = tokenizer.encode("who?\n")
    covered = [place for sample in samples for place in sample.places]
    assert set(covered) == set(samples[0].places + covered) and covered[0][0] == 0
    assert max(end for _, end in covered) == len(LONG["context"])
    for sample in samples:
        assert len(sample.ids) <= 48 and sample.ids[: len(asked)] == asked and sample.goals[-1] in ([1, 1], [0, 0])
        assert "".join(map(str, sample.ids[len(asked) : -1])) in "".join(map(str, whole))
    with_answer = [sample for sample in samples if sample.goals[-1] == [0, 0]]
    assert with_answer and all(sample.goals.count([0, 0]) < len(sample.goals) for sample in with_answer)
    for sample in with_answer:
        places = [place for place, goal in zip(sample.places, sample.goals, strict=False) if any(goal)]
        assert LONG["context"][places[0][0] : places[-1][1]].strip() == "fox"


def test_worked_example_the_best_span_of_all_windows_wins():
    """Two windows over «ab cd»; the second is surer. Rows: two letters and «none»."""
    example = {"question": "?", "context": "abcd"}
    windows = [Labelled([0] * 4, [False, True, True, True], goals=[[0, 0]] * 3, example=example, places=places)
               for places in ([(0, 1), (1, 2)], [(2, 3), (3, 4)])]
    unsure = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    sure = torch.tensor([[9.0, 0.0], [0.0, 9.0], [0.0, 0.0]])
    none = torch.tensor([[0.0, 0.0], [0.0, 0.0], [9.0, 9.0]])
    task = QuestionAnsweringTask(unanswerable=True)
    assert task.decode(windows, [unsure, sure])["predicted"] == "cd"
    assert task.decode(windows, [sure, none])["predicted"] == "ab"  # one window without it is no news
    found = task.decode(windows, [none, none])
    assert found["predicted"] == "" and found["score"] == found["score_of_none"]
    assert QuestionAnsweringTask(unanswerable=False).decode(windows, [none, none])["predicted"] == "a"
    assert QuestionAnsweringTask(unanswerable=True, threshold=99.0).decode(windows, [none, none])["predicted"] == "a"


@pytest.mark.parametrize("attention", ["causal", "full"])
def test_worked_example_answers_are_learned_saved_and_found_again(tiny_model, tmp_path, attention):
    data = [*QUESTIONS, NOTHING]
    tiny_model.tokenizer = bpe.train(["text"], 259)
    result = trained(tiny_model, QuestionAnsweringTask(attention=attention), data, tmp_path / "out")
    assert result["eval"]["exact_match"] == result["eval"]["f1"] == result["eval"]["unanswerable_accuracy"] == 1.0
    again, task = load_model(tmp_path / "out"), QuestionAnsweringTask()
    asked = [(each["question"], each["context"]) for each in data]
    assert task.predict(again, [*asked, ("谁？", "")]) == ["小驼", "很好", "", ""]
    assert task.unanswerable and task.attention == attention
    assert task.detailed(again, asked) == QuestionAnsweringTask().detailed(tiny_model, asked)
    assert task.detailed(again, asked)[1]["start"] == 9


@pytest.mark.parametrize("attention", ["causal", "full"])
def test_property_padding_changes_nothing(tiny_model, attention):
    task = prepared(tiny_model, QUESTIONS, attention=attention, max_length=48, overlap=8)
    asked = [(each["question"], each["context"]) for each in (*QUESTIONS, LONG)]
    together = task.detailed(tiny_model, asked)
    for a, pair in zip(together, asked, strict=True):
        b = task.detailed(tiny_model, [pair], batch_size=1)[0]
        assert a["predicted"] == b["predicted"] and a["score"] == pytest.approx(b["score"], abs=1e-4)


def test_property_the_head_remembers_whether_none_may_be_the_answer(tiny_model, tmp_path):
    prepared(tiny_model, QUESTIONS)
    tiny_model.save(tmp_path / "m.pt")
    task = QuestionAnsweringTask()
    task.bind(load_model(tmp_path / "m.pt"))
    assert task.unanswerable is False
    task = QuestionAnsweringTask(unanswerable=True)
    task.bind(tiny_model)
    assert task.unanswerable is True


def test_worked_example_chinese_is_scored_by_characters_english_by_words(tiny_model, tmp_path):
    (tmp_path / "q.json").write_text(json.dumps({"data": [{"paragraphs": [{"context": CONTEXT, "qas": [
        {"id": "1", "question": "谁？", "answers": [{"text": "小驼", "answer_start": 2}]}]}]}]}), encoding="utf-8")
    data = SquadDataset(tmp_path / "q.json")
    task = prepared(tiny_model, data)
    scores = evaluate(Plain(tiny_model, task), task.samples(data, tiny_model.tokenizer), tiny_model.tokenizer,
                      batch_size=1)
    assert set(scores) == {"loss", "exact_match", "f1"}
    results = [{"gold": ["小驼来了"], "predicted": "小驼", "text": "谁？"}]
    assert task.compute_metrics(results)["f1"] == pytest.approx(2 / 3)
    assert QuestionAnsweringTask(language="en").compute_metrics(results)["f1"] == 0.0
    results = [{"gold": ["the lazy dog"], "predicted": "dog", "text": "who?"}]
    assert task.compute_metrics(results)["f1"] == pytest.approx(2 / 3)


def test_property_answers_that_end_within_a_token_are_counted(tiny_model, caplog):
    joined = bpe.train(["好吗"] * 9, 270)
    assert len(joined.encode_continuation("好吗")) == 1
    example = {"question": "?", "context": "很好吗", "answers": [{"text": "很好", "start": 0}]}
    QuestionAnsweringTask().samples([example, example], joined)
    assert "2 of 2 answers begin or end within a token" in caplog.text


def test_property_the_checks_before_training_see_spans(tiny_model):
    task = prepared(tiny_model, QUESTIONS, max_length=48)
    samples = task.samples([*QUESTIONS, {**LONG, "question": "who? " * 30}], tiny_model.tokenizer)
    report = examine(task, QUESTIONS, samples, tiny_model.tokenizer, vocab_size=400)
    report.refuse()
    assert report.counts.truncated == len(samples) - 2 and max(len(sample.ids) for sample in samples) <= 48


def test_refusal_of_options_and_data(tiny_model):
    with pytest.raises(ValueError, match="overlap is -1 and longest 128"):
        QuestionAnsweringTask(overlap=-1)
    with pytest.raises(ValueError, match="max_length is 8; texts need room for at least 16"):
        QuestionAnsweringTask(max_length=8)
    with pytest.raises(ValueError, match="it has question, context, and nothing that says what is right"):
        QuestionAnsweringTask().prepare(tiny_model, [{"question": "?", "context": "a"}])
    with pytest.raises(ValueError, match="no head of labels for qa"):
        QuestionAnsweringTask().predict(tiny_model, [("?", "a")])
