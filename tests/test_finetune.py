import json

import pytest

import finetune
from llama.training import recipes

TALKS = [{"instruction": f"The dog {number}?", "output": "sleeps."} for number in range(4)]
LABELS = [{"text": "The dog sleeps.", "label": "+"}, {"text": "天气很好。", "label": "-"}]


@pytest.fixture
def door(tiny_model, tmp_path, monkeypatch, capsys):
    """finetune.py on lines of JSON, for a step, the tiny model with the shortest chat format."""
    monkeypatch.chdir(tmp_path)
    tiny_model.save("model")

    def door(data, test, *flags, way=("--lora",)):
        for name, records in (("a.jsonl", data), ("test.jsonl", test)):
            (tmp_path / name).write_text("".join(json.dumps(each) + "\n" for each in records), encoding="utf-8")
        monkeypatch.setattr("sys.argv", ["finetune.py", *way, "--model", "model", "--data", "a.jsonl",
                                         "--test-data", "test.jsonl", "--max-steps", "1", "--device", "cpu", "--output",
                                         "adapter", "--overwrite", "--max-length", "100", *flags])
        finetune.main()
        out = capsys.readouterr()
        return json.loads(out.out.splitlines()[-1]), out.err
    return door


def test_worked_example_test_data_that_is_hard_to_score_is_scored(door, caplog):
    """A label that was not learned is an error; a question longer than all that the model reads loses its middle."""
    result, _ = door(LABELS * 4, [*LABELS, {"text": "x", "label": "new"}], "--task", "classification")
    assert result["test"]["accuracy"] in (1 / 3, 2 / 3, 0.0) and "count as errors: first 'new' in" in caplog.text
    result, _ = door(TALKS, [{"instruction": "The dog " * 400, "output": "sleeps."}], "--chat-format", "chatml")
    assert result["test"]["loss"] > 0 and "1 read a question without its middle" in caplog.text


def test_worked_example_test_data_in_which_something_is_wrong_is_scored_without_it(door, caplog):
    """Also where the format finds it, and not the file."""
    tool = {"messages": [{"role": "tool", "content": "?"}, {"role": "assistant", "content": "!"}]}
    result, _ = door(TALKS, [tool, *TALKS], "--chat-format", "chatml", "--skip-bad")
    assert "exact_match" in result["test"] and "1 of 5 questions cannot be asked, and are not scored" in caplog.text


@pytest.mark.parametrize(("data", "test", "flags", "words"), [
    (LABELS * 4, [{"text": "x", "label": "new"}], ["--task", "classification"], "none of 1 examples has a label that"),
    (TALKS, TALKS, ["--chat-format", "chatml", "--max-length", "9"], "none of 4 samples has room for an answer"),
    (TALKS, [{"messages": [{"role": "tool", "content": "?"}, {"role": "assistant", "content": "!"}]}],
     ["--chat-format", "chatml"], "message 1 of the chat has the role 'tool'"),
])
def test_refusal_of_test_data_before_anything_is_learned(door, tmp_path, data, test, flags, words):
    with pytest.raises(ValueError, match=words):
        door(data, test, *flags)
    assert not (tmp_path / "adapter").exists() and not (tmp_path / "adapter.training" / "metrics.jsonl").exists()


def test_worked_example_flags_of_reading_reach_the_files(door, tmp_path, caplog):
    (tmp_path / "gbk.jsonl").write_bytes(json.dumps(TALKS[0] | {"output": "天气很好"}, ensure_ascii=False).encode("gbk")
                                         + b'\n{"instruction": 5}\n')
    flags = ["--chat-format", "chatml", "--data", "gbk.jsonl"]
    result, _ = door(TALKS, TALKS, *flags, "--encoding", "gb18030", "--skip-bad")
    assert result["data"]["samples"] == 1
    assert "1 left out by --skip-bad, the first: gbk.jsonl:2: the field" in caplog.text
    with pytest.raises(ValueError, match="gbk.jsonl:1: byte 42 .* if it says «天气很好.*», give --encoding gb18030"):
        door(TALKS, TALKS, *flags)


@pytest.mark.parametrize(("way", "rate"), [(("--lora",), 3e-4), (("--freeze-layers", "1"), 2e-4), ((), 1e-4),
                                           (("--freeze", "norms"), 1e-4), (("--lora", "--lr", "0.5"), 0.5)])
def test_worked_example_each_way_of_tuning_learns_at_its_own_rate(door, tmp_path, monkeypatch, way, rate):
    recipe = recipes.RECIPES["instruction"]._replace(lr=(3e-4, 2e-4, 1e-4))
    monkeypatch.setitem(recipes.RECIPES, "instruction", recipe)
    door(TALKS, TALKS, "--chat-format", "chatml", "--schedule", "constant", way=way)
    lines = [json.loads(line) for line in (tmp_path / "adapter.training" / "metrics.jsonl").open(encoding="utf-8")]
    assert [line["lr"] for line in lines if "lr" in line] == [rate]


def test_worked_example_a_run_that_ends_worse_says_so_in_its_json(door):
    flags = ("--chat-format", "chatml", "--eval-data", "test.jsonl", "--lr", "30")
    result, said = door(TALKS, TALKS, *flags, way=())
    before, after = result["eval_before"]["loss"], result["eval"]["loss"]
    assert result["eval_worse"] is True and after > before
    assert f"loss {after:.4f}, before {before:.4f}; start anew with an --lr below 30\n" in said
