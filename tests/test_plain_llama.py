"""A plain Llama: the order of rotary rows, the names and shapes of all tensors. Refusals: test_llama2c.py."""

import pytest
import torch

from llama.checkpoint import PretrainedLlama
from llama.config import preset
from weights.formats.plain_llama import Sizes, to_half_split, to_interleaved


def test_worked_example_rows_of_two_heads():
    rows = torch.arange(12)[:, None]                                       # K 6: pairs (0, 1), (2, 3), (4, 5)
    assert to_half_split(rows, 2).flatten().tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert to_interleaved(to_half_split(rows, 2), 2).flatten().tolist() == list(range(12))
    assert to_half_split(rows, 1).flatten().tolist() == [0, 2, 4, 6, 8, 10, 1, 3, 5, 7, 9, 11]


def test_two_ways_shapes_are_those_of_the_model():
    sizes = Sizes(D=32, F=64, L=2, H=4, G=2, V=512)
    with torch.device("meta"):
        model = PretrainedLlama(preset("test"))
    assert sizes.shapes() == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert list(sizes.shapes()) == list(model.state_dict())
    heads = {name: sizes.rotated_heads(name) for name in sizes.shapes() if sizes.rotated_heads(name)}
    assert heads == {f"layers.{i}.self_attn.{part}.weight": count for i in (0, 1)
                     for part, count in (("q_proj", 4), ("k_proj", 2))}


@pytest.mark.parametrize("sizes, sentence", [
    (Sizes(0, 1, 1, 1, 1, 1), "each must be at least 1"), (Sizes(6, 1, 1, 2, 1, 1), "an even number of features"),
    (Sizes(8, 1, 1, 4, 3, 1), "4 heads are no multiple of 3"), (Sizes(8, 1, 1, 4, 2, 1), "")])
def test_refusal_sizes_of_no_llama(sizes, sentence):
    assert sentence in sizes.misfit() and bool(sizes.misfit()) == bool(sentence)
