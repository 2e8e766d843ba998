"""Samples of other texts among those that are learned."""

from collections import Counter

import pytest
import torch

from llama.tasks.task import Sample, Task
from llama.training.digest import samples_digest
from llama.training.mixed_samples import MixedSamples


def some(number, reads, name):
    return [Sample([0] * (reads + 1), [False] + [True] * reads, f"{name} {i}") for i in range(number)]


def test_worked_example_of_a_share():
    """Eight samples of 128 tokens are four fifths of all where two more are learned."""
    own, others = some(8, 128, "z"), some(5, 128, "e")
    mixed = MixedSamples(own, {"english.txt": (others, 0.2)})
    assert len(mixed) == 10 and mixed[:8] == own and {sample.place[0] for sample in mixed[8:]} == {"e"}
    assert str(mixed) == "english.txt is mixed in: 2 of its 5 samples, 256 tokens beside the data's 1,024"
    both = MixedSamples(own, {"a": (others, 0.25), "b": (some(9, 64, "b"), 0.25)})     # a quarter, a quarter, a half
    assert Counter(sample.place[0] for sample in both) == {"z": 8, "e": 4, "b": 8}


def test_property_of_too_few_each_comes_as_often_as_any_other():
    mixed = MixedSamples(some(10, 100, "z"), {"few.txt": (some(3, 100, "e"), 0.5)})
    found = Counter(sample.place for sample in mixed[10:])
    assert len(mixed) == 20 and sorted(found.values()) == [3, 3, 4]
    assert "3 of its 3 samples, each 3.3 times" in str(mixed)


def test_property_samples_of_any_length_come_near_to_their_share():
    others = [Sample([0] * (n + 1), [True] * (n + 1), f"e {n}") for n in range(1, 60)]
    mixed = MixedSamples(some(40, 50, "z"), {"e": (others, 0.1)}, seed=3)
    read = sum(sample.reads for sample in mixed[40:])
    assert abs(read / (read + 2000) - 0.1) < 0.015
    assert samples_digest(mixed) == samples_digest(MixedSamples(some(40, 50, "z"), {"e": (others, 0.1)}, seed=3))
    assert samples_digest(mixed) != samples_digest(MixedSamples(some(40, 50, "z"), {"e": (others, 0.1)}, seed=4))


def test_property_an_epoch_visits_all_in_one_order():
    mixed = MixedSamples(some(90, 10, "z"), {"e": (some(40, 10, "e"), 0.1)})
    order = Task().order(mixed, 4, torch.Generator().manual_seed(0))
    assert sorted(order.tolist()) == list(range(100))
    places = [mixed[i].place[0] for i in order.tolist()]
    assert 2 <= places[:50].count("e") <= 8                         # of ten


@pytest.mark.parametrize("shares", [(0.0,), (1.0,), (0.5, 0.5), (-0.1,)])
def test_refusal_of_shares_that_leave_nothing(shares):
    with pytest.raises(ValueError, match="each must lie between 0 and 1, and all of them together leave something"):
        MixedSamples(some(2, 3, "z"), {str(i): (some(2, 3, "e"), share) for i, share in enumerate(shares)})
    with pytest.raises(ValueError, match="empty.txt: the text to mix in holds no sample"):
        MixedSamples(some(2, 3, "z"), {"empty.txt": ([], 0.1)})
