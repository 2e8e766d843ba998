"""Matrices in few bits as they are read, so that a model is never there in floats: rounded, or as they are.

Try: round what a GGUF file holds in 8 bits anew; tests/test_quantize.py fails where it is compared with the file.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from llama.heads import NAMES as HEADS_OF_LABELS
from llama.quantization.rounding import exact_int4, exact_int8
from llama.quantization.swap import EMBEDDING_AND_HEAD, quantize_weight, relative_error
from weights.formats.quantized_matrix import QuantizedMatrix
from weights.formats.sources import Source


@torch.no_grad()
def iter_quantized(source: Source, bits: int, *, errors: dict[str, float] | None = None) -> \
        Iterator[tuple[str, Tensor | QuantizedMatrix]]:
    """The tensors of a source one at a time, its matrices in 8 or 4 bits.

    What the source holds in that many bits, or fewer, stays as it is: GGUF's Q8_0, Q4_0 and Q4_1. Embedding and head in
    8 bits stay as well.

    bits    0 takes what is packed in any way
    errors  gets those of what is rounded here, by layer
    """
    for name, shape, _ in source.ledger:
        path = name.removesuffix(".weight")
        packed = source.packed(name) if len(shape) == 2 else None
        if packed and (packed.bits == bits or not bits or (bits == 4 and path in EMBEDDING_AND_HEAD)):
            yield name, packed
        elif len(shape) == 2 and bits and path not in HEADS_OF_LABELS:
            yield name, _read_rounded(source, name, bits, {} if errors is None else errors)
        else:
            yield name, source.read(name)


@torch.no_grad()
def iter_lossless(source: Source) -> Iterator[tuple[str, Tensor | QuantizedMatrix]]:
    """The tensors of a source one at a time; a matrix that 4 or 8 bits hold without any loss, in those.

    That is what the source has packed so (GGUF's Q8_0, Q5_0, Q4_1, Q4_0), and floats that were unpacked from such, but
    for Q5_0.
    """
    for name, shape, _ in source.ledger:
        if len(shape) != 2 or name.removesuffix(".weight") in HEADS_OF_LABELS:
            yield name, source.read(name)
        elif packed := source.packed(name):
            yield name, packed
        else:
            weight = source.read(name)
            yield name, next(filter(None, (exact(weight) for exact in (exact_int4, exact_int8))), weight)


def _read_rounded(source: Source, name: str, bits: int, errors: dict[str, float]) -> QuantizedMatrix:
    path, weight = name.removesuffix(".weight"), source.read(name)
    packed = quantize_weight(path, weight, bits)
    errors[path] = relative_error(weight, packed)
    return packed
