"""`tuning.trials.schedulers`: the contract of every scheduler by name, and what Ray's are made to do."""

from typing import Any

import pytest

from tuning.base.registries import LR_SCHEDULES, SCHEDULERS
from tuning.trials.schedulers import METRIC, StandIn, grace_period, replay

ANNEALED = [name for name, known in LR_SCHEDULES.items() if known.annealed]
STOPPING = [name for name, known in SCHEDULERS.items() if known.stops_trials]


def decision(scheduler: Any, trial: Any, epoch: int, accuracy: float) -> str:
    return str(scheduler.on_trial_result(None, trial, {"epoch": epoch, METRIC: accuracy}))


def trial(scheduler: Any, name: str, schedule: str = "plateau", **config: Any) -> Any:
    one: Any = StandIn(name, {"config": {"schedule": schedule, **config}})
    scheduler.on_trial_add(None, one)
    return one


@pytest.mark.parametrize("name", SCHEDULERS)
def test_no_scheduler_stops_a_trial_in_its_grace_period(name: str) -> None:
    scheduler = SCHEDULERS.load(name)(18, 0)
    for i in range(12):
        one = trial(scheduler, str(i))
        for epoch in range(1, grace_period(18)):
            assert decision(scheduler, one, epoch, 0.9 - 0.05 * i) == "CONTINUE"


@pytest.mark.parametrize("name", STOPPING)
def test_a_bad_trial_after_good_ones_is_stopped(name: str) -> None:
    scheduler = SCHEDULERS.load(name)(18, 0)
    for i in range(12):
        good = trial(scheduler, f"good{i}")
        for epoch in range(1, 18):
            decision(scheduler, good, epoch, 0.5)
        scheduler.on_trial_complete(None, good, {"epoch": 17, METRIC: 0.5})  # type: ignore[arg-type]
    bad = trial(scheduler, "bad")
    assert any(decision(scheduler, bad, epoch, 0.1) == "STOP" for epoch in range(1, 18))


@pytest.mark.parametrize("name", STOPPING)
def test_an_annealed_trial_is_compared_with_annealed_ones(name: str) -> None:
    """Which are behind early on, and come to more: they must not be stopped for that."""
    scheduler = SCHEDULERS.load(name)(18, 0)
    for i in range(12):
        held = trial(scheduler, f"held{i}")
        for epoch in range(1, 18):
            decision(scheduler, held, epoch, 0.75)
        scheduler.on_trial_complete(None, held, {"epoch": 17, METRIC: 0.75})
    for i in range(6):
        annealed = trial(scheduler, f"annealed{i}", ANNEALED[i % len(ANNEALED)])
        assert {decision(scheduler, annealed, epoch, 0.5) for epoch in range(1, 18)} == {"CONTINUE"}
        scheduler.on_trial_complete(None, annealed, {"epoch": 17, METRIC: 0.5})
    worse = trial(scheduler, "worse", "cosine")
    assert any(decision(scheduler, worse, epoch, 0.1) == "STOP" for epoch in range(1, 18))


@pytest.mark.parametrize("schedule", ["plateau", "onecycle"])
@pytest.mark.parametrize("epochs", [2, 6, 30])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_trial_ends_at_its_own_length_and_not_at_the_searchs(name: str, epochs: int, schedule: str) -> None:
    scheduler = SCHEDULERS.load(name)(epochs, 0)
    for length in (12, 3, 12, 20):
        one = trial(scheduler, f"{length}", schedule, epochs=length)
        decisions = [decision(scheduler, one, epoch, 0.5 + 0.01 * epoch) for epoch in range(1, length + 1)]
        assert decisions[:-1] == ["CONTINUE"] * (length - 1)
        assert decisions[-1] == ("CONTINUE" if name == "none" else "STOP")


@pytest.mark.parametrize("name", STOPPING)
def test_of_trials_that_are_longer_than_the_search_the_bad_ones_are_stopped(name: str) -> None:
    scheduler = SCHEDULERS.load(name)(6, 0)
    for i in range(12):
        good = trial(scheduler, f"good{i}", epochs=18)
        for epoch in range(1, 18):
            decision(scheduler, good, epoch, 0.5)
    bad = trial(scheduler, "bad", epochs=18)
    assert any(decision(scheduler, bad, epoch, 0.1) == "STOP" for epoch in range(1, 18))


@pytest.mark.parametrize("name", ["asha", "median"])
def test_the_grace_period_is_of_the_trials_own_length(name: str) -> None:
    scheduler = SCHEDULERS.load(name)(6, 0)
    for i in range(12):
        long = trial(scheduler, str(i), epochs=90)
        assert {decision(scheduler, long, epoch, 0.9 - 0.05 * i) for epoch in range(1, 10)} == {"CONTINUE"}


def test_trials_whose_rate_is_held_are_compared_whatever_their_lengths() -> None:
    scheduler = SCHEDULERS.load("asha")(6, 0)
    for i in range(6):
        short = trial(scheduler, str(i), epochs=4 + i)
        for epoch in (1, 2):
            decision(scheduler, short, epoch, 0.9)
    assert decision(scheduler, trial(scheduler, "bad", epochs=20), 2, 0.1) == "STOP"


def test_an_annealed_trial_is_compared_with_those_whose_rate_falls_as_fast() -> None:
    """After two of three epochs a rate has nearly fallen; after two of twelve it has hardly begun to."""
    scheduler = SCHEDULERS.load("asha")(6, 0)
    for i in range(6):
        short = trial(scheduler, str(i), "cosine", epochs=3)
        for epoch in (1, 2, 3):
            decision(scheduler, short, epoch, 0.9)
    assert decision(scheduler, trial(scheduler, "long", "cosine", epochs=12), 2, 0.5) == "CONTINUE"
    assert decision(scheduler, trial(scheduler, "bad", "cosine", epochs=3), 2, 0.5) == "STOP"


@pytest.mark.parametrize("name", set(SCHEDULERS) - set(STOPPING))
def test_a_scheduler_that_is_said_to_stop_no_trials_stops_none(name: str) -> None:
    scheduler = SCHEDULERS.load(name)(18, 0)
    for i in range(8):
        one = trial(scheduler, str(i))
        assert {decision(scheduler, one, epoch, 1 - 0.1 * i) for epoch in range(1, 18)} == {"CONTINUE"}


@pytest.mark.parametrize(("epochs", "grace"), [(1, 1), (2, 2), (8, 2), (18, 2), (27, 3), (90, 10)])
def test_the_grace_period_is_a_ninth_and_at_least_two(epochs: int, grace: int) -> None:
    assert grace_period(epochs) == grace


def test_a_new_scheduler_that_is_shown_old_trials_judges_by_them() -> None:
    scheduler = SCHEDULERS.load("asha")(18, 0)
    rows = [{"epoch": e, "valid_accuracy": 0.9} for e in range(1, 19)]
    replay(scheduler, {n: ({"schedule": "onecycle"}, rows) for n in range(6)})
    assert decision(scheduler, trial(scheduler, "new", "onecycle"), 2, 0.1) == "STOP"
    assert decision(scheduler, trial(scheduler, "other", "plateau"), 2, 0.1) == "CONTINUE"
