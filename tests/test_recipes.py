import argparse
import typing

from llama.commands import flags
from llama.training import recipes


def _flags(**given):
    return argparse.Namespace(**({"epochs": None, "batch_size": None, "lr": None, "lora": True} | given))


def test_worked_example_a_task_brings_its_flags():
    for lora, rate in ((True, recipes.RECIPES["ner"].lr), (False, recipes.RECIPES["ner"].lr_whole)):
        arguments = _flags(task="ner", lora=lora)
        recipes.complete(arguments)
        assert (arguments.epochs, arguments.batch_size, arguments.lr) == (*recipes.RECIPES["ner"][:2], rate)


def test_property_what_is_given_stays():
    arguments = _flags(task="qa", epochs=7, lr=0.25)
    recipes.complete(arguments)
    assert (arguments.epochs, arguments.lr, arguments.batch_size) == (7, 0.25, recipes.RECIPES["qa"].batch_size)


def test_property_every_task_has_one_and_help_shows_it():
    tasks = typing.get_args(typing.get_args(typing.get_type_hints(flags.TaskFlags, include_extras=True)["task"])[0])
    assert set(recipes.RECIPES) == set(tasks)
    assert all(any(line.split()[:1] == [task] for line in recipes.table().splitlines()) for task in tasks)
