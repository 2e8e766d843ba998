import torch
from torch.nn import functional

from docs.tour.exercises.embedding_gradient import embedding_gradient


def test_worked_example_a_row_looked_up_twice_learns_twice():
    gradient = embedding_gradient(torch.tensor([2, 0, 2]), torch.tensor([[1.0, 0.5], [2.0, 2.0], [10.0, 0.0]]), 4)
    torch.testing.assert_close(gradient, torch.tensor([[2.0, 2.0], [0.0, 0.0], [11.0, 0.5], [0.0, 0.0]]))


def test_two_ways_equals_autograd():
    table = torch.randn(7, 3, requires_grad=True)
    tokens, gradient = torch.randint(7, (20,)), torch.randn(20, 3)
    functional.embedding(tokens, table).backward(gradient)
    torch.testing.assert_close(embedding_gradient(tokens, gradient, 7), table.grad)
