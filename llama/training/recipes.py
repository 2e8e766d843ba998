"""How each task is learned unless flags say otherwise: times through the data, texts an update, learning rates, time.

    python finetune.py --lora --task sentiment --data train.jsonl       # is --epochs 3 --batch-size 16 --lr 0.001

A head of labels begins with nothing and wants a higher rate than a model that goes on writing; where all weights learn,
a tenth of it or a third, or what they knew is soon lost. How these were found, on three tasks for all, is in
docs/experiments.md, how good they are in the table of docs/tasks.md. Chinese texts are labelled best on top of the
small Chinese model, all weights of it and both ways (`FOR_CHINESE`).

Try: let `complete` replace what was given; tests/test_recipes.py (test_property_what_is_given_stays) fails.
"""

import argparse
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from llama.metrics.language import is_chinese
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


CHINESE_BASE = "zh-small"
ABOUT_TEXTS = ("summarization", "translation", "classification", "sentiment", "opinion", "ner", "segmentation", "qa")
FOR_CHINESE = {"attention": "full", "pooling": "mean"}              # where a head of labels learns with all weights
ONE_ROW = ("classification", "sentiment", "opinion")                # scores a text: elsewhere there is nothing to pool
SMALLER = 5                                                         # times the rate of models ten times as large


def choose_base(arguments: argparse.Namespace, data: Sequence[dict[str, Any]], *, usual: str) -> bool:
    """Let a task about Chinese texts begin with the small Chinese model, unless a model is named. Whether it does."""
    texts = (text for example in itertools.islice(data, 200) for value in example.values()
             for text in (value if isinstance(value, list) else [value]) if isinstance(text, str))
    named = arguments.model != usual or arguments.adapter
    chosen = not named and arguments.task in ABOUT_TEXTS and is_chinese(texts)
    if chosen:
        arguments.model = CHINESE_BASE
    if arguments.model == CHINESE_BASE and way_of(arguments) == "all" and arguments.task in ABOUT_TEXTS[2:]:
        for name, value in FOR_CHINESE.items():
            if getattr(arguments, name) == "auto" and (name != "pooling" or arguments.task in ONE_ROW):
                setattr(arguments, name, value)
    return chosen


def check(task: str) -> None:
    """Raise ValueError for a task that has none: it measures, and is not learned."""
    if task not in RECIPES:
        raise ValueError(NEVER)


def complete(arguments: argparse.Namespace) -> None:
    """Give FLAGS that were left out the values of task and way; who gives a number of epochs or steps gets all of them.
    """
    recipe = RECIPES[arguments.task]
    way = way_of(arguments)
    rate = recipe.lr[WAYS.index(way)] * (SMALLER if arguments.model == CHINESE_BASE and way != "lora" else 1)
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
