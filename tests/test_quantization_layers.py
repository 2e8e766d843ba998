"""Layers of whole numbers: by hand, equal to what they stand for, gradients, dtypes."""

import pytest
import torch
from conftest import matrix
from torch.nn import functional

from llama.quantization import layers
from llama.quantization.layers import QuantizedEmbedding, linear_of
from llama.quantization.rounding import to_int4, to_int8

LAYERS = {
    "int8 rows": lambda weight, **more: linear_of(to_int8(weight), **more),
    "int8 groups": lambda weight, **more: linear_of(to_int8(weight, grouped=True), **more),
    "int4": lambda weight, **more: linear_of(to_int4(weight), **more),
}  # fmt: skip
KINDS = pytest.mark.parametrize("kind", LAYERS)


def test_worked_example_int8_row():
    """Each row has its scale: 2 for the first, 1/2 for the second."""
    linear = linear_of(to_int8(torch.tensor([[254.0, -2.0], [63.5, 0.5]])), dtype=torch.float32)
    assert linear.weight.tolist() == [[127, -1], [127, 1]] and linear.scale.tolist() == [2.0, 0.5]
    assert linear(torch.tensor([1.0, 1.0])).tolist() == [252.0, 64.0]


@KINDS
def test_two_ways_layer_equals_the_linear_it_stands_for(kind, monkeypatch):
    bias = matrix(1, 48)[0]
    linear = LAYERS[kind](matrix(), bias=bias, dtype=torch.float32)
    x = matrix(5, 64, seed=1).view(1, 5, 64)
    expected = functional.linear(x, linear.dequantized(), bias)
    assert torch.equal(linear(x), expected)
    monkeypatch.setattr(layers, "PIECE", 64 * 7)                  # seven rows of W at a time
    torch.testing.assert_close(linear(x), expected, atol=1e-5, rtol=0)
    assert linear(x[:, :0]).shape == (1, 0, 48)


def test_two_ways_embedding_equals_the_one_it_stands_for():
    embedding = QuantizedEmbedding(to_int8(matrix(), grouped=True), dtype=torch.bfloat16)
    tokens = torch.tensor([[3, 3, 47], [0, 1, 2]])
    assert torch.equal(embedding(tokens), functional.embedding(tokens, embedding.dequantized()))
    assert embedding(tokens).dtype == torch.bfloat16


@KINDS
def test_two_ways_gradient_equals_that_of_floats_and_keeps_none(kind):
    linear, x, y = LAYERS[kind](matrix(), dtype=torch.float32), matrix(5, 64, seed=1), matrix(5, 48, seed=2)
    kept = []
    first, second = x.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.shape) or tensor, lambda x: x):
        (linear(first) * y).sum().backward()
    assert kept and torch.Size([48, 64]) not in kept                # what a product keeps otherwise: its weights
    (functional.linear(second, linear.dequantized()) * y).sum().backward()
    torch.testing.assert_close(first.grad, second.grad, atol=1e-5, rtol=0)
    assert all(parameter.grad is None for parameter in linear.parameters())


@KINDS
def test_property_another_dtype_leaves_the_weights_alone(kind):
    linear = LAYERS[kind](matrix(), bias=matrix(1, 48)[0], dtype=torch.float32)
    before = linear.packed.dequantize()
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        linear.to(dtype)
        assert torch.equal(linear.packed.dequantize(), before)
        assert linear.dtype == linear.bias.dtype == linear.dequantized().dtype == dtype
