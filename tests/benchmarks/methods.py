"""`METHODS`: name -> a way to search, for `search_quality.py`. To add one, add a line."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import optuna
from all_epochs import AllEpochs, AllEpochsByLevels
from outside_smac import smac, smac_hyperband
from outside_syne_tune import syne_tune
from ray.tune.schedulers import ASHAScheduler
from rivals import one_epoch, promotion
from simulation import Method, Ours, Stock, tell_epoch

from tuning.base.registries import SCHEDULERS
from tuning.sampling import samplers
from tuning.sampling.curve_sampler import MOST_TRIALS, CurveSampler, known_best, tells
from tuning.trials import schedulers, settings
from tuning.trials.schedulers import METRIC

SAMPLER, SCHEDULER = settings.check_names("resnet", None, None, None)


def named(name: str, n_startup: int = settings.N_STARTUP) -> Callable[[int], optuna.samplers.BaseSampler]:
    """Returns a builder of one of the project's samplers."""
    return lambda seed: samplers.make(name, seed, n_startup)


def by_seconds(seed: int) -> optuna.samplers.BaseSampler:
    """Returns the default sampler as `--cost seconds` has it."""
    sampler = CurveSampler(seed, settings.N_STARTUP)
    sampler.weighs_costs = True
    return sampler


def tpe(**changes: Any) -> Callable[[int], optuna.samplers.BaseSampler]:
    """Returns a builder of the project's TPE with some options changed."""
    ours = {"n_startup_trials": settings.N_STARTUP, "n_ei_candidates": 64}
    ours |= {"multivariate": False, "group": False, "constant_liar": True}
    return lambda seed: optuna.samplers.TPESampler(seed=seed, **{**ours, **changes})


def stock_asha(epochs: int, seed: int) -> Any:
    """ASHA as Ray makes it; only the full length has to be said."""
    return ASHAScheduler(metric=METRIC, mode="max", max_t=epochs)


def stock(**changes: Any) -> Method:
    """Returns Ray Tune with Optuna as they come, with some options of Optuna's sampler changed."""
    return Method(
        lambda seed: optuna.samplers.TPESampler(seed=seed, **changes), stock_asha, Stock, goes_on_diverged=True
    )


def asha(grace: Callable[[int], int], reduction: float, brackets: int = 1) -> Callable[[int, int], Any]:
    """Returns a builder of ASHA with other options than the project's."""
    return lambda epochs, seed: ASHAScheduler(
        time_attr="epoch",
        metric=METRIC,
        mode="max",
        max_t=epochs,
        grace_period=grace(epochs),
        reduction_factor=reduction,
        brackets=brackets,
    )


class Limited(CurveSampler):
    """The default sampler as it was: of more than 150 trials it sees the best half and as many others, at random."""

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        sign = 1.0 if study.direction == optuna.study.StudyDirection.MAXIMIZE else -1.0
        others = [t for t in study.get_trials(deepcopy=False) if t.number != trial.number and tells(t)]
        some = known_best(others, MOST_TRIALS, sign, self._generator)
        seen = SimpleNamespace(direction=study.direction, get_trials=lambda deepcopy: some)
        return super().sample_relative(seen, trial, search_space)  # type: ignore[arg-type]


class LastValues(Ours):
    """As a search tells it, but a trial that was stopped is COMPLETE with its last value."""

    @staticmethod
    def end(study: optuna.Study, number: int, values: list[float], finished: bool) -> None:
        Ours.end(study, number, values[-1:], True)


class LatestToScheduler(Ours):
    """As a search tells it, but the scheduler compares the latest values, not the best."""

    @staticmethod
    def result(values: list[float]) -> dict[str, float]:
        return Ours.result([values[-1]]) | {"epoch": len(values)}


class FailuresAsWorst(Ours):
    """As a search tells it, but a trial that diverged is COMPLETE with 0."""

    @staticmethod
    def end(study: optuna.Study, number: int, values: list[float], finished: bool) -> None:
        if values[-1] != values[-1]:
            study.tell(number, 0.0)
        else:
            Ours.end(study, number, values, finished)


class EndsOnly(Ours):
    """As a search tells it, but a trial is heard of only when it has ended, with its best value at its last epoch."""

    @staticmethod
    def epoch(study: optuna.Study, number: int, values: list[float], stopped: bool) -> None:
        pass

    @staticmethod
    def end(study: optuna.Study, number: int, values: list[float], finished: bool) -> None:
        if values[-1] == values[-1]:
            tell_epoch(study, number, len(values), max(values))
        Ours.end(study, number, values, finished)


class StartSpread(CurveSampler):
    """The project's sampler with a Sobol sequence in place of random points, after the first, which gives the space."""

    def __init__(self, seed: int, n_startup: int) -> None:
        super().__init__(seed, n_startup)
        self._spread = optuna.samplers.QMCSampler(seed=seed, scramble=True)

    def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
        if search_space and trial.number < self._n_startup:
            return dict(self._spread.sample_relative(study, trial, search_space))
        return super().sample_relative(study, trial, search_space)


OURS = SCHEDULERS.load(SCHEDULER)
NONE = SCHEDULERS.load("none")

METHODS: dict[str, Method] = {
    "stock": stock(),
    "ours": Method(named(SAMPLER), OURS),
    "ours, first points": Method(named(SAMPLER), OURS, first_points=True),
    "ours, first points, by seconds": Method(by_seconds, OURS, first_points=True),
    "random + asha": Method(named("random"), SCHEDULERS.load("asha")),
    "random": Method(named("random"), NONE),
    "tpe": Method(named("tpe"), NONE),
    "gp": Method(named("gp"), NONE),
    "hyperband": Method(named("random"), SCHEDULERS.load("hyperband")),
    # Others' methods.
    "random + one epoch, 2 of 20": Method(named("random"), one_epoch(20, 2)),
    "random + one epoch, 10 of 100": Method(named("random"), one_epoch(100, 10)),
    "random + promotion": Method(named("random"), promotion()),
    "ours + promotion": Method(named(SAMPLER), promotion()),
    "ours + promotion, first points": Method(named(SAMPLER), promotion(), first_points=True),
    "ours + promotion, grace 1/9": Method(named(SAMPLER), promotion(schedulers.grace_period)),
    "tpe + asha, multivariate, no liar": Method(tpe(multivariate=True, constant_liar=False), SCHEDULERS.load("asha")),
    "stock, no liar": stock(constant_liar=False),
    "stock, univariate, no liar": stock(multivariate=False, constant_liar=False),  # the default of Optuna 4
    # Other systems, if they are installed.
    "syne-tune asha": syne_tune("ASHA"),
    "syne-tune asha-bore": syne_tune("ASHABORE"),
    "syne-tune asha-cqr": syne_tune("ASHACQR"),
    "syne-tune bohb": syne_tune("BOHB"),
    "smac + asha": smac("HyperparameterOptimizationFacade", SCHEDULERS.load("asha")),
    "smac black-box + asha": smac("BlackBoxFacade", SCHEDULERS.load("asha")),
    "smac hyperband": smac_hyperband(),
    # Ours with one part switched off, or other options.
    "ours, no scheduler": Method(named(SAMPLER), NONE),
    "ours, told at ends only": Method(named(SAMPLER), OURS, EndsOnly),
    "ours, no random tenth": Method(lambda seed: CurveSampler(seed, settings.N_STARTUP, 0.0), OURS),
    "ours, sobol start-up": Method(lambda seed: StartSpread(seed, settings.N_STARTUP), OURS),
    "ours, 2 brackets": Method(named(SAMPLER), asha(schedulers.grace_period, 3, brackets=2)),
    "ours, 150 trials at most": Method(lambda seed: Limited(seed, settings.N_STARTUP), OURS),
    "ours, all epochs": Method(lambda seed: AllEpochs(seed, settings.N_STARTUP), OURS),
    "ours, all epochs, ranks of rungs": Method(lambda seed: AllEpochsByLevels(seed, settings.N_STARTUP), OURS),
    "ours, latest to scheduler": Method(named(SAMPLER), OURS, LatestToScheduler),
    "ours, told failures": Method(named(SAMPLER), OURS, FailuresAsWorst),
    **{f"ours, {n} start-up": Method(named(SAMPLER, n), OURS) for n in (3, 5, 8, 12)},
    "ours, hyperband": Method(named(SAMPLER), SCHEDULERS.load("hyperband")),
    "ours, grace 1 by 4": Method(named(SAMPLER), asha(lambda epochs: 1, 4)),
    "ours, grace 1/9 by 2": Method(named(SAMPLER), asha(schedulers.grace_period, 2)),
    "ours, grace 1/4 by 2": Method(named(SAMPLER), asha(lambda epochs: max(1, epochs // 4), 2)),
    "ours, grace 1/27 by 3": Method(named(SAMPLER), asha(lambda epochs: max(1, epochs // 27), 3)),
    # Other samplers beside ASHA.
    "tpe + asha": Method(named("tpe"), SCHEDULERS.load("asha")),
    "gp + asha": Method(named("gp"), SCHEDULERS.load("asha")),
    "qmc + asha": Method(named("qmc"), SCHEDULERS.load("asha")),
    # TPE's options.
    "tpe + asha, multivariate, group": Method(tpe(multivariate=True, group=True), SCHEDULERS.load("asha")),
    "tpe + asha, multivariate": Method(tpe(multivariate=True), SCHEDULERS.load("asha")),
    "tpe + asha, univariate": Method(tpe(), SCHEDULERS.load("asha")),
    "tpe + asha, univariate, no liar": Method(tpe(constant_liar=False), SCHEDULERS.load("asha")),
    "tpe + asha, univariate, 24 candidates": Method(tpe(n_ei_candidates=24), SCHEDULERS.load("asha")),
    "tpe + asha, univariate, 4 start-up": Method(tpe(n_startup_trials=4), SCHEDULERS.load("asha")),
    "tpe + asha, univariate, 12 start-up": Method(tpe(n_startup_trials=12), SCHEDULERS.load("asha")),
    "tpe + asha, univariate, best 20 %": Method(tpe(gamma=lambda n: max(1, n // 5)), SCHEDULERS.load("asha")),
    "tpe + asha, univariate, told failures": Method(tpe(), SCHEDULERS.load("asha"), FailuresAsWorst),
    "tpe + asha, univariate, told last values": Method(tpe(), SCHEDULERS.load("asha"), LastValues),
    # ASHA's options: grace period in shares of the full length, reduction factor, brackets.
    "tpe, asha grace 1/9 by 2": Method(tpe(), asha(schedulers.grace_period, 2)),
    "tpe, asha grace 1/9 by 4": Method(tpe(), asha(schedulers.grace_period, 4)),
    "tpe, asha grace 1/27 by 3": Method(tpe(), asha(lambda epochs: max(1, epochs // 27), 3)),
    "tpe, asha grace 1/4 by 2": Method(tpe(), asha(lambda epochs: max(1, epochs // 4), 2)),
    "tpe, asha grace 1/3 by 3": Method(tpe(), asha(lambda epochs: max(1, epochs // 3), 3)),
    "tpe, median": Method(tpe(), SCHEDULERS.load("median")),
    "tpe, hyperband": Method(tpe(), SCHEDULERS.load("hyperband")),
}
MAIN = ["ours", "stock", "random + asha", "hyperband", "tpe", "random"]
