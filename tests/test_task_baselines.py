"""Methods of old on tasks, and the table that sets them beside ours: tests/benchmarks."""

import json
import sys
from pathlib import Path

import pytest

from tests.benchmarks import __main__ as comparison
from tests.benchmarks import programs
from tests.benchmarks.baselines import NAMES, dictionary, first, scores_of, window
from tests.benchmarks.sets import SETS, examples_of, files_of, texts_of


def test_worked_example_the_window_around_the_questions_rare_characters():
    text = "小驼的书的字的画的纸的色的光的影。天气很好。白龙住在北京三年。"
    train = [{"answers": [{"text": "北京", "start": 0}]}]
    [answer] = window(train, [{"context": text, "question": "白龙的家呢？"}])
    assert len(answer) == 2 and answer in text[text.index("。") :]


def test_worked_example_a_dictionary_from_pairs():
    train = [{"source": source, "target": target} for source, target in (
        ("I see a dog", "我看見狗"), ("the dog sleeps", "狗睡了"), ("I sleep", "我睡"), ("a red dog", "紅狗"))]
    assert dictionary(train, [{"source": "Dog!"}]) == ["狗"]
    assert dictionary(train, [{"source": "nothing known"}]) == [""]
    train = [{"source": "曰，吾往矣", "target": "说，我去了"}, {"source": "吾友曰", "target": "我朋友说"},
             {"source": "吾子", "target": "我儿子"}]
    assert dictionary(train, [{"source": "吾曰"}]) == ["我说"]      # of classical Chinese each character


def test_worked_example_first_sentence_and_scores():
    assert first([], [{"source": "天气很好。我们去公园。"}]) == ["天气很好"]
    assert scores_of("summarization", [{"target": "天气很好"}], ["天气很好"])["rouge_l"] == 1
    assert scores_of("classification", [{"label": "a"}, {"label": "b"}], ["a", "a"])["accuracy"] == 0.5
    assert scores_of("translation", [{"target": "天气很好"}], ["天气很好"])["bleu"] == pytest.approx(100)
    assert scores_of("qa", [{"answers": [{"text": "小驼"}]}], ["小驼"])["f1"] == 1
    sentence = [{"tokens": list("小驼在"), "tags": ["B", "E", "S"]}]
    assert scores_of("segmentation", sentence, [["S", "S", "S"]])["precision"] == pytest.approx(1 / 3)
    assert scores_of("ner", [{"tags": ["B-PER", "O"]}], [["B-PER", "O"]])["f1"] == 1


def test_property_divided_files_are_made_once_and_nothing_is_on_two_sides(tmp_path):
    lines = [f"Sentence {n * 7919} about {chr(97 + n % 26) * 9} and {n}\t"
             f"第{n * 7919}句话关于{chr(0x4E00 + 7 * n) * 6}" for n in range(60)]
    (tmp_path / "tatoeba_en_zh.txt").write_text("\n".join(lines), encoding="utf-8")
    files = files_of("sentences", tmp_path, tmp_path / "work")
    parts = [[example["source"] for example in examples_of("sentences", file)] for file in files.values()]
    assert sorted(sum(parts, [])) == sorted(line.split("\t")[0] for line in lines) and all(parts)
    before = files["train"].stat().st_mtime_ns
    assert files_of("sentences", tmp_path, tmp_path / "work")["train"].stat().st_mtime_ns == before
    assert len(texts_of("sentences", files["train"])) == 2 * len(parts[0])
    with pytest.raises(ValueError, match="is not here; say with --samples"):
        files_of("titles", tmp_path, tmp_path / "work")


def test_property_an_interrupted_comparison_goes_on(tmp_path, monkeypatch, capsys):
    """What is there is not run again; what fails is left out and said, and the exit code tells."""
    ran = []

    def fake(command, log):
        ran.append(command)
        if "finetune.py" in command:
            raise RuntimeError("no luck")
        return {"scores": {"accuracy": 0.5}, "minutes": 0.1, "memory": 1e9}

    monkeypatch.setattr(programs, "run", fake)
    monkeypatch.setattr(comparison, "files_of", lambda *a: {part: Path(part) for part in ("train", "dev", "test")})
    argv = ["x", "--only", "poets", "--programs", "baselines", "default", "--output", str(tmp_path / "r.json"),
            "--work", str(tmp_path)]
    for times in (2, 3):
        monkeypatch.setattr("sys.argv", argv)
        with pytest.raises(SystemExit) as left:
            comparison.main()
        out = capsys.readouterr()
        assert left.value.code == 1 and "no luck" in out.err and len(ran) == times
        assert "TF-IDF, logistic regression" in out.out and "**0.500**" in out.out
        assert f"[1/{4 - times}] poets: " in out.err and "all that is left: about" in out.err
    kept = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["poets"]
    assert kept.keys() == {NAMES["tfidf"]} and "tests.benchmarks.baselines tfidf poets" in kept[NAMES["tfidf"]][
        "commands"][0]


def test_property_an_interrupted_training_goes_on(tmp_path, monkeypatch):
    """The small model is there, the training for the task was broken off; minutes and the larger memory add up."""
    ran = []

    def fake(command, log):
        ran.append(command)
        return {"accuracy": 0.5, "macro_f1": 0.25} if "llama.evaluate" in command else {
            "train": {"seconds": 120.0, "peak_memory": 10 ** len(ran)}}

    monkeypatch.setattr(programs, "run", fake)
    monkeypatch.setattr(programs, "texts_of", lambda *a: ["a text"])
    monkeypatch.setitem(programs.WAYS, "poets", programs.Way(10, 0.5, ("--preset", "test"), ("--lr", "1e-3")))
    state = tmp_path / "poets" / "small-tuned.training" / "last-7.pt"
    state.parent.mkdir(parents=True)
    state.touch()
    files = {part: tmp_path / f"{part}.jsonl" for part in ("train", "dev", "test")}
    found = programs.measured("poets", programs.SMALL, files, work=tmp_path, minutes=10)
    write, learn, score = ran
    assert write[1] == "train.py" and "--overwrite" in write and "5.00" in write        # half of the minutes
    assert learn[1] == "finetune.py" and "--resume" in learn and "8.00" in learn        # what is left of them
    assert "--overwrite" not in learn and score[score.index("--model") + 1] == str(tmp_path / "poets" / "small-tuned")
    assert found["scores"] == {"accuracy": 0.5, "macro_f1": 0.25}
    assert (found["minutes"], found["memory"], len(found["commands"])) == (4.0, 100, 3)
    programs.measured("poets", programs.SMALL, files, work=tmp_path, again=True)
    assert "--overwrite" in ran[4] and "--resume" not in ran[4]
    ran.clear()
    programs.measured("poets", programs.CHINESE, files, work=tmp_path, minutes=10, limit=7)
    *converted, learn, score = ran
    assert [command[command.index("--characters") + 1] for command in converted] == ["t2s", "t2s"]
    for command, made in ((learn, converted[0]), (score, converted[1])):    # poems come in traditional characters
        assert command[command.index("--data") + 1] == made[made.index("--output") + 1]
    assert learn[learn.index("--model") + 1] == "zh-small" and "10.00" in learn
    assert "--limit" not in score and "--max-new-tokens" not in score       # labels are cheap: all are scored
    ran.clear()
    programs.measured("sentences", programs.CHINESE, files, work=tmp_path, limit=7)
    assert ran[1][-2:] == ["--limit", "7"] and "48" in ran[1] and len(ran) == 2
    ran.clear()
    programs.measured("classical", programs.CHINESE, files, work=tmp_path, limit=7)
    assert all(command[command.index("--request") + 1] == "译成白话：" for command in ran)      # asked as it was tuned
    ran.clear()
    programs.measured("disciplines", programs.LARGER, files, work=tmp_path)
    learn, score = ran
    assert "--lora" in learn and learn[learn.index("--model") + 1] == programs.LARGE
    assert score[score.index("--adapter") + 1] == learn[learn.index("--output") + 1] and "--model" not in score
    assert programs.WAYS.keys() == SETS.keys()


@pytest.mark.parametrize(("program", "flags"), [(f"{programs.LARGE}, asked", ["--zero-shot"]),
                                                 (f"{programs.LARGE}, 4 examples", ["--few-shot", "4"])])
def test_property_a_model_that_is_asked_learns_nothing_and_answers_some(tmp_path, monkeypatch, program, flags):
    ran = []
    monkeypatch.setattr(programs, "run", lambda command, log: ran.append(command) or {"accuracy": 0.5, "examples": 9})
    monkeypatch.setattr(programs, "examples_of", lambda name, file: [{"label": "李白"}, {"label": "杜甫"}])
    files = {part: tmp_path / f"{part}.jsonl" for part in ("train", "dev", "test")}
    found = programs.measured("poets", program, files, work=tmp_path)
    [command] = ran
    assert command[command.index("--labels") + 1] == "李白,杜甫"
    at = command.index(flags[0])
    assert command[at : at + len(flags)] == flags and command[-2:] == ["--limit", str(programs.ASKED_OF)]
    assert ("--examples" in command) == ("--few-shot" in flags)
    assert (found["scores"], found["minutes"], found["limit"]) == ({"accuracy": 0.5}, 0.0, programs.ASKED_OF)
    assert "100" in comparison.table({"poets": {program: found}})


def test_property_ctrl_c_is_told_in_a_sentence(tmp_path, monkeypatch, capsys):
    def interrupted(*a, **k):
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "files_of", lambda *a: {})
    monkeypatch.setattr(comparison, "measured", interrupted)
    monkeypatch.setattr("sys.argv", ["x", "--only", "poets", "--output", str(tmp_path / "r.json")])
    with pytest.raises(SystemExit) as left:
        comparison.main()
    assert left.value.code == 130 and "the same command goes on" in capsys.readouterr().err


def test_refusal_a_missing_package_is_told_in_a_sentence(tmp_path):
    (tmp_path / "t.jsonl").write_text('{"text": "a", "label": "positive"}\n', encoding="utf-8")
    file = str(tmp_path / "t.jsonl")
    with pytest.raises(RuntimeError, match="ended with 2: the baseline bayes needs the package snownlp; pip install"):
        programs.run([sys.executable, "-m", "tests.benchmarks.baselines", "bayes", "sentiment-reviews", file, file],
                     tmp_path / "log")
