"""Matrices rounded as they are read, so that a model is never there in floats.

Try: round what a GGUF file holds in 8 bits anew; tests/test_quantize.py fails where it is compared with the file.
"""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from llama.heads import NAMES as HEADS_OF_LABELS
from llama.quantization.rounding import exact_int4
from llama.quantization.swap import EMBEDDING_AND_HEAD, quantize_weight, relative_error
from weights.formats.quantized_matrix import QuantizedMatrix
from weights.formats.sources import Source


@torch.no_grad()
def iter_quantized(source: Source, bits: int, *, fine: bool = False, errors: dict[str, float] | None = None) -> \
        Iterator[tuple[str, Tensor | QuantizedMatrix]]:
    """The tensors of a source one at a time, its matrices in 8 or 4 bits.

    What the source holds in that many bits, or fewer, stays as it is: GGUF's Q8_0, Q4_0 and Q4_1. Embedding and head in
    8 bits stay as well.

    bits    0 takes what is packed in any way
    fine    as in `quantize`
    errors  gets those of what is rounded here, by layer
    """
    for name, shape, _ in source.ledger:
        path = name.removesuffix(".weight")
        packed = source.packed(name) if len(shape) == 2 else None
        if packed and (packed.bits == bits or not bits or (bits == 4 and path in EMBEDDING_AND_HEAD)):
            yield name, packed
        elif len(shape) == 2 and bits and path not in HEADS_OF_LABELS:
            yield name, _read_rounded(source, name, bits, fine, {} if errors is None else errors)
        else:
            yield name, source.read(name)


@torch.no_grad()
def collect_lossless_int4(source: Source, tensors: Iterable[tuple[str, Tensor]], found: dict[str, QuantizedMatrix]) -> \
        Iterator[tuple[str, Tensor]]:
    """The tensors of a source as they are. `found` gets, by layer, the matrices that 4 bits hold without any loss."""
    for name, tensor in tensors:
        path = name.removesuffix(".weight")
        if tensor.dim() == 2 and path not in (*EMBEDDING_AND_HEAD, *HEADS_OF_LABELS):
            packed = source.packed(name)
            if packed := packed if packed and packed.bits == 4 else exact_int4(tensor):
                found[path] = packed
        yield name, tensor


def _read_rounded(source: Source, name: str, bits: int, fine: bool, errors: dict[str, float]) -> QuantizedMatrix:
    path, weight = name.removesuffix(".weight"), source.read(name)
    packed = quantize_weight(path, weight, bits, fine=fine)
    errors[path] = relative_error(weight, packed)
    return packed
