"""How each task is learned unless flags say otherwise: times through the data, texts an update, learning rates, time.

    python finetune.py --lora --task sentiment --data train.jsonl       # is --epochs 3 --batch-size 16 --lr 0.001

A head of labels begins with nothing and wants a higher rate than a model that goes on writing; where all weights learn,
a tenth of it or a third, or what they knew is soon lost. How these were found, on three tasks for all, is in
docs/experiments.md, how good they are in the table of docs/tasks.md.

Try: let `complete` replace what was given; tests/test_recipes.py (test_property_what_is_given_stays) fails.
"""

import argparse
from typing import NamedTuple

from llama.tasks.multiple_choice import NEVER

WAYS = ("lora", "last", "all")                                      # of tuning: an adapter, the last blocks, everything


class Recipe(NamedTuple):
    """Flags of a run, by their names; --lr by the way of tuning, in the order of WAYS.

    minutes  end a run for which nobody has said how long it shall be; its learning rate is at its end then, too
    """

    epochs: int
    batch_size: int
    lr: tuple[float, float, float]
    minutes: float = 30.0


_TEXTS = Recipe(epochs=3, batch_size=16, lr=(1e-3, 1e-4, 1e-4))
_TAGS = _TEXTS._replace(lr=(1e-3, 3e-4, 3e-4))
_WRITTEN = Recipe(epochs=3, batch_size=4, lr=(5e-4, 1e-4, 5e-5))

RECIPES = {
    "instruction": _WRITTEN,
    "preference": Recipe(epochs=1, batch_size=4, lr=(1e-4, 1e-5, 5e-6)),
    "generation": _WRITTEN,
    "summarization": _WRITTEN._replace(batch_size=8),
    "translation": _WRITTEN._replace(batch_size=16),
    "classification": _TEXTS,
    "sentiment": _TEXTS,
    "opinion": _TEXTS,
    "ner": _TAGS,
    "segmentation": _TAGS,
    "qa": _TEXTS._replace(batch_size=8),
}


FLAGS = ("epochs", "batch_size", "lr", "minutes")


def way_of(arguments: argparse.Namespace) -> str:
    """Of WAYS, that which flags ask for: new rows learn as an adapter does; what --freeze leaves, maybe nearly all, as
    all weights do."""
    return "lora" if arguments.lora or arguments.train_new_rows else "last" if arguments.freeze_layers else "all"


def complete(arguments: argparse.Namespace) -> None:
    """Give FLAGS that were left out the values of task and way; who gives a number of epochs or steps gets all of them.

    Raises ValueError for a task that has none: it measures, and is not learned.
    """
    if arguments.task not in RECIPES:
        raise ValueError(NEVER)
    recipe = RECIPES[arguments.task]
    rate = recipe.lr[WAYS.index(way_of(arguments))]
    minutes = recipe.minutes if arguments.epochs is None and not arguments.max_steps else 0.0
    for name, value in zip(FLAGS, (recipe.epochs, recipe.batch_size, rate, minutes), strict=True):
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)


def table() -> str:
    """All of them, for --help."""
    lines = ["Unless given, by --task; and --minutes 30, unless --epochs or --max-steps say how long it shall be:", "",
             f"  {'task':<16}{'--epochs':>9}{'--batch-size':>14}{'--lr with --lora':>19}{'--freeze-layers':>17}"
             f"{'all weights':>13}"]
    return "\n".join(lines + [f"  {task:<16}{each.epochs:>9}{each.batch_size:>14}" + "".join(
        f"{rate:>{width}.0e}" for rate, width in zip(each.lr, (19, 17, 13), strict=True))
        for task, each in RECIPES.items()])
