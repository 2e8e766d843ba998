"""What a model says about texts that one gives it: python -m llama.predict --adapter FOLDER "文本" …

    python -m llama.predict --adapter adapters/reviews "服务很好，下次还来。"     # positive 0.981 …
    python -m llama.predict --adapter adapters/names --json < letters.txt         # an object a line
    python -m llama.predict --adapter adapters/answers --context "小驼昨天来了。" "谁来了？"
    python -m llama.predict --task sentiment --labels positive=好评,negative=差评 "服务很好"       # without training
    python -m llama.predict --task translation "The dog sleeps."

What there is to find, and by which labels, is what the folder was tuned for (llama/tasks/task_of.py); a model that was
tuned for none is asked (llama/zero_shot). From Python it is the same: `llama.task_of(model).predict(model, texts)`.

Try: print entities from the last to the first; tests/test_predict.py (test_worked_example_what_is_printed) fails.
"""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from llama.runtime.interrupt import quiet_start

with quiet_start(__name__):

    from llama.checkpoint import PretrainedLlama
    from llama.commands import flags
    from llama.commands.texts import (
        Placed,
        given_texts,
        in_batches,
        questions_of_file,
        texts_of_file,
        texts_of_input,
    )
    from llama.heads import head_config
    from llama.runtime import cli
    from llama.runtime.ranges import MOST_TOKENS, Range
    from llama.runtime.terminal import say
    from llama.tasks.instruction import ANSWER
    from llama.tasks.labelled import LabelledTask
    from llama.tasks.task_of import task_of
    from llama.training.results import as_json, shortened
    from llama.zero_shot.zero_shot import ZeroShot
    from tokenizer.chat_template import template_variables

FINDING = {"classification": "classification", "sentiment": "classification", "ner": "ner",
           "segmentation": "segmentation", "qa": "qa"}              # --task -> the name of its task
WRITING = ("summarization", "translation")
UNUSED = ("task", "attention", "pooling", "scheme", "overlap", "documents", "period", "score")  # not about one text
ASKED = ("labels", "multi_label", "request", "chat_format", "template_args")
AROUND = 40                                                         # characters of a context that are shown


def main() -> None:
    parser = cli.Parser(
        "python -m llama.predict", "What a tuned model says about texts; one that was not tuned is asked.",
        most=("texts", "adapter", "model", "task", "context", "data", "labels", "request", "batch-size",
              "max-new-tokens", "max-length", "json"),
        example='python -m llama.predict --adapter adapters/reviews "服务很好，下次还来。"')
    parser.add_argument("texts", nargs="*", metavar="TEXT",
                        help="what to look at; with qa, a question; default: the lines of standard input")
    parser.add_argument("--task", choices=(*FINDING, *WRITING), default="",
                        help="what to find or write; default: what model or adapter was tuned for, as its folder says")
    parser.add_argument("--context", metavar="TEXT", help="qa: the text in which the answers to all questions stand")
    parser.add_argument("--data", action="append", default=[], metavar="FILE",
                        help="more texts: lines of a .txt, or the field 'text' ('source' where texts are written, "
                             "'question' and 'context' with qa) of records; may be repeated")
    parser.add_argument("--batch-size", type=Range(1, 65_536), default=8, metavar="N", help="texts at a time")
    parser.add_argument("--max-new-tokens", type=Range(1, MOST_TOKENS), default=ANSWER, metavar="N",
                        help="of a text that is written")
    cli.add_flags(parser, flags.TaskFlags, skip=UNUSED)
    cli.add_flags(parser, flags.ModelFlags, skip=("compile",))
    arguments = parser.parse_args()
    given = list(given_texts(arguments.texts))
    for file in flags.data_files(arguments.data):
        if not Path(file).exists():                                 # now, and not once a model is loaded
            raise FileNotFoundError(f"{file}: there is no such file; check the name, or the folder it is looked for in")
    model = flags.load(cli.from_flags(flags.ModelFlags, arguments), purpose="find")
    name = task_name(model, arguments.task)
    task_flags = cli.from_flags(flags.TaskFlags, arguments, task=name)
    flags.check_model(task_flags, model)
    pieces = inputs(name, given, arguments.data, arguments.context, task_flags)
    size = arguments.batch_size if head_config(model) or name in WRITING else 1         # nothing is gained by more
    count = cut = 0
    for place, asked, result in answers(model, task_flags, in_batches(pieces, size),
                                        max_new_tokens=arguments.max_new_tokens):
        print(as_json({"place": place, **result}) if arguments.json else shown(name, asked, result), flush=True)
        count, cut = count + 1, cut + ("lost" in result)
    if not count:
        raise ValueError("there is no text: what was given holds blank lines alone, or nothing; give one a line")
    if cut:
        say(f"{cut} of {count} texts were longer than {task_flags.max_length} tokens and lost their end; --max-length "
            "sets this")


def task_name(model: PretrainedLlama, asked: str) -> str:
    """What the model was tuned for; of a language model, what is asked for.

    Raises ValueError where the two differ, and where nobody says what is to be found.
    """
    if head_config(model) is None:
        if not asked:
            raise ValueError("the model was tuned for no task of labels, so nobody says what to find; give --adapter "
                             "with the folder of one that was, or --task, and with sentiment, classification or ner "
                             "--labels A,B")
        return asked
    tuned = task_of(model).name
    if asked and FINDING.get(asked) != tuned:
        raise ValueError(f"--task {asked}: the model was tuned for {tuned}, with the labels "
                         f"{', '.join(head_config(model).labels):.60}; leave --task out, or give another model")
    return asked or tuned


def inputs(name: str, given: list[Placed], files: list[str], context: str | None,
           task_flags: flags.TaskFlags) -> Iterator[Iterable[Placed]]:
    """All that is given, in its order; standard input where nothing is."""
    if context is not None and name != "qa":
        raise ValueError(f"--context is the text that questions of --task qa are about, and this is {name}; leave it "
                         "out")
    if context is not None and not context.strip():
        raise ValueError("--context is empty; give the text that the questions are about")
    if context is None and name == "qa" and (given or not files):
        raise ValueError("a question needs the text that it is about; give --context TEXT, or --data FILE with records "
                         "of 'question' and 'context'")

    def about(placed: Iterable[Placed]) -> Iterator[Placed]:
        return ((place, (text, context)) for place, text in placed) if name == "qa" else iter(placed)

    if given:
        yield about(given)
    for file in files:
        if name == "qa" and context is None:
            yield questions_of_file(file, task_flags)
        else:
            yield about(texts_of_file(file, task_flags, "source" if name in WRITING else "text"))
    if not (given or files):
        if sys.stdin and sys.stdin.isatty():
            say(f"a {'question' if name == 'qa' else 'text'} a line, please; Ctrl-D ends")
        yield from map(about, texts_of_input(task_flags))


def answers(model: PretrainedLlama, task_flags: flags.TaskFlags, batches: Iterable[list[Placed]], *,
            max_new_tokens: int) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """(place, input, what was found) for each input, as soon as its batch is done."""
    tuned = head_config(model) is not None
    if tuned and (flag := next((flag for flag in ASKED if getattr(task_flags, flag)), "")):
        raise ValueError(f"--{flag.replace('_', '-')} is about what an untuned model is asked, and this one was tuned "
                         f"for {task_flags.task}; leave it out")
    task, _ = flags.task_and_dataset(task_flags)
    if not isinstance(task, LabelledTask):
        for some in batches:                                        # what cannot be asked is missing, and said
            wanted = dict(enumerate(some))
            examples = [{"source": text, "target": "", "place": i} for i, (_, text) in wanted.items()]
            for result in task.answered(model, examples, batch_size=len(some), max_new_tokens=max_new_tokens):
                yield *wanted[result["place"]], {"text": result["text"], "predicted": result["predicted"]}
        return
    if tuned:
        task = task_of(model, max_length=task_flags.max_length)
        for some in batches:
            found = task.detailed(model, [asked for _, asked in some], batch_size=len(some))
            yield from ((*each, _without_place(result)) for each, result in zip(some, found, strict=True))
        return
    shot = ZeroShot(task, words=task_flags.words, request=task_flags.request,
                    chat_format=task_flags.chat_format or None, variables=template_variables(task_flags.template_args))
    say(f"{model.source or 'the model'} has no head of labels; it is asked (zero-shot)")
    waiting: list[Placed] = []

    def examples() -> Iterator[list[dict[str, Any]]]:
        for some in batches:
            waiting.extend(some)
            yield [task.example(asked) for _, asked in some]

    for result in shot.stream(model, examples()):
        yield *waiting.pop(0), _without_place(result)


def _without_place(result: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in result.items() if name != "place"}


def shown(name: str, asked: Any, result: dict[str, Any]) -> str:
    """What was found in one text, for people."""
    found = result["predicted"]
    if name in WRITING:
        return found
    if name == "ner":
        return marked(asked, found)
    if name == "segmentation":
        return shortened(" ".join(found), len(asked) * 2)
    if name == "qa":
        context, start = asked[1], result["start"]
        begin, end = max(0, start - AROUND), start + len(found) + AROUND
        text = f"{context[begin:start]}[{found}]{context[start + len(found):end]}"
        around = f"{'…' * (begin > 0)}{text}{'…' * (end < len(context))}"
        return f"{shortened(found)}\t{shortened(around, len(around))}" if found else "-"
    label = found if isinstance(found, str) else ",".join(found) or "-"
    return f"{label}\t{result['confidence']:.3f}\t{shortened(asked)}"


def marked(text: str, entities: Iterable[tuple[str, str, int, int]]) -> str:
    """The text in one line, each entity in brackets with its type: [小驼 PER]在[北京 LOC]."""
    pieces, end = [], 0
    for each, kind, start, behind in sorted(entities, key=lambda entity: entity[2]):
        pieces += [text[end:start], f"[{each} {kind}]"]
        end = behind
    whole = "".join([*pieces, text[end:]])
    return shortened(whole, len(whole))


if __name__ == "__main__":
    cli.run(main)
