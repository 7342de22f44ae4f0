"""`SCHEDULERS` and `SAMPLERS`: name -> builder. Every option is named, because Ray's and Optuna's defaults change.

The metric that schedulers compare is the best valid_accuracy so far, of trials whose curves have the same form
(`LikeWithLike`); time is counted in epochs.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import optuna
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from tuning.config import ANNEALED
from tuning.curves import CurveSampler

METRIC = "best_valid_accuracy"
REDUCTION_FACTOR = 3


class LikeWithLike(FIFOScheduler):
    """Two schedulers of a kind: one for trials whose learning rate is annealed over their length, one for the others.

    An annealed rate is still high where a trial may be stopped, and its accuracy behind that of a rate that is held or
    has dropped; at the end it is ahead. Compared with these, the default search stopped its one-cycle trials after two
    epochs and never saw what they come to.
    """

    def __init__(self, build: Callable[[], TrialScheduler]) -> None:
        super().__init__()
        self._schedulers = {annealed: build() for annealed in (False, True)}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Tells the trial's scheduler; so do the others."""
        self._of(trial).on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Returns what the trial's scheduler decides."""
        return self._of(trial).on_trial_result(tune_controller, trial, result)

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Tells the trial's scheduler that it has ended."""
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Tells the trial's scheduler that it has failed."""
        self._of(trial).on_trial_error(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Tells the trial's scheduler that it is gone."""
        self._of(trial).on_trial_remove(tune_controller, trial)

    def _of(self, trial: Any) -> TrialScheduler:
        return self._schedulers[trial.config.get("config", {}).get("schedule") in ANNEALED]


def grace_period(epochs: int) -> int:
    """Returns the epochs that every trial gets: a ninth of the full length, at least 2.

    A plateau schedule survives that: until its first drop its rate is constant, which is ahead of the other schedules'
    warm-up, and by the second rung, at three times as many epochs, it has had time to drop.
    """
    return min(epochs, max(2, epochs // REDUCTION_FACTOR**2))


def _halving(epochs: int, seed: int, brackets: int) -> TrialScheduler:
    np.random.seed(seed % 2**32)  # noqa: NPY002  Ray draws a trial's bracket from numpy's global state.
    return LikeWithLike(
        lambda: AsyncHyperBandScheduler(
            time_attr="epoch",
            metric=METRIC,
            mode="max",
            max_t=epochs,
            grace_period=grace_period(epochs),
            reduction_factor=REDUCTION_FACTOR,
            brackets=brackets,
            stop_last_trials=True,
        )
    )


def _asha(epochs: int, seed: int) -> TrialScheduler:
    """ASHA in its stopping form (Li et al. 2020, MLSys)."""
    return _halving(epochs, seed, brackets=1)


def _hyperband(epochs: int, seed: int) -> TrialScheduler:
    """Asynchronous Hyperband (Li et al. 2020, section 3.3): ASHA with several grace periods."""
    rungs = int(np.log(epochs / grace_period(epochs)) / np.log(REDUCTION_FACTOR)) + 1
    return _halving(epochs, seed, brackets=rungs)


def _median(epochs: int, seed: int) -> TrialScheduler:
    """The median stopping rule (Golovin et al. 2017, Google Vizier)."""
    return LikeWithLike(
        lambda: MedianStoppingRule(
            time_attr="epoch",
            metric=METRIC,
            mode="max",
            grace_period=grace_period(epochs),
            min_samples_required=3,
            # Never pause a trial to let others catch up: that would take it off its slot.
            min_time_slice=math.inf,  # type: ignore[arg-type]
            hard_stop=True,
        )
    )


def _none(epochs: int, seed: int) -> TrialScheduler:
    return FIFOScheduler()


SCHEDULERS: dict[str, Callable[[int, int], TrialScheduler]] = {
    "asha": _asha,
    "hyperband": _hyperband,
    "median": _median,
    "none": _none,
}


def _tpe(seed: int, n_startup: int) -> optuna.samplers.BaseSampler:
    """Tree-structured Parzen estimator (Bergstra et al. 2011), each hyperparameter by itself.

    On recorded learning curves the multivariate one was far behind it: `tests/benchmarks/README.md`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=n_startup,
            n_ei_candidates=64,
            multivariate=False,
            group=False,
            constant_liar=True,
        )


def _gp(seed: int, n_startup: int) -> optuna.samplers.BaseSampler:
    """Gaussian process with log expected improvement; branches that not every trial has are drawn independently."""
    import torch  # noqa: F401  The sampler needs it at its first proposal, which `one_thread` then limits, too.

    return optuna.samplers.GPSampler(
        seed=seed, n_startup_trials=n_startup, deterministic_objective=False, warn_independent_sampling=False
    )


def _random(seed: int, n_startup: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


def _qmc(seed: int, n_startup: int) -> optuna.samplers.BaseSampler:
    """Scrambled Sobol points (Bergstra & Bengio 2012 compare them with random ones)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.QMCSampler(
            qmc_type="sobol",
            scramble=True,
            seed=seed,
            warn_asynchronous_seeding=False,
            warn_independent_sampling=False,
        )


def _nsga2(seed: int, n_startup: int) -> optuna.samplers.BaseSampler:
    """NSGA-II (Deb et al. 2002), a generation as large as the other samplers' start-up."""
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(2, n_startup))


SAMPLERS: dict[str, Callable[[int, int], optuna.samplers.BaseSampler]] = {
    "curves": CurveSampler,
    "tpe": _tpe,
    "gp": _gp,
    "random": _random,
    "qmc": _qmc,
    "nsga2": _nsga2,
}


@dataclass(frozen=True)
class StandIn:
    """What stands in for Ray's trial where a scheduler is asked without Ray.

    Attributes:
        config: As the search gives it to a trial: its hyperparameters are `config["config"]`.
    """

    trial_id: str
    config: Mapping[str, Any] = field(default_factory=dict, compare=False)
    status: str = "RUNNING"


def replay(
    scheduler: TrialScheduler, trials: Mapping[int, tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]]
) -> None:
    """Shows a new scheduler the trials that have ended, so that a resumed search judges by all of them.

    Args:
        scheduler: Of `SCHEDULERS`.
        trials: Number -> hyperparameters, and a row an epoch.
    """
    for number, (config, rows) in trials.items():
        trial: Any = StandIn(f"before-{number}", {"config": config})
        controller: Any = None
        scheduler.on_trial_add(controller, trial)
        best = 0.0
        for row in sorted(rows, key=lambda r: int(r["epoch"])):
            best = max(best, row["valid_accuracy"])
            scheduler.on_trial_result(controller, trial, {"epoch": row["epoch"], METRIC: best})
