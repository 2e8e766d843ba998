import json
import random

import pytest
import torch

from llama.datasets.columns import laid_out
from llama.datasets.tags import spans_of
from llama.methods.augmentation import Augmentation, cut_mix, rewritten, units_of
from llama.methods.substitutes import Neighbors, fills, homophones, kind_of, synonyms
from llama.tasks.classification import ClassificationTask
from llama.tasks.instruction import InstructionTask
from llama.tasks.question_answering import QuestionAnsweringTask
from llama.tasks.tagging import NERTask, SegmentationTask
from llama.trainer import Trainer
from llama.training.optimizer import TrainConfig

TABLES = {"replace": {"今天": ("今日",), "天气": ("气候", "气象"), "quick": ("swift",)}, "neighbor": {"dog": ("cat",)},
          "homophone": {"气": ("汽",), "很": ("狠",)}}
ALL = {"replace": 0.5, "neighbor": 0.5, "homophone": 0.3, "delete": 0.3, "insert": 0.3, "swap": 0.5}


def tagged(tokens, tags):
    text, starts = laid_out(tokens)
    return {"tokens": tokens, "tags": tags, "text": text, "starts": starts, "place": "here"}


CHINESE = tagged(list("今天小驼在北京说天气很好"), ["O", "O", "B-PER", "I-PER", "O", "B-LOC", "I-LOC"] + ["O"] * 5)
ENGLISH = tagged(["The", "quick", "dog", "of", "New", "York", "sleeps", "."], ["O"] * 4 + ["B-LOC", "I-LOC", "O", "O"])
WORDS = tagged(list("今天天气很好"), ["B-", "E-", "B-", "E-", "S-", "S-"])
WORDS["tags"] = [tag.rstrip("-") for tag in WORDS["tags"]]
QUESTION = {"question": "今天天气怎样？", "context": "The quick dog. 今天天气很好，小驼 来了。", "place": "here",
            "answers": [{"text": "天气很好", "start": 17}, {"text": "很好，小驼", "start": 19}]}
TALK = {"messages": [{"role": "system", "content": "今天天气"}, {"role": "user", "content": "今天天气很好 quick dog?"},
                     {"role": "assistant", "content": "今天天气很好。"}]}
TEXT = {"text": "今天天气很好。  The quick dog, it's 12% big!", "label": "a"}
PAIR = {"source": "今天天气很好", "target": "今天天气很好"}


def augmentation(task, tokenizer, rates=ALL, **options):
    return Augmentation(task, tokenizer, rates, TABLES, **options)


def drawn(task, example, seed, rates=ALL):
    one = augmentation(task, None, rates)
    return rewritten(example, lambda units, text: one.changed(units, text, random.Random(seed)), one.words)


@pytest.mark.parametrize("example", [CHINESE, ENGLISH, WORDS, QUESTION, TALK, TEXT, PAIR,
                                     {"text": " 一 二\n\nthree  four \n", "label": "a"}])
def test_property_what_is_not_edited_stays_to_the_letter(example):
    assert rewritten(example, lambda units, text: units, {"今天", "天气"}) == example


@pytest.mark.parametrize("example", [CHINESE, ENGLISH])
def test_property_entities_and_answers_are_walls(example):
    """200 draws: every entity is there, in its order, and the text spells the tokens."""
    entities, others = None, set()
    for seed in range(200):
        found = drawn(None, example, seed) if seed else example
        names = [(found["tokens"][begin:end], kind) for begin, end, kind in spans_of(found["tags"])]
        entities = entities or names
        assert names == entities and len(found["tags"]) == len(found["tokens"])
        assert all(found["text"].startswith(token, start) for token, start in
                   zip(found["tokens"], found["starts"], strict=True))
        others.add(found["text"])
        if example is CHINESE and "说" in found["text"]:
            assert found["text"].index("小驼") < found["text"].index("北京") < found["text"].index("说")
    assert len(others) > 20


def test_property_answers_stay_where_their_place_says():
    texts = set()
    for seed in range(200):
        found = drawn(None, QUESTION, seed)
        for answer, before in zip(found["answers"], QUESTION["answers"], strict=True):
            assert answer["text"] == before["text"] == found["context"][answer["start"] :][: len(answer["text"])]
        texts.add(found["context"])
    assert len(texts) > 20 and any(text.startswith("The swift") for text in texts)


def test_property_words_of_a_segmented_text_change_whole():
    for seed in range(100):
        found = drawn(None, WORDS, seed, {"replace": 0.5, "delete": 0.3, "swap": 0.5})
        words = {"".join(found["tokens"][begin:end]) for begin, end, _ in spans_of(found["tags"])}
        assert words <= {"今天", "今日", "天气", "气候", "气象", "很", "好"}


def test_property_only_what_is_asked_changes():
    for seed in range(50):
        talk, pair = drawn(None, TALK, seed), drawn(None, PAIR, seed)
        assert talk["messages"][::2] == TALK["messages"][::2] and pair["target"] == PAIR["target"]
    assert talk["messages"][1] != TALK["messages"][1] and pair["source"] != PAIR["source"]


@pytest.mark.parametrize(("rates", "found"), [
    ({"replace": 1.0}, {"今日气候很好", "今日气象很好"}), ({"delete": 1.0}, {"今天天气很好"}),
    ({"swap": 1.0}, {"天气今天好很"}), ({"homophone": 1.0}, {"今天天汽狠好"}),
    ({"insert": 1.0}, {"今天今日天气气候很很好好", "今天今日天气气象很很好好"}),
])
def test_worked_example_of_each_operation(rates, found):
    """Of a text that would be left without a word, all words stay."""
    assert {drawn(None, {"text": "今天天气很好"}, seed, rates)["text"] for seed in range(20)} == found


def test_worked_example_english_keeps_its_blanks():
    one = {"text": "The quick  dog sleeps."}
    assert drawn(None, one, 0, {"swap": 1.0})["text"] == "quick The  sleeps dog."
    assert drawn(None, one, 0, {"neighbor": 1.0})["text"] == "The quick  cat sleeps."
    deleted = {drawn(None, one, seed, {"delete": 0.5})["text"] for seed in range(40)}
    assert len(deleted) > 8 and not any(text.startswith(" ") or "sleeps ." in text for text in deleted)


def test_worked_example_units():
    units, tail = units_of("今天天气 it's 12%。 ", {"今天", "天气"})
    assert [(unit.before, unit.text, unit.start) for unit in units] == [
        ("", "今天", 0), ("", "天气", 2), (" ", "it's", 5), (" ", "12", 10), ("", "%", 12), ("", "。", 13)]
    assert tail == " " and [kind_of(unit.text) for unit in units] == ["chinese", "chinese", "english", "", "", ""]


def test_property_a_draw_depends_on_seed_epoch_and_number_alone(tiny_tokenizer):
    task = ClassificationTask(("a", "b"))
    samples = [task.encode(TEXT, tiny_tokenizer)] * 30
    first = augmentation(task, tiny_tokenizer)
    drawn = [first(samples, number, 0).ids for number in range(30)]
    again = augmentation(task, tiny_tokenizer)                      # another process, in another order
    assert [again(samples, number, 0).ids for number in reversed(range(30))] == drawn[::-1]
    for other in ([first(samples, number, 1).ids for number in range(30)],
                  [augmentation(task, tiny_tokenizer, seed=1)(samples, number, 0).ids for number in range(30)]):
        assert sum(one != two for one, two in zip(drawn, other, strict=True)) > 20
    assert all(first(samples, number, 0).goals == samples[0].goals for number in range(30))


def test_two_ways_a_resumed_run_draws_what_an_uninterrupted_one_does(tiny_model, tmp_path):
    """… and the trainer asks for each sample with the number of its epoch, one step ahead, too."""
    data, asked = [TEXT | {"label": label} for label in "ab" * 3], {}

    def run(name, **config):
        task = ClassificationTask()
        task.prepare(tiny_model, data)
        inner = augmentation(task, tiny_model.tokenizer)

        def augment(samples, number, epoch):
            asked.setdefault(name, {})[epoch, number] = inner(samples, number, epoch).ids
            return inner(samples, number, epoch)

        trainer = Trainer(tiny_model, task, data, config=TrainConfig(batch_size=2, epochs=3, lr=1e-9, **config),
                          output=tmp_path / "out", resume=name == "resumed", augment=augment)
        trainer.train()

    run("begun", max_steps=4)
    run("resumed")
    run("whole")
    assert len(asked["whole"]) == 18 and {**asked["begun"], **asked["resumed"]} == asked["whole"]


@pytest.mark.parametrize("task", [NERTask(), SegmentationTask(), QuestionAnsweringTask(), InstructionTask("chatml")])
def test_property_every_task_reads_what_was_rewritten(tiny_model, task):
    """… as the window that the sample is of its text."""
    data = {NERTask: [CHINESE], SegmentationTask: [WORDS], QuestionAnsweringTask: [QUESTION],
            InstructionTask: [TALK]}[type(task)]
    task.prepare(tiny_model, data)
    samples = task.samples(data, tiny_model.tokenizer)
    one = augmentation(task, tiny_model.tokenizer)
    found = [one(samples, 0, epoch) for epoch in range(20)]
    assert len({tuple(sample.ids) for sample in found}) > 5 and all(sample.targets for sample in found)
    for sample in found:
        task.targets(task.collate([sample]))


def test_worked_example_two_windows_of_a_text(tiny_model):
    task = NERTask(("PER",), max_length=16, overlap=0)
    task.prepare(tiny_model, [long := tagged(list("天气很" * 13), ["O"] * 39)])
    samples = task.samples([long], tiny_model.tokenizer)
    assert len(samples) > 1
    assert [task.reencode(sample, long, tiny_model.tokenizer).ids for sample in samples] == [s.ids for s in samples]
    short = tagged(["天"], ["O"])
    assert task.reencode(samples[1], short, tiny_model.tokenizer).ids == samples[1].ids


def test_worked_example_a_mixed_text_and_its_loss(tiny_model):
    """Three quarters of 8 ids and a quarter of 4: 6 and 1, so 6/7 and 1/7; the loss is the mixture of both losses."""
    task = ClassificationTask()
    task.prepare(tiny_model, [TEXT, TEXT | {"label": "b"}])
    one, two = (task.encode({"text": "天", "label": label}, tiny_model.tokenizer) for label in "ab")
    one, two = (type(one)(ids, [False] * (len(ids) - 1) + [True], goals=each.goals) for ids, each in
                (([1, 2, 3, 4, 5, 6, 7, 8], one), ([11, 12, 13, 14], two)))
    mixed = cut_mix(one, two, 0.75, 2)
    assert mixed.ids == [1, 2, 3, 4, 5, 6, 14] and mixed.goals[0] == pytest.approx([6 / 7, 1 / 7])
    whole = cut_mix(one, one, 1.0, 2)
    assert whole.ids == one.ids and whole.goals == [[1.0, 0.0]]
    batch = task.collate([mixed, whole])
    assert task.count(task.targets(batch)) == 2
    scores = torch.randn(2, 2)
    nll = -scores.log_softmax(-1)
    expected = 6 / 7 * nll[0, 0] + 1 / 7 * nll[0, 1] + nll[1, 0]
    assert task.loss(scores, task.targets(batch)).item() == pytest.approx(expected.item(), rel=1e-5)


def test_worked_example_tables(tmp_path):
    (tmp_path / "s").write_text("Aa01= 人类 生人 人\nAa02# 东西 南北\nAa03@ 孤独\nAb01= 人类 世人\n", encoding="utf-8")
    (tmp_path / "h").write_text("shi\t是\t时\t事\nhe 和 喝\nle 了\n", encoding="utf-8")
    assert synonyms(tmp_path / "s") == {"人类": ("生人", "世人"), "生人": ("人类",), "世人": ("人类",)}
    assert homophones(tmp_path / "h") == {"是": ("时", "事"), "时": ("是", "事"), "事": ("是", "时"), "和": ("喝",),
                                          "喝": ("和",)}


def test_two_ways_neighbors_are_the_nearest_rows_and_fills_the_likeliest_tokens(tiny_model):
    """Of a word's kind, and another word."""
    text = "今天天气很好。The quick dog sleeps, and the fox goes home."
    near = Neighbors(tiny_model)
    some = [word for word in ("天气", "今天", "很", "dog", "fox") if word in near]
    assert some and all(kind_of(other) == kind_of(word) and other != word for word in some for other in near.get(word))
    assert near.get("nothing like this") == ()
    written = fills(tiny_model, [text])[text]
    assert written and all(kind_of(text[begin:end]) for begin, end in written)
    (begin, end), (first, *_) = next(iter(written.items()))
    with torch.no_grad():
        best = tiny_model(torch.tensor([tiny_model.tokenizer.encode(text[:begin].rstrip())]))[0, -1].topk(20).indices
    decoded = [tiny_model.tokenizer.decode([i]).strip() for i in best.tolist()]
    kind = kind_of(text[begin:end])
    assert first == next(word for word in decoded if kind_of(word) == kind and word.lower() != text[begin:end].lower())
    one = Augmentation(ClassificationTask(("a", "b")), tiny_model.tokenizer, {"mask": 1.0}, {"mask": {text: written}})
    found = rewritten({"text": text}, lambda units, text: one.changed(units, text, random.Random(0)), one.words)
    assert found["text"] != text and json.dumps(found)
