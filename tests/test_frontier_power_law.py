"""The law of the loss: llama/frontier/power_law.py."""

import numpy as np
import pytest

from llama.frontier.power_law import _solve, fit, undetermined

SIZES, AMOUNTS = (1e6, 3e6, 7e6, 15e6), (1e5, 4e5, 16e5)


def _points(noise: float = 0.0):
    """By the paper's own law, eq. 10 and appendix D.3."""
    drawn = np.random.default_rng(0)
    return [(N, T, 1.69 + 406.4 / N**0.34 + 410.7 / T**0.28 + noise * drawn.standard_normal())
            for N in SIZES for T in AMOUNTS]


def test_worked_example_a_law_is_found_again():
    law = fit(_points())
    assert (law.E, law.A, law.a, law.B, law.b) == pytest.approx((1.69, 406.4, 0.34, 410.7, 0.28), rel=0.01)
    assert max(map(abs, law.residuals)) < 1e-3 and not law.open_ends()
    assert law.loss(7e9, 1.4e11) == pytest.approx(1.69 + 406.4 / 7e9**0.34 + 410.7 / 1.4e11**0.28, abs=0.01)
    assert "L(N, T) = 1.69" in str(law) and "residuals of 12 runs" in str(law)


def test_property_noise_widens_what_fits_about_as_well():
    ranges = [fit(_points(noise)).a_range for noise in (0.0, 0.02, 0.1)]
    widths = [high - low for low, high in ranges]
    assert widths == sorted(widths) and widths[2] > widths[0]
    assert all(low <= 0.34 * 1.05 and high >= 0.34 * 0.95 for low, high in ranges)


def test_property_what_the_runs_do_not_determine_is_said():
    flat = [(N, T, 5.0 + 100 / T**0.3 + 0.01 * (i % 3)) for i, (N, T, _) in enumerate(_points())]
    law = fit(flat)                                                 # nothing depends on N, so any a will do
    assert "a" in law.open_ends() and "b" not in law.open_ends() and law.A < 1e3


def test_two_ways_the_bounded_solution_and_a_search():
    """Where plain least squares gives a negative number, no other triple that keeps the bounds is better."""
    drawn = np.random.default_rng(1)
    N, T = drawn.uniform(1, 10, 8), drawn.uniform(1, 10, 8)
    loss = 2 - 1 / N + 3 / T
    [[found]], [[squares]] = _solve(N, T, loss, np.array([1.0]), np.array([1.0]))
    assert found.min() == 0 and squares > 0
    for _ in range(2000):
        E, A, B = np.abs(found + drawn.normal(0, 0.3, 3))
        assert ((loss - E - A / N - B / T) ** 2).sum() >= squares - 1e-12


@pytest.mark.parametrize(("points", "why"), [
    (_points()[:3], "1 sizes of model"), ([point for point in _points() if point[1] < 1e6], "2 amounts of text"),
    ([(N, T, 1.0) for N, T in zip(SIZES, (*AMOUNTS, 1e5), strict=True)], "4 runs for 5 unknowns")])
def test_refusal_of_too_few_runs(points, why):
    assert why in undetermined(points)
    with pytest.raises(ValueError, match=why):
        fit(points)
