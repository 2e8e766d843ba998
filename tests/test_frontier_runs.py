"""Commands and their kept results: llama/frontier/runs.py."""

import json
import sys

import pytest

from llama.frontier.runs import Results, going_on, run, shown, timed


def test_property_results_are_there_after_every_one(tmp_path):
    kept = Results(tmp_path / "deep" / "r.json")
    assert not kept
    kept.keep("a", {"loss": 1.5})
    kept.keep("b", {"loss": 2.5})
    again = Results(tmp_path / "deep" / "r.json")
    assert again == kept and again["a"]["loss"] == 1.5 and again["b"]["date"]
    again.keep("c", {"loss": 3.5})                                  # two commands at once
    kept.keep("d", {"loss": 4.5})
    assert list(Results(tmp_path / "deep" / "r.json")) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("text", ["[1]", "{", '{"a": 1}'])
def test_refusal_a_file_of_something_else(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="holds no results of runs; give another file"):
        Results(path)
    assert path.read_text(encoding="utf-8") == text


def test_property_an_interrupted_training_goes_on(tmp_path):
    output = tmp_path / "model"
    assert going_on(output, again=False) == ["--overwrite"]
    state = tmp_path / "model.training" / "last-7.pt"
    state.parent.mkdir()
    state.touch()
    assert going_on(output, again=False) == ["--resume"]
    assert going_on(output, again=True) == ["--overwrite"]
    output.mkdir()                                                  # it has ended
    assert going_on(output, again=False) == ["--overwrite"]


def test_worked_example_the_last_line_is_the_result_and_time_is_told(tmp_path):
    script = tmp_path / "s.py"
    script.write_text("import time\nend = time.process_time() + 0.1\nwhile time.process_time() < end: pass\n"
                      "print('…')\nprint('{\"loss\": 2}')\n", encoding="utf-8")
    found = timed([str(script)], tmp_path / "log")
    assert found["loss"] == 2 and found["wall"] >= 0.1
    if sys.platform != "win32":
        assert 0.1 <= found["cpu"] < 2


@pytest.mark.parametrize(("code", "words"), [
    ("import sys; sys.exit('no such thing')", "ended with 1: no such thing"),
    ("print(1 +", "ended with 1: SyntaxError"), ("print('done')", "printed no JSON")])
def test_refusal_says_the_last_words(tmp_path, code, words):
    with pytest.raises(RuntimeError, match=words):
        run([sys.executable, "-c", code], tmp_path / "log")


def test_worked_example_a_command_as_one_types_it():
    assert shown(["train.py", "--data", "my text.txt"]) == "python train.py --data 'my text.txt'"
    assert shown(["-m", "llama.evaluate"]) == "python -m llama.evaluate"
    assert json.dumps(shown(["other", "x"])) == '"other x"'
