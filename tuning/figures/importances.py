"""How much each hyperparameter of a run matters, by two methods, and how sure that is after so few trials.

Frames and an Optuna study in, a frame out. What must never live here: figures, and what is not Optuna's.
"""

import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import optuna
import pandas as pd
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from tuning.base.threads import one_thread
from tuning.runs.analysis import equal_budget_values
from tuning.runs.run_folder import Run
from tuning.sampling import study_storage

if TYPE_CHECKING:
    from optuna.importance import BaseImportanceEvaluator  # With it come scikit-learn and scipy.stats: 1.1 s of a core.

MIN_TRIALS = 8
COLUMNS = {"method": "str", "parameter": "str", "importance": "float64", "low": "float64", "high": "float64"}
# Forests of 8 trees of depth 4: a choice of 8 networks makes 256 cells of a deep tree, and a forest of 64 deep trees
# takes 2 s for 100 trials of the default space, where this takes 0.03 s (one core of an AMD EPYC).
N_TREES, DEPTH, N_FORESTS = 8, 4, 8


def of_run(run: Run) -> pd.DataFrame:
    """Returns `assess` of a run, finished or not, over its complete and stopped trials at equal budget.

    Raises:
        UserError: The run has no study, or it is damaged.
    """
    study = study_storage.load(run.path)
    return assess(study, equal_budget_values(run.trials, run.epochs, run.metric))


@one_thread()
def assess(study: optuna.Study, values: "pd.Series[float]", *, n_bootstrap: int = 60, seed: int = 0) -> pd.DataFrame:
    """Returns how much each hyperparameter matters, by two methods, with intervals.

    PED-ANOVA (Watanabe et al. 2023) tells what matters to being among the best: the top tenth, but at least five
    trials, at most half, and never one that ties with the worst. A conditional hyperparameter, which not all trials
    have, is assessed over those that have it, and weighted by their share of the best (Optuna 5); ranges that a single
    trial has are left out.

    fANOVA (Hutter et al. 2014) tells how much of the variance over the whole space, its bad regions included, each
    explains by itself. A conditional hyperparameter has no effect where it is inactive, so there it is drawn at random
    (anew for each forest): Optuna would leave it out altogether. A forest of few trials overrates the strongest, which
    the interval does not know: what has 80 % of 2a + b gets 87 % after 50 trials and 85 % after 300, and the interval
    held the 80 % in 34 of 40 studies of 20 trials, but in 15 of 30 of 50 trials.

    The interval is the 95 % percentile bootstrap over trials (Efron 1979). It takes trials for independent draws,
    which those of a sampler that learns are not; and resampled noise makes what hardly matters look as if it did, so
    an interval may lie beside its estimate.

    Args:
        study: Where the trials' hyperparameters and their ranges are read; it is not changed.
        values: trial number -> a value to be maximised, e.g. from `equal_budget_values`; NaN is left out.
        n_bootstrap: Resamples, at least 1; 60 take 3 s of one core for 20 trials of the default space, 6 s for 100.
        seed: Of resamples and forests.

    Returns:
        method ("PED-ANOVA", then "fANOVA"), parameter, importance (adds up to 1 for a method, or to 0 where no forest
        finds anything that a hyperparameter explains), low and high, the most important first; empty if there are
        fewer than 8 trials, or all values are equal, or nothing was searched.
    """
    trials = _with_values(study, values)
    searched = sorted({name for trial in trials for name, d in trial.distributions.items() if not d.single()})
    if len(trials) < MIN_TRIALS or not _differ(trials) or not searched:
        return pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS)
    draw = np.random.default_rng(seed)
    samples = [_resample(trials, draw) for _ in range(n_bootstrap)]
    frames = []
    with study_storage.quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Of ranges that a single trial has.
        for method, shares, n in (("PED-ANOVA", _ped_anova, 1), ("fANOVA", _fanova, N_FORESTS)):
            found = pd.DataFrame([shares(trials, draw) for _ in range(n)], columns=searched).fillna(0.0).mean()
            resampled = pd.DataFrame([shares(sample, draw) for sample in samples], columns=searched).fillna(0.0)
            interval = {"low": resampled.quantile(0.025), "high": resampled.quantile(0.975)}
            frame = pd.DataFrame({"method": method, "parameter": searched, "importance": found.to_numpy()})
            frame = frame.assign(**{name: column.to_numpy() for name, column in interval.items()})
            frames.append(frame.sort_values(["importance", "parameter"], ascending=[False, True]))
    return pd.concat(frames, ignore_index=True).astype(COLUMNS)


def _with_values(study: optuna.Study, values: "pd.Series[float]") -> list[FrozenTrial]:
    """Returns the trials that have a finite value, as complete ones of that value; paused ones run, for Optuna."""
    value_of = {int(str(number)): float(value) for number, value in values.items() if math.isfinite(value)}
    return [
        create_trial(
            state=TrialState.COMPLETE,
            params=trial.params,
            distributions={name: _holding(d, trial.params[name]) for name, d in trial.distributions.items()},
            value=value_of[trial.number],
        )
        for trial in study.get_trials(deepcopy=False)
        if trial.number in value_of
    ]


def _holding(distribution: BaseDistribution, value: Any) -> BaseDistribution:
    """Returns the distribution, widened to a value that it does not hold: a first point may lie out of its range."""
    if isinstance(distribution, CategoricalDistribution):
        return distribution
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    low, high = min(distribution.low, value), max(distribution.high, value)
    steps = (value - distribution.low) / (distribution.step or 1)
    on_a_step = distribution.step is None or math.isclose(steps, round(steps), abs_tol=1e-8)
    if (low, high) == (distribution.low, distribution.high) and on_a_step:
        return distribution
    return type(distribution)(low, high, distribution.log and low > 0)


def _differ(trials: Sequence[FrozenTrial]) -> bool:
    return len({trial.value for trial in trials}) > 1


def _resample(trials: Sequence[FrozenTrial], draw: np.random.Generator) -> list[FrozenTrial]:
    """Returns as many trials, drawn with replacement until their values are not all equal."""
    while True:
        sample = [trials[index] for index in draw.integers(len(trials), size=len(trials))]
        if _differ(sample):
            return sample


def _ped_anova(trials: Sequence[FrozenTrial], draw: np.random.Generator) -> dict[str, float]:
    """Returns the share of each hyperparameter that a trial has; nothing of it is random."""
    from optuna.importance import PedAnovaImportanceEvaluator

    found = [trial.value for trial in trials if trial.value is not None]
    n_above_worst = sum(value > min(found) for value in found)
    n_top = min(max(5, math.ceil(len(trials) / 10)), len(trials) // 2, n_above_worst)
    quantile = (n_top - 0.5) / len(trials)  # Optuna rounds up: the half keeps it from one trial too many
    evaluator = PedAnovaImportanceEvaluator(target_quantile=quantile, region_quantile=1.0, evaluate_on_local=True)
    return _shares(evaluator, trials)


def _fanova(trials: Sequence[FrozenTrial], draw: np.random.Generator) -> dict[str, float]:
    """Returns the share of each hyperparameter that a trial has, by a forest that sees all of them in every trial."""
    from optuna.importance import FanovaImportanceEvaluator

    params: list[dict[str, Any]] = [{} for _ in trials]
    distributions: dict[str, BaseDistribution] = {}
    for name in sorted({name for trial in trials for name in trial.distributions}):
        distributions[name], values = _everywhere(name, trials, draw)
        for row, value in zip(params, values, strict=True):
            row[name] = value
    filled = [
        create_trial(params=row, distributions=distributions, value=trial.value)
        for row, trial in zip(params, trials, strict=True)
    ]
    seed = int(draw.integers(2**31))
    return _shares(FanovaImportanceEvaluator(n_trees=N_TREES, max_depth=DEPTH, seed=seed), filled)


def _everywhere(
    name: str, trials: Sequence[FrozenTrial], draw: np.random.Generator
) -> tuple[BaseDistribution, list[Any]]:
    """Returns a hyperparameter's range over all trials, and its values, drawn where a trial has none.

    Numbers are shares, in [0, 1], of the range on the scale on which they were searched: a forest takes numbers that
    are less than 1e-7 apart for equal. An integer stands in the middle of its part of the range.
    """
    ranges = [trial.distributions[name] for trial in trials if name in trial.distributions]
    numeric = [d for d in ranges if isinstance(d, FloatDistribution | IntDistribution)]
    whole = ranges[0]
    if isinstance(whole, CategoricalDistribution):
        drawn = [whole.choices[index] for index in draw.integers(len(whole.choices), size=len(trials))]
        known = [trial.params.get(name) for trial in trials]
    else:
        half = max(d.step / 2 if isinstance(d, IntDistribution) else 0.0 for d in numeric)
        warp = math.log if all(d.log for d in numeric) and min(d.low for d in numeric) > half else float
        low, high = warp(min(d.low for d in numeric) - half), warp(max(d.high for d in numeric) + half)
        span = high - low if 0 < high - low < math.inf else 1.0
        drawn = draw.random(len(trials)).tolist()
        known = [min(1.0, max(0.0, (warp(t.params.get(name, 1)) - low) / span)) for t in trials]
        whole = FloatDistribution(0.0, 1.0)
    return whole, [k if name in t.params else d for t, k, d in zip(trials, known, drawn, strict=True)]


def _shares(evaluator: "BaseImportanceEvaluator", trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """Returns the share of each hyperparameter; of none where nothing explains anything, as in some resamples."""
    from optuna.importance import get_param_importances

    searched = sorted({name for trial in trials for name, d in trial.distributions.items() if not d.single()})
    copy = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), direction="maximize")
    copy.add_trials(trials)
    try:
        return get_param_importances(copy, evaluator=evaluator, params=searched, target=None, normalize=True)
    except RuntimeError as error:
        if "zero total variance" not in str(error):
            raise
        return {}
