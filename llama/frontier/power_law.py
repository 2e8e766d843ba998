"""The loss as a law of parameters N and tokens T: L = E + A/Nᵃ + B/Tᵇ (Hoffmann et al. 2022, arXiv:2203.15556, eq. 10).

E is what no model of this kind gets below, A/Nᵃ what few parameters cost, B/Tᵇ what little text does. Given a and b the
law is linear in E, A and B, so exponents are tried on a grid, and each pair gets its best E, A, B ≥ 0 by least squares;
then the grid closes in on the best pair. The paper fits logarithms of losses by Huber's loss and L-BFGS; with tens of
runs and not hundreds the plain squares can be checked by hand.

Five numbers from few runs are soon a guess. So an exponent comes with the range of those that fit about as well, and
`undetermined` says why runs do not determine it.

Try: leave E out of the columns; tests/test_frontier_power_law.py (test_worked_example_a_law_is_found_again) fails.
"""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Point = tuple[float, float, float]                                  # N, T, loss in nats a token

EXPONENTS = (0.02, 2.0)                                             # those that are tried
TRIED = 25                                                          # of each, evenly by logarithm
ROUNDS = 5                                                          # in which the grid closes in
UNKNOWNS = 5


class PowerLaw(NamedTuple):
    """The law, and how well it fits.

    a_range, b_range  exponents, the other free, whose squares exceed the best by no more than 4 s², s² = squares/(n-5):
                      about two standard errors. None of exactly as many runs as unknowns, where anything fits
    residuals         loss measured less loss by the law, in the order of the points
    """

    E: float
    A: float
    a: float
    B: float
    b: float
    residuals: tuple[float, ...]
    a_range: tuple[float, float] | None
    b_range: tuple[float, float] | None

    def loss(self, N: float, T: float) -> float:
        return self.E + self.A / N**self.a + self.B / T**self.b

    def open_ends(self) -> list[str]:
        """Exponents that the runs do not determine: what fits about as well reaches an end of all that were tried."""
        return [name for name, found in (("a", self.a_range), ("b", self.b_range))
                if found is None or found[0] <= EXPONENTS[0] * 1.001 or found[1] >= EXPONENTS[1] / 1.001]

    def __str__(self) -> str:
        def exponent(value: float, found: tuple[float, float] | None) -> str:
            return f"{value:.2f}" + (f" ({found[0]:.2f} to {found[1]:.2f} fit about as well)" if found else "")

        size = (sum(each * each for each in self.residuals) / len(self.residuals)) ** 0.5
        return (f"L(N, T) = {self.E:.3f} + {self.A:.4g}/N^{self.a:.2f} + {self.B:.4g}/T^{self.b:.2f} nats a token\n"
                f"a = {exponent(self.a, self.a_range)}, b = {exponent(self.b, self.b_range)}\n"
                f"residuals of {len(self.residuals)} runs: {size:.4f} (root of the mean square), "
                f"{max(map(abs, self.residuals)):.4f} at most")


def undetermined(points: Sequence[Point]) -> str:
    """Why these runs cannot determine the law; "" where they may."""
    for name, values in (("sizes of model", {N for N, _, _ in points}), ("amounts of text", {T for _, T, _ in points})):
        if len(values) < 3:
            return f"{len(values)} {name}, and a curve with an end needs three of each at least"
    if len(points) <= UNKNOWNS:
        return f"{len(points)} runs for {UNKNOWNS} unknowns"
    return ""


def fit(points: Sequence[Point]) -> PowerLaw:
    """The law of least squares. Raises ValueError, saying why, for runs that cannot determine it."""
    if why := undetermined(points):
        raise ValueError(f"no law is fitted: {why}")
    values = np.array(points, dtype=np.float64).T
    low, high = np.log(EXPONENTS)
    centre, width = np.array([(low + high) / 2] * 2), (high - low) / 2
    for _ in range(ROUNDS):
        tried = np.exp(np.clip(centre[:, None] + np.linspace(-width, width, TRIED), low, high))
        solutions, squares = _solve(*values, *tried)
        best = np.unravel_index(squares.argmin(), squares.shape)
        centre, width = np.log([tried[0, best[0]], tried[1, best[1]]]), width / 4
    (a, b), (E, A, B) = np.exp(centre).tolist(), solutions[best].tolist()

    bound = squares[best] * (1 + 4 / (len(points) - UNKNOWNS)) + 1e-12
    all_tried = np.exp(np.linspace(low, high, 4 * TRIED))
    ranges = []
    for axis, exponent in enumerate((a, b)):
        axes = [all_tried, np.append(all_tried[::4], (b, a)[axis])]
        fits = _solve(*values, *(axes if axis == 0 else axes[::-1]))[1].min(axis=1 - axis) <= bound
        near = [*all_tried[fits].tolist(), exponent]
        ranges.append((min(near), max(near)))
    law = PowerLaw(E, A, a, B, b, (), *ranges)
    return law._replace(residuals=tuple(loss - law.loss(N, T) for N, T, loss in points))


def _solve(N: np.ndarray, T: np.ndarray, loss: np.ndarray, a: np.ndarray, b: np.ndarray
           ) -> tuple[np.ndarray, np.ndarray]:
    """(E, A, B), none below 0, that fit best with each pair of exponents, and the sums of their squares.

    Bounds of three unknowns are met by trying: each set of those that may be more than 0 is solved alone, and of the
    solutions that keep the bounds the best is taken.

    N, T, loss (n,);  a (I,), b (J,)  ->  (I, J, 3) and (I, J)
    """
    scale_N, scale_T = N.min() ** a, T.min() ** b                   # so that no column is above 1
    one, by_N, by_T = np.broadcast_arrays(1.0, (N ** -a[:, None] * scale_N[:, None])[:, None],
                                          (T ** -b[:, None] * scale_T[:, None])[None])
    columns = np.stack([one, by_N, by_T], axis=-1)                  # (I, J, n, 3)
    best, squares = np.zeros((*columns.shape[:2], 3)), np.full(columns.shape[:2], loss @ loss)
    for count in (1, 2, 3):
        for some in map(list, itertools.combinations(range(3), count)):
            found = np.linalg.pinv(columns[..., some]) @ loss       # (I, J, count)
            rest = ((loss - np.einsum("ijnc,ijc->ijn", columns[..., some], found)) ** 2).sum(-1)
            better = (found >= 0).all(-1) & (rest < squares)
            solution = np.zeros_like(best)
            solution[..., some] = found
            best[better], squares[better] = solution[better], rest[better]
    return best * np.stack(np.broadcast_arrays(1.0, scale_N[:, None], scale_T[None]), axis=-1), squares
