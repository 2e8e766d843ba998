import pytest
import torch

from llama.checkpoint import load_model
from llama.datasets.columns import ColumnDataset
from llama.datasets.tags import is_legal
from llama.heads import remove_head
from llama.tasks.tagging import Entity, NERTask, SegmentationTask
from llama.tasks.task import IGNORE_INDEX
from llama.trainer import Trainer
from llama.training.data_checks import examine
from llama.training.evaluation import evaluate
from llama.training.objective import Plain
from llama.training.optimizer import TrainConfig

NEWS = "江/nr 泽民/nr 在/p 北京/ns 说/v\n\n[北京/ns 大学/n]nt 很/d 好/a 。/w\n\n今天/t 天气/n 很/d 好/a\n"
CONLL = "Anna B-PER\nsleeps O\nin O\nLima B-LOC\n. O\n\nThe O\ndog O\n\n"


@pytest.fixture
def news(tmp_path):
    (tmp_path / "news.txt").write_text(NEWS, encoding="utf-8")
    return tmp_path / "news.txt"


def prepared(model, task, data):
    task.prepare(model, data)
    with torch.no_grad():
        model.score.weight *= 20
    return task


def trained(model, task, data, folder=None, epochs=40):
    return Trainer(model, task, data, data, "adam", TrainConfig(lr=0.02, batch_size=4, epochs=epochs, eval_every=40),
                   output=folder).train()


def test_worked_example_tags_are_read_at_the_last_id_of_each_token(tiny_model, news, tmp_path):
    data, tokenizer = ColumnDataset(news), tiny_model.tokenizer
    task = prepared(tiny_model, NERTask(), data)
    assert task.labels == ("O", "B-LOC", "I-LOC", "B-ORG", "I-ORG", "B-PER", "I-PER") and task.unit == "character"
    sample = task.encode(data[0], tokenizer)
    assert sample.ids == [i for character in "江泽民在北京说" for i in tokenizer.encode_continuation(character)]
    ends, position = [], -1
    for character in "江泽民在北京说":
        position += len(tokenizer.encode_continuation(character))
        ends.append(position)
    assert [i for i, learn in enumerate(sample.loss_mask) if learn] == ends == list(sample.notes)
    assert list(sample.notes.values()) == data[0]["tags"] == ["B-PER", "I-PER", "I-PER", "O", "B-LOC", "I-LOC", "O"]
    (tmp_path / "c.conll").write_text(CONLL, encoding="utf-8")
    words = ColumnDataset(tmp_path / "c.conll")
    sample = NERTask(["PER", "LOC"]).encode(words[0], tokenizer)
    assert sample.ids == tokenizer.encode(words[0]["text"])         # words bring the blank before them
    assert sample.goals == [3, 0, 0, 1, 0]


@pytest.mark.parametrize("attention", ["causal", "full"])
def test_property_every_token_is_scored_once_in_windows_too(tiny_model, attention):
    characters = "今天天气很好你好世界" * 5
    example = {"tokens": list(characters), "text": characters, "starts": list(range(50)), "tags": ["O", "B-PER"] * 25}
    task = NERTask(["PER"], attention=attention, max_length=16, overlap=6)
    pieces = task.pieces(example, tiny_model.tokenizer)
    assert len(pieces) > 3 and all(len(piece.ids) <= 16 and piece.targets for piece in pieces)
    assert [goal for piece in pieces for goal in piece.goals] == [0, 1] * 25
    whole = [i for character in characters for i in tiny_model.tokenizer.encode_continuation(character)]
    learned = [i for piece in pieces for i, learn in zip(piece.ids, piece.loss_mask, strict=True) if learn]
    ends = [tiny_model.tokenizer.encode_continuation(character)[-1] for character in characters]
    assert learned == ends and pieces[0].ids == whole[: len(pieces[0].ids)]
    behind = len(pieces[0].ids) - 1 - max(i for i, learn in enumerate(pieces[0].loss_mask) if learn)
    assert (behind > 0) == (attention == "full")                    # then the border is in the middle of what is shared


@pytest.mark.parametrize("attention", ["causal", "full"])
def test_property_padding_changes_nothing(tiny_model, news, attention):
    data = ColumnDataset(news)
    task = prepared(tiny_model, NERTask(attention=attention), data)
    samples = task.samples(data, tiny_model.tokenizer)
    together = task.scores(tiny_model, task.collate(samples))
    alone = torch.cat([task.scores(tiny_model, task.collate([sample])) for sample in samples])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_property_rows_are_always_legal(tiny_model, news):
    """Of a head that has learned nothing, too."""
    for task, scheme in ((NERTask(["PER", "LOC"]), "BIO"), (NERTask(["PER"], scheme="BMES"), "BMES"),
                         (SegmentationTask(), "BMES")):
        prepared(tiny_model, task, [])
        for result in task.found(tiny_model, [task.example("今天天气很好。小驼是一个小小的语言模型")]):
            assert is_legal(result["tags"], scheme)
        remove_head(tiny_model)


@pytest.mark.parametrize("attention", ["causal", "full"])
def test_worked_example_entities_are_learned_saved_and_found_again(tiny_model, news, tmp_path, attention):
    result = trained(tiny_model, NERTask(attention=attention), ColumnDataset(news), tmp_path / "out")
    assert result["eval"]["f1"] == result["eval"]["precision"] == result["eval"]["recall"] == 1.0
    again, task = load_model(tmp_path / "out"), NERTask()
    texts = ["江泽民在北京说", "", "今天天气很好"]
    assert task.predict(again, texts) == [[Entity("江泽民", "PER", 0, 3), Entity("北京", "LOC", 4, 6)], [], []]
    assert task.unit == "character" and task.attention == attention
    scores = evaluate(Plain(again, task), task.samples(ColumnDataset(news), again.tokenizer), again.tokenizer,
                      batch_size=2)
    assert scores["f1"] == 1.0


def test_worked_example_words_are_learned_and_found_again(tiny_model, news, tmp_path):
    data = ColumnDataset(news, spans="words", scheme="BMES")
    result = trained(tiny_model, SegmentationTask(), data, tmp_path / "out")
    assert result["eval"]["f1"] == 1.0
    texts = ["今天天气很好", "", "江泽民在北京说 今天天气很好"]
    found = SegmentationTask().predict(load_model(tmp_path / "out"), texts)
    assert found == [["今天", "天气", "很", "好"], [], ["江", "泽民", "在", "北京", "说", "今天", "天气", "很", "好"]]


def test_two_ways_schemes_score_alike(news, tiny_model):
    """Data in one scheme, a head in the other: the spans are the same."""
    bio, bmes = ColumnDataset(news), ColumnDataset(news, scheme="BMES")
    task = prepared(tiny_model, NERTask(scheme="BMES"), bio)
    assert task.labels[:5] == ("O", "B-LOC", "M-LOC", "E-LOC", "S-LOC")
    a, b = (task.samples(data, tiny_model.tokenizer) for data in (bio, bmes))
    assert [sample.goals for sample in a] == [sample.goals for sample in b]
    gold = [[result["gold"] for result in task.found(tiny_model, data)] for data in (bio, bmes)]
    assert gold[0] == gold[1] and gold[0][1] == [Entity("北京大学", "ORG", 0, 4)]


def test_worked_example_texts_are_cut_as_the_data_was():
    task = NERTask(["PER"])
    assert task.example("Anna's dog, 你好3.5 ") == {
        "text": "Anna's dog, 你好3.5 ", "tokens": ["Anna", "'", "s", "dog", ",", "你", "好", "3", ".", "5"],
        "starts": [0, 4, 5, 7, 10, 12, 13, 14, 15, 16]}
    task.unit = "character"
    assert task.example("A b。")["tokens"] == ["A", "b", "。"]


def test_property_the_checks_before_training_see_tags(tiny_model, news):
    data = ColumnDataset(news)
    task = prepared(tiny_model, NERTask(), data)
    samples = task.samples(data, tiny_model.tokenizer)
    report = examine(task, data, samples, tiny_model.tokenizer, vocab_size=400)
    report.refuse()
    assert report.counts.supervised_tokens == sum(len(example["tokens"]) for example in data)


def test_property_a_sign_without_bytes_has_a_tag(tiny_model, monkeypatch):
    encode = tiny_model.tokenizer.encode_continuation
    monkeypatch.setattr(tiny_model.tokenizer, "encode_continuation", lambda text: [] if "€" in text else encode(text))
    example = {"tokens": ["a", "€"], "text": "a €", "starts": [0, 2], "tags": ["O", "O"]}
    assert NERTask(["PER"]).encode(example, tiny_model.tokenizer).goals == [0, 0]


def test_refusal_of_tags_and_schemes(tiny_model, news):
    with pytest.raises(ValueError, match="the tag scheme 'IOB7' is not known"):
        NERTask(scheme="IOB7")
    data = ColumnDataset(news)
    task = prepared(tiny_model, NERTask(), data)
    other = {"tokens": ["a", "b"], "text": "a b", "starts": [0, 2], "tags": ["B-MISC", "O"], "place": "c:4"}
    with pytest.raises(ValueError, match="c:4: 'B-MISC' is none of those that are learned"):
        NERTask().prepare(tiny_model, [*data, other])
    assert task.encode(other, tiny_model.tokenizer).goals == [IGNORE_INDEX, task.labels.index("O")]     # scored: missed
    with pytest.raises(ValueError, match="this task asks for tokens, causal, for B, M, E, S"):
        SegmentationTask().predict(tiny_model, ["a"])
    remove_head(tiny_model)
    with pytest.raises(ValueError, match="no head of labels for ner"):
        NERTask().predict(tiny_model, ["a"])
    with pytest.raises(ValueError, match="the data holds 0 different labels"):
        NERTask().prepare(tiny_model, [{"tags": ["O"], "tokens": ["a"], "text": "a", "starts": [0]}])
