"""Whether one thing is better than another: llama/frontier/spread.py."""

import pytest

from llama.frontier.spread import beats, deviation, shown


def test_worked_example_mean_and_deviation():
    assert deviation([2.0, 4.0, 6.0]) == 2 and deviation([3.0]) is None
    assert shown([0.8, 0.82, 0.84]) == "0.820 ± 0.020" and shown([0.5], digits=1) == "0.5"


def test_worked_example_within_the_spread():
    assert not beats([0.80, 0.90], [0.70, 0.81])                    # though the mean is higher by far
    assert beats([0.82, 0.90], [0.70, 0.81]) and not beats([0.70, 0.81], [0.82, 0.90])
    assert beats([1.0, 1.1], [1.2, 1.3], lower=True) and not beats([1.0, 1.25], [1.2, 1.3], lower=True)


def test_property_nothing_beats_itself_and_no_two_each_other():
    for these, those in (([1.0, 2.0], [1.0, 2.0]), ([3.0, 4.0], [1.0, 2.0]), ([1.0], [1.0])):
        for lower in (False, True):
            assert not (beats(these, those, lower=lower) and beats(those, these, lower=lower))
            assert not beats(these, these, lower=lower)
    with pytest.raises(ValueError):
        beats([], [1.0])
