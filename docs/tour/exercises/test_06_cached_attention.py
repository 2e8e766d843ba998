import torch

from docs.tour.exercises.cached_attention import cached_attention
from llama.model import naive_attention


def test_property_it_stores_in_place_and_leaves_the_rest():
    keys, values = torch.full((6, 4), 9.0), torch.full((6, 4), 9.0)
    k, v = torch.randn(2, 2, 4)
    cached_attention(torch.randn(2, 4), k, v, keys, values, 1)
    assert torch.equal(keys[1:3], k) and torch.equal(values[1:3], v)
    assert (keys[3:] == 9.0).all() and (keys[0] == 9.0).all()


def test_two_ways_pieces_equal_the_whole():
    q, k, v = torch.randn(3, 7, 4)
    whole = naive_attention(q[None, None], k[None, None], v[None, None])[0, 0]
    for cuts in ([7], [1] * 7, [4, 1, 2]):
        keys, values, length, out = torch.full((9, 4), 1e3), torch.full((9, 4), 1e3), 0, []
        for T in cuts:
            new = slice(length, length + T)
            out.append(cached_attention(q[new], k[new], v[new], keys, values, length))
            length += T
        torch.testing.assert_close(torch.cat(out), whole)
