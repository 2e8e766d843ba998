import pytest

from llama.metrics.calibration import Bin, expected_calibration_error, reliability


def test_worked_example_two_bins():
    confidences, correct = [0.9, 0.7, 0.8, 0.4, 0.2], [True, True, False, False, True]
    high, low = (0.9 + 0.7 + 0.8) / 3, (0.4 + 0.2) / 2
    assert reliability(confidences, correct, bins=2) == [
        Bin(2, pytest.approx(low), 0.5), Bin(3, pytest.approx(high), pytest.approx(2 / 3))]
    assert expected_calibration_error(confidences, correct, bins=2) == pytest.approx(
        (2 * abs(0.5 - low) + 3 * abs(2 / 3 - high)) / 5)


def test_worked_example_edges_belong_to_the_bin_below():
    for bins in (3, 5, 10, 15):
        for m in range(1, bins + 1):
            assert len(reliability([m / bins, (m - 0.5) / bins], [True, False], bins)) == 1
    assert reliability([0.0, 0.01], [True, True], bins=10)[0].count == 2


def test_property_a_classifier_that_is_as_often_right_as_it_says_has_no_error():
    confidences = [0.25] * 4 + [0.75] * 4 + [1.0]
    correct = [True, False, False, False, True, True, True, False, True]
    assert expected_calibration_error(confidences, correct) == 0
    assert expected_calibration_error([1.0] * 3, [False] * 3) == 1


def test_refusal_of_what_is_no_probability():
    with pytest.raises(ValueError, match="a confidence is 1.5; it must be a probability, from 0 to 1"):
        expected_calibration_error([1.5], [True])
    with pytest.raises(ValueError, match="there are 1 confidences for 2 predictions, in 15 bins"):
        reliability([0.5], [True, False])
