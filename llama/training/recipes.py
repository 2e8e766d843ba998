"""How each task is learned unless flags say otherwise: times through the data, texts an update, learning rates, time.

    python finetune.py --lora --task sentiment --data train.jsonl       # is --epochs 3 --batch-size 16 --lr 0.001

A head of labels begins with nothing and wants a higher rate than a model that goes on writing; where all weights learn,
a tenth of it or a third, or what they knew is soon lost. How these were found, on three tasks for all, is in
docs/experiments.md, how good they are in the table of docs/tasks.md. Chinese texts are labelled best on top of the
small Chinese model, all weights of it and both ways (`WITH_ZH_SMALL`).

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


FLAGS = ("epochs", "batch_size", "lr", "minutes", "word_dropout")


def way_of(arguments: argparse.Namespace) -> str:
    """Of WAYS, that which flags ask for: new rows learn as an adapter does; what --freeze leaves, maybe nearly all, as
    all weights do."""
    return "lora" if arguments.lora or arguments.train_new_rows else "last" if arguments.freeze_layers else "all"


CHINESE_BASE = "zh-small"
SMALLER = 5                                                         # times the rate of models ten times as large

# Flags of tasks where all of its weights learn. Alpaca's sentences would be a hundred ids of its vocabulary.
_LABEL = {"attention": "full", "pooling": "mean", "word_dropout": 0.2}
_TAG, _SPAN, _ANSWER = {"attention": "full", "lr": 1e-3}, {"attention": "full"}, {"chat_format": "plain", "lr": 1e-3}
WITH_ZH_SMALL: dict[str, dict[str, Any]] = {
    "classification": _LABEL, "sentiment": _LABEL, "opinion": _LABEL, "ner": _TAG, "segmentation": _TAG, "qa": _SPAN,
    "summarization": _ANSWER, "translation": _ANSWER}
READ = ("text", "tokens", "question", "context", "source", "target")   # of an example; labels and places are no texts
UNSAID = (None, "auto", "")                                         # what these flags are where nobody gave them


def choose_base(arguments: argparse.Namespace, data: Sequence[dict[str, Any]], *, usual: str) -> bool:
    """Let a task about Chinese texts begin with the small Chinese model, unless a model is named. Whether it does."""
    texts = (text for example in itertools.islice(data, 200) for name in READ if name in example
             for text in example[name])
    named = arguments.model != usual or arguments.adapter
    chosen = not named and arguments.task in WITH_ZH_SMALL and is_chinese(texts)
    if chosen:
        arguments.model = CHINESE_BASE
    return chosen


def check(task: str) -> None:
    """Raise ValueError for a task that has none: it measures, and is not learned."""
    if task not in RECIPES:
        raise ValueError(NEVER)


def complete(arguments: argparse.Namespace) -> None:
    """Give flags that were left out the values of task, way and base; who gives a number of epochs or steps gets all of
    them.
    """
    recipe = RECIPES[arguments.task]
    way = way_of(arguments)
    rate = recipe.lr[WAYS.index(way)] * (SMALLER if arguments.model == CHINESE_BASE and way != "lora" else 1)
    minutes = recipe.minutes if arguments.epochs is None and not arguments.max_steps else 0.0
    small = WITH_ZH_SMALL.get(arguments.task, {}) if arguments.model == CHINESE_BASE and way == "all" else {}
    usual = dict(zip(FLAGS, (recipe.epochs, recipe.batch_size, rate, minutes, 0.0), strict=True))
    for name, value in (usual | small).items():
        if getattr(arguments, name) in UNSAID:
            setattr(arguments, name, value)


def table() -> str:
    """All of them, for --help."""
    lines = ["Unless given, by --task; and --minutes 30, unless --epochs or --max-steps say how long it shall be:", "",
             f"  {'task':<16}{'--epochs':>9}{'--batch-size':>14}{'--lr with --lora':>19}{'--freeze-layers':>17}"
             f"{'all weights':>13}"]
    lines += [f"  {task:<16}{each.epochs:>9}{each.batch_size:>14}" + "".join(
        f"{rate:>{width}.0e}" for rate, width in zip(each.lr, (19, 17, 13), strict=True))
        for task, each in RECIPES.items()]
    lines += ["", f"All weights of {CHINESE_BASE} learn {SMALLER} times as fast, or as it says here:", ""]
    for flags, tasks in itertools.groupby(WITH_ZH_SMALL, WITH_ZH_SMALL.get):
        lines += [f"  {', '.join(tasks)}:",
                  "    " + " ".join(f"--{name.replace('_', '-')} {value}" for name, value in flags.items())]
    return "\n".join(lines)
