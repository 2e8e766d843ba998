"""This project's side of `python -m llama.benchmark`: the works of one mode, in a process of its own.

    python -m llama.benchmark.measure_generation --model weights/NAME --quantize int8        # flags of generate.py;
    serves llama/runtime/worker.py

Everything goes the way of generate.py: `flags.load` makes the model, `generate` writes, greedily and past ids that end
a text. Speeds are tokens and seconds, so that whoever asks divides.

    decode      tokens behind the first, with a growing context
    prefill     from the call to the first token
    batch       prompts of any lengths at once, reading them included
    answers     whole answers to their own end, one after the other, reading the questions included
    perplexity  of a text in blocks, through what single tokens go through
    traffic     bytes that one more token needs from memory: all weights once, and the cache of what stands before

Try: count the first token in `decode` as well; tests/test_measure_generation.py (test_worked_example_decode_counts)
fails.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from llama.runtime.interrupt import quiet_start

with quiet_start(__name__):
    import torch
    from torch.nn import functional

    from llama.commands import flags
    from llama.decoding.speculative import PromptLookup, SpeculationConfig, draft_stats, generate_speculatively
    from llama.fast.compiled_step import MAX_TOKENS
    from llama.fast.fused_block import FusedBlock, weight_bytes_per_token
    from llama.fast.fused_linear import FEW_ROWS
    from llama.generation import BatchDecoder, generate
    from llama.model import Llama
    from llama.quantization.layers import QuantizedLinear
    from llama.runtime import cli
    from llama.runtime.destinations import folder_to_write
    from llama.runtime.worker import Works, results_alone, serve
    from llama.sampling import SamplingConfig

GREEDY = SamplingConfig(temperature=0)
STEP = min(MAX_TOKENS, FEW_ROWS)                                         # tokens at a time: a step of floats takes them


def works(model: Llama, *, cache_dtype: torch.dtype | None = None, lookup: bool = False) -> Works:
    """What can be asked of a model, generating with these options; all answers are plain values."""
    options = {"tokenizer": model.tokenizer, "sampling": GREEDY, "ignore_eos": True, "cache_dtype": cache_dtype}
    write = partial(generate_speculatively, guesser=PromptLookup()) if lookup else generate

    def decode(prompt: list[int], new: int) -> dict[str, Any]:
        completion = write(model, [prompt], max_new_tokens=new + 1, **options)[0]
        assert len(completion.token_ids) == new + 1, completion
        return {"tokens": new, "seconds": new / completion.tokens_per_second}

    def prefill(prompt: list[int]) -> dict[str, Any]:
        started = time.perf_counter()
        write(model, [prompt], max_new_tokens=1, **options)
        return {"tokens": len(prompt), "seconds": time.perf_counter() - started}

    def batch(prompts: list[list[int]], new: int) -> dict[str, Any]:
        started = time.perf_counter()
        completions = generate(model, prompts, max_new_tokens=new, batch_size=len(prompts), **options)
        seconds = time.perf_counter() - started
        return {"tokens": sum(len(completion.token_ids) for completion in completions), "seconds": seconds}

    def answers(prompts: list[list[int]], new: int) -> dict[str, Any]:
        started = time.perf_counter()
        found = [write(model, [prompt], max_new_tokens=new, **options | {"ignore_eos": False})[0] for prompt in prompts]
        seconds = time.perf_counter() - started
        answer = {"tokens": sum(len(each.token_ids) for each in found), "seconds": seconds}
        return answer | ({"guesses": dataclasses.asdict(draft_stats(found))} if lookup else {})

    def perplexity(ids: list[int], block: int) -> dict[str, Any]:
        loss = mean_loss(model, ids, block=block, cache_dtype=cache_dtype)
        return {"perplexity": math.exp(loss), "tokens": len(ids) - 1}

    def traffic(context: int) -> dict[str, Any]:
        return {"bytes": bytes_a_token(model, context, cache_dtype=cache_dtype), "kernel": kernel(model)}

    return {"decode": decode, "prefill": prefill, "batch": batch, "answers": answers, "perplexity": perplexity,
            "traffic": traffic}


@torch.inference_mode()
def mean_loss(model: Llama, ids: Sequence[int], *, block: int, **options: Any) -> float:
    """The mean of -log p(id | ids before it in its block), over all ids but the first; blocks are `block` ids long.

    Each block goes through a cache, since a mode may change that as well, and where there is a compiled step, or
    another form of the weights for few tokens, through that: behind a first token, a few at a time. Options are those
    of BatchDecoder.
    """
    total, size = 0.0, STEP if model.step else block
    for start in range(0, len(ids) - 1, block):
        targets = torch.tensor(ids[start + 1 : start + block + 1], device=model.device)
        given = torch.tensor([ids[start : start + len(targets)]], device=model.device)  # (1, T)
        decoder = BatchDecoder(model, [0], len(targets), vocab_size=model.config.vocab_size, **options)
        cuts = [0, *range(1, len(targets), size), len(targets)]
        for first, last in itertools.pairwise(cuts):
            logits = decoder.read(given[:, first:last], last - first)[0]                # (T, V)
            total += functional.cross_entropy(logits.float(), targets[first:last], reduction="sum").item()
    return total / (len(ids) - 1)


def bytes_a_token(model: Llama, context: int, **options: Any) -> int:
    """Bytes of all linear layers as a token reads them, and of the keys and values of `context` tokens."""
    cache = BatchDecoder(model, [0], context, vocab_size=model.config.vocab_size, **options).cache
    kept = sum(getattr(layer, name).nbytes for layer in cache.layers for name in layer.stored)
    return weight_bytes_per_token(model) + kept


def kernel(model: Llama) -> str:
    """What reads the weights for a token, and what they are."""
    bits = sorted({module.packed.bits for module in model.modules() if isinstance(module, QuantizedLinear)})
    weights = " and ".join(f"{each} bits" for each in bits) or str(model.dtype).removeprefix("torch.")
    if model.step is not None:
        return f"the compiled step, {model.step.instructions}, on {weights}"
    return f"torch, {'fused' if isinstance(model.layers[0], FusedBlock) else 'plain'} blocks, on {weights}"


def write_quantized(model_flags: flags.ModelFlags, folder: Path) -> None:
    """Save a model in 8 bits, as a folder that `--model` takes."""
    from llama.checkpoint import save_model
    from llama.pretrained import get_model

    save_model(get_model(model_flags.model, bits=8), folder)


def main() -> None:
    parser = cli.Parser("python -m llama.benchmark.measure_generation", __doc__.splitlines()[0])
    parser.add_argument("--write-int8", type=folder_to_write, metavar="FOLDER",
                        help="serve nothing: save the model in 8 bits, and end")
    parser.add_argument("--cache-dtype", default="auto", help="as generate.py has it")
    cli.add_flags(parser, SpeculationConfig, skip=("draft", "draft_tokens"))
    cli.add_flags(parser, flags.ModelFlags)
    arguments = parser.parse_args()
    model_flags = cli.from_flags(flags.ModelFlags, arguments)
    if arguments.write_int8:
        write_quantized(model_flags, Path(arguments.write_int8))
        return
    cache_dtype = None if arguments.cache_dtype == "auto" else getattr(torch, arguments.cache_dtype)
    with results_alone() as results:
        model = flags.load(model_flags, purpose="generate")
        serve(works(model, cache_dtype=cache_dtype, lookup=arguments.lookup), results)


if __name__ == "__main__":
    cli.run(main)
