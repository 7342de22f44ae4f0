"""`CurveSampler`: an Optuna sampler that learns from learning curves as far as they are known.

A Gaussian process over (configuration, epoch) is fitted to what all trials have reported; a new point is the one whose
*last* epoch promises the largest expected improvement, but one in ten is random, so that a wrong belief is found out.
The last epoch is that of a trial's own configuration, as a space may set `epochs`. A trial that was stopped, or that
still runs, counts for what it has shown and no more; one that failed by itself counts as the worst there was. A point
that gave the configuration of another trial is taken to end as that one does, and is no trial. The idea is that of
Swersky et al. 2014 (Freeze-Thaw Bayesian optimisation); here it only proposes, and a scheduler stops. What it is worth,
`tests/benchmarks/search_quality.py` measures.

Trials of earlier runs are observations of other tasks. With them there are no random points first: until a trial of its
own has reported, the sampler improves on what the best of those are expected to reach here. Of the first trials a third
is random, as far as the space's first points are fewer. What they are worth, `tests/benchmarks/start_from.py` measures.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState
from scipy.special import log_ndtr, ndtri

from tuning.sampling import costs
from tuning.sampling.columns import Activity, Column, Limits, all_of, numbers_of, numbers_of_earlier
from tuning.sampling.gaussian_process import Floats, Points, Process, fit
from tuning.sampling.growing_process import REFIT_GROWTH, GrowingProcess, extended, taken
from tuning.sampling.known_trials import NODE_LOST, PAUSED, has_no_result

# Of a curve the process gets the last epoch and those at full length / 3, / 9, ...: as a scheduler's rungs are spaced.
LEVEL_RATIO = 3
FIRST_STEPS, FURTHER_STEPS = 30, 10
RANDOM_SHARE = 0.1
MOST_ENDS = 150  # Of trials that run or have paused, at most so many are taken to end as expected.
MOST_TRIALS = 150  # Hyperparameters are fitted to these, about 350 observations; beyond, predictions are from all.
DOUBTS = 2  # With earlier runs a third of the first trials, of so many times `n_startup`, is not theirs.
MOST_EARLIER = 100  # Of these, at most; and fewer as a run's own become more.
CANDIDATES, NEIGHBOURS, ROUNDS, LEADERS = 512, 256, (0.1, 0.05, 0.02), 5


class CurveSampler(optuna.samplers.BaseSampler):
    """Proposes what promises most after the last epoch.

    Args:
        seed: Of the first, random points and of the candidates.
        n_startup: Random points before the process is asked.
        random_share: Of the points after these that are random, too.

    Attributes:
        weighs_costs: Propose what promises most a second of its training, as far as trials tell what that takes, and
            not what promises most (Snoek et al. 2012).
        left_out: Name of a categorical parameter -> choices that are not proposed; see `tuning.sampling.possible`.
        earlier: The trials of each earlier run that the search begins with.
        drawn: Random points of the space, which say what hyperparameters it has before any trial does; needed with
            `earlier`.
        origins: Number of each trial that was asked for -> what its point came from, "random" or "model".
        gains: Number of each trial whose point a model proposed -> the largest improvement on the best that it expected
            of any point, as a share of how far trainings of one configuration are apart; see
            `tuning.sampling.convergence`. Where costs are weighed, another point may be proposed.
    """

    def __init__(self, seed: int, n_startup: int, random_share: float = RANDOM_SHARE) -> None:
        self._generator = np.random.default_rng(seed)
        self._random = optuna.samplers.RandomSampler(seed=seed)
        self._n_startup, self._random_share = n_startup, random_share
        self._theta: Floats | None = None
        self._growing, self._n_fitted = GrowingProcess(), MOST_TRIALS
        self._cost_theta: Floats | None = None
        self.weighs_costs = False
        self.left_out: Mapping[str, Sequence[Any]] = {}
        self.earlier: Sequence[Sequence[FrozenTrial]] = ()
        self.drawn: Sequence[FrozenTrial] = ()
        self.origins: dict[int, str] = {}
        self.gains: dict[int, float] = {}
        self._proposed: dict[int, dict[str, Any]] = {}

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Returns all hyperparameters that any trial had, each over all of its trials' ranges."""
        return all_of([*self.drawn, *study.get_trials(deepcopy=False)])

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Returns a random value: of a first point, or of a hyperparameter that no trial had before.

        Where the trial's range is another one than before, it is the value in it that is next to the proposed one.
        """
        proposed = self._proposed.get(trial.number, {})
        if param_name in proposed:
            column = Column(param_name, param_distribution)
            value = column.next_to(proposed[param_name])
            if value is None or abs(column.encode(value) - column.encode_foreign(proposed[param_name])) > 1e-6:
                self.gains.pop(trial.number, None)  # It was that of another point.
            if value is not None:
                return value
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Returns values for all hyperparameters, of which the space takes those that it asks for."""
        sign = 1.0 if study.direction == optuna.study.StudyDirection.MAXIMIZE else -1.0
        every = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number]
        trials = [t for t in every if tells(t)]
        observed = observations(trials, sign)
        is_random = self._generator.random() < self._random_share or self._must_doubt(every)
        is_early = len(trials) < self._n_startup or len(set(observed[0])) < 2
        # Where all have failed, there is nothing to improve on.
        knows_nothing = not self.earlier and (is_early or all(has_failed(t) for t in trials))
        if knows_nothing or not search_space or is_random:
            self.origins[trial.number] = "random"
            return {}
        self.origins[trial.number] = "model"
        columns = [Column(name, one, tuple(self.left_out.get(name, ()))) for name, one in search_space.items()]
        limits = Limits.of(columns, [*self.drawn, *every])
        repeats = [t for t in every if t.params and t.user_attrs.get("same_as") is not None]
        best, self.gains[trial.number] = self._best(columns, trials, observed, sign, limits, repeats=repeats)
        proposed = {column.name: column.decode(number) for column, number in zip(columns, best, strict=True)}
        self._proposed[trial.number] = proposed
        return proposed

    def _must_doubt(self, trials: Sequence[FrozenTrial]) -> bool:
        """Returns whether a random point is due, so that earlier runs that mislead are found out.

        Values count by their ranks within a run: where an earlier run leads to bad points alone, nothing says so.
        """
        if not self.earlier or len(trials) >= DOUBTS * self._n_startup:
            return False
        # A first point that leaves a hyperparameter out has asked for a proposal, too.
        origins = (t.user_attrs.get("origin") or self.origins.get(t.number, "space") for t in trials)
        return 3 * sum(origin in ("random", "space") for origin in origins) < len(trials)

    def _best(
        self,
        columns: Sequence[Column],
        trials: Sequence[FrozenTrial],
        observed: tuple[npt.NDArray[np.int64], Floats, Floats],
        sign: float,
        limits: Limits,
        *,
        repeats: Sequence[FrozenTrial] = (),
    ) -> tuple[Floats, float]:
        """Returns the candidate of the largest expected improvement, (n_columns,), and that as in `gains`."""
        known, (own, progress, values) = numbers_of(columns, trials), observed
        activity = Activity.of(columns, np.concatenate([numbers_of(columns, self.drawn), known]))
        configs = activity.blank(known)
        points, told = Points(configs[own], progress, own), scores(values)
        earlier, before, told_before = self._earlier(columns, activity, sign, len(trials))
        if before is not None:
            points, told = points + before, np.append(told, told_before)
        is_large = len(trials) > MOST_TRIALS
        process = self._fit_all(columns, points, told, trials, sign) if is_large else self._fit(columns, points, told)
        means = process.mean(configs, np.arange(len(trials))) if len(trials) else np.zeros(0)
        again, expected_again = self._repeated(columns, trials, repeats, means)
        failed = np.array([has_failed(t) for t in trials], dtype=bool)
        means[failed] = -np.inf
        running = np.flatnonzero([t.state == TrialState.RUNNING for t in trials])
        if len(running) > MOST_ENDS:  # Paused ones, most of them.
            training = np.array([is_training(t) for t in trials])
            running = running[np.lexsort((-means[running], ~training[running]))[:MOST_ENDS]]
        if len(running):  # They are taken to end as expected, so that nothing is proposed twice.
            ends = Points(configs[running], np.zeros(len(running)), running)
            process = extended(process, ends, means[running]) if is_large else process.given(ends, means[running])
        again = activity.blank(again)
        if len(again):  # Their points are as good as those of the trials that they repeat.
            ends = Points(again, np.zeros(len(again)), 1 + points.trials.max() + np.arange(len(again)))
            process = extended(process, ends, expected_again) if is_large else process.given(ends, expected_again)
        random = np.column_stack([column.draw(CANDIDATES, self._generator) for column in columns])
        random = limits.spread(random, columns)
        leaders, goal = np.argsort(-means)[:LEADERS], means.max(initial=-np.inf)
        starts = np.where(np.isnan(known[leaders]), random[: len(leaders)], known[leaders])
        given = np.zeros((0, len(columns)))
        if len(earlier):
            given = np.column_stack([c.adopt(earlier[:, i], self._generator) for i, c in enumerate(columns)])
            expected, _ = process.predict(activity.blank(given))
            if failed[own].all():  # No trial of its own has shown what can be reached here.
                goal = max(goal, expected.max())
            given = given[np.argsort(-expected)[:LEADERS]]
            starts = np.concatenate([starts, given])
        candidates = np.concatenate([random, self._near(starts, columns, NEIGHBOURS, 0.2), given])
        cost = self._costs(columns, trials, configs)
        return self._climb(
            process,
            goal,
            candidates,
            columns,
            activity=activity,
            limits=limits,
            proposed=np.concatenate([configs, again]),
            cost=cost,
        )

    def _repeated(
        self, columns: Sequence[Column], trials: Sequence[FrozenTrial], repeats: Sequence[FrozenTrial], means: Floats
    ) -> tuple[Floats, Floats]:
        """Returns the numbers of points that gave the configuration of another trial, and what that is to end with.

        What a trial did not ask for, though it was proposed, is of its point as well: else it would be proposed again.
        """
        at = {t.number: i for i, t in enumerate(trials)}
        known = [(t, at[t.user_attrs["same_as"]]) for t in repeats if t.user_attrs["same_as"] in at][-MOST_ENDS:]
        numbers = numbers_of(columns, [t for t, _ in known])
        for row, (t, _) in zip(numbers, known, strict=True):
            proposed = self._proposed.get(t.number, {})
            for i, column in enumerate(columns):
                if math.isnan(row[i]) and column.name in proposed:
                    row[i] = column.encode_foreign(proposed[column.name])
        return numbers, means[[i for _, i in known]]

    def _costs(self, columns: Sequence[Column], trials: Sequence[FrozenTrial], configs: Floats) -> costs.Costs | None:
        """Returns what trials say of the costs of their configurations; None where that does not count."""
        if not self.weighs_costs:
            return None
        longest = max((max(t.intermediate_values) for t in trials if t.intermediate_values), default=1)
        some = np.linspace(0, len(trials) - 1, min(len(trials), MOST_TRIALS)).astype(int)
        seconds = costs.of_trials([trials[i] for i in some], [full_length(trials[i], longest) for i in some])
        categorical = np.array([column.n_choices > 0 for column in columns])
        if self._cost_theta is not None and len(self._cost_theta) != len(columns) + 5:
            self._cost_theta = None
        cost = costs.learned(configs[some], seconds, categorical, self._cost_theta)
        if cost.process is not None:
            self._cost_theta = cost.process.theta
        return cost

    def _fit(self, columns: Sequence[Column], points: Points, told: Floats) -> Process:
        """Returns the process of some observations; it goes on from that of the last proposal."""
        categorical = np.array([column.n_choices > 0 for column in columns])
        n_earlier = len(self.earlier)
        if self._theta is not None and len(self._theta) != len(columns) + 5 + n_earlier:
            self._theta = None
        n_steps = FIRST_STEPS if self._theta is None else FURTHER_STEPS
        process = fit(points, told, categorical, start=self._theta, n_steps=n_steps, n_earlier=n_earlier)
        self._theta = process.theta
        return process

    def _fit_all(
        self, columns: Sequence[Column], points: Points, told: Floats, trials: Sequence[FrozenTrial], sign: float
    ) -> Process:
        """Returns the process of more observations than are fitted to; its hyperparameters may be those from before."""
        is_other = self._theta is None or len(self._theta) != len(columns) + 5 + len(self.earlier)
        if is_other or len(trials) >= REFIT_GROWTH * self._n_fitted:
            some = {t.number for t in known_best(trials, MOST_TRIALS, sign, self._generator)}
            rows = np.flatnonzero([trials[i].number in some for i in points.trials])
            self._fit(columns, taken(points, rows), told[rows])
            self._n_fitted = len(trials)
        assert self._theta is not None
        categorical = np.array([column.n_choices > 0 for column in columns])
        numbers = [trials[i].number for i in points.trials]
        stays = np.array([not is_training(trials[i]) for i in points.trials])
        return self._growing.of(self._theta, categorical, points, told, numbers=numbers, stays=stays)

    def _climb(
        self,
        process: Process,
        goal: float,
        candidates: Floats,
        columns: Sequence[Column],
        *,
        activity: Activity,
        limits: Limits,
        proposed: Floats,
        cost: costs.Costs | None = None,
    ) -> tuple[Floats, float]:
        """Returns the best of some candidates and of points ever nearer to the best of them, and the largest gain.

        That is its own where costs are not weighed.
        """
        largest = -math.inf
        for size in (*ROUNDS, None):
            candidates = limits.clipped(candidates, columns)
            blanked = activity.blank(candidates)
            gain = expected_improvement(process, blanked, goal)
            gain[(blanked[:, None] == proposed).all(axis=2).any(axis=1)] = -np.inf
            for i, column in enumerate(columns):
                gain[~column.is_possible(candidates[:, i])] = -np.inf
            largest = max(largest, float(gain.max()))
            worth = gain if cost is None else gain - cost.log_seconds(blanked)
            order = np.argsort(-worth)
            if size is not None:
                top = candidates[order[:10]]
                candidates = np.concatenate([top, self._near(top, columns, 100, size)])
        return candidates[order[0]], math.exp(largest) / process.noise

    def _earlier(
        self, columns: Sequence[Column], activity: Activity, sign: float, n_own: int
    ) -> tuple[Floats, Points | None, Floats]:
        """Returns the numbers of earlier trials, and where and what the process observed of them; None: of none."""
        numbers, points, told = np.zeros((0, len(columns))), None, np.zeros(0)
        n = math.ceil(min(MOST_EARLIER, MOST_TRIALS - n_own) / max(1, len(self.earlier)))
        for task, run in enumerate(self.earlier, start=1):
            trials = spread([t for t in run if tells(t)], n, sign)
            theirs = numbers_of_earlier(columns, trials, {name for t in run for name in t.params})
            own, progress, values = observations(trials, sign)
            number = own + n_own + len(numbers)
            more = Points(activity.blank(theirs)[own], progress, number, np.full(len(own), task))
            points = more if points is None else points + more
            numbers, told = np.concatenate([numbers, theirs]), np.append(told, scores(values))
        return numbers, points, told

    def _near(self, points: Floats, columns: Sequence[Column], n: int, size: float) -> Floats:
        """Returns points that differ from some of `points` in a few columns, (n, n_columns)."""
        generator = self._generator
        chosen = points[generator.integers(len(points), size=n)]
        changed = generator.random(chosen.shape) < max(0.3, 1.5 / len(columns))
        changed[np.arange(n), generator.integers(len(columns), size=n)] = True
        sizes = size * generator.choice([1.0, 0.3, 0.1], size=n)
        moved = np.column_stack([column.move(chosen[:, i], sizes, generator) for i, column in enumerate(columns)])
        return np.where(changed, moved, chosen)


def is_training(trial: FrozenTrial) -> bool:
    """Returns whether a trial has neither ended nor paused."""
    return trial.state == TrialState.RUNNING and not trial.user_attrs.get(PAUSED)


def has_failed(trial: FrozenTrial) -> bool:
    """Returns whether a trial failed by itself; one whose node was lost has shown what it has shown."""
    return trial.state == TrialState.FAIL and not trial.user_attrs.get(NODE_LOST)


def says_nothing(trial: FrozenTrial) -> bool:
    """Returns whether a trial was ended before it could show anything, for no fault of its configuration."""
    attrs, has_epochs = trial.user_attrs, bool(trial.intermediate_values)
    lost = bool(attrs.get(NODE_LOST)) and not has_epochs
    return trial.state == TrialState.FAIL and (lost or has_no_result(attrs, has_epochs=has_epochs))


def tells(trial: FrozenTrial) -> bool:
    """Returns whether a trial says something: one that was not run, as another has its configuration, does not."""
    return bool(trial.params) and trial.user_attrs.get("same_as") is None and not says_nothing(trial)


def own_length(trial: FrozenTrial) -> int | None:
    """Returns the epochs of a trial's configuration, where the study has it."""
    config = trial.user_attrs.get("config")
    return int(config["epochs"]) if isinstance(config, Mapping) and "epochs" in config else None


def full_length(trial: FrozenTrial, longest: int) -> int:
    """Returns the epochs of a trial's full training; those that it had, where it came to its own end early."""
    last = max(trial.intermediate_values, default=0)
    return last if last and trial.state == TrialState.COMPLETE else max(own_length(trial) or longest, last)


def observations(trials: Sequence[FrozenTrial], sign: float) -> tuple[npt.NDArray[np.int64], Floats, Floats]:
    """Returns trial (its index), progress (logarithm of the share of its full length) and value of what is known.

    The value is the best until then, as that is what a trial ends with; a failed trial has the worst of all at its end,
    and one that has diverged (NaN or infinity) so far has the worst where it is. A trial that ended by early stopping
    is at its end: no more will come. Of a trial whose length the study does not know, the most epochs of any trial
    count as its length.
    """
    longest = max((max(t.intermediate_values) for t in trials if t.intermediate_values), default=1)
    rows: list[tuple[int, float, float]] = []
    for i, t in enumerate(trials):
        if says_nothing(t):
            continue
        if has_failed(t):
            rows.append((i, 0.0, math.nan))
            continue
        last, length = max(t.intermediate_values, default=0), full_length(t, longest)
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
    running = [t for t in trials if is_training(t)]
    ended = [t for t in trials if not is_training(t)]
    ended.sort(key=lambda t: best_value(t, sign), reverse=True)
    n_best = max(1, (n - len(running)) // 2)
    others = generator.permutation(np.arange(n_best, len(ended)))[:n_best]
    return running + ended[:n_best] + [ended[i] for i in others]


def spread(trials: Sequence[FrozenTrial], n: int, sign: float) -> list[FrozenTrial]:
    """Returns `n` trials at most: the best, and as many from all over the others' ranking, the same ones each time."""
    if len(trials) <= n:
        return list(trials)
    ranked = sorted(trials, key=lambda t: best_value(t, sign), reverse=True)
    n_best = (max(n, 0) + 1) // 2
    others = np.linspace(n_best, len(ranked) - 1, max(n, 0) - n_best).astype(int)
    return ranked[:n_best] + [ranked[i] for i in others]


def best_value(trial: FrozenTrial, sign: float) -> float:
    """Returns the best value that a trial has reported, times the sign; minus infinity where it has none."""
    values = (sign * value for value in trial.intermediate_values.values() if math.isfinite(value))
    return max(values, default=-math.inf)
