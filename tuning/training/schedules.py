"""The learning-rate schedules. To add one, write a builder like `cosine` and its entry in `registries.LR_SCHEDULES`.

A schedule is stepped once a batch. torch's `ReduceLROnPlateau` alone is stepped once an epoch, with the valid loss.
"""

import functools
import math
from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from tuning.base.config import TrainConfig
from tuning.base.registries import LR_SCHEDULES


def make_schedule(
    optimizer: Optimizer, config: TrainConfig, steps_per_epoch: int, lrs: Sequence[float] | None = None
) -> LRScheduler:
    """Returns the schedule; with `lrs` the rates of one that drops on a plateau are these, one an epoch.

    Raises:
        UserError: `LR_SCHEDULES` has none of the configuration's name.
    """
    if LR_SCHEDULES.find(config.schedule).drops_on_plateau and lrs is not None:
        factors = [lr / config.learning_rate for lr in lrs]
        return LambdaLR(
            optimizer, functools.partial(_factor_of_epoch, factors=factors, steps_per_epoch=steps_per_epoch)
        )
    schedule: LRScheduler = LR_SCHEDULES.load(config.schedule)(optimizer, config, steps_per_epoch)
    return schedule


def onecycle(optimizer: Optimizer, config: TrainConfig, steps_per_epoch: int) -> LRScheduler:
    """Returns a schedule that falls linearly to 0 after the warm-up."""
    return warmed_up(optimizer, config, steps_per_epoch, lambda progress: 1 - progress)


def cosine(optimizer: Optimizer, config: TrainConfig, steps_per_epoch: int) -> LRScheduler:
    """Returns a schedule that falls to 0 along half a cosine after the warm-up."""
    return warmed_up(optimizer, config, steps_per_epoch, lambda progress: (1 + math.cos(math.pi * progress)) / 2)


def constant(optimizer: Optimizer, config: TrainConfig, steps_per_epoch: int) -> LRScheduler:
    """Returns a schedule that changes nothing."""
    return LambdaLR(optimizer, lambda step: 1.0)


def plateau(optimizer: Optimizer, config: TrainConfig, steps_per_epoch: int) -> LRScheduler:
    """Returns torch's schedule for a valid loss that no longer falls."""
    return ReduceLROnPlateau(
        optimizer,
        factor=config.plateau_factor,
        patience=config.plateau_patience,
        threshold=config.min_delta,
        threshold_mode="abs",
    )


def warmed_up(
    optimizer: Optimizer, config: TrainConfig, steps_per_epoch: int, fall: Callable[[float], float]
) -> LRScheduler:
    """Returns a schedule with a linear warm-up.

    Args:
        optimizer: Has the peak learning rate.
        config: Sets the epochs, and those of the warm-up, of which at most half of all are used.
        steps_per_epoch: Batches an epoch.
        fall: The share of the peak rate after a share of the steps after the warm-up, both in [0, 1].
    """
    n_steps = config.epochs * steps_per_epoch
    n_warmup = min(config.warmup_epochs, config.epochs / 2) * steps_per_epoch
    return LambdaLR(optimizer, functools.partial(lr_factor, fall=fall, n_steps=n_steps, n_warmup=n_warmup))


def lr_factor(step: int, *, fall: Callable[[float], float], n_steps: int, n_warmup: float) -> float:
    """Returns the share of the peak learning rate, in [0, 1], at a step counted from 0; see `warmed_up`."""
    if step < n_warmup:
        return (step + 1) / (n_warmup + 1)
    return fall(min(1.0, (step - n_warmup) / max(1.0, n_steps - n_warmup)))


def _factor_of_epoch(step: int, *, factors: Sequence[float], steps_per_epoch: int) -> float:
    return factors[min(step // steps_per_epoch, len(factors) - 1)]
