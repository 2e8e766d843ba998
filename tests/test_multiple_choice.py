import json
import sys

import pytest
import torch

import finetune
from llama.datasets.multiple_choice import MultipleChoiceDataset
from llama.evaluate import main as evaluate_main
from llama.metrics.intervals import margin_of_mean, wilson_interval
from llama.tasks.multiple_choice import MultipleChoiceTask
from llama.trainer import Trainer
from llama.zero_shot.zero_shot import ZeroShot

ENGLISH = {"question": "The dog?", "options": {"A": "sleeps", "B": "jumps over the fox"}, "answer": "B",
           "subject": "dogs", "place": "d:1"}
CHINESE = {"question": "今天天气？", "options": {"A": "很好", "B": "小小的", "C": "x"}, "answer": "A",
           "subject": "天气", "place": "w:1"}


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def folder(tmp_path):
    """Two subjects, one laid out as CMMLU's and one as C-Eval's."""
    for split, marks in (("dev", "BA"), ("test", "ABC")):
        write(tmp_path / split / "weather.csv", [",Question,A,B,C,Answer", *(
            f'{i},"{split}, 天气{i}",很好,x,"a ""b""",{mark}' for i, mark in enumerate(marks))])
        write(tmp_path / split / f"dogs_{split}.csv", ["id,question,A,B,answer" + ",explanation" * (split == "dev"), *(
            f"{i},{split} dog {i},sleeps,jumps,{min(mark, 'B').lower()}" + ",so" * (split == "dev")
            for i, mark in enumerate(marks))])
    return tmp_path


def test_two_ways_both_layouts_hold_the_same_questions(tmp_path):
    cmmlu = write(tmp_path / "x.csv", [",Question,A,B,C,D,Answer", "0,天气？,很好,x,y,z,B"])
    ceval = write(tmp_path / "x_val.csv", ["id,question,A,B,C,D,answer,explanation", "0,天气？,很好,x,y,z,B,"])
    (ours,), (theirs,) = MultipleChoiceDataset(cmmlu), MultipleChoiceDataset(ceval)
    assert ours == {"question": "天气？", "options": {"A": "很好", "B": "x", "C": "y", "D": "z"}, "answer": "B",
                    "subject": "x", "place": f"{cmmlu}:2"} == theirs | {"place": f"{cmmlu}:2"}


def test_worked_example_a_folder_asks_what_is_in_test_and_shows_what_is_in_dev(tmp_path):
    data = MultipleChoiceDataset(folder(tmp_path))
    assert [each["question"] for each in data] == [*(f"test dog {i}" for i in range(3)),
                                                   *(f"test, 天气{i}" for i in range(3))]
    assert data.subjects == ["dogs", "weather"] and data[5]["options"]["C"] == 'a "b"'
    assert [each["question"] for each in data.shots(1)] == ["dev dog 0", "dev, 天气0"]
    assert [each["answer"] for each in data.shots(2)] == ["B", "A", "B", "A"]
    assert data.part([0, 5]).dev == data.dev
    pool = list(MultipleChoiceDataset(tmp_path / "dev" / "weather.csv"))
    assert [(each["subject"], each["place"]) for each in data.shots(1, pool)] == [
        ("dogs", pool[0]["place"]), ("weather", pool[0]["place"])]
    with pytest.raises(ValueError, match="--few-shot 3: of the subject 'dogs' there are 2 to show"):
        data.shots(3)
    (tmp_path / "dev" / "dogs_dev.csv").unlink()                        # what is shown of dogs is not about the weather
    with pytest.raises(ValueError, match="--few-shot 1: of the subject 'dogs' there are 0 to show"):
        MultipleChoiceDataset(tmp_path).shots(1)


def test_worked_example_a_test_without_answers_gives_way_to_val(tmp_path, caplog):
    write(tmp_path / "test" / "a_test.csv", ["id,question,A,B", "0,x,y,z"])
    assert "answer" not in MultipleChoiceDataset(tmp_path)[0]
    write(tmp_path / "val" / "a_val.csv", ["id,question,A,B,answer", "0,v,y,z,A"])
    assert [each["question"] for each in MultipleChoiceDataset(tmp_path)] == ["v"]
    assert "its questions come without answers; those of" in caplog.text


@pytest.mark.parametrize(("rows", "words"), [
    (["question,A,C,answer", "x,y,z,A"], "x.csv:1: the columns are question, A, C, answer; questions have"),
    (["a question,A,B,answer", "x,y,z,A"], "x.csv:1: the columns are"),
    (["question,A,B,answer", "x,y, ,A"], "x.csv:2: the column 'B' is empty"),
    (["question,A,B,answer", "x,y,z,C"], "x.csv:2: the answer is 'C', and the options are A, B"),
    (["question,A,B,answer", "x,y,z"], "x.csv:2: this line has 3 columns, and 4 are expected"),
    (["question,A,B,answer"], "x.csv: the file holds no questions"),
])
def test_refusal_of_what_is_no_question(tmp_path, rows, words):
    with pytest.raises(ValueError, match=words):
        MultipleChoiceDataset(write(tmp_path / "x.csv", rows))
    if len(rows) > 1 and "2:" in words:
        good = MultipleChoiceDataset(write(tmp_path / "x.csv", [*rows, "v,w,x,B"]), skip_bad=True)
        assert [each["question"] for each in good] == ["v"]


def test_refusal_of_folders_that_ask_nothing(tmp_path):
    with pytest.raises(ValueError, match="there is no .csv in this folder"):
        MultipleChoiceDataset(tmp_path)
    write(tmp_path / "dev" / "x.csv", ["question,A,B,answer", "x,y,z,A"])
    with pytest.raises(ValueError, match="the folder has examples in dev/ alone"):
        MultipleChoiceDataset(tmp_path)


def test_worked_example_what_is_asked(tiny_model):
    letters = ZeroShot(MultipleChoiceTask(), [ENGLISH, CHINESE]).asker
    assert letters.text(ENGLISH, [ENGLISH], 1) == (
        "The following are questions with one right answer each.\n\n"
        "The dog?\nA. sleeps\nB. jumps over the fox\nAnswer: B\n\n"
        "The dog?\nA. sleeps\nB. jumps over the fox\nAnswer:")
    texts = ZeroShot(MultipleChoiceTask("text"), [CHINESE], request="请答：").asker
    assert texts.text(CHINESE, [CHINESE], 0) == "请答：\n\n今天天气？\n答案：很好\n\n今天天气？\n答案："
    letters.open(tiny_model)
    prefix, options = letters.encoded(ENGLISH | {"subject": "cats"})    # of another subject: no example
    encode = tiny_model.tokenizer.encode
    assert prefix == encode(letters.text(ENGLISH, [], 1)) and options == {"A": encode(" A"), "B": encode(" B")}
    assert letters.encoded(CHINESE)[1]["C"] == encode("C")


@pytest.mark.parametrize("score", ["letter", "text"])
@pytest.mark.parametrize("shots", [[], [ENGLISH, CHINESE]], ids=["0", "1"])
def test_two_ways_scores_equal_those_of_plain_forward_passes(tiny_model, score, shots):
    shot = ZeroShot(MultipleChoiceTask(score), shots)
    questions = [ENGLISH | {"question": "你好？"}, CHINESE | {"question": "The fox?"}, CHINESE]
    for question, result in zip(questions, shot.results(tiny_model, questions), strict=True):
        prefix, options = shot.asker.encoded(question)
        expected = {}
        for letter, ids in options.items():
            with torch.no_grad():
                logs = tiny_model(torch.tensor([prefix + ids]))[0].log_softmax(-1)
            total = sum(logs[len(prefix) + i - 1, id].item() for i, id in enumerate(ids))
            expected[letter] = total / (len(question["options"][letter].encode()) if score == "text" else 1)
        assert result["scores"] == pytest.approx(expected, abs=1e-4) and not result["tie"]
        assert result["predicted"] == max(expected, key=expected.get)
        assert result["correct"] == (result["predicted"] == result["gold"])
    assert shot.predict(tiny_model, questions) == [each["predicted"] for each in shot.results(tiny_model, questions)]


def test_worked_example_of_equals_the_first_counts_and_is_told(tiny_model):
    torch.nn.init.zeros_(tiny_model.embed_tokens.weight)            # every id is as likely as every other
    task = MultipleChoiceTask()
    results = ZeroShot(task).results(tiny_model, [ENGLISH, CHINESE])
    assert [(each["predicted"], each["tie"], each["correct"]) for each in results] == [
        ("A", True, False), ("A", True, True)]
    details, text = task.report(results)
    assert details["ties"] == 2 and "of 2 questions two options or more were equally likely" in text
    assert details["chance"] == pytest.approx((1 / 2 + 1 / 3) / 2)


def test_property_a_long_question_is_asked_with_fewer_examples(tiny_model, caplog):
    shots = [ENGLISH | {"question": f"{i} " + "The dog sleeps. " * 12} for i in range(3)]
    shot = ZeroShot(MultipleChoiceTask(), shots)
    shot.asker.open(tiny_model)
    room = tiny_model.config.rope_stable_length
    sizes = [len(tiny_model.tokenizer.encode(shot.asker.text(ENGLISH, shots[:count], 1))) for count in range(4)]
    assert sizes[0] < room - 1 < sizes[3]
    fit = max(count for count in range(4) if sizes[count] <= room - 1)
    assert len(shot.asker.encoded(ENGLISH)[0]) == sizes[fit]
    shot.results(tiny_model, [ENGLISH, CHINESE])
    assert f"1 of 2 questions had no room for all of their examples in the {room} tokens" in caplog.text
    with pytest.raises(ValueError, match="d:9: it is .* tokens long, and the model has room for"):
        shot.results(tiny_model, [ENGLISH, ENGLISH | {"question": "dog " * 400, "place": "d:9"}])


def test_worked_example_scores_by_subject():
    """Of 40 questions 17 are right, of another 10, 9."""
    task = MultipleChoiceTask()
    results = [{"subject": name, "correct": i < right, "tie": False, "scores": dict.fromkeys("ABCD", 0.0)}
               for name, right, count in (("astronomy", 17, 40), ("天文", 9, 10)) for i in range(count)]
    assert task.compute_metrics(results) == pytest.approx({
        "accuracy": 26 / 50, "accuracy_low": 0.38515, "accuracy_high": 0.65203, "macro_accuracy": (0.425 + 0.9) / 2,
        "macro_margin": 0.13010}, abs=1e-4)
    details, text = task.report(results)
    assert details["by_subject"]["astronomy"] == pytest.approx(
        {"accuracy": 0.425, "low": 0.28509, "high": 0.57805, "questions": 40}, abs=1e-5)
    assert "astronomy                                       40    0.4250   0.2851 … 0.5781" in text
    assert "天文                                            10    0.9000" in text
    assert details["interval"] == "Wilson, 95 %"


def test_worked_example_error_bars():
    """Wilson's by its own equation: the ends are where a share p lies z standard errors of its own from k / n."""
    for right, count in ((0, 5), (5, 5), (3, 7), (170, 400)):
        for end in wilson_interval(right, count):
            assert (right / count - end) ** 2 == pytest.approx(1.96**2 * end * (1 - end) / count, abs=1e-9)
    assert wilson_interval(0, 5)[0] == 0 and wilson_interval(5, 5)[1] == 1
    assert margin_of_mean([(50, 100)] * 4) == pytest.approx(1.96 * (0.25 / (100 + 1.96**2) / 4) ** 0.5)
    for right, count in ((1, 0), (3, 2), (-1, 2)):
        with pytest.raises(ValueError, match="is no share"):
            wilson_interval(right, count)


def test_refusal_of_training_on_what_measures(tiny_model, monkeypatch):
    task = MultipleChoiceTask()
    for train in (lambda: task.prepare(tiny_model, [ENGLISH]), lambda: Trainer(tiny_model, task, [ENGLISH])):
        with pytest.raises(ValueError, match="it is never trained on them"):
            train()
    monkeypatch.setattr(sys, "argv", ["finetune.py", "--lora", "--task", "multiple-choice", "--data", "nowhere"])
    with pytest.raises(ValueError, match="it is never trained on them"):
        finetune.main()


def test_two_ways_the_command_says_what_python_does(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(folder(tmp_path))
    tiny_model.save("tiny")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["evaluate", "--task", "multiple-choice", "--model", "tiny", "--device", "cpu",
                                          "--data", *arguments])
        evaluate_main()
        return capsys.readouterr().out

    data = MultipleChoiceDataset(".")
    for score, shots in (("letter", 0), ("text", 2)):
        found = json.loads(run(".", "--json", "--few-shot", str(shots), "--score", score, "--predictions", "p.jsonl"))
        task = MultipleChoiceTask(score)
        results = ZeroShot(task, data.shots(shots)).results(tiny_model, data)
        lines = (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == results
        assert found == task.compute_metrics(results) | task.report(results)[0]
    assert run("test/weather.csv", "--few-shot", "1", "--examples", "dev/weather.csv", "--limit", "2").splitlines()[
        -2].startswith("weather ")
    for arguments, words in ((["test", "--few-shot", "1"], "of the subject 'dogs' there are 0 to show"),
                             (["test", "--examples", "dev"], "give both, or neither"),
                             (["test", "--chat-format", "chatml"], "asked as text that goes on, and not as a chat"),
                             (["test", "--max-length", "99"], "its questions are never cut; leave them out")):
        with pytest.raises(ValueError, match=words):
            run(*arguments)
    write(tmp_path / "secret.csv", ["id,question,A,B", "0,x,y,z"])
    with pytest.raises(ValueError, match="secret.csv:2: it does not say which option is right"):
        run("secret.csv")
