"""SMAC3 on the same tables, if it is installed (`pip install smac`).

SMAC minimises, so it is told 1 - value; a trial that diverged has 1. The first trial is drawn by Optuna at random: it
is from that one that the space is known. SMAC writes a folder of its own, which is deleted with the sampler.
"""

import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from simulation import Method

from tuning.trials.schedulers import METRIC, StandIn
from tuning.trials.settings import N_STARTUP

MANY = 1_000_000  # trials that a search may have at most; SMAC only counts them


class Smac(optuna.samplers.BaseSampler):
    """SMAC3 as a sampler: it is told what a trial has shown when that has ended, be it stopped or not.

    Its model is that of the facade, with the options as they come but for the random points at first, which are as many
    as the project's own samplers draw.

    Args:
        facade: Name of a class of `smac`.
        seed: Of all that is random.
    """

    def __init__(self, facade: str, seed: int) -> None:
        self._facade, self._seed = facade, seed
        self._random = optuna.samplers.RandomSampler(seed=seed)
        self._folder = tempfile.mkdtemp(prefix="smac-")
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._smac: Any = None

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        first = study.get_trials(deepcopy=False)[0]
        return {} if trial.number == 0 else dict(first.distributions)

    def sample_relative(self, study: Any, trial: Any, search_space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
        return self.parameters(self.ask(study), search_space) if search_space else {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        """Tells SMAC of the point that is on record: a table has answered with the nearest that it knows."""
        from smac.runhistory import TrialInfo, TrialValue

        smac = self.smac(study)
        shown = max(trial.intermediate_values.values(), default=0.0)
        shown = 0.0 if state == optuna.trial.TrialState.FAIL else shown
        point = configuration(smac.scenario.configspace, trial)
        seed = smac.intensifier.get_instance_seed_keys_of_interest()[0].seed  # SMAC draws it once, and asks with it.
        smac.tell(TrialInfo(point, seed=seed), TrialValue(cost=1 - shown), save=False)

    def ask(self, study: Any) -> Any:
        """Returns what SMAC wants to try."""
        return self.smac(study).ask().config

    def smac(self, study: Any) -> Any:
        """Returns SMAC's facade, which is made when the first trial has begun."""
        if self._smac is None:
            self._smac = self.make(study.get_trials(deepcopy=False)[0])
        return self._smac

    def make(self, first: Any, *, asks_for_it: bool = False, **options: Any) -> Any:
        """Returns a facade for the space of a trial; whether it asks for the trial's own point, too."""
        import smac

        scenario = smac.Scenario(
            space(first.distributions, self._seed),
            deterministic=True,
            n_trials=MANY,
            seed=self._seed,
            output_directory=self._folder,
            **options,
        )
        facade = getattr(smac, self._facade)
        known = [configuration(scenario.configspace, first)] if asks_for_it else []
        design = facade.get_initial_design(scenario, n_configs=N_STARTUP - 1, additional_configs=known)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=DeprecationWarning)  # SMAC calls ConfigSpace as it was before.
            return facade(scenario, initial_design=design, logging_level=False)

    @staticmethod
    def parameters(config: Any, search_space: Mapping[str, BaseDistribution]) -> dict[str, Any]:
        """Returns the parameters of Optuna that a configuration of SMAC stands for."""
        found = {}
        for name, one in search_space.items():
            value = config[name]
            if isinstance(one, CategoricalDistribution):
                found[name] = one.choices[int(value)]
            else:
                value = min(max(value, one.low), one.high)
                found[name] = float(value) if isinstance(one, FloatDistribution) else int(value)
        return found


class SmacHyperband(Smac):
    """SMAC3's multi-fidelity facade as a sampler and as what Ray calls a scheduler: Hyperband, proposals by its model.

    Its budgets are epochs, the full length and a third, a ninth, ... of it. A trial pauses when it has had its budget,
    and is resumed when SMAC asks for its configuration with a larger one. SMAC is told of its own proposal, also where
    a table has answered with the nearest point that it knows: else it would not know which one to resume.

    Args:
        seed: Of all that is random.
    """

    def __init__(self, seed: int) -> None:
        super().__init__("MultiFidelityFacade", seed)
        self.epochs = 0
        self._next: Any = None  # What SMAC wants of a new trial, until that begins.
        self._numbers: dict[Any, int] = {}  # Of the trials that have SMAC's configurations.
        self._wanted: dict[int, Any] = {}  # What SMAC wants of the trials that train.
        self._shown: dict[int, float] = {}
        self._had: dict[int, int] = {}

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        self._study = study
        return super().infer_relative_search_space(study, trial)

    def ask(self, study: Any) -> Any:
        """Returns the configuration that `resumed` has left for a new trial."""
        return self._next.config

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        """Does nothing: SMAC has been told as a scheduler."""

    def on_trial_add(self, controller: Any, trial: StandIn) -> None:
        number = int(trial.trial_id)
        if number == 0:
            first = self._study.get_trials(deepcopy=False)[0]
            self._smac = self.make(first, asks_for_it=True, min_budget=1, max_budget=self.epochs)
            self._numbers[configuration(self._smac.scenario.configspace, first)] = 0
        else:
            self._numbers[self._next.config] = number
            self._wanted[number], self._next = self._next, None

    def on_trial_result(self, controller: Any, trial: StandIn, result: dict[str, Any]) -> str:
        number = int(trial.trial_id)
        self._shown[number], self._had[number] = result[METRIC], result["epoch"]
        wanted = self._wanted.get(number)
        if wanted is not None and result["epoch"] < round(wanted.budget):
            return "CONTINUE"
        self._tell(self._wanted.pop(number, None), number)
        return "PAUSE"

    def on_trial_complete(self, controller: Any, trial: StandIn, result: dict[str, Any]) -> None:
        number = int(trial.trial_id)
        self._tell(self._wanted.pop(number, None), number)
        self._had[number] = self.epochs  # So that SMAC is told at once if it wants more of it.

    def resumed(self, last: bool) -> int | None:
        """Returns a trial of which SMAC wants more, if that comes before its next new configuration."""
        while self._smac is not None and self._next is None:
            wanted = self._smac.ask()
            number = self._numbers.get(wanted.config)
            if number is None:
                self._next = wanted
            elif self._had.get(number, 0) >= round(wanted.budget):
                self._tell(wanted, number)
            else:
                self._wanted[number] = wanted
                if number in self._had:  # Else it is the first trial, and still trains.
                    return number
        return None

    def _tell(self, wanted: Any, number: int) -> None:
        from smac.runhistory import TrialValue

        if wanted is not None:
            self._smac.tell(wanted, TrialValue(cost=1 - self._shown[number]), save=False)


def space(distributions: Mapping[str, BaseDistribution], seed: int) -> Any:
    """Returns SMAC's space of Optuna's distributions; a choice is known by its place."""
    import ConfigSpace

    made = ConfigSpace.ConfigurationSpace(seed=seed)
    for name, one in distributions.items():
        if isinstance(one, CategoricalDistribution):
            made.add(ConfigSpace.Categorical(name, [str(i) for i in range(len(one.choices))]))
        else:
            kind = ConfigSpace.Float if isinstance(one, FloatDistribution) else ConfigSpace.Integer
            made.add(kind(name, (one.low, one.high), log=one.log))
    return made


def configuration(space: Any, trial: Any) -> Any:
    """Returns the configuration of SMAC that a trial has; where a branch lacks a parameter, the space's default."""
    import ConfigSpace

    values = dict(space.get_default_configuration())
    for name in values.keys() & trial.params.keys():
        one = trial.distributions[name]
        value = trial.params[name]
        if isinstance(one, CategoricalDistribution):
            values[name] = str(one.choices.index(value))
        else:
            values[name] = min(max(value, space[name].lower), space[name].upper)  # SMAC has rounded its bounds.
    return ConfigSpace.Configuration(space, values=values)


def smac(facade: str, scheduler: Callable[[int, int], Any]) -> Method:
    """Returns a method that searches with a facade of SMAC and a scheduler of the project."""
    return Method(lambda seed: Smac(facade, seed), scheduler, needs="smac")


def smac_hyperband() -> Method:
    """Returns a method that searches with SMAC's Hyperband, which pauses and resumes trials."""
    made: list[SmacHyperband] = []

    def sampler(seed: int) -> SmacHyperband:
        made[:] = [SmacHyperband(seed)]
        return made[0]

    def scheduler(epochs: int, seed: int) -> SmacHyperband:
        made[0].epochs = epochs
        return made[0]

    return Method(sampler, scheduler, needs="smac")
