import torch

from docs.tour.exercises.shared_step import handed_in


def test_worked_example_two_and_one():
    assert handed_in([torch.tensor(1.0), torch.tensor(2.0)], 3, 2).item() == 2.0
    assert handed_in([torch.tensor(6.0)], 3, 2).item() == 4.0       # the mean of 2 and 4 is that of 1, 2 and 6


def test_two_ways_any_number_of_processes_equals_one():
    gradients = list(torch.randn(23, 4))
    for size in (1, 2, 3, 5):
        parts = [handed_in(gradients[rank::size], 23, size) for rank in range(size)]
        torch.testing.assert_close(sum(parts) / size, torch.stack(gradients).mean(0))
