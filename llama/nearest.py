"""Words whose vectors are near: python -m llama.nearest --model FOLDER 北京 …

    python -m llama.nearest 北京 --top 5                                     # by the input embedding
    python -m llama.nearest " Paris" " dog" --json
    python -m llama.nearest --analogy 北京 中国 东京                          # 中国 - 北京 + 东京
    python -m llama.nearest --adapter adapters/reviews --states --list words.txt 便宜
    python -m llama.nearest --analogies examples/analogies.txt               # how many are right, and among how many

From Python: `llama.nearest(model, "北京")` (llama/word_vectors.py).

Try: leave `_Callable` out; tests/test_word_vectors.py (test_property_the_name_is_a_function_for_whoever_has_the_module)
fails.
"""

import json
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

from llama.runtime.interrupt import quiet_start

with quiet_start(__name__):

    from llama.commands import flags
    from llama.datasets.words import analogies, word_list
    from llama.runtime import cli
    from llama.runtime.ranges import MANY, Range
    from llama.runtime.terminal import say
    from llama.training.results import shortened
    from llama.word_vectors import Neighbor, WordVectors, nearest


def main() -> None:
    parser = cli.Parser(
        "python -m llama.nearest", "The pieces of a vocabulary, or the words of a list, whose vectors are nearest.",
        most=("words", "analogy", "analogies", "list", "states", "blank", "top", "model", "adapter", "json"),
        example="python -m llama.nearest --model qwen2.5-coder-0.5b-instruct 北京")
    parser.add_argument("words", nargs="*", metavar="WORD", help="what to look for the neighbours of")
    parser.add_argument("--top", type=Range(1, MANY), default=10, metavar="N", help="neighbours of each")
    parser.add_argument("--list", metavar="FILE", help="look among these, a word a line (default: the pieces of the "
                        "vocabulary)")
    parser.add_argument("--states", action="store_true", help="compare the last layer's states instead of rows of the "
                        "embedding; each candidate runs through the model")
    parser.add_argument("--blank", action="store_true", help="put a blank before each word, as within an English "
                        "sentence")
    parser.add_argument("--analogy", nargs=3, action="append", default=[], metavar=("A", "B", "C"),
                        help="what is to C as B is to A: nearest to B - A + C; may be repeated")
    parser.add_argument("--analogies", metavar="FILE", help="test such questions, four words a line, among the words "
                        "of the file, or of --list")
    cli.add_flags(parser, flags.ModelFlags, skip=("compile",))
    arguments = parser.parse_args()
    if not (arguments.words or arguments.analogy or arguments.analogies):
        raise ValueError("there is no word to look for; give a WORD, --analogy A B C, or --analogies FILE")
    given = [*arguments.words, *(word for three in arguments.analogy for word in three)]
    if (empty := next((i for i, word in enumerate(given, 1) if not word.strip()), 0)):
        raise ValueError(f"word {empty} of {len(given)} is empty; give at least one character")
    words = word_list(arguments.list) if arguments.list else None
    questions = analogies(arguments.analogies) if arguments.analogies else []
    model = flags.load(cli.from_flags(flags.ModelFlags, arguments), purpose="measure")
    options = {"states": arguments.states, "blank": arguments.blank}
    if given:
        vectors = WordVectors(model, words, **options)
        for word in arguments.words:
            show({"word": word}, vectors.nearest(word, arguments.top), as_json=arguments.json)
        for three in arguments.analogy:
            show({"analogy": three}, vectors.analogy(*three, arguments.top), as_json=arguments.json)
    if questions:
        candidates = words or [word for question in questions for word in question[:4]]
        scores = WordVectors(model, candidates, **options).accuracy(questions)
        print(json.dumps(scores, ensure_ascii=False) if arguments.json else told(scores))


def show(asked: dict[str, Any], found: Sequence[Neighbor], *, as_json: bool) -> None:
    """One answer: a line of JSON, or what was asked and a line for each neighbour."""
    if as_json:
        print(json.dumps(asked | {"nearest": [each._asdict() for each in found]}, ensure_ascii=False), flush=True)
        return
    print(asked["word"] if "word" in asked else "{1} - {0} + {2}".format(*asked["analogy"]))
    if not found:
        say("  there is no other word to be near it; give a longer --list")
    for text, similarity in found:
        print(f"  {similarity:7.4f}  «{shortened(text)}»", flush=True)


def told(scores: dict[str, Any]) -> str:
    """Accuracies of analogies, a section a line."""
    lines = [f"{scores['questions']:,} questions among {scores['candidates']:,} words"]
    lines += [f"  {share:.4f}  {name}" for name, share in scores["by_section"].items()]
    return "\n".join([*lines, f"  {scores['accuracy']:.4f}  all"])


class _Callable(ModuleType):
    """`llama.nearest(model, …)` is the function, also where this module, which bears its name, was imported."""

    def __call__(self, *arguments: Any, **options: Any) -> list[Neighbor]:
        return nearest(*arguments, **options)


sys.modules[__name__].__class__ = _Callable


if __name__ == "__main__":
    cli.run(main)
