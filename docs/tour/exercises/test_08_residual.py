import torch

from docs.tour.exercises.residual import residual
from llama.config import preset
from llama.model import Block, rotary_tables


def test_worked_example_halves_and_squares():
    x = torch.tensor([4.0])
    end, added = residual(x, [(lambda v: v / 2, lambda v: v * v), (lambda v: v / 2, lambda v: v + 1)])
    assert [each.item() for each in added] == [4.0, 5.0] and end.item() == 13.0 and x.item() == 4.0


def test_property_the_end_is_the_beginning_and_all_that_was_added():
    x = torch.randn(3, 8)
    end, added = residual(x, [(lambda v: v.tanh(), lambda v: v @ torch.randn(8, 8)) for _ in range(6)])
    torch.testing.assert_close(end, x + sum(added))


def test_two_ways_equals_the_model_s_blocks():
    config = preset("test")
    blocks, x = [Block(config), Block(config)], torch.randn(1, 4, 32)
    tables = rotary_tables(torch.arange(4), config)
    parts, expected = [], x
    for block in blocks:
        parts += [(block.input_layernorm, lambda v, block=block: block.self_attn(v, *tables, None, None)),
                  (block.post_attention_layernorm, block.mlp)]
        expected = block(expected, *tables, None, None)
    torch.testing.assert_close(residual(x, parts)[0], expected)
