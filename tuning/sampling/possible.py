"""`PossibleSampler`: draws what another sampler does, less the choices that this machine cannot do.

The distribution that Optuna records stays whole. It must: a study takes a parameter with other choices for an error,
and a run may be resumed where there are weights or a GPU, or where there are none any more.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

TRIES = 20


class PossibleSampler(optuna.samplers.BaseSampler):
    """A sampler of possible points.

    Args:
        sampler: Proposes. If it has an attribute `left_out`, it gets the choices and heeds them by itself.
        left_out: Name of a categorical parameter -> choices that are not drawn.
    """

    def __init__(self, sampler: optuna.samplers.BaseSampler, left_out: Mapping[str, Sequence[Any]]) -> None:
        self._sampler, self._left_out = sampler, left_out
        if hasattr(sampler, "left_out"):
            sampler.left_out = left_out

    @property
    def origins(self) -> Mapping[int, str]:
        """What the points of trials came from, as far as the sampler says."""
        return getattr(self._sampler, "origins", {})

    @property
    def gains(self) -> Mapping[int, float]:
        """What the points of trials were expected to gain, as far as the sampler says."""
        return getattr(self._sampler, "gains", {})

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Returns the sampler's."""
        return self._sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Returns the sampler's values; a choice that is not possible is drawn independently instead."""
        values = self._sampler.sample_relative(study, trial, search_space)
        return {name: value for name, value in values.items() if value not in self._left_out.get(name, ())}

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Returns the first possible one of some draws of the sampler, or else a random one that is possible."""
        gone = self._left_out.get(param_name, ())
        if isinstance(param_distribution, CategoricalDistribution) and gone:
            kept = [choice for choice in param_distribution.choices if choice not in gone]
            if len(kept) == 1:
                return kept[0]
            for _ in range(TRIES if kept else 0):
                value = self._sampler.sample_independent(study, trial, param_name, param_distribution)
                if value in kept:
                    return value
            if kept:
                return kept[int(np.random.default_rng(trial.number).integers(len(kept)))]
        return self._sampler.sample_independent(study, trial, param_name, param_distribution)

    def reseed_rng(self) -> None:
        """Reseeds the sampler."""
        self._sampler.reseed_rng()

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Tells the sampler that a trial is drawn."""
        self._sampler.before_trial(study, trial)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Tells the sampler that a trial has ended."""
        self._sampler.after_trial(study, trial, state, values)
