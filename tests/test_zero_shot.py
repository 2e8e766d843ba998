import json

import pytest
import torch

import llama
from llama.checkpoint import PretrainedLlama
from llama.datasets.tags import spans_of
from llama.evaluate import few
from llama.evaluate import main as evaluate_main
from llama.generation import generate
from llama.sampling import SamplingConfig
from llama.tasks.classification import ClassificationTask
from llama.tasks.opinion import OpinionTask
from llama.tasks.pairs import TranslationTask
from llama.tasks.question_answering import QuestionAnsweringTask
from llama.tasks.tagging import NERTask, SegmentationTask
from llama.zero_shot.zero_shot import ZeroShot
from tokenizer.chat import FORMATS

REVIEWS = [{"text": "天气很好", "label": "good", "place": "r:1"},
           {"text": "The lazy dog", "label": "bad", "place": "r:2"}]
SENTENCES = ["小驼在北京。今天小驼很好。", "the lazy dog sleeps, the fox and the dog go", "  ", "x"]


@pytest.fixture
def model(tiny_model):
    """With weights large enough that its likes and dislikes are clear."""
    with torch.no_grad():
        for parameter in tiny_model.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3))
    tiny_model.tokenizer.chat_template = FORMATS["chatml"].template
    yield tiny_model
    tiny_model.tokenizer.chat_template = None


def tagged(text):
    task = NERTask(("PER", "LOC"))
    example = task.example(text)
    return example | {"tags": ["B-LOC"] + ["O"] * (len(example["tokens"]) - 1)}


def test_worked_example_what_is_asked(model):
    shot = ZeroShot(ClassificationTask(("good", "bad")), REVIEWS[1:], words={"bad": "poor"})
    shot.asker.open(model)
    asked = "Which label fits the text: good, poor? Answer with the label alone.\n\n"
    turns = shot.asker.turns([(shot.asker.asked("The lazy dog", False), "poor")], shot.asker.asked("the fox", False))
    assert turns == [{"role": "user", "content": asked + "The lazy dog"}, {"role": "assistant", "content": "poor"},
                     {"role": "user", "content": asked + "the fox"}]
    assert shot.asker.asked("今天", True).startswith("下面的文字属于哪一类：good、poor？")


def test_two_ways_scores_equal_those_of_plain_forward_passes(model):
    tokenizer, chat = model.tokenizer, FORMATS["chatml"]
    shot = ZeroShot(ClassificationTask(("good", "bad", "今天天气")), REVIEWS, request="Say {labels}")
    shot.asker.open(model)

    def mean(text, label):
        pairs = [("天气很好", "good"), ("The lazy dog", "bad"), (text, label)]
        turns = [message for asked, answer in pairs for message in
                 ({"role": "user", "content": f"Say good, bad, 今天天气\n\n{asked}"},
                  {"role": "assistant", "content": answer})]
        ids, learned = chat.encode(turns, tokenizer)
        start = len(chat.encode(turns[:-1], tokenizer, reply=True)[0])
        end = len(ids) - learned[::-1].index(True) - 1              # without <|im_end|>
        with torch.no_grad():
            logs = model(torch.tensor([ids]))[0].log_softmax(-1)
        return sum(logs[t - 1, ids[t]].item() for t in range(start, end)) / (end - start)

    for text in ("the fox goes", "小驼 the quick brown fox jumps"):
        expected = [mean(text, label) - mean("", label) for label in ("good", "bad", "今天天气")]
        assert shot.asker.calibrated(text).tolist() == pytest.approx(expected, abs=2e-4)
    [result] = shot.results(model, [{"text": text, "label": "bad", "place": "x:1"}])
    assert result["predicted"] == ("good", "bad", "今天天气")[max(range(3), key=expected.__getitem__)]
    assert result["correct"] == (result["predicted"] == "bad") and result["gold"] == "bad"


def test_property_what_prompts_have_in_common_is_read_once(model, monkeypatch):
    shot, ran, hidden = ZeroShot(ClassificationTask(("good", "bad")), REVIEWS), [], model.hidden
    monkeypatch.setattr(model, "hidden",
                        lambda tokens, **options: (ran.append(tokens.numel()), hidden(tokens, **options))[1])
    shot.predict(model, ["the fox", "the dog", "the lazy dog"])
    assert max(ran[2:]) < 60 < 100 < ran[0]                             # the examples run with the empty text alone


def test_property_what_is_extracted_is_a_piece_of_the_text(model):
    types = ("LOC", "PER")
    for examples in ([], [tagged("北京 小驼")]):
        for text, entities in zip(SENTENCES, ZeroShot(NERTask(types), examples).predict(model, SENTENCES), strict=True):
            assert all(entity.text == text[entity.start : entity.end] and entity.type in types for entity in entities)
            names = {entity.text for entity in entities}
            assert all(sum(each.text == name for each in entities) >= 1 for name in names)
    for text, words in zip(SENTENCES, ZeroShot(SegmentationTask()).predict(model, SENTENCES), strict=True):
        assert "".join(words) == "".join(text.split())
    answers = ZeroShot(QuestionAnsweringTask()).predict(model, [("who?", text) for text in SENTENCES])
    assert all(answer in text and bool(answer) == bool(text.strip())
               for answer, text in zip(answers, SENTENCES, strict=True))


def test_property_every_place_of_a_name_counts_and_tags_keep_their_rules(model, monkeypatch):
    from llama.zero_shot import extraction
    from llama.zero_shot.constrained_decoding import Written

    names = {"LOC": [(3, 5)], "PER": [(0, 2), (3, 4)]}
    task = NERTask(("LOC", "PER"))
    monkeypatch.setattr(extraction.Entities, "copied", lambda self, pairs, content, grammar: Written(
        names["LOC" if "地名" in content else "PER"], 0.0))
    example = task.example(SENTENCES[0]) | {"tags": ["O"] * 13}
    [result] = ZeroShot(task).results(model, [example])
    assert spans_of(result["tags"]) == [(0, 2, "PER"), (3, 5, "LOC"), (8, 10, "PER")]
    assert result["correct"] is False and task.compute_metrics([result])["precision"] == 0
    assert extraction._whole("dog") == r"(?<![^\W\u2e80-\uffef])dog(?![^\W\u2e80-\uffef])"


def test_property_long_texts_are_asked_about_part_after_part(model):
    text = "小驼在北京。" * 30
    words = ZeroShot(SegmentationTask(max_length=24)).predict(model, [text])[0]
    assert "".join(words) == text
    answer = ZeroShot(QuestionAnsweringTask(max_length=24, unanswerable=True)).predict(model, [("谁？", text)])[0]
    assert answer in text


def test_two_ways_a_task_that_writes_is_asked_as_it_is_tuned(model):
    task, options = TranslationTask(), {"max_new_tokens": 6}
    pair = {"source": "The dog", "target": "小驼", "place": "p"}
    [written] = task.predict(model, ["The fox"], temperature=0.0, max_new_tokens=128)
    assert ZeroShot(task).predict(model, ["The fox"]) == [written.strip()]
    [result] = ZeroShot(task, [pair]).results(model, [pair | {"source": "The fox"}], **options)
    chat = FORMATS["chatml"]
    turns = [*task.messages(pair, model.tokenizer), {"role": "user", "content": "Translate into Chinese:\n\nThe fox"}]
    ids = chat.encode(turns, model.tokenizer, reply=True)[0]
    [plain] = generate(model, [ids], tokenizer=model.tokenizer, chat_format=chat, **options,
                       sampling=SamplingConfig(temperature=0))
    assert result["predicted"] == plain.text.strip()


def test_property_few_examples_are_as_many_of_each_label(tmp_path):
    data = [{"text": str(i), "label": "abc"[i % 3 if i < 30 else 0]} for i in range(90)]
    chosen = few(data, 6, seed=1)
    assert sorted(each["label"] for each in chosen) == ["a", "a", "b", "b", "c", "c"]
    assert chosen == few(data, 6, seed=1) != few(data, 6, seed=2)
    with pytest.raises(ValueError, match="--few-shot 91: the files of --examples hold 90"):
        few(data, 91, seed=0)


def test_worked_example_the_command(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model.save("tiny")
    rows = "天气很好\tgood\t2024-01-01\nthe dog\tbad\t2024-02-01\n" * 3
    (tmp_path / "t.tsv").write_text("text\tlabel\tdate\n" + rows, encoding="utf-8")
    common = ["evaluate", "--zero-shot", "--model", "tiny", "--data", "t.tsv", "--device", "cpu", "--json"]
    monkeypatch.setattr("sys.argv", [*common, "--task", "opinion", "--labels", "good=好,bad=差", "--few-shot", "2",
                                     "--examples", "t.tsv", "--limit", "4", "--predictions", "p.jsonl"])
    evaluate_main()
    found = json.loads(capsys.readouterr().out)
    assert found["over_time"][-1]["texts"] == 4 and {"accuracy", "macro_f1", "calibration_error"} <= found.keys()
    assert len((tmp_path / "p.jsonl").read_text(encoding="utf-8").splitlines()) == 4
    for flags, words in ((["--task", "sentiment"], "there are no labels, and of two or more one"),
                         (["--task", "ner"], "there are no types of entities"),
                         (["--task", "generation"], "text generation asks nothing"),
                         (["--task", "qa", "--few-shot", "2"], "give both, or neither"),
                         (["--task", "qa", "--attention", "full"], "without training the model writes"),
                         (["--task", "qa", "--labels", "a"], "--task qa has no labels to name")):
        monkeypatch.setattr("sys.argv", [*common, *flags])
        with pytest.raises(ValueError, match=words):
            evaluate_main()


def test_refusal_of_what_cannot_be_asked(model):
    with pytest.raises(ValueError, match="words are given for meh, labels are good, bad"):
        ZeroShot(ClassificationTask(("good", "bad")), words={"meh": "so so"})
    with pytest.raises(ValueError, match="r:9: it does not say what is right"):
        ZeroShot(OpinionTask(("good", "bad")), [{"text": "a", "date": "2024-01-01", "place": "r:9"}])
    with pytest.raises(ValueError, match="the question with its examples is .* tokens long"):
        ZeroShot(ClassificationTask(("good", "bad")), REVIEWS * 9).predict(model, ["dog"])
    ClassificationTask().prepare(model, REVIEWS)
    with pytest.raises(ValueError, match="so it writes no text"):
        ZeroShot(ClassificationTask(("good", "bad"))).predict(model, ["dog"])
    assert llama.ZeroShot is ZeroShot
    bare = PretrainedLlama(model.config)
    for task in (ClassificationTask(("good", "bad")), llama.MultipleChoiceTask()):
        with pytest.raises(ValueError, match="no tokenizer, so nothing can be asked of it"):
            ZeroShot(task).results(bare, [])
