"""Optuna's samplers as a search uses them. Every option is named, because Optuna's defaults change.

To add one, write a builder like `tpe` and its entry in `registries.SAMPLERS`. `make` builds one by its name.
"""

import warnings

import optuna

from tuning.base.registries import SAMPLERS
from tuning.sampling.curve_sampler import CurveSampler


def make(name: str, seed: int, n_startup: int) -> optuna.samplers.BaseSampler:
    """Returns the sampler of a name in `SAMPLERS`; Optuna's notes that one is experimental are for its developers.

    Args:
        name: Its name.
        seed: At least 0.
        n_startup: Points that are drawn at random first.

    Raises:
        UserError: The name is unknown.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
        sampler: optuna.samplers.BaseSampler = SAMPLERS.load(name)(seed, n_startup)
        return sampler


def curves(seed: int, n_startup: int) -> optuna.samplers.BaseSampler:
    """The sampler that reads learning curves."""
    return CurveSampler(seed, n_startup)


def tpe(seed: int, n_startup: int) -> optuna.samplers.BaseSampler:
    """Tree-structured Parzen estimator (Bergstra et al. 2011), each hyperparameter by itself.

    On recorded learning curves the multivariate one was far behind it: `tests/benchmarks/README.md`.
    """
    return optuna.samplers.TPESampler(
        seed=seed,
        n_startup_trials=n_startup,
        n_ei_candidates=64,
        multivariate=False,
        group=False,
        constant_liar=True,
    )


def gp(seed: int, n_startup: int) -> optuna.samplers.BaseSampler:
    """Gaussian process with log expected improvement; branches that not every trial has are drawn independently."""
    import torch  # noqa: F401  The sampler needs it at its first proposal, which `one_thread` then limits, too.

    return optuna.samplers.GPSampler(
        seed=seed, n_startup_trials=n_startup, deterministic_objective=False, warn_independent_sampling=False
    )


def random(seed: int, n_startup: int) -> optuna.samplers.BaseSampler:
    """Independent random points."""
    return optuna.samplers.RandomSampler(seed=seed)


def qmc(seed: int, n_startup: int) -> optuna.samplers.BaseSampler:
    """Scrambled Sobol points (Bergstra & Bengio 2012 compare them with random ones)."""
    return optuna.samplers.QMCSampler(
        qmc_type="sobol",
        scramble=True,
        seed=seed,
        warn_asynchronous_seeding=False,
        warn_independent_sampling=False,
    )


def nsga2(seed: int, n_startup: int) -> optuna.samplers.BaseSampler:
    """NSGA-II (Deb et al. 2002), a generation as large as the other samplers' start-up."""
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=max(2, n_startup))
