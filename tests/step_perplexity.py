"""What whole numbers cost the compiled step: perplexity of a text by the step, beside that of float products.

    python -m tests.step_perplexity --bits 4 --tokens 4096

Both sides have the same weights of few bits. By torch they are multiplied as floats, by the step as they are, with
activations rounded to 16 bits, as where no flag is given, or with --coarse to 8, as with --quantize. Blocks of 512
tokens, eight at a time.

Try: round activations to 4 bits, 127 → 7 in decode.cpp; the difference grows from tenths of a percent to many percent.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

import llama
from llama.cache import KVCache
from llama.fast.compiled_step import MAX_TOKENS, CompiledStep, compile_step
from llama.model import Llama
from llama.quantize import quantize

BLOCK = 512
TEXT = Path(__file__).parents[1] / "README.md"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--coarse", action="store_true")
    flags = parser.parse_args()
    model = llama.get_model(flags.model)
    ids = torch.tensor(model.tokenizer.encode(TEXT.read_text(encoding="utf-8"))[: flags.tokens + 1])
    quantize(model, bits=flags.bits, report=False)
    compile_step(model, precise=not flags.coarse)
    step, model.step = model.step, None
    by_torch, by_step = losses(model, step, ids)
    apart = by_step - by_torch
    print(f"{len(apart)} tokens of {TEXT.name}, {flags.bits} bits: perplexity {math.exp(by_torch.mean()):.4f} by float "
          f"products, {math.exp(by_step.mean()):.4f} by the step, {math.expm1(apart.mean()):+.3%} "
          f"(standard error {apart.std() / len(apart) ** 0.5:.3%})")


@torch.inference_mode()
def losses(model: Llama, step: CompiledStep, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Of each token behind the first one, (N - 1,), by the model and by the step."""
    by_torch, by_step = [], []
    for start in range(0, len(ids) - 1, BLOCK):
        block = ids[start : start + BLOCK + 1]
        by_torch.append(functional.cross_entropy(model(block[None, :-1])[0], block[1:], reduction="none"))
        logits = torch.cat(list(logits_by_step(model, step, block[:-1])))
        by_step.append(functional.cross_entropy(logits, block[1:], reduction="none"))
    return torch.cat(by_torch), torch.cat(by_step)


def logits_by_step(model: Llama, step: CompiledStep, ids: Tensor) -> Iterator[Tensor]:
    """(T, V) a piece. The first token of a text runs through the model: the step works behind others."""
    cache = KVCache(model.config, 1, len(ids), dtype=torch.float32, device="cpu")
    yield model(ids[None, :1], cache=cache)[0]
    for piece in ids[1:].split(MAX_TOKENS):
        yield step(piece[None], padding=torch.zeros(1, dtype=torch.int64), cache=cache)[0]


if __name__ == "__main__":
    main()
