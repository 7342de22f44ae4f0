"""A Gaussian process over learning curves: what a configuration will have reached after its last epoch, and how surely.

The covariance of two observations is k_t * (s_0 + s_x k_x + s_i [same trial]) + s_n [same observation]: k_x is Matern
5/2 over configurations with a length a hyperparameter, k_t squared exponential over the logarithm of the epoch. s_0 is
what all curves share, s_i what is a trial's own and shows in all of its epochs: with it a trial's early epochs say
more of its own end than of its neighbours'.

Trials of earlier tasks may speak, too: s_x k_x is then multiplied by B = v v^T + diag(1 - v^2) over tasks. The task in
hand is task 0 and has v = 1. That of an earlier one is learned, between 0 (it says nothing) and 1 (it is the same
function), so that a task that misleads is found out as observations of task 0 contradict it (the coregionalisation of
Bonilla et al. 2008, with one shared function). s_0 is each task's own: ranks within tasks have no common level, and
that all curves rise must not speak for a task. Multiplied by B, too, it let a task that was turned upside down keep v
above 0.8 in three replayed searches of five; as it is, in one. Only arrays come in here; nothing knows Optuna or Ray.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_solve, solve_triangular
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

Floats = npt.NDArray[np.float64]
SQRT5 = math.sqrt(5.0)
JITTER = 1e-6
# Log-normal priors, as mean and deviation of the logarithm. The length of a hyperparameter grows with their number
# (Hvarfner et al. 2024); values have mean 0 and deviation 1.
LENGTH, LENGTH_ALONG = (math.log(0.5), 1.0), (math.log(1.5), 0.7)
SCALES = ((math.log(0.5), 1.0), (math.log(1.0), 0.7), (math.log(0.1), 1.0), (math.log(0.01), 1.0))
ALIKE = (math.log(0.7), 1.0)  # Of an earlier task's v, which is at most 1.


@dataclass(frozen=True)
class Points:
    """Where the process is observed.

    Attributes:
        configs: Numbers in [0, 1] or indices of choices, (n, n_columns).
        progress: Logarithm of the share of the full length, at most 0, (n,).
        trials: Which trial each is of, int, (n,); -1: of one that nothing else is known of. No two tasks share one.
        tasks: Which task each is of, int, (n,), 0 the one in hand; None: all of that one.
    """

    configs: Floats
    progress: Floats
    trials: npt.NDArray[np.int64]
    tasks: npt.NDArray[np.int64] | None = None

    @property
    def of_tasks(self) -> npt.NDArray[np.int64]:
        """Which task each is of, (n,)."""
        return np.zeros(len(self.trials), np.int64) if self.tasks is None else self.tasks

    def __add__(self, other: "Points") -> "Points":
        """Returns both, these first."""
        one_task = self.tasks is None and other.tasks is None
        return Points(
            np.concatenate([self.configs, other.configs]),
            np.concatenate([self.progress, other.progress]),
            np.concatenate([self.trials, other.trials]),
            None if one_task else np.concatenate([self.of_tasks, other.of_tasks]),
        )


def distances(a: Floats, b: Floats, categorical: npt.NDArray[np.bool_]) -> Floats:
    """Returns the squared distance in each column, (n_columns, len(a), len(b)); of two choices 0 or 1."""
    difference = a.T[:, :, None] - b.T[:, None, :]
    return np.where(categorical[:, None, None], difference != 0, difference**2)


def apart_in_all(a: Floats, b: Floats, shared: Floats, categorical: npt.NDArray[np.bool_]) -> Floats:
    """Returns the same summed over the columns, each times its `shared`, (len(a), len(b)); ten times as quick."""
    factors = np.sqrt(np.where(categorical, 0.0, shared))
    squared: Floats = cdist(a * factors, b * factors, "sqeuclidean")
    for column in np.flatnonzero(categorical):
        squared += shared[column] * (a[:, column, None] != b[:, column])
    return squared


def matern(squared: Floats) -> tuple[Floats, Floats]:
    """Returns Matern 5/2 of squared distances, and minus twice its derivative by them."""
    distance = np.sqrt(squared)
    decay = np.exp(-SQRT5 * distance)
    return (1 + SQRT5 * distance + 5 / 3 * squared) * decay, 5 / 3 * (1 + SQRT5 * distance) * decay


@dataclass(frozen=True)
class Process:
    """A process that has been fitted.

    Attributes:
        theta: Logarithms: a length a column, the length along the curve, s_0, s_x, s_i, s_n, a v an earlier task.
        categorical: Which columns hold choices, (n_columns,).
        points: Where it was observed.
        values: What was observed there, (n,).
        root: Cholesky factor of the observations' covariance, lower.
        weights: The inverse covariance times the values.
    """

    theta: Floats
    categorical: npt.NDArray[np.bool_]
    points: Points
    values: Floats
    root: Floats
    weights: Floats

    def predict(self, configs: Floats, trials: npt.NDArray[np.int64] | None = None) -> tuple[Floats, Floats]:
        """Returns mean and deviation of configurations after their last epoch, in the task in hand.

        Of trials (as in `Points`) all counts that is known; without them, only what their place says: a new trial's own
        part cannot be looked for.
        """
        between = self._between(configs, trials)
        scales = _parts(self.theta, len(self.categorical))[2]
        explained = solve_triangular(self.root, between.T, lower=True)
        variance = scales[: 2 if trials is None else 3].sum() - np.einsum("ij,ij->j", explained, explained)
        return between @ self.weights, np.sqrt(np.maximum(variance, 1e-10))

    def mean(self, configs: Floats, trials: npt.NDArray[np.int64] | None = None) -> Floats:
        """Returns the mean of `predict` alone, which takes a fraction of the time."""
        expected: Floats = self._between(configs, trials) @ self.weights
        return expected

    def _between(self, configs: Floats, trials: npt.NDArray[np.int64] | None) -> Floats:
        """Returns the covariance of configurations after their last epoch with the observations."""
        n_columns = len(self.categorical)
        own = np.full(len(configs), -1) if trials is None else trials
        shared, along, scales = _parts(self.theta, n_columns)
        similar, _ = matern(apart_in_all(configs, self.points.configs, shared, self.categorical))
        same = (own[:, None] == self.points.trials) & (own[:, None] >= 0)
        of_one, alike = tasks_alike(self.theta, n_columns, np.zeros(1, np.int64), self.points.tasks)
        inner = of_one * scales[0] + alike * (scales[1] * similar) + scales[2] * same
        between: Floats = np.exp(-0.5 * along * self.points.progress**2) * inner
        return between

    @property
    def noise(self) -> float:
        """How far trainings of one configuration are apart: the deviation of what no other trial tells of one."""
        return float(np.exp(self.theta[len(self.categorical) + 3 : len(self.categorical) + 5]).sum() ** 0.5)

    def given(self, points: Points, values: Floats) -> "Process":
        """Returns the process with further observations, and the same hyperparameters."""
        return _solved(self.theta, self.categorical, self.points + points, np.append(self.values, values))


def tasks_alike(
    theta: Floats, n_columns: int, tasks: npt.NDArray[np.int64], others: npt.NDArray[np.int64] | None
) -> tuple[Floats | float, Floats | float]:
    """Returns which observations of some tasks and of others are of one task, as 1 and 0, and B between them.

    Both are (len(tasks), len(others)); 1 where all are of one.
    """
    if others is None:
        return 1.0, 1.0
    v = np.append(1.0, np.exp(theta[n_columns + 5 :]))
    of_one = tasks[:, None] == others
    return of_one.astype(np.float64), np.where(of_one, 1.0, v[tasks][:, None] * v[others])


def fit(
    points: Points,
    values: Floats,
    categorical: npt.NDArray[np.bool_],
    *,
    start: Floats | None,
    n_steps: int,
    n_earlier: int = 0,
) -> Process:
    """Returns the process whose hyperparameters are the most probable ones given the values (and their priors).

    Args:
        points: Where it was observed.
        values: What was observed, of mean 0 and deviation 1 in each task, (n,).
        categorical: Which columns hold choices, (n_columns,).
        start: `theta` of an earlier fit to go on from; None begins at the priors' means.
        n_steps: Of L-BFGS at most.
        n_earlier: Tasks beside the one in hand.
    """
    loss, mean, deviation = posterior(points, values, categorical, n_earlier)
    highest = mean + 4 * deviation
    highest[len(mean) - n_earlier :] = 0.0
    found = minimize(
        loss,
        mean if start is None else start,
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(mean - 4 * deviation, highest, strict=True)),
        options={"maxiter": n_steps},
    )
    return _solved(found.x, categorical, points, values)


def posterior(
    points: Points, values: Floats, categorical: npt.NDArray[np.bool_], n_earlier: int = 0
) -> tuple[Callable[[Floats], tuple[float, Floats]], Floats, Floats]:
    """Returns what `fit` minimises, and means and deviations of its prior; arguments as there."""
    n_columns = len(categorical)
    priors = [(LENGTH[0] + 0.5 * math.log(n_columns), LENGTH[1])] * n_columns
    priors += [LENGTH_ALONG, *SCALES, *[ALIKE] * n_earlier]
    mean, deviation = (np.array(column) for column in zip(*priors, strict=True))
    apart = distances(points.configs, points.configs, categorical)
    steps = (points.progress[:, None] - points.progress) ** 2
    same = (points.trials[:, None] == points.trials).astype(np.float64)
    identity = np.eye(len(values))
    tasks = points.of_tasks

    def loss(theta: Floats) -> tuple[float, Floats]:
        """Returns minus the logarithm of the posterior, and its gradient."""
        shared, along, scales = _parts(theta, n_columns)
        similar, slope = matern(np.tensordot(shared, apart, 1))
        alike = np.exp(-0.5 * along * steps)
        of_one, related = tasks_alike(theta, n_columns, tasks, points.tasks)
        by_place = related * (scales[1] * similar)
        inner = of_one * scales[0] + by_place + scales[2] * same
        try:
            root = np.linalg.cholesky(alike * inner + (scales[3] + JITTER) * identity)
        except np.linalg.LinAlgError:
            return 1e10, np.zeros_like(theta)
        inverse = dpotri(root, lower=True)[0]  # The lower half; twice as quick as solving for the identity.
        inverse += np.tril(inverse, -1).T
        weights = inverse @ values
        outer = 0.5 * (inverse - np.outer(weights, weights))
        by_alike = outer * alike
        by_related = by_alike * related
        by_v = 2 * (by_alike * by_place).sum(axis=1, where=tasks[:, None] != tasks) if n_earlier else np.zeros(0)
        gradient = np.concatenate(
            [
                np.tensordot(apart, by_related * slope, 2) * shared * scales[1],
                [(by_alike * inner * steps).sum() * along],
                scales
                * [
                    (by_alike * of_one).sum(),
                    (by_related * similar).sum(),
                    (by_alike * same).sum(),
                    np.trace(outer),
                ],
                [by_v[tasks == task].sum() for task in range(1, n_earlier + 1)],
            ]
        )
        off = (theta - mean) / deviation
        return (
            float(0.5 * values @ weights + np.log(np.diag(root)).sum() + 0.5 * off @ off),
            gradient + off / deviation,
        )

    return loss, mean, deviation


def _solved(theta: Floats, categorical: npt.NDArray[np.bool_], points: Points, values: Floats) -> Process:
    """Returns the process with these hyperparameters and observations."""
    noise = noise_of(theta, len(categorical)) * np.eye(len(values))
    root = np.asarray(np.linalg.cholesky(covariance(theta, categorical, points, points) + noise), dtype=np.float64)
    return Process(theta, categorical, points, values, root, cho_solve((root, True), values))


def covariance(theta: Floats, categorical: npt.NDArray[np.bool_], points: Points, others: Points) -> Floats:
    """Returns the covariance between the functions' values at some points and at others, (len, len), without noise."""
    shared, along, scales = _parts(theta, len(categorical))
    similar, _ = matern(apart_in_all(points.configs, others.configs, shared, categorical))
    alike = np.exp(-0.5 * along * (points.progress[:, None] - others.progress) ** 2)
    same = points.trials[:, None] == others.trials
    of_one, related = tasks_alike(theta, len(categorical), points.of_tasks, others.tasks)
    between: Floats = alike * (of_one * scales[0] + related * (scales[1] * similar) + scales[2] * same)
    return between


def noise_of(theta: Floats, n_columns: int) -> float:
    """Returns the variance of an observation about the function's value."""
    return float(_parts(theta, n_columns)[2][3] + JITTER)


def _parts(theta: Floats, n_columns: int) -> tuple[Floats, float, Floats]:
    """Returns the inverse squared lengths of the columns and of the curve, and the four scales."""
    scales = np.exp(theta[n_columns + 1 : n_columns + 5])
    return np.exp(-2 * theta[:n_columns]), math.exp(-2 * theta[n_columns]), scales
