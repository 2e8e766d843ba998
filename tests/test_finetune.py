import json

import pytest
import torch

import finetune
from llama.checkpoint import load_model
from llama.lora import adapter_configs, load_adapter
from llama.resize import resize_embeddings
from llama.training import recipes
from tokenizer.bpe_extend import extend_bpe

TALKS = [{"instruction": f"The dog {number}?", "output": "sleeps."} for number in range(4)]
LABELS = [{"text": "The dog sleeps.", "label": "+"}, {"text": "天气很好。", "label": "-"}]

CHINESE = ["我们去北京，北京的天气很好，今天去。"] * 4


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
    assert result["data"]["samples"] == len(TALKS) + 1               # beside the door's own --data
    assert "1 left out by --skip-bad, the first: gbk.jsonl:2: the field" in caplog.text
    with pytest.raises(ValueError, match="gbk.jsonl:1: byte 42 .* if it says «天气很好.*», give --encoding gb18030"):
        door(TALKS, TALKS, *flags)


def test_worked_example_the_command_that_uses_the_result_asks_as_it_was_tuned(door):
    pairs = [{"source": "子曰", "target": "孔子说"}]
    _, said = door(pairs, pairs, "--task", "translation", "--request", "Say it:", "--chat-format", "plain")
    assert "--task translation --request 'Say it:' --data FILE" in said and "--request 'Say it:' TEXT" in said


@pytest.mark.parametrize(("way", "rate"), [(("--lora",), 3e-4), (("--freeze-layers", "1"), 2e-4), ((), 1e-4),
                                           (("--freeze", "norms"), 1e-4), (("--lora", "--lr", "0.5"), 0.5)])
def test_worked_example_each_way_of_tuning_learns_at_its_own_rate(door, tmp_path, monkeypatch, way, rate):
    recipe = recipes.RECIPES["instruction"]._replace(lr=(3e-4, 2e-4, 1e-4))
    monkeypatch.setitem(recipes.RECIPES, "instruction", recipe)
    door(TALKS, TALKS, "--chat-format", "chatml", "--schedule", "constant", way=way)
    lines = [json.loads(line) for line in (tmp_path / "adapter.training" / "metrics.jsonl").open(encoding="utf-8")]
    assert [line["lr"] for line in lines if "lr" in line] == [rate]
    assert [line["done"] for line in lines if "done" in line] == [1.0]      # of the one step


def test_worked_example_a_run_that_ends_worse_says_so_in_its_json(door):
    flags = ("--chat-format", "chatml", "--eval-data", "test.jsonl", "--lr", "30")
    result, said = door(TALKS, TALKS, *flags, way=())
    before, after = result["eval_before"]["loss"], result["eval"]["loss"]
    assert result["eval_worse"] is True and after > before
    assert f"loss {after:.4f}, before {before:.4f}; start anew with an --lr below 30\n" in said


@pytest.fixture
def grown(tiny_model, tmp_path, monkeypatch, capsys):
    """finetune.py on text, new rows of a grown tiny model, as one calls it."""
    monkeypatch.chdir(tmp_path)
    resize_embeddings(tiny_model, extend_bpe(tiny_model.tokenizer, CHINESE, 12))
    tiny_model.save("model")
    (tmp_path / "zh.txt").write_text("\n\n".join(CHINESE * 4), encoding="utf-8")

    def door(*flags, way=("--train-new-rows",)):
        monkeypatch.setattr("sys.argv", ["finetune.py", *way, "--model", "model", "--task", "generation", "--data",
                                         "zh.txt", "--max-length", "16", "--batch-size", "2", "--schedule", "constant",
                                         "--warmup", "0", "--lr", "0.01", "--device", "cpu", *flags])
        finetune.main()
        out = capsys.readouterr()
        return json.loads(out.out.splitlines()[-1]) | {"said": out.err}
    return door


@pytest.mark.parametrize("more", [[], ["--lora", "--targets", "q_proj"]], ids=["alone", "beside LoRA"])
def test_property_new_rows_learn_and_old_ones_stay_to_the_bit(grown, tmp_path, more):
    grown(*more, "--max-steps", "4", "--output", "whole", "--merge")
    before, after = load_model(tmp_path / "model"), load_model(tmp_path / "whole-merged")
    V = before.tokenizer.first_new_id
    assert torch.equal(before.embed_tokens.weight[:V], after.embed_tokens.weight[:V])
    assert (before.embed_tokens.weight[V:] != after.embed_tokens.weight[V:]).any(1).all()
    others = {name for name, parameter in after.named_parameters()
              if not torch.equal(parameter, before.get_parameter(name))}
    assert others == {"embed_tokens.weight"} | {f"layers.{i}.self_attn.q_proj.weight" for i in range(2) if more}
    grown(*more, "--max-steps", "2", "--output", "parts")
    grown(*more, "--max-steps", "4", "--output", "parts", "--resume")
    whole, parts = (tmp_path / name / "adapter_model.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()
    assert more or whole.stat().st_size < 2 * 12 * 32 * 4 + 2000                        # the rows, twice as PEFT has it


def test_property_held_frequencies_are_other_rows_and_the_same_after_an_interruption(grown, tmp_path):
    grown("--max-steps", "4", "--output", "free")
    grown("--max-steps", "4", "--output", "held", "--hold-frequencies")
    grown("--max-steps", "2", "--output", "parts", "--hold-frequencies")
    with pytest.raises(ValueError, match="hold_frequencies"):
        grown("--max-steps", "4", "--output", "parts", "--resume")
    grown("--max-steps", "4", "--output", "parts", "--resume", "--hold-frequencies")
    free, held, parts = ((tmp_path / name / "adapter_model.safetensors").read_bytes()
                         for name in ("free", "held", "parts"))
    assert held == parts != free


def test_refusal_of_new_rows_with_what_they_do_not_go_with(grown):
    with pytest.raises(ValueError, match="--hold-frequencies is about rows that learn; add --train-new-rows"):
        grown("--hold-frequencies", way=("--lora",))
    with pytest.raises(ValueError, match="--hold-frequencies needs a head of tokens"):
        grown("--hold-frequencies", "--parallel", "fsdp")
    with pytest.raises(ValueError, match="--task sentiment learns a head of labels, .* add --lora"):
        grown("--task", "sentiment")
    with pytest.raises(ValueError, match="--train-new-rows learns new rows and nothing else; leave --freeze"):
        grown("--freeze", "blocks")


def test_refusal_of_new_rows_where_there_are_none(door):
    with pytest.raises(ValueError, match="the model's vocabulary was not grown, so no rows are new"):
        door(TALKS, TALKS, "--train-new-rows", "--chat-format", "chatml")


@pytest.mark.parametrize("way", [["--train-new-rows"], ["--lora", "--train-new-rows"], ["--freeze", "blocks,norms"]],
                         ids=["new rows", "beside LoRA", "embeddings alone"])
def test_two_ways_english_is_mixed_in_and_watched_over_a_resume(grown, tmp_path, way):
    """What docs/chinese.md does stage by stage."""
    (tmp_path / "en.txt").write_text("The dog sleeps, and the fox goes home.\n\n" * 9, encoding="utf-8")
    flags = ["--eval-data", "zh.txt", "--mix", "en.txt=0.25", "--watch", "english=en.txt", "--guard", "english=9",
             "--eval-every", "2"]
    whole = grown(*flags, "--max-steps", "4", "--output", "whole", way=way)
    assert "en.txt is mixed in: " in whole["said"] and "(guard 9.0)" not in whole["said"]
    assert "times those before, guard 9.0)" in whole["said"]
    assert set(whole["watched"]["english"]["before"]) >= {"bits_per_byte", "perplexity"}
    grown(*flags, "--max-steps", "2", "--output", "parts", way=way)
    parts = grown(*flags, "--max-steps", "4", "--output", "parts", "--resume", way=way)
    assert parts["watched"] == whole["watched"] and parts["eval"] == whole["eval"]
    if "--freeze" in way:
        before, after = load_model(tmp_path / "model"), load_model(tmp_path / "whole")
        moved = {name for name, parameter in after.named_parameters()
                 if not torch.equal(parameter, before.get_parameter(name))}
        assert moved == {"embed_tokens.weight"}
    more = [flag.replace("=0.25", "=0.5") for flag in flags]
    with pytest.raises(ValueError, match="is of a run with another number of samples, data"):
        grown(*more, "--max-steps", "4", "--output", "parts", "--resume", way=way)
    with pytest.raises(ValueError, match="--guard needs --eval-data to evaluate on"):
        grown("--guard", "en.txt=1.1", way=way)


def test_two_ways_a_base_of_loftq_is_written_and_named(door, tmp_path):
    flags = ("--chat-format", "chatml", "--quantize", "int8", "--lora-init", "loftq", "--lora-plus", "4",
             "--rank-pattern", "layers.0.=4")
    result, said = door(TALKS, TALKS, *flags)
    assert "after each turn" in said and "--model adapter-base" in said and result["test"]["loss"] > 0
    model = load_model(tmp_path / "adapter-base")
    load_adapter(model, tmp_path / "adapter")
    assert adapter_configs(model)["default"].rank_of("layers.0.mlp.up_proj") == 4
    with pytest.raises(ValueError, match="add --quantize int4 or int8"):
        door(TALKS, TALKS, "--lora-init", "loftq")
    with pytest.raises(ValueError, match="--lora-plus says how fast the B of an adapter learns; add --lora"):
        door(TALKS, TALKS, "--lora-plus", "4", way=())
