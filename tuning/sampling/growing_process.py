"""The process of a large search: all of its trials count, and what does not change from proposal to proposal is kept.

Hyperparameters are fitted to some of the trials, and again when there are a tenth more. Between two fits the covariance
of the trials that have ended stays as it is, so its Cholesky factor only grows by a few rows a proposal: n^2 operations
each, not n^3. What must never live here: what a trial is, and which ones are fitted to.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_triangular

from tuning.sampling.gaussian_process import Floats, Points, Process, covariance, noise_of

REFIT_GROWTH = 1.1
BLOCK = 500  # Rows of the factor that are computed at a time: the memory is that of the factor, not of the covariances.


class GrowingProcess:
    """Keeps the Cholesky factor of the observations that are there to stay."""

    def __init__(self) -> None:
        self._theta = np.zeros(0)
        self._names: list[tuple[int, float]] = []
        self._points: Points | None = None
        self._root = np.zeros((0, 0))

    def of(
        self,
        theta: Floats,
        categorical: npt.NDArray[np.bool_],
        points: Points,
        values: Floats,
        *,
        numbers: Sequence[int],
        stays: npt.NDArray[np.bool_],
    ) -> Process:
        """Returns the process of some observations.

        Args:
            theta: Its hyperparameters.
            categorical: Which columns hold choices, (n_columns,).
            points: Where it was observed, one observation a trial and progress.
            values: What was observed, (n,).
            numbers: The number of each observation's trial, (n,), which is the same in each call.
            stays: Which observations will be there in the next call, too, (n,).
        """
        names = list(zip(numbers, points.progress.tolist(), strict=True))
        first = self._places(theta, points, names)
        new = np.setdiff1d(np.arange(len(names)), first)
        order = np.concatenate([first, new[stays[new]], new[~stays[new]]])
        n_stays = len(order) - int((~stays[new]).sum())
        ordered = taken(points, order)
        root = grown(self._root[: len(first), : len(first)], theta, categorical, taken(ordered, np.arange(n_stays)))
        self._theta, self._root, self._points = theta, root, taken(ordered, np.arange(n_stays))
        self._names = [names[i] for i in order[:n_stays]]
        return solved(grown(root, theta, categorical, ordered), theta, categorical, ordered, values[order])

    def _places(self, theta: Floats, points: Points, names: list[tuple[int, float]]) -> npt.NDArray[np.int64]:
        """Returns where the kept observations are among the present ones; none if any is not there as it was."""
        place, kept = {name: i for i, name in enumerate(names)}, self._points
        if kept is not None and np.array_equal(theta, self._theta) and all(name in place for name in self._names):
            places = np.array([place[name] for name in self._names], dtype=np.int64)
            now = taken(points, places)
            if np.array_equal(now.configs, kept.configs) and np.array_equal(now.of_tasks, kept.of_tasks):
                return places
        return np.zeros(0, np.int64)


def extended(process: Process, points: Points, values: Floats) -> Process:
    """Returns the process with further observations, and the same hyperparameters; its factor is not computed anew."""
    theta, categorical, joined = process.theta, process.categorical, process.points + points
    root = grown(process.root, theta, categorical, joined)
    return solved(root, theta, categorical, joined, np.append(process.values, values))


def grown(root: Floats, theta: Floats, categorical: npt.NDArray[np.bool_], points: Points) -> Floats:
    """Returns the Cholesky factor of the covariance of `points`, (n, n); `root` is that of the first ones."""
    n = len(points.progress)
    whole = np.zeros((n, n))
    whole[: len(root), : len(root)] = root
    for begin in range(len(root), n, BLOCK):
        rows, known = np.arange(begin, min(begin + BLOCK, n)), whole[:begin, :begin]
        new = taken(points, rows)
        within = covariance(theta, categorical, new, new)
        within[np.diag_indices_from(within)] += noise_of(theta, len(categorical))
        if begin:
            between = covariance(theta, categorical, taken(points, np.arange(begin)), new)
            explained = solve_triangular(known, between, lower=True, overwrite_b=True, check_finite=False)
            whole[rows, :begin] = explained.T
            within -= explained.T @ explained
        whole[rows[0] : rows[-1] + 1, rows[0] : rows[-1] + 1] = np.linalg.cholesky(within)
    return whole


def solved(root: Floats, theta: Floats, categorical: npt.NDArray[np.bool_], points: Points, values: Floats) -> Process:
    """Returns the process of a Cholesky factor."""
    half = solve_triangular(root, values, lower=True, check_finite=False)
    weights = solve_triangular(root, half, lower=True, trans="T", check_finite=False)
    return Process(theta, categorical, points, values, root, weights)


def taken(points: Points, rows: npt.NDArray[np.int64]) -> Points:
    """Returns some of the points."""
    tasks = None if points.tasks is None else points.tasks[rows]
    return Points(points.configs[rows], points.progress[rows], points.trials[rows], tasks)
