import argparse
import typing

import pytest

from llama.commands import flags
from llama.training import recipes

WAYS = ({"lora": True}, {"freeze_layers": 3}, {}, {"freeze": "norms"})


def _flags(**given):
    unsaid = {"epochs": None, "batch_size": None, "lr": None, "lora": False, "train_new_rows": False,
              "freeze_layers": 0, "freeze": "", "minutes": None, "max_steps": 0, "model": "usual", "adapter": "",
              "attention": "auto", "pooling": "auto", "word_dropout": None, "chat_format": ""}
    return argparse.Namespace(**(unsaid | given))


@pytest.mark.parametrize("task", recipes.RECIPES)
def test_worked_example_a_task_brings_its_flags_and_each_way_its_rate(task):
    recipe = recipes.RECIPES[task]
    for way, rate in zip(WAYS, (*recipe.lr, recipe.lr[2]), strict=True):    # --freeze may leave nearly all to learn
        arguments = _flags(task=task, **way)
        recipes.complete(arguments)
        assert (arguments.epochs, arguments.batch_size, arguments.lr) == (*recipe[:2], rate)


def test_property_what_is_given_stays():
    arguments = _flags(task="qa", epochs=7, lr=0.25)
    recipes.complete(arguments)
    assert (arguments.epochs, arguments.lr, arguments.batch_size) == (7, 0.25, recipes.RECIPES["qa"].batch_size)


PLACE = "/a/long/path/of/no/importance/train.jsonl:1"
CHINESE = [{"text": "房间太脏，再也不来了。", "label": "negative", "place": PLACE}]
ENGLISH = [{"text": "The room was dirty.", "label": "差评差评差评差评差评差评", "place": PLACE}]
TAGGED = [{"tokens": ["北", "京"], "tags": ["B-LOC", "I-LOC"], "text": "北京", "starts": [0, 1], "place": PLACE}]


@pytest.mark.parametrize("given, data, base", [
    ({"task": "sentiment"}, CHINESE, "zh-small"), ({"task": "ner"}, TAGGED, "zh-small"),
    ({"task": "sentiment", "lora": True}, CHINESE, "zh-small"), ({"task": "sentiment"}, ENGLISH, "usual"),
    ({"task": "sentiment", "model": "mine"}, CHINESE, "mine"), ({"task": "instruction"}, CHINESE, "usual"),
    ({"task": "sentiment", "adapter": "a"}, CHINESE, "usual")])
def test_worked_example_chinese_labels_begin_with_the_chinese_model(given, data, base):
    arguments = _flags(**given)
    assert recipes.choose_base(arguments, data, usual="usual") == (base == "zh-small")
    recipes.complete(arguments)
    whole = base == "zh-small" and not arguments.lora
    assert (arguments.model, arguments.attention) == (base, "full" if whole else "auto")
    assert (arguments.lr == 5 * recipes.RECIPES["sentiment"].lr[2]) == (whole and arguments.task == "sentiment")


@pytest.mark.parametrize("task, flags", [
    ("sentiment", ("full", "mean", 0.2, "", 5e-4)), ("ner", ("full", "auto", 0.0, "", 1e-3)),
    ("translation", ("auto", "auto", 0.0, "plain", 1e-3)), ("instruction", ("auto", "auto", 0.0, "", 2.5e-4))])
def test_worked_example_what_zh_small_takes_where_nothing_is_said(task, flags):
    arguments = _flags(task=task, model="zh-small")
    recipes.complete(arguments)
    names = ("attention", "pooling", "word_dropout", "chat_format", "lr")
    assert tuple(getattr(arguments, name) for name in names) == flags
    given = _flags(task=task, model="zh-small", attention="causal", word_dropout=0.0, chat_format="chatml", lr=1e-5)
    recipes.complete(given)
    assert (given.attention, given.word_dropout, given.chat_format, given.lr) == ("causal", 0.0, "chatml", 1e-5)
    for way in ({"lora": True}, {"freeze_layers": 2}):
        other = _flags(task=task, model="zh-small", **way)
        recipes.complete(other)
        assert (other.attention, other.word_dropout, other.chat_format) == ("auto", 0.0, "")


@pytest.mark.parametrize("task", recipes.WITH_ZH_SMALL)
def test_property_what_chinese_texts_begin_with_is_taken_by_each_task(task):
    arguments = _flags(task=task)
    recipes.choose_base(arguments, CHINESE, usual="usual")
    recipes.complete(arguments)
    flags.TaskFlags(task=task, attention=arguments.attention, pooling=arguments.pooling)   # or it refuses
    assert (arguments.pooling == "mean") == (task in ("classification", "sentiment", "opinion"))


@pytest.mark.parametrize("given, minutes", [({}, 30), ({"epochs": 7}, 0), ({"max_steps": 9}, 0), ({"minutes": 5.0}, 5),
                                            ({"minutes": 0.0}, 0), ({"epochs": 7, "minutes": 5.0}, 5)])
def test_worked_example_of_a_run_that_is_bounded_by_what_was_asked_for_or_else_by_time(given, minutes):
    arguments = _flags(task="ner", **given)
    recipes.complete(arguments)
    assert arguments.minutes == minutes


def test_property_every_task_has_one_and_help_shows_it():
    tasks = typing.get_args(typing.get_args(typing.get_type_hints(flags.TaskFlags, include_extras=True)["task"])[0])
    assert set(recipes.RECIPES) == set(tasks) - {"multiple-choice"}
    with pytest.raises(ValueError, match="it is never trained on them"):
        recipes.check("multiple-choice")
    assert "\n  classification, sentiment, opinion:\n    --attention full --pooling mean --word-dropout 0.2\n" in \
        recipes.table()
    lines = {words[0]: words[1:] for line in recipes.table().splitlines() if (words := line.split())}
    for task, recipe in recipes.RECIPES.items():
        assert [float(each) for each in lines[task]] == [recipe.epochs, recipe.batch_size, *recipe.lr]
