import math

import torch

from docs.tour.exercises.next_token_loss import next_token_loss
from llama.tasks.task import Sample, Task, cross_entropy


def test_worked_example_no_idea_costs_the_logarithm_of_the_vocabulary():
    mask = torch.tensor([False, True, True])
    torch.testing.assert_close(next_token_loss(torch.zeros(3, 7), torch.tensor([1, 2, 3]), mask),
                               torch.tensor(math.log(7)))


def test_property_a_row_is_asked_for_the_id_behind_it():
    logits = torch.full((3, 4), -20.0)
    logits[0, 2] = logits[1, 3] = 20.0                              # 1 -> 2 -> 3
    assert next_token_loss(logits, torch.tensor([1, 2, 3]), torch.tensor([False, True, True])) < 1e-6


def test_two_ways_equals_the_task_s():
    ids, mask = [5, 1, 4, 2, 0, 3], [False, False, True, False, True, True]
    logits, task = torch.randn(6, 8), Task()
    batch = task.collate([Sample(ids, mask)])
    expected = cross_entropy(logits[None, :-1][task.rows(batch)], task.targets(batch)) / 3
    torch.testing.assert_close(next_token_loss(logits, torch.tensor(ids), torch.tensor(mask)), expected)
