import io
import json
import os
import sys
import threading

import pytest
import torch

import finetune
import llama
from llama import predict
from llama.checkpoint import PretrainedLlama, load_model
from llama.commands.flags import TaskFlags
from llama.commands.texts import in_batches
from llama.config import preset
from llama.tasks.classification import ClassificationTask
from llama.tasks.pairs import TranslationTask
from llama.tasks.question_answering import QuestionAnsweringTask
from llama.tasks.tagging import Entity, NERTask, SegmentationTask
from llama.zero_shot.zero_shot import ZeroShot

REVIEWS = [{"text": "天气很好。", "label": "pos", "place": "r:1"},
           {"text": "The dog sleeps.", "label": "neg", "place": "r:2"}]
NEWS = [{"text": "小驼在北京", "tokens": list("小驼在北京"), "tags": ["B-PER", "I-PER", "O", "B-LOC", "I-LOC"],
         "starts": list(range(5)), "place": "n:1"}]
WORDS = [NEWS[0] | {"tags": ["B", "E", "S", "B", "E"]}]
QUESTIONS = [{"id": "1", "question": "谁？", "context": "小驼在北京", "answers": [{"text": "小驼", "start": 0}],
              "place": "q:1"}]
TEXTS = ["今天天气很好。", "The dog goes home.", "小驼 在北京"]
KINDS = [(ClassificationTask, {"attention": "full"}, REVIEWS, TEXTS),
         (ClassificationTask, {"multi_label": True}, [{"text": "a", "labels": ["x", "y"]}], TEXTS),
         (NERTask, {"scheme": "BMES"}, NEWS, TEXTS), (SegmentationTask, {}, WORDS, TEXTS),
         (QuestionAnsweringTask, {}, QUESTIONS, [("谁？", text) for text in (*TEXTS, "")])]


def command(monkeypatch, capsys, *arguments, stdin=b""):
    monkeypatch.setattr(sys, "argv", ["predict", "--device", "cpu", "--dtype", "float32", "--max-length", "96",
                                      *arguments])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
    predict.main()
    return capsys.readouterr()


@pytest.fixture(scope="module")
def trained(tiny_tokenizer, tmp_path_factory):
    """tiny/, and in adapter/ what it learned of reviews."""
    place = tmp_path_factory.mktemp("predict")
    torch.manual_seed(0)
    model = PretrainedLlama(preset("test", vocab_size=tiny_tokenizer.vocab_size), tiny_tokenizer)
    (place / "t.tsv").write_text("天气很好。\tpos\nThe dog sleeps.\tneg\n" * 4, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        model.save("tiny")
        patch.setattr("sys.argv", ["finetune.py", "--lora", "--task", "sentiment", "--data", "t.tsv", "--model", "tiny",
                                   "--output", "adapter", "--max-length", "64", "--epochs", "3", "--lr", "0.02",
                                   "--device", "cpu"])
        finetune.main()
    return place


@pytest.fixture
def folder(trained, monkeypatch):
    monkeypatch.chdir(trained)
    return trained


@pytest.mark.parametrize(("kind", "options", "data", "asked"), KINDS, ids=lambda each: getattr(each, "__name__", ""))
def test_two_ways_a_model_says_what_it_was_tuned_for(tiny_model, tmp_path, kind, options, data, asked):
    task = kind(**options)
    task.prepare(tiny_model, data)
    tiny_model.save(tmp_path / "out")
    again = load_model(tmp_path / "out")
    told = llama.task_of(again)
    assert type(told) is kind and told.labels == task.labels and told.attention == task.attention
    assert told.detailed(again, asked) == task.detailed(tiny_model, asked)
    assert [each["predicted"] for each in told.detailed(again, asked)] == told.predict(again, asked)


def test_refusal_a_language_model_does_not_say_what_it_is_for(tiny_model):
    with pytest.raises(ValueError, match="no head of labels, so it does not say"):
        llama.task_of(tiny_model)


def test_worked_example_what_is_printed():
    entities = [Entity("北京", "LOC", 3, 5), Entity("小驼", "PER", 0, 2)]
    assert predict.shown("ner", "小驼在北京\n。", {"predicted": entities}) == "[小驼 PER]在[北京 LOC] 。"
    assert predict.shown("segmentation", "小驼在北京", {"predicted": ["小驼", "在", "北京"]}) == "小驼 在 北京"
    sure = {"predicted": "pos", "confidence": 0.98765}
    assert predict.shown("sentiment", "好\x1b[2J", sure) == "pos\t0.988\t好 [2J"
    assert predict.shown("classification", "好", {"predicted": [], "confidence": 0.5}) == "-\t0.500\t好"
    context = "前" * 50 + "小驼" + "后" * 50
    assert predict.shown("qa", ("谁？", context), {"predicted": "小驼", "start": 50}) == (
        f"小驼\t…{'前' * 40}[小驼]{'后' * 40}…")
    assert predict.shown("qa", ("谁？", context), {"predicted": "", "start": 0}) == "-"
    assert predict.shown("translation", "x", {"predicted": "a\nb"}) == "a\nb"


def test_two_ways_the_command_says_what_python_does(folder, monkeypatch, capsys):
    model = llama.get_model("tiny")
    llama.lora.load_adapter(model, "adapter")
    found = llama.task_of(model).detailed(model, TEXTS)
    (folder / "more.txt").write_text(f"\n{TEXTS[1]}\n", encoding="utf-8")
    (folder / "more.jsonl").write_text(json.dumps({"text": TEXTS[2], "label": "?"}), encoding="utf-8")
    tuned = ["--adapter", "adapter", "--model", "tiny"]
    out = command(monkeypatch, capsys, *tuned, TEXTS[0], "--data", "more.txt", "--data", "more.jsonl", "--json").out
    places = ["text 1", "more.txt:2", "more.jsonl:1"]
    expected = [result | {"place": place} for result, place in zip(found, places, strict=True)]
    lines = [json.loads(line) for line in out.splitlines()]
    for line, each in zip(lines, expected, strict=True):
        assert line.pop("confidence") == pytest.approx(each.pop("confidence"), abs=1e-5) and line == each
    out = command(monkeypatch, capsys, *tuned, "--task", "sentiment", stdin="\n".join(TEXTS).encode()).out
    assert out == "".join(f"{each['predicted']}\t{each['confidence']:.3f}\t{text}\n" for each, text in zip(
        llama.task_of(model).detailed(model, TEXTS), TEXTS, strict=True))


def test_property_a_line_is_answered_before_the_next_is_written(tiny_model, monkeypatch):
    ClassificationTask().prepare(tiny_model, REVIEWS)
    read, write = os.pipe()
    monkeypatch.setattr(sys, "stdin", open(read, encoding="utf-8"))         # noqa: SIM115
    flags, answered, waited = TaskFlags(task="classification", max_length=96), threading.Event(), []

    def writes():
        for piece in ("天气很".encode()[:-1], "很".encode()[-1:] + b"\n", b"\nThe dog\r\nThe fox"):
            os.write(write, piece)
            if b"\n" in piece:
                waited.append(answered.wait(20))                    # or whoever waits for more would wait forever
                answered.clear()
        os.close(write)

    writer = threading.Thread(target=writes)
    writer.start()
    found = []
    for place, text, _ in predict.answers(
            tiny_model, flags, in_batches(predict.inputs("classification", [], [], None, flags), 8), max_new_tokens=4):
        found.append((place, text))
        answered.set()
    writer.join()
    sys.stdin.close()
    assert waited == [True, True]
    assert found == [("standard input:1", "天气很"), ("standard input:3", "The dog"), ("standard input:4", "The fox")]


def test_worked_example_long_texts_are_counted_once(folder, monkeypatch, capsys):
    out = command(monkeypatch, capsys, "--adapter", "adapter", "--model", "tiny", "--max-length", "16", "--json",
                  "--batch-size", "1", "The dog. " * 20, "The dog.", "小" * 40)
    lost = [json.loads(line).get("lost", 0) for line in out.out.splitlines()]
    assert lost[1] == 0 and lost[0] > 20 and lost[2] > 20
    assert out.err.count("2 of 3 texts were longer than 16 tokens and lost their end") == 1


def test_two_ways_a_model_without_training_is_asked(folder, tiny_model, monkeypatch, capsys):
    common = ["--model", "tiny", "--chat-format", "chatml"]
    out = command(monkeypatch, capsys, *common, "--task", "sentiment", "--labels", "good=好,bad=差", "--json", *TEXTS)
    shot = ZeroShot(ClassificationTask(("good", "bad"), max_length=96), words={"good": "好", "bad": "差"},
                    chat_format="chatml")
    assert [json.loads(line)["predicted"] for line in out.out.splitlines()] == shot.predict(tiny_model, TEXTS)
    assert "tiny has no head of labels; it is asked (zero-shot)" in out.err
    out = command(monkeypatch, capsys, *common, "--task", "qa", "--context", TEXTS[0], "谁？", "--json")
    answer = ZeroShot(QuestionAnsweringTask(max_length=96), chat_format="chatml").predict(
        tiny_model, [("谁？", TEXTS[0])])
    assert [json.loads(line)["predicted"] for line in out.out.splitlines()] == answer
    (folder / "q.jsonl").write_text(json.dumps({"question": "谁？", "context": TEXTS[0]}), encoding="utf-8")
    out = command(monkeypatch, capsys, *common, "--task", "qa", "--data", "q.jsonl", "--json")
    assert [json.loads(line)["predicted"] for line in out.out.splitlines()] == answer
    out = command(monkeypatch, capsys, *common, "--task", "segmentation", TEXTS[2])
    assert out.out == " ".join(ZeroShot(SegmentationTask(max_length=96), chat_format="chatml").predict(
        tiny_model, TEXTS[2:])[0]) + "\n"


def test_two_ways_what_is_written_is_what_python_writes(folder, tiny_model, monkeypatch, capsys):
    out = command(monkeypatch, capsys, "--model", "tiny", "--task", "translation", "--chat-format", "chatml",
                  "--max-new-tokens", "5", "--json", *TEXTS)
    written = TranslationTask(chat_format="chatml", max_length=96).predict(
        tiny_model, TEXTS, max_new_tokens=5, temperature=0.0)
    assert [json.loads(line) for line in out.out.splitlines()] == [
        {"place": f"text {i}", "text": text, "predicted": new.strip()}
        for i, (text, new) in enumerate(zip(TEXTS, written, strict=True), start=1)]


@pytest.mark.parametrize(("arguments", "words"), [
    ([" "], "text 1 is empty"),
    (["x"], "nobody says what to find; give --adapter"),
    (["--adapter", "adapter", "--task", "ner", "x"], "--task ner: the model was tuned for classification, with the "
                                                      "labels neg, pos; leave --task out"),
    (["--adapter", "adapter", "--labels", "a,b", "x"], "--labels is about what an untuned model is asked"),
    (["--adapter", "adapter", "--context", "a", "x"], "--context is the text that questions of --task qa"),
    (["--task", "qa", "x"], "a question needs the text that it is about"),
    (["--task", "qa", "--data", "t.tsv"], "questions with their texts are read from .jsonl"),
    (["--task", "sentiment", "x"], "there are no labels, and of two or more one is chosen"),
    (["--task", "qa", "--context", " ", "x"], "--context is empty"),
    (["--task", "sentiment", "--labels", "a", "x"], "there is one label alone, a, and of two or more one is chosen"),
    (["--adapter", "adapter"], "there is no text: what was given holds blank lines alone, or nothing"),
    (["--adapter", "adapter", "--data", "gone.txt"], "gone.txt: there is no such file"),
    (["--adapter", "adapter", "--data", "t.tsv"], "the first line has 2 columns and is no header"),
])
def test_refusal_in_one_sentence(folder, monkeypatch, capsys, arguments, words):
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        command(monkeypatch, capsys, "--model", "tiny", *arguments)


def test_refusal_a_line_that_is_no_text(folder, monkeypatch, capsys):
    tuned, lines = ["--adapter", "adapter", "--model", "tiny"], b"good\n\xff\nbad\n"
    with pytest.raises(ValueError, match="standard input:2: byte 1 of this line is not UTF-8; .*--skip-bad"):
        command(monkeypatch, capsys, *tuned, stdin=lines)
    assert len(command(monkeypatch, capsys, *tuned, "--skip-bad", stdin=lines).out.splitlines()) == 2


def test_property_what_a_text_says_is_no_special_token(tiny_model):
    """It would end the conversation in which a model is asked."""
    model = PretrainedLlama(preset("test", vocab_size=tiny_model.config.vocab_size), tiny_model.tokenizer)
    ClassificationTask().prepare(model, REVIEWS)
    task = llama.task_of(model)
    special = set(model.tokenizer.special_ids.values())
    assert not special & set(task.pieces(task.example("a<|im_end|>b"), model.tokenizer)[0].ids)
