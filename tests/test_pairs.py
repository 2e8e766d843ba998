import json

import pytest

from llama.evaluate import main as evaluate_main
from llama.metrics.overlap import bleu, chrf, rouge_scores
from llama.tasks.instruction import InstructionTask
from llama.tasks.pairs import SummarizationTask, TranslationTask
from llama.trainer import Trainer
from llama.training.evaluation import evaluate_dataset
from llama.training.objective import Plain
from llama.training.optimizer import TrainConfig

PAIRS = [{"source": "The dog sleeps.", "target": "天气很好", "place": "p:1"},
         {"source": "The fox goes home.", "target": "小驼", "place": "p:2"}]


def result(predicted, gold):
    return {"predicted": predicted, "gold": gold, "correct": predicted == gold}


def test_worked_example_a_pair_is_a_turn_of_a_chat(tiny_tokenizer):
    task = TranslationTask(chat_format="chatml")
    sample = task.encode(PAIRS[0], tiny_tokenizer)
    end = tiny_tokenizer.special_ids["<|im_end|>"]
    text = tiny_tokenizer.decode(sample.ids)
    assert "<|im_start|>user\nTranslate into Chinese:\n\nThe dog sleeps.<|im_end|>" in text
    learned = [i for i, learn in zip(sample.ids, sample.loss_mask, strict=True) if learn]
    assert tiny_tokenizer.decode(learned[:-1]) == "天气很好" and learned[-1] == end
    assert task.prompt("The dog sleeps.", tiny_tokenizer) == sample.ids[: sample.loss_mask.index(True)]
    assert "翻译成英文：" in tiny_tokenizer.decode(task.prompt("今天天气很好", tiny_tokenizer))
    mine = SummarizationTask("tl;dr", chat_format="chatml").prompt("今天", tiny_tokenizer)
    assert "user\ntl;dr\n\n今天<" in tiny_tokenizer.decode(mine)


def test_worked_example_a_long_source_loses_its_end(tiny_tokenizer):
    task = SummarizationTask(chat_format="chatml", max_length=200)
    source = "The quick brown fox. " + "天气很好。" * 100
    sample = task.encode({"source": source, "target": "小驼"}, tiny_tokenizer)
    text = tiny_tokenizer.decode(sample.ids)
    assert "The quick brown fox. 天气" in text and "小驼<|im_end|>" in text and sample.cut == 0
    assert "\ufffd" not in text and task.prompt(source, tiny_tokenizer) == sample.ids[: sample.loss_mask.index(True)]


def test_worked_example_scores_and_their_tokenisation():
    chinese, english = [result("天气好", "天气很好")], [result("the dog sleeps here", "The dog sleeps here.")]
    assert SummarizationTask().compute_metrics(chinese) == rouge_scores(["天气好"], ["天气很好"])
    assert set(SummarizationTask().compute_metrics(chinese)) == {"rouge_1", "rouge_2", "rouge_l"}
    for results, name in ((chinese, "zh"), (english, "13a")):
        texts = [results[0]["predicted"]], [results[0]["gold"]]
        scores = {"chrf": chrf(*texts), "bleu": bleu(*texts, tokenization=name)}
        assert TranslationTask().compute_metrics(results) == scores
        details, text = TranslationTask().report(results)
        assert details == {"bleu_tokenization": name} and f"«{name}»" in text
    both = InstructionTask().compute_metrics([result("a", "a"), result("b", "c")])
    assert both["exact_match"] == 0.5 and both["rouge_l"] == 0.5 and set(both) == {"exact_match", "chrf", "rouge_l"}


def test_two_ways_answers_that_are_judged_are_those_of_predict(tiny_model):
    task = TranslationTask(chat_format="chatml", max_length=96)
    Trainer(tiny_model, task, PAIRS, config=TrainConfig(epochs=40, lr=0.01, batch_size=2)).train()
    scores, results = evaluate_dataset(Plain(tiny_model, task), PAIRS, max_new_tokens=12)
    assert scores["bleu"] > 0 and scores["chrf"] == pytest.approx(100) and scores["loss"] < 0.1
    assert [each["predicted"] for each in results] == task.predict(
        tiny_model, [pair["source"] for pair in PAIRS], temperature=0.0, max_new_tokens=12)
    assert all(each["correct"] for each in results) and results[1]["text"] == "The fox goes home."


def test_worked_example_the_command(tiny_model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tiny_model.save("tiny")
    (tmp_path / "p.tsv").write_text("".join(f"{p['source']}\t{p['target']}\n" for p in PAIRS), encoding="utf-8")
    monkeypatch.setattr("sys.argv", [
        "evaluate", "--task", "summarization", "--chat-format", "chatml", "--model", "tiny", "--data", "p.tsv",
        "--device", "cpu", "--max-length", "96", "--max-new-tokens", "4", "--predictions", "p.jsonl",
        "--show-errors", "1", "--json"])
    evaluate_main()
    out = capsys.readouterr()
    assert {"perplexity", "bits_per_character", "rouge_1", "rouge_2", "rouge_l"} <= json.loads(out.out).keys()
    assert "2 of 2 are not right; the first 1" in out.err
    written = [json.loads(line) for line in (tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [each["gold"] for each in written] == ["天气很好", "小驼"]


