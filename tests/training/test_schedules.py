"""`tuning.training.schedules`: the contract of every LR schedule by name, and what each one does."""

import math

import pytest
import torch
from torch import nn

from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.base.registries import LR_SCHEDULES
from tuning.training.schedules import make_schedule, plateau

PEAK = 0.5
# Hyperparameters that only some schedules use, and a value that is not the default.
OTHER: dict[str, float] = {"warmup_epochs": 3.0, "plateau_patience": 3, "plateau_factor": 0.7}
WARMED_UP = [name for name, known in LR_SCHEDULES.items() if "warmup_epochs" in known.uses]


def rates(
    schedule: str, *, epochs: int, steps_per_epoch: int = 10, lrs: list[float] | None = None, **values: float
) -> list[float]:
    """Returns the learning rate of each step of a training whose valid loss never falls."""
    config = TrainConfig(schedule=schedule, epochs=epochs, learning_rate=PEAK, **values)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=PEAK)
    one, found = make_schedule(optimizer, config, steps_per_epoch, lrs), []
    by_epoch = isinstance(one, torch.optim.lr_scheduler.ReduceLROnPlateau)
    for _ in range(epochs):
        for _ in range(steps_per_epoch):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if not by_epoch:
                one.step()
        if by_epoch:
            one.step(1.0)
    return found


@pytest.mark.parametrize("name", LR_SCHEDULES)
def test_rates_are_above_zero_and_reach_the_peak_but_do_not_pass_it(name: str) -> None:
    found = rates(name, epochs=12)
    assert min(found) > 0 and max(found) == pytest.approx(PEAK) and max(found) <= PEAK


@pytest.mark.parametrize("name", LR_SCHEDULES)
def test_the_facts_of_a_schedule_are_true(name: str) -> None:
    known = LR_SCHEDULES[name]
    *_, last = rates(name, epochs=3, steps_per_epoch=100)
    assert (last < 0.1 * PEAK) == known.annealed
    given = [0.4, 0.3, 0.2]
    followed = rates(name, epochs=3, lrs=given) == pytest.approx([lr for lr in given for _ in range(10)])
    assert followed == known.drops_on_plateau


@pytest.mark.parametrize("hyperparameter", OTHER)
@pytest.mark.parametrize("name", LR_SCHEDULES)
def test_a_hyperparameter_changes_the_schedules_that_use_it_and_no_others(name: str, hyperparameter: str) -> None:
    changes = rates(name, epochs=12) != rates(name, epochs=12, **{hyperparameter: OTHER[hyperparameter]})
    assert changes == (hyperparameter in LR_SCHEDULES[name].uses)


def test_all_hyperparameters_that_only_some_schedules_use_are_tried() -> None:
    assert {used for known in LR_SCHEDULES.values() for used in known.uses} <= set(OTHER)


def test_a_schedule_that_is_in_no_registry_is_refused() -> None:
    config = TrainConfig().model_copy(update={"schedule": "cosines"})
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=PEAK)
    with pytest.raises(
        UserError, match=r"schedule must be one of .*plateau.*, but got 'cosines'\. Did you mean 'cosine'"
    ):
        make_schedule(optimizer, config, steps_per_epoch=3)


@pytest.mark.parametrize("warmup_epochs", [0, 0.05, 0.1, 0.75, 1, 5])
@pytest.mark.parametrize("name", WARMED_UP)
def test_the_learning_rate_rises_to_its_peak_and_falls_towards_0(name: str, warmup_epochs: float) -> None:
    factors = [rate / PEAK for rate in rates(name, epochs=10, warmup_epochs=warmup_epochs)]
    n_warmup = 10 * warmup_epochs
    peak = math.ceil(n_warmup)
    assert factors == sorted(factors[: peak + 1]) + sorted(factors[peak + 1 :], reverse=True)
    falling = [factor for factor in factors[peak:] if factor < factors[peak]]  # It may be held at the peak before.
    assert len(set(factors[: peak + 1])) == peak + 1 and len(set(falling)) == len(falling) > 0
    assert factors[0] == pytest.approx(1 / (n_warmup + 1) if n_warmup else 1)
    assert 0.98 < factors[peak] <= 1
    assert factors[peak] == 1 or n_warmup % 1
    assert 0 < factors[99] < 0.11


def test_onecycle_falls_in_a_line_and_cosine_along_half_a_cosine() -> None:
    line, curve = (rates(name, epochs=11, warmup_epochs=1) for name in ("onecycle", "cosine"))
    assert line[35] == pytest.approx(0.75 * PEAK)
    assert curve[35] == pytest.approx((1 + math.sqrt(0.5)) / 2 * PEAK)
    assert curve[60] == pytest.approx(0.5 * PEAK)


def test_a_constant_learning_rate_stays_from_the_first_step() -> None:
    assert set(rates("constant", epochs=2, warmup_epochs=1)) == {PEAK}


@pytest.mark.parametrize("name", WARMED_UP)
@pytest.mark.parametrize(("epochs", "warmup_epochs", "n_warmup"), [(4, 1.5, 15), (4, 100.0, 20), (1, 1.0, 5)])
def test_the_warm_up_takes_its_epochs_but_at_most_half(
    name: str, epochs: int, warmup_epochs: float, n_warmup: int
) -> None:
    found = rates(name, epochs=epochs, warmup_epochs=warmup_epochs)
    assert found.index(max(found)) == n_warmup
    assert max(found) == PEAK


def test_a_plateau_counts_a_loss_that_falls_by_less_than_the_least_as_none() -> None:
    optimizer = torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=PEAK)
    schedule = plateau(optimizer, TrainConfig(min_delta=0.1, plateau_patience=0, plateau_factor=0.25), 10)
    for loss in (1.0, 0.95, 0.8):
        schedule.step(loss)  # type: ignore[call-arg, arg-type]
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.25 * PEAK)
