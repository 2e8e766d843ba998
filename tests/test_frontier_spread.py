"""Whether one thing is better than another: llama/frontier/spread.py."""

from llama.frontier.spread import beats, deviation, shown


def test_worked_example_mean_and_deviation():
    assert deviation([2.0, 4.0, 6.0]) == 2 and deviation([3.0]) is None
    assert shown([0.8, 0.82, 0.84]) == "0.820 ± 0.020" and shown([0.5], digits=1) == "0.5"


def test_worked_example_within_the_spread():
    worse = [0.70, 0.75, 0.81]
    assert not beats([0.80, 0.90, 0.95], worse)                     # though the mean is higher by far
    assert beats([0.82, 0.90, 0.95], worse) and not beats(worse, [0.82, 0.90, 0.95])
    assert beats([0.5, 0.6, 0.69], worse, lower=True) and not beats([0.5, 0.6, 0.71], worse, lower=True)


def test_worked_example_of_two_runs_nothing_is_said():
    assert not beats([0.9, 0.9], [0.1, 0.1, 0.1]) and not beats([0.9, 0.9, 0.9], [0.1, 0.1]) and not beats([], [])


def test_property_nothing_beats_itself_and_no_two_each_other():
    low, high = [1.0, 2.0, 2.0], [3.0, 4.0, 3.5]
    for these, those in ((low, low), (low, high), ([1.0] * 3, [1.0] * 3)):
        for lower in (False, True):
            assert not (beats(these, those, lower=lower) and beats(those, these, lower=lower))
            assert not beats(these, these, lower=lower)
