"""`AllEpochs`: the default sampler with all epochs of all curves, not those of a scheduler's rungs; for `methods.py`.

The covariance of curves is a product of one over epochs and one over configurations, so a curve is seen through few
numbers: its products with the leading eigenvectors of the covariance over its epochs (at the prior's mean length). What
is left of it beyond them is noise and counts as such in the likelihood. Curves that were stopped at the same epoch
share their eigenvectors. This is the latent Kronecker structure of Lin et al. 2024, solved by its low rank, not by
conjugate gradients.
"""

import math
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import numpy as np
import numpy.typing as npt
from optuna.trial import TrialState
from scipy.linalg import cho_solve, solve_triangular
from scipy.linalg.lapack import dpotri
from scipy.optimize import minimize

from tuning.sampling import curve_sampler
from tuning.sampling.curve_sampler import FIRST_STEPS, FURTHER_STEPS, CurveSampler, full_length, says_nothing
from tuning.sampling.gaussian_process import (
    JITTER,
    LENGTH,
    LENGTH_ALONG,
    SCALES,
    Floats,
    Points,
    apart_in_all,
    distances,
    matern,
)

Indices = npt.NDArray[np.int64]
LEAST = 3e-3  # Eigenvalue below which a direction of a curve counts as noise; the noise is about 0.01 an epoch.


def every_epoch(trials: Any, sign: float) -> tuple[Indices, Floats, Floats]:
    """Returns what `curve_sampler.observations` does, of every epoch."""
    longest = max((max(t.intermediate_values) for t in trials if t.intermediate_values), default=1)
    rows: list[tuple[int, float, float]] = []
    for i, t in enumerate(trials):
        if t.state == TrialState.FAIL:
            rows += [] if says_nothing(t) else [(i, 0.0, math.nan)]
            continue
        length, best = full_length(t, longest), math.nan
        for epoch, value in sorted(t.intermediate_values.items()):
            best = np.fmax(best, sign * value) if math.isfinite(value) else best
            rows.append((i, math.log(epoch / length), best))
    own, progress, values = (np.array(column) for column in zip(*rows, strict=True)) if rows else [np.zeros(0)] * 3
    worst = min((value for value in values if not math.isnan(value)), default=0.0)
    return own.astype(np.int64), progress, np.where(np.isnan(values), worst, values)


@dataclass(frozen=True)
class Rows:
    """Curves through few numbers each.

    Attributes:
        configs: As in `Points`, (n, n_columns).
        trials: As in `Points`, (n,).
        kinds: Row of `basis` that each is a product with, (n,).
        values: The products, (n,).
        nodes: All values of the progress, the first one 0, (n_nodes,).
        basis: Orthonormal within the curves of a pattern, (n_kinds, n_nodes); the first one is the last epoch alone.
        n_rest: How many directions of curves are noise.
        rest: Their sum of squares.
    """

    configs: Floats
    trials: Indices
    kinds: Indices
    values: Floats
    nodes: Floats
    basis: Floats
    n_rest: int
    rest: float

    @staticmethod
    def of(points: Points, values: Floats) -> "Rows":
        """Returns the rows of curves of which every epoch is given."""
        nodes, index = np.unique(np.append(0.0, np.round(points.progress, 9)), return_inverse=True)
        nodes, index = nodes[::-1], len(nodes) - 1 - index[1:]
        covariance = np.exp(-0.5 * math.exp(-2 * LENGTH_ALONG[0]) * (nodes[:, None] - nodes) ** 2)
        basis, known = [np.eye(1, len(nodes))[0]], {}
        rows: list[tuple[int, int, float]] = []
        rest = n_rest = 0.0
        for first, last in _runs(points.trials):
            pattern = tuple(index[first:last])
            if pattern not in known:
                found, vectors = np.linalg.eigh(covariance[np.ix_(pattern, pattern)])
                vectors = vectors[:, found > min(LEAST, found[-1])] if len(found) > 1 else vectors
                known[pattern] = (len(basis), vectors)
                for vector in vectors.T:
                    basis.append(np.zeros(len(nodes)))
                    basis[-1][list(pattern)] = vector
            begin, vectors = known[pattern]
            seen = vectors.T @ values[first:last]
            rest += float(values[first:last] @ values[first:last] - seen @ seen)
            n_rest += last - first - len(seen)
            rows += [(first, begin + k, value) for k, value in enumerate(seen)]
        at, kinds, seen = (np.array(column) for column in zip(*rows, strict=True))
        return Rows(
            points.configs[at], points.trials[at], kinds, seen, nodes, np.array(basis), int(n_rest), max(0.0, rest)
        )

    def alike(self, along: float) -> tuple[Floats, Floats]:
        """Returns the covariance over epochs between all kinds, and its derivative by `along`, times -2."""
        steps = (self.nodes[:, None] - self.nodes) ** 2
        covariance = np.exp(-0.5 * along * steps)
        return self.basis @ covariance @ self.basis.T, self.basis @ (covariance * steps) @ self.basis.T


def _runs(trials: Indices) -> list[tuple[int, int]]:
    starts = np.flatnonzero(np.append(True, trials[1:] != trials[:-1]))
    return list(zip(starts.tolist(), [*starts[1:].tolist(), len(trials)], strict=True))


@dataclass(frozen=True)
class CurveProcess:
    """A fitted process, as `gaussian_process.Process` is."""

    theta: Floats
    categorical: npt.NDArray[np.bool_]
    rows: Rows
    root: Floats
    weights: Floats

    @staticmethod
    def solved(theta: Floats, categorical: npt.NDArray[np.bool_], rows: Rows) -> "CurveProcess":
        """Returns the process with these hyperparameters and observations."""
        shared, along, scales = _parts(theta, len(categorical))
        similar, _ = matern(apart_in_all(rows.configs, rows.configs, shared, categorical))
        same = rows.trials[:, None] == rows.trials
        covariance = rows.alike(along)[0][np.ix_(rows.kinds, rows.kinds)]
        covariance *= scales[0] + scales[1] * similar + scales[2] * same
        root = np.linalg.cholesky(covariance + (scales[3] + JITTER) * np.eye(len(rows.values)))
        return CurveProcess(theta, categorical, rows, root, cho_solve((root, True), rows.values))

    @property
    def noise(self) -> float:
        """As of `Process`."""
        return float(np.exp(self.theta[len(self.categorical) + 3 :]).sum() ** 0.5)

    def mean(self, configs: Floats, trials: Indices | None = None) -> Floats:
        """Returns the mean of `predict`."""
        return self.predict(configs, trials)[0]

    def predict(self, configs: Floats, trials: Indices | None = None) -> tuple[Floats, Floats]:
        """Returns mean and deviation after the last epoch."""
        own = np.full(len(configs), -1) if trials is None else trials
        shared, along, scales = _parts(self.theta, len(self.categorical))
        similar, _ = matern(apart_in_all(configs, self.rows.configs, shared, self.categorical))
        same = (own[:, None] == self.rows.trials) & (own[:, None] >= 0)
        at_end = self.rows.alike(along)[0][0][self.rows.kinds]
        between = at_end * (scales[0] + scales[1] * similar + scales[2] * same)
        explained = solve_triangular(self.root, between.T, lower=True)
        variance = scales[: 2 if trials is None else 3].sum() - np.einsum("ij,ij->j", explained, explained)
        return between @ self.weights, np.sqrt(np.maximum(variance, 1e-10))

    def given(self, points: Points, values: Floats) -> "CurveProcess":
        """Returns the process with further observations of last epochs."""
        more = replace(
            self.rows,
            configs=np.concatenate([self.rows.configs, points.configs]),
            trials=np.append(self.rows.trials, points.trials),
            kinds=np.append(self.rows.kinds, np.zeros(len(values), np.int64)),
            values=np.append(self.rows.values, values),
        )
        return CurveProcess.solved(self.theta, self.categorical, more)


def fit(rows: Rows, categorical: npt.NDArray[np.bool_], start: Floats | None, n_steps: int) -> CurveProcess:
    """Returns the process whose hyperparameters are the most probable ones."""
    n_columns = len(categorical)
    priors = [(LENGTH[0] + 0.5 * math.log(n_columns), LENGTH[1])] * n_columns + [LENGTH_ALONG, *SCALES]
    mean, deviation = (np.array(column) for column in zip(*priors, strict=True))
    apart = distances(rows.configs, rows.configs, categorical)
    same = (rows.trials[:, None] == rows.trials).astype(np.float64)
    values, at = rows.values, np.ix_(rows.kinds, rows.kinds)

    def loss(theta: Floats) -> tuple[float, Floats]:
        shared, along, scales = _parts(theta, n_columns)
        similar, slope = matern(np.tensordot(shared, apart, 1))
        alike, by_along = (each[at] for each in rows.alike(along))
        inner = scales[0] + scales[1] * similar + scales[2] * same
        noise = scales[3] + JITTER
        try:
            root = np.linalg.cholesky(alike * inner + noise * np.eye(len(values)))
        except np.linalg.LinAlgError:
            return 1e10, np.zeros_like(theta)
        inverse = dpotri(root, lower=True)[0]
        inverse += np.tril(inverse, -1).T
        weights = inverse @ values
        outer = 0.5 * (inverse - np.outer(weights, weights))
        by_alike = outer * alike
        by_noise = np.trace(outer) + 0.5 * (rows.n_rest / noise - rows.rest / noise**2)
        sums = [by_alike.sum(), (by_alike * similar).sum(), (by_alike * same).sum(), by_noise]
        gradient = np.concatenate(
            [
                np.tensordot(apart, by_alike * slope, 2) * shared * scales[1],
                [(outer * inner * by_along).sum() * along],
                scales * sums,
            ]
        )
        off = (theta - mean) / deviation
        value = 0.5 * values @ weights + np.log(np.diag(root)).sum() + 0.5 * off @ off
        return float(value + 0.5 * (rows.n_rest * math.log(noise) + rows.rest / noise)), gradient + off / deviation

    found = minimize(
        loss,
        mean if start is None else start,
        jac=True,
        method="L-BFGS-B",
        bounds=list(zip(mean - 4 * deviation, mean + 4 * deviation, strict=True)),
        options={"maxiter": n_steps},
    )
    return CurveProcess.solved(found.x, categorical, rows)


def _parts(theta: Floats, n_columns: int) -> tuple[Floats, float, Floats]:
    return np.exp(-2 * theta[:n_columns]), math.exp(-2 * theta[n_columns]), np.exp(theta[n_columns + 1 :])


class AllEpochs(CurveSampler):
    """Proposes as the default does, from every epoch."""

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        with mock.patch.object(curve_sampler, "observations", every_epoch):
            return super().sample_relative(study, trial, search_space)

    def _fit(self, columns: Any, points: Points, told: Floats) -> Any:
        categorical = np.array([column.n_choices > 0 for column in columns])
        if self._theta is not None and len(self._theta) != len(columns) + 5:
            self._theta = None
        steps = FIRST_STEPS if self._theta is None else FURTHER_STEPS
        process = fit(Rows.of(points, told), categorical, self._theta, steps)
        self._theta = process.theta
        return process


class AllEpochsByLevels(AllEpochs):
    """The same, with values by their ranks among those that the default reads, and so of the same scale as there."""

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        original_observations, original_scores = curve_sampler.observations, curve_sampler.scores
        known: list[Floats] = []

        def observed(trials: Any, sign: float) -> tuple[Indices, Floats, Floats]:
            known[:] = [np.sort(original_observations(trials, sign)[2])]
            return every_epoch(trials, sign)

        def scored(values: Floats) -> Floats:
            places, first = np.unique(known[0], return_index=True)
            return np.interp(values, places, original_scores(known[0])[first])

        with (
            mock.patch.object(curve_sampler, "observations", observed),
            mock.patch.object(curve_sampler, "scores", scored),
        ):
            return CurveSampler.sample_relative(self, study, trial, search_space)
