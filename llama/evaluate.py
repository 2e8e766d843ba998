"""Scores of a model on a data set: functions for the trainer, and the command `python -m llama.evaluate`.

    python -m llama.evaluate --task sentiment --adapter adapters/mine --data test.tsv --show-errors 20
    python -m llama.evaluate --task sentiment --zero-shot --labels positive=好评,negative=差评 --data test.tsv
    python -m llama.evaluate --task ner --zero-shot --few-shot 3 --examples train.txt --data test.txt
    python -m llama.evaluate --task multiple-choice --few-shot 5 --data examples/multiple-choice

Try: weigh batches equally instead of by targets; tests/test_evaluate.py fails on ragged lengths.
"""

import json
import math
import random
import sys
from typing import Any

from llama.runtime.interrupt import quiet_start

with quiet_start(__name__):

    from llama.commands import flags
    from llama.methods import preferences
    from llama.methods.preferences import PreferenceConfig
    from llama.runtime import cli
    from llama.runtime.destinations import file_to_write
    from llama.runtime.ranges import MANY, MOST_TOKENS, Range
    from llama.tasks.generation import TextGenerationTask
    from llama.tasks.instruction import ANSWER
    from llama.training.evaluation import evaluate_dataset
    from llama.training.objective import Plain
    from llama.training.results import errors, table, write_predictions
    from llama.zero_shot.zero_shot import ZeroShot
    from tokenizer.chat_template import template_variables

MEASURED = ("generation", "instruction", "preference")              # tasks whose likelihoods are what is asked for


def main() -> None:
    parser = cli.Parser(
        "python -m llama.evaluate", "Score a model, with or without an adapter, on a data set.",
        most=("data", "task", "model", "adapter", "labels", "zero-shot", "few-shot", "examples", "limit", "batch-size",
              "predictions", "show-errors", "json"),
        example="python -m llama.evaluate --task sentiment --adapter adapters/mine --data test.tsv")
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE", help="what to score on; of "
                        "multiple-choice also a folder with test/ and dev/")
    parser.add_argument("--limit", type=Range(0, MANY), default=0, metavar="N",
                        help="N examples, drawn by --seed; 0: all")
    parser.add_argument("--batch-size", type=Range(1, 65_536), default=8, metavar="N", help="samples at a time")
    parser.add_argument("--max-new-tokens", type=Range(1, MOST_TOKENS), default=ANSWER, metavar="N",
                        help="of an answer that is written")
    parser.add_argument("--predictions", type=file_to_write, metavar="FILE",
                        help="write what was found in each example, as lines of JSON")
    parser.add_argument("--show-errors", type=Range(0, MANY), default=0, metavar="N",
                        help="print N examples that came out wrong")
    untrained = parser.add_argument_group("Without training")
    untrained.add_argument("--zero-shot", action="store_true", help="ask a language model that was not tuned for the "
                           "task: labels by their likelihood, answers and entities copied from the text")
    untrained.add_argument("--few-shot", type=Range(0, 10_000), default=0, metavar="K",
                           help="the same, with K examples in front")
    untrained.add_argument("--examples", nargs="+", metavar="FILE", help="where these come from, drawn by "
                           "--seed; for multiple-choice the first of each subject, by default of the folder's dev/")
    cli.add_flags(parser, flags.TaskFlags)
    cli.add_flags(parser, PreferenceConfig)
    cli.add_flags(parser, flags.ModelFlags)
    arguments = parser.parse_args()

    task_flags = cli.from_flags(flags.TaskFlags, arguments)
    task, dataset = flags.task_and_dataset(task_flags)
    untrained = arguments.zero_shot or arguments.few_shot > 0 or not task.trained
    if (arguments.few_shot > 0) != bool(arguments.examples) and (task.trained or not arguments.few_shot):
        raise ValueError("--few-shot K takes K examples from the files of --examples; give both, or neither")
    if untrained and task_flags.attention != "auto":
        raise ValueError(f"--attention {task_flags.attention}: without training the model writes, and sees what is "
                         "before alone; leave it out")
    if task_flags.words and not untrained:
        raise ValueError("--labels NAME=WORD says what a prompt calls a label; without --zero-shot there is none")
    if isinstance(task, TextGenerationTask) and (arguments.predictions or arguments.show_errors):
        raise ValueError(f"--predictions and --show-errors are about answers; --task {task_flags.task} has none")
    whole = None
    if untrained:
        examples = []
        if arguments.few_shot:
            pool = dataset(arguments.examples) if arguments.examples else None
            if task.trained:
                examples = few(pool, arguments.few_shot, arguments.seed)
            else:                                                   # the data has examples of its own
                whole = dataset(arguments.data)
                examples = whole.shots(arguments.few_shot, pool)
        shot = ZeroShot(task, examples, words=task_flags.words, request=task_flags.request,
                        chat_format=task_flags.chat_format or None,
                        variables=template_variables(task_flags.template_args))
    data = some(whole or dataset(arguments.data), arguments.limit, arguments.seed)
    task.check(data)
    if untrained and task_flags.task == "preference":
        raise ValueError("--zero-shot asks for answers, and --task preference weighs those that are given; leave it "
                         "out")
    purpose = "measure" if task_flags.task in MEASURED and not untrained or not task.trained else \
        "generate" if task_flags.task in flags.WRITING else "find"
    model = flags.load(cli.from_flags(flags.ModelFlags, arguments), purpose=purpose)
    if untrained:
        results = shot.results(model, data, max_new_tokens=arguments.max_new_tokens, batch_size=arguments.batch_size)
        scores = task.compute_metrics(results)
    else:
        flags.check_model(task_flags, model)
        objective = Plain(model, task)
        if task_flags.task == "preference":
            pairs = cli.from_flags(PreferenceConfig, arguments)
            objective = preferences.against_base(model, task, pairs, data, batch_size=arguments.batch_size)
        scores, results = evaluate_dataset(objective, data, batch_size=arguments.batch_size,
                                           max_new_tokens=arguments.max_new_tokens)
    if odd := [name for name, value in scores.items() if isinstance(value, float) and not math.isfinite(value)]:
        raise RuntimeError(f"{odd[0]} is {scores[odd[0]]}: numbers grew too large in {model.dtype}; take "
                           "--dtype float32")
    details, text = task.report(results) if results else ({}, "")
    if arguments.predictions:
        write_predictions(arguments.predictions, results)
    print(json.dumps(scores | details, ensure_ascii=False) if arguments.json else "\n\n".join(
        filter(None, [table(scores), text])))
    if arguments.show_errors and all("gold" in result for result in results):
        print(errors(results, arguments.show_errors), file=sys.stderr if arguments.json else sys.stdout)


def some(dataset: Any, most: int, seed: int) -> Any:
    """At most so many examples, drawn at random, in their order; 0 for all."""
    if not 0 < most < len(dataset):
        return dataset
    return dataset.part(sorted(random.Random(seed).sample(range(len(dataset)), most)))


def few(dataset: Any, count: int, seed: int) -> list[dict[str, Any]]:
    """So many examples for a prompt, drawn at random; of labels as many of one as of another, as far as that goes."""
    if count > len(dataset):
        raise ValueError(f"--few-shot {count}: the files of --examples hold {len(dataset)}; give more, or take fewer")
    order = random.Random(seed).sample(range(len(dataset)), len(dataset))
    seen: dict[str, int] = {}
    turn = {}
    for i in order:
        label = str(dataset[i].get("label", dataset[i].get("labels", "")))
        turn[i] = seen[label] = seen.get(label, 0) + 1
    return [dataset[i] for i in sorted(order, key=turn.__getitem__)[:count]]         # sorted keeps the order of equals


if __name__ == "__main__":
    cli.run(main)
