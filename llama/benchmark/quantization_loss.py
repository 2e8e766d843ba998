"""What rounding costs a model: perplexity of text that it has not seen, in float32, in 8 bits, in 4 by several rules.

    python train.py --preset tiny-15m --output weights/news                 # learns all of a corpus but its last part
    python -m llama.benchmark.quantization_loss --model weights/news --data data/peoples-daily/text.txt --hold-out 0.05
    \
        --block-size 128

Each row is the model again with all its matrices rounded, and computes in float32, so that nothing but the rounding
shows. 4 bits for a text are rounded on the beginning of the data and judged, as all others, on what is held out.

Try: round on the text that judges; tests/test_quantization_loss.py (test_property_nothing_is_rounded_on_what_judges)
fails.
"""

import json
import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

from llama.runtime.interrupt import quiet_start

with quiet_start(__name__):
    from llama.benchmark.goals import excess, limits_met, table
    from llama.benchmark.measure_generation import mean_loss
    from llama.commands import flags
    from llama.datasets.language_modeling import LanguageModelingDataset
    from llama.model import Llama
    from llama.pretrained import get_model
    from llama.quantization.gptq import TOKENS, quantize_by_gptq
    from llama.quantization.rounding import to_int4_nearest
    from llama.quantization.swap import bits_of, quantize
    from llama.runtime import cli
    from llama.runtime.progress import Progress
    from llama.runtime.ranges import MANY, MOST_TOKENS, Range
    from tokenizer.base import Tokenizer

FLOATS = "float32"
WAYS: dict[str, Callable[[Llama, Sequence[int], int], Any]] = {     # model, ids of a text, tokens that see each other
    FLOATS: lambda model, ids, length: None,
    "int8, a scale a row": lambda model, ids, length: quantize(model, bits=8),
    "int4, to nearest": lambda model, ids, length: quantize(model, bits=4, to_int4=to_int4_nearest),
    "int4, searched": lambda model, ids, length: quantize(model, bits=4),
    "int4, for the text": lambda model, ids, length: quantize_by_gptq(model, ids, length=length),
}


def losses(model: Llama, before: Sequence[int], held_out: Sequence[int], *, block: int,
           ways: Sequence[str] = tuple(WAYS)) -> dict[str, dict[str, float]]:
    """For each way to round: the perplexity of the ids held out, in blocks, and bytes of all that is stored."""
    found, progress = {}, Progress(len(ways), "rounding")
    for done, way in enumerate(ways):
        progress.show(done, way)
        rounded = deepcopy(model)
        WAYS[way](rounded, before, block)
        stored = {id(each): each.nbytes for each in rounded.parameters()}       # tied ones once
        found[way] = {"perplexity": math.exp(mean_loss(rounded, held_out, block=block)),
                      "bits": bits_of(rounded), "bytes": sum(stored.values())}
    progress.clear()
    return found


def report(found: dict[str, dict[str, float]]) -> str:
    rows = []
    for way, figures in found.items():
        cost = [""] * 4
        if way != FLOATS:
            change = excess(found, "perplexity", way, FLOATS)
            bounds, verdict = limits_met(f"int{figures['bits']}", "perplexity", change)
            cost = [f"{change:+.2f} %", *bounds, verdict]
        rows.append([way, f"{figures['bytes'] / 1e6:.1f}", f"{figures['perplexity']:.3f}", *cost])
    return table(["weights", "MB", "perplexity", f"over {FLOATS}", "floor", "stretch", "met"], rows)


def parts(documents: Sequence[str], tokenizer: Tokenizer, *, hold_out: float, most: int) -> tuple[list[int], list[int]]:
    """Ids of the beginning and of the part that is held out, divided as train.py divides: at most so many of each."""
    cut = len(documents) - round(len(documents) * hold_out)
    return _first_ids(documents[:cut], tokenizer, TOKENS), _first_ids(documents[cut:], tokenizer, most)


def _first_ids(documents: Sequence[str], tokenizer: Tokenizer, most: int) -> list[int]:
    ids: list[int] = []
    for text in documents:
        if len(ids) >= most:
            break
        ids += tokenizer.encode(text, eos=True)
    return ids[:most]


def main() -> None:
    parser = cli.Parser("python -m llama.benchmark.quantization_loss", __doc__.splitlines()[0])
    parser.add_argument("--model", required=True, metavar="FOLDER", help="a model folder, whose weights are floats")
    parser.add_argument("--data", nargs="+", required=True, metavar="FILE", help="the text that it learned, or such")
    parser.add_argument("--hold-out", type=Range(1e-6, 1 - 1e-6), default=0.05, metavar="X",
                        help="part of the documents, the last, that judges; as given to train.py")
    parser.add_argument("--block-size", type=Range(2, MOST_TOKENS), default=512, metavar="N",
                        help="tokens that see each other; best as in training")
    parser.add_argument("--text-tokens", type=Range(1, MANY), default=20_480, metavar="N",
                        help="tokens that judge, at most")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    model = get_model(arguments.model).float()
    if bits_of(model):
        raise ValueError(f"{arguments.model} is in {bits_of(model)} bits already; give the model that it was made from")
    if not 2 <= arguments.block_size <= model.config.context:
        raise ValueError(f"--block-size is {arguments.block_size}; it must be at least 2 and at most the model's "
                         f"context of {model.config.context}")
    if model.tokenizer is None:
        raise ValueError(f"{arguments.model} has no tokenizer, so it reads no text; give a model folder")
    documents = [example["text"] for example in LanguageModelingDataset(*flags.data_files(arguments.data))]
    before, held_out = parts(documents, model.tokenizer, hold_out=arguments.hold_out, most=arguments.text_tokens)
    if len(held_out) <= arguments.block_size:
        raise ValueError(f"--hold-out {arguments.hold_out} leaves {len(held_out)} tokens to judge; give more than "
                         f"{arguments.block_size}, better 20,000")
    found = losses(model, before, held_out, block=arguments.block_size)
    print(json.dumps({"tokens": len(held_out), "rounded": found}) if arguments.json else
          f"{len(held_out):,} tokens held out, in blocks of {arguments.block_size}\n\n{report(found)}")


if __name__ == "__main__":
    cli.run(main)
