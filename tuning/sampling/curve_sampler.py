"""`CurveSampler`: an Optuna sampler that learns from learning curves as far as they are known.

A Gaussian process over (configuration, epoch) is fitted to what all trials have reported; a new point is the one whose
*last* epoch promises the largest expected improvement, but one in ten is random, so that a wrong belief is found out.
The last epoch is that of a trial's own configuration, as a space may set `epochs`. A trial that was stopped, or that
still runs, counts for what it has shown and no more; one that failed by itself counts as the worst there was. The idea
is that of Swersky et al. 2014 (Freeze-Thaw Bayesian optimisation); here it only proposes, and a scheduler stops. What
it is worth, `tests/benchmarks/search_quality.py` measures.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from scipy.special import log_ndtr, ndtri

from tuning.sampling.gaussian_process import Floats, Points, Process, fit

# Of a curve the process gets the last epoch and those at full length / 3, / 9, ...: as a scheduler's rungs are spaced.
LEVEL_RATIO = 3
FIRST_STEPS, FURTHER_STEPS = 30, 10
RANDOM_SHARE = 0.1
MOST_TRIALS = 150  # About 350 observations, with which a proposal takes a third of a second of one core.
CANDIDATES, NEIGHBOURS, ROUNDS = 512, 256, (0.1, 0.05, 0.02)
INACTIVE = 0.5
# What version 0.2.0 wrote as the error of a trial that has shown nothing.
_NO_RESULT = re.compile(r"stopped by .* before its first epoch ended|same configuration as trial \d+, which is running")


@dataclass(frozen=True)
class Column:
    """A hyperparameter as numbers: in [0, 1] along its scale, or the index of a choice.

    Attributes:
        name: Its name.
        distribution: Its range or choices.
        left_out: Choices that are not proposed.
    """

    name: str
    distribution: BaseDistribution
    left_out: tuple[Any, ...] = ()

    @property
    def n_choices(self) -> int:
        """Choices of a categorical one; 0 for a number."""
        return len(self.distribution.choices) if isinstance(self.distribution, CategoricalDistribution) else 0

    def encode(self, value: Any) -> float:
        """Returns the number that stands for a value."""
        if isinstance(self.distribution, CategoricalDistribution):
            return float(self.distribution.to_internal_repr(value))
        return float(self._encode(np.float64(value)))

    def decode(self, number: float) -> Any:
        """Returns the value that a number stands for."""
        if isinstance(self.distribution, CategoricalDistribution):
            return self.distribution.choices[int(number)]
        value = float(self._values(np.float64(number)))
        return round(value) if isinstance(self.distribution, IntDistribution) else value

    def draw(self, n: int, generator: np.random.Generator) -> Floats:
        """Returns numbers of random values, (n,)."""
        if self.n_choices and self.left_out:
            return generator.choice(np.flatnonzero(self.is_possible(np.arange(self.n_choices))), size=n).astype(
                np.float64
            )
        if self.n_choices:
            return generator.integers(self.n_choices, size=n).astype(np.float64)
        return self.nearest(generator.random(n))

    def move(self, numbers: Floats, size: Floats, generator: np.random.Generator) -> Floats:
        """Returns numbers of values near those of `numbers`, or other choices."""
        if self.n_choices:
            return self.draw(len(numbers), generator)
        return self.nearest(np.clip(numbers + size * generator.normal(size=len(numbers)), 0, 1))

    def is_possible(self, numbers: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
        """Returns which numbers stand for values that may be proposed, (n,); all where no choice would be left."""
        choices = self.distribution.choices if isinstance(self.distribution, CategoricalDistribution) else ()
        gone = [index for index, choice in enumerate(choices) if choice in self.left_out]
        return np.ones(len(numbers), bool) if len(gone) == len(choices) else ~np.isin(numbers, gone)

    def nearest(self, numbers: Floats) -> Floats:
        """Returns the numbers of the values next to these: some have a grid."""
        return np.asarray(self._encode(self._values(numbers)), dtype=np.float64)

    def _encode(self, values: Any) -> Any:
        low, high = self._ends()
        return ((np.log(values) if self._log else values) - low) / (high - low)

    def _values(self, numbers: Any) -> Any:
        distribution: Any = self.distribution
        low, high = self._ends()
        values = low + numbers * (high - low)
        values = np.exp(values) if self._log else values
        if distribution.step is not None:
            values = distribution.low + distribution.step * np.round((values - distribution.low) / distribution.step)
        return np.clip(values, distribution.low, distribution.high)

    def _ends(self) -> tuple[float, float]:
        distribution: Any = self.distribution
        low, high = float(distribution.low), float(distribution.high)
        return (math.log(low), math.log(high)) if self._log else (low, high)

    @property
    def _log(self) -> bool:
        return isinstance(self.distribution, FloatDistribution | IntDistribution) and self.distribution.log


class CurveSampler(optuna.samplers.BaseSampler):
    """Proposes what promises most after the last epoch.

    Args:
        seed: Of the first, random points and of the candidates.
        n_startup: Random points before the process is asked.
        random_share: Of the points after these that are random, too.

    Attributes:
        left_out: Name of a categorical parameter -> choices that are not proposed; see `tuning.sampling.possible`.
    """

    def __init__(self, seed: int, n_startup: int, random_share: float = RANDOM_SHARE) -> None:
        self._generator = np.random.default_rng(seed)
        self._random = optuna.samplers.RandomSampler(seed=seed)
        self._n_startup, self._random_share = n_startup, random_share
        self._theta: Floats | None = None
        self.left_out: Mapping[str, Sequence[Any]] = {}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Returns all hyperparameters that any trial had, each over all of its trials' ranges."""
        found: dict[str, BaseDistribution | None] = {}
        for other in study.get_trials(deepcopy=False):
            for name, one in other.distributions.items():
                found[name] = merged(found.get(name, one), one)
        return {name: one for name, one in sorted(found.items()) if one is not None and not one.single()}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Returns a random value: of a first point, or of a hyperparameter that no trial had before."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Returns values for all hyperparameters, of which the space takes those that it asks for."""
        # A trial that was not run, because another one has its configuration, tells nothing beside that.
        others = [
            t
            for t in study.get_trials(deepcopy=False)
            if t.params and t.user_attrs.get("same_as") is None and not says_nothing(t)
        ]
        sign = 1.0 if study.direction == optuna.study.StudyDirection.MAXIMIZE else -1.0
        trials = known_best([t for t in others if t.number != trial.number], MOST_TRIALS, sign, self._generator)
        observed = observations(trials, sign)
        is_random = self._generator.random() < self._random_share
        if len(trials) < self._n_startup or len(set(observed[0])) < 2 or not search_space or is_random:
            return {}
        if all(t.state == TrialState.FAIL for t in trials):  # There is nothing to improve on.
            return {}
        columns = [Column(name, one, tuple(self.left_out.get(name, ()))) for name, one in search_space.items()]
        best = self._best(columns, trials, *observed)
        return {column.name: column.decode(number) for column, number in zip(columns, best, strict=True)}

    def _best(
        self,
        columns: Sequence[Column],
        trials: Sequence[FrozenTrial],
        own: npt.NDArray[np.int64],
        progress: Floats,
        values: Floats,
    ) -> Floats:
        """Returns the candidate of the largest expected improvement, (n_columns,)."""
        known = np.array(
            [
                [column.encode(t.params[column.name]) if column.name in t.params else np.nan for column in columns]
                for t in trials
            ]
        )
        activity = Activity.of(columns, known)
        categorical = np.array([column.n_choices > 0 for column in columns])
        configs = activity.blank(known)
        if self._theta is not None and len(self._theta) != len(columns) + 5:
            self._theta = None
        n_steps = FIRST_STEPS if self._theta is None else FURTHER_STEPS
        process = fit(
            Points(configs[own], progress, own), scores(values), categorical, start=self._theta, n_steps=n_steps
        )
        self._theta = process.theta
        means, _ = process.predict(configs, np.arange(len(trials)))
        failed = np.array([t.state == TrialState.FAIL for t in trials])
        means[failed] = -np.inf
        running = np.flatnonzero([t.state == TrialState.RUNNING for t in trials])
        if len(running):  # They are taken to end as expected, so that nothing is proposed twice.
            process = process.given(Points(configs[running], np.zeros(len(running)), running), means[running])
        random = np.column_stack([column.draw(CANDIDATES, self._generator) for column in columns])
        leaders = np.argsort(-means)[:5]
        filled = np.where(np.isnan(known[leaders]), random[: len(leaders)], known[leaders])
        candidates = np.concatenate([random, self._near(filled, columns, NEIGHBOURS, 0.2)])
        for size in (*ROUNDS, None):
            blanked = activity.blank(candidates)
            gain = expected_improvement(process, blanked, means.max())
            gain[(blanked[:, None] == configs).all(axis=2).any(axis=1)] = -np.inf  # It was proposed already.
            for i, column in enumerate(columns):
                gain[~column.is_possible(candidates[:, i])] = -np.inf
            order = np.argsort(-gain)
            if size is None:
                break
            top = candidates[order[:10]]
            candidates = np.concatenate([top, self._near(top, columns, 100, size)])
        best: Floats = candidates[order[0]]
        return best

    def _near(self, points: Floats, columns: Sequence[Column], n: int, size: float) -> Floats:
        """Returns points that differ from some of `points` in a few columns, (n, n_columns)."""
        generator = self._generator
        chosen = points[generator.integers(len(points), size=n)]
        changed = generator.random(chosen.shape) < max(0.3, 1.5 / len(columns))
        changed[np.arange(n), generator.integers(len(columns), size=n)] = True
        sizes = size * generator.choice([1.0, 0.3, 0.1], size=n)
        moved = np.column_stack([column.move(chosen[:, i], sizes, generator) for i, column in enumerate(columns)])
        return np.where(changed, moved, chosen)


@dataclass(frozen=True)
class Activity:
    """Which hyperparameters a configuration has, as far as trials show that a choice of another one decides it.

    Attributes:
        deciders: Column -> (the column of the choice, the choices with which it was seen).
    """

    deciders: Mapping[int, tuple[int, npt.NDArray[np.float64]]]

    @staticmethod
    def of(columns: Sequence[Column], known: Floats) -> "Activity":
        """Returns what trials show; NaN in `known` (n_trials, n_columns) is a hyperparameter that a trial had not."""
        active = ~np.isnan(known)
        deciders = {}
        for i in np.flatnonzero(~active.all(axis=0)):
            for j, column in enumerate(columns):
                if j == i or not column.n_choices or (active[:, i] & ~active[:, j]).any():
                    continue
                with_it, without = set(known[active[:, i], j]), set(known[active[:, j] & ~active[:, i], j])
                if not with_it & without:
                    deciders[int(i)] = (j, np.array(sorted(with_it)))
                    break
        return Activity(deciders)

    def blank(self, configs: Floats) -> Floats:
        """Returns configurations in which what is inactive (or NaN) has one number for all."""
        blanked = configs.copy()
        for column, (decider, choices) in self.deciders.items():
            blanked[~np.isin(configs[:, decider], choices), column] = INACTIVE
        return np.where(np.isnan(blanked), INACTIVE, blanked)


def merged(known: BaseDistribution | None, other: BaseDistribution) -> BaseDistribution | None:
    """Returns the distribution that holds the values of both, as a range may depend on the trial.

    None where there is no such one, which Optuna refuses within a study: of two types, of two scales, of other choices.
    """
    if known is None or known == other:
        return known
    if isinstance(known, FloatDistribution) and isinstance(other, FloatDistribution) and known.log == other.log:
        step = known.step if (known.low, known.step) == (other.low, other.step) else None
        return FloatDistribution(min(known.low, other.low), max(known.high, other.high), known.log, step)
    if isinstance(known, IntDistribution) and isinstance(other, IntDistribution) and known.log == other.log:
        steps = 1 if known.log else math.gcd(known.step, other.step, known.low - other.low)
        return IntDistribution(min(known.low, other.low), max(known.high, other.high), known.log, steps)
    return None


def says_nothing(trial: FrozenTrial) -> bool:
    """Returns whether a trial was ended before it could show anything, for no fault of its configuration.

    That is one whose search ended before its first epoch did, or one that was proposed while another had its
    configuration: the study counts both as failed. A trial with an error of its own has shown that it fails.
    """
    if trial.state != TrialState.FAIL:
        return False
    error = trial.user_attrs.get("error")
    if error is None:
        return bool(trial.user_attrs.get("no_result")) or not trial.intermediate_values
    return bool(trial.user_attrs.get("no_result")) or _NO_RESULT.fullmatch(str(error)) is not None


def own_length(trial: FrozenTrial) -> int | None:
    """Returns the epochs of a trial's configuration, where the study has it."""
    config = trial.user_attrs.get("config")
    return int(config["epochs"]) if isinstance(config, Mapping) and "epochs" in config else None


def observations(trials: Sequence[FrozenTrial], sign: float) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
    """Returns trial (its index), progress (logarithm of the share of its full length) and value of what is known.

    The value is the best until then, as that is what a trial ends with; a failed trial has the worst of all at its end,
    and one that has diverged (NaN or infinity) so far has the worst where it is. Of a trial whose length the study does
    not know, the most epochs of any trial count as its length.
    """
    longest = max((max(t.intermediate_values) for t in trials if t.intermediate_values), default=1)
    rows: list[tuple[int, float, float]] = []
    for i, t in enumerate(trials):
        if t.state == TrialState.FAIL:
            rows += [] if says_nothing(t) else [(i, 0.0, math.nan)]
            continue
        last = max(t.intermediate_values, default=0)
        length = max(own_length(t) or longest, last)
        levels = {length // LEVEL_RATIO**k for k in range(1 + int(math.log(length, LEVEL_RATIO) + 1e-9))}
        best = math.nan
        for epoch, value in sorted(t.intermediate_values.items()):
            best = np.fmax(best, sign * value) if math.isfinite(value) else best
            if epoch == last or epoch in levels:
                rows.append((i, math.log(epoch / length), best))
    if not rows:
        return np.zeros(0, np.int64), np.zeros(0), np.zeros(0)
    own, progress, values = (np.array(column) for column in zip(*rows, strict=True))
    worst = min((value for value in values if not math.isnan(value)), default=0.0)
    return own, progress, np.where(np.isnan(values), worst, values)


def scores(values: Floats) -> Floats:
    """Returns the normal quantiles of the values' ranks: a diverged trial is far down, but hides nothing."""
    return np.asarray(ndtri((pd.Series(values).rank() - 0.5) / len(values)), dtype=np.float64)


def expected_improvement(process: Process, configs: Floats, best: float) -> Floats:
    """Returns the logarithm of the expected improvement on `best` after the last epoch (Ament et al. 2023)."""
    mean, deviation = process.predict(configs)
    z = (mean - best) / deviation
    with np.errstate(divide="ignore"):
        density = -0.5 * z**2 - 0.5 * math.log(2 * math.pi)
        gain = density + np.log1p(np.maximum(z * np.exp(log_ndtr(z) - density), -1 + 1e-12))
    return np.asarray(np.log(deviation) + gain, dtype=np.float64)


def known_best(trials: Sequence[FrozenTrial], n: int, sign: float, generator: np.random.Generator) -> list[FrozenTrial]:
    """Returns `n` trials at most: those that run, the best, as many others at random, so that a fit stays quick."""
    if len(trials) <= n:
        return list(trials)
    running = [t for t in trials if t.state == TrialState.RUNNING]
    ended = [t for t in trials if t.state != TrialState.RUNNING]

    def best(t: FrozenTrial) -> float:
        return max((sign * v for v in t.intermediate_values.values() if math.isfinite(v)), default=-math.inf)

    ended.sort(key=best, reverse=True)
    n_best = max(1, (n - len(running)) // 2)
    others = generator.permutation(np.arange(n_best, len(ended)))[:n_best]
    return running + ended[:n_best] + [ended[i] for i in others]
