"""A search system that is not ours on the same tables: Syne Tune, if it is installed (`pip install syne-tune`).

Its schedulers propose and stop. Here one is split in two, so that the event loop sees a sampler and a scheduler; the
study is only the place where parameters are kept.
"""

import datetime
from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from simulation import Method

from tuning.trials.schedulers import METRIC, StandIn


class SyneTune(optuna.samplers.BaseSampler):
    """One of Syne Tune's schedulers as a sampler and as what Ray calls a scheduler.

    The first trial is drawn by Optuna at random, as it would be by Syne Tune: it is from that one that the space is
    known.

    Args:
        name: Of a class of `syne_tune.optimizer.baselines` that takes `time_attr` and `max_t`.
        seed: Of all that is random.
    """

    def __init__(self, name: str, seed: int) -> None:
        self._name, self._seed = name, seed
        np.random.seed(seed % 2**32)  # noqa: NPY002  Its own seed is not enough: it also draws from numpy's global state.
        self._random = optuna.samplers.RandomSampler(seed=seed)
        self._scheduler: Any = None
        self._trials: dict[str, Any] = {}
        self.epochs = 0

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        self._study = study
        first = study.get_trials(deepcopy=False)[0]
        return {} if trial.number == 0 else dict(first.distributions)

    def sample_relative(self, study: Any, trial: Any, search_space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
        return dict(self._scheduler.suggest().config) if search_space else {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def on_trial_add(self, controller: Any, stand_in: StandIn) -> None:
        from syne_tune.backend.trial_status import Trial
        from syne_tune.optimizer import baselines

        recorded = self._study.get_trials(deepcopy=False)[int(stand_in.trial_id)]
        if self._scheduler is None:
            self._scheduler = getattr(baselines, self._name)(
                config_space={name: domain(one) for name, one in recorded.distributions.items()},
                metric=METRIC,
                time_attr="epoch",
                max_t=self.epochs,
                do_minimize=False,
                random_seed=self._seed,
            )
        trial = Trial(int(stand_in.trial_id), recorded.params, datetime.datetime.now())
        self._trials[stand_in.trial_id] = trial
        self._scheduler.on_trial_add(trial)

    def on_trial_result(self, controller: Any, stand_in: StandIn, result: dict[str, Any]) -> str:
        return str(self._scheduler.on_trial_result(self._trials[stand_in.trial_id], result))

    def on_trial_complete(self, controller: Any, stand_in: StandIn, result: dict[str, Any]) -> None:
        """Does nothing: all that ends here was stopped by Syne Tune, at the full length at the latest, or diverged."""


def domain(distribution: BaseDistribution) -> Any:
    """Returns what Syne Tune calls a distribution of Optuna."""
    from syne_tune import config_space

    if isinstance(distribution, CategoricalDistribution):
        return config_space.choice(list(distribution.choices))
    kinds = ("uniform", "loguniform") if isinstance(distribution, FloatDistribution) else ("randint", "lograndint")
    return getattr(config_space, kinds[distribution.log])(distribution.low, distribution.high)


def syne_tune(name: str) -> Method:
    """Returns a method that searches with one of Syne Tune's schedulers, its options as they come."""
    made: list[SyneTune] = []

    def sampler(seed: int) -> SyneTune:
        made[:] = [SyneTune(name, seed)]
        return made[0]

    def scheduler(epochs: int, seed: int) -> SyneTune:
        made[0].epochs = epochs
        return made[0]

    return Method(sampler, scheduler, needs="syne-tune")
