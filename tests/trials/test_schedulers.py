"""`tuning.trials.schedulers`: the contract of every scheduler by name, and what Ray's are made to do."""

from typing import Any

import numpy as np
import pytest

from tuning.base.registries import LR_SCHEDULES, SCHEDULERS
from tuning.trials.schedulers import METRIC, StandIn, grace_period, replay

ANNEALED = [name for name, known in LR_SCHEDULES.items() if known.annealed]
PAUSING = [name for name, known in SCHEDULERS.items() if known.pauses_trials]
STOPPING = [name for name, known in SCHEDULERS.items() if known.stops_trials and name not in PAUSING]
AT_ONCE = [name for name in SCHEDULERS if name not in PAUSING]


def decision(scheduler: Any, trial: Any, epoch: int, accuracy: float) -> str:
    return str(scheduler.on_trial_result(None, trial, {"epoch": epoch, METRIC: accuracy}))


def trial(scheduler: Any, name: str, schedule: str = "plateau", **config: Any) -> Any:
    number = int(name) if name.isdecimal() else 0
    one: Any = StandIn(name, {"config": {"schedule": schedule, **config}, "trial": number})
    scheduler.on_trial_add(None, one)
    return one


@pytest.mark.parametrize("name", AT_ONCE)
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
@pytest.mark.parametrize("name", AT_ONCE)
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


@pytest.mark.parametrize("name", set(AT_ONCE) - set(STOPPING))
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


@pytest.mark.parametrize("name", STOPPING)
def test_an_interrupted_trial_is_not_judged_anew_at_the_epochs_that_it_has_had(name: str) -> None:
    """Trials that came after these epochs were better; by them a new scheduler would stop it where it was let go on."""
    scheduler = SCHEDULERS.load(name)(18, 0)
    shown = {n: ({"schedule": "onecycle"}, rows(0.9, 18)) for n in range(6)}
    replay(scheduler, shown)
    again: Any = StandIn("again", {"config": {"schedule": "onecycle"}, "trial": 6, "epochs": 10})
    scheduler.on_trial_add(None, again)
    assert {decision(scheduler, again, epoch, 0.1) for epoch in range(1, 12)} == {"CONTINUE"}


@pytest.mark.parametrize("name", STOPPING)
def test_a_new_scheduler_is_shown_trials_that_it_would_have_stopped_earlier(name: str) -> None:
    scheduler = SCHEDULERS.load(name)(18, 0)
    replay(scheduler, {n: ({"schedule": "onecycle"}, rows(0.9 if n < 6 else 0.1, 18)) for n in range(9)})
    assert run_on(scheduler, trial(scheduler, "new", "onecycle"), range(1, 18), 0.05) == "STOP"


def run_on(scheduler: Any, one: Any, epochs: range, accuracy: float) -> str:
    """Returns the last decision on a trial, which trains until it is stopped."""
    for epoch in epochs:
        if (found := decision(scheduler, one, epoch, accuracy)) == "STOP":
            break
    return found


def test_of_trials_that_pause_the_best_third_of_the_highest_rung_goes_on() -> None:
    scheduler = SCHEDULERS.load("promotion")(18, 0)  # It compares after 1, 3 and 9 epochs.
    values = [0.5, 0.6, 0.4, 0.7, 0.3, 0.2, 0.1, 0.1, 0.8]
    trials = [trial(scheduler, str(i)) for i in range(9)]

    def begin(*numbers: int) -> None:
        for number in numbers:
            assert scheduler.promoted() is None
            assert run_on(scheduler, trials[number], range(1, 18), values[number]) == "STOP"
            assert scheduler.has_paused(number)

    def go_on(number: int, epochs: range) -> str:
        assert scheduler.promoted() == number and not scheduler.has_paused(number)
        return run_on(scheduler, trials[number], epochs, values[number])

    begin(0, 1, 2)
    assert go_on(1, range(2, 18)) == "STOP"  # After its third epoch.
    begin(3)  # The best of four is one, but only a third may go on.
    assert go_on(3, range(2, 18)) == "STOP"
    begin(4, 5, 6, 7, 8)
    assert go_on(8, range(2, 18)) == "STOP"
    assert go_on(8, range(4, 18)) == "STOP"  # Of the highest rung first: the best of three there.
    assert scheduler.promoted() is None


def test_a_trial_that_goes_on_may_tell_again_what_it_had_shown() -> None:
    scheduler = SCHEDULERS.load("promotion")(18, 0)
    trials = [trial(scheduler, str(i)) for i in range(3)]
    for one in trials:
        decision(scheduler, one, 1, 0.5)
    assert scheduler.promoted() == 0
    assert run_on(scheduler, trials[0], range(1, 3), 0.5) == "CONTINUE"


def test_what_has_ended_never_goes_on_and_what_is_tried_again_may() -> None:
    scheduler = SCHEDULERS.load("promotion")(18, 0)
    trials = [trial(scheduler, str(i)) for i in range(6)]
    for one in trials:
        decision(scheduler, one, 1, 0.5)
    scheduler.ended(0)
    scheduler.ended(1)
    scheduler.on_trial_error(None, trials[2])  # Ray tells it of each attempt that failed.
    assert [scheduler.promoted() for _ in range(3)] == [2, 3, None]


def test_trials_of_other_schedules_pause_by_themselves() -> None:
    scheduler = SCHEDULERS.load("promotion")(18, 0)
    for i in range(4):
        decision(scheduler, trial(scheduler, str(i), "plateau" if i % 2 else "onecycle"), 1, 0.5)
    assert scheduler.promoted() is None
    decision(scheduler, trial(scheduler, "4", "onecycle"), 1, 0.6)
    assert scheduler.promoted() == 4


def test_a_new_scheduler_knows_which_trials_have_paused_and_which_have_gone_on() -> None:
    scheduler = SCHEDULERS.load("promotion")(18, 0)
    shown = {n: ({"schedule": "onecycle"}, rows(0.5 + 0.01 * n, 3 if n == 5 else 1)) for n in range(6)}
    replay(scheduler, shown, paused=[2, 4, 5])
    assert [n for n in range(6) if scheduler.has_paused(n)] == [2, 4, 5]
    assert scheduler.promoted() == 4  # Trial 5 has gone on before, and waits after its third epoch.
    assert scheduler.promoted() is None


def test_an_interrupted_trial_goes_on_past_the_rungs_that_it_has_passed() -> None:
    scheduler = SCHEDULERS.load("promotion")(18, 0)
    shown = {n: ({"schedule": "onecycle"}, rows(0.5 + 0.01 * n, 5 if n == 0 else 1)) for n in range(6)}
    replay(scheduler, shown, paused=[1, 2, 3, 4, 5])  # Trial 0 was running: others are better after the first epoch.
    again: Any = StandIn("again", {"config": {"schedule": "onecycle"}, "trial": 0})
    assert run_on(scheduler, again, range(1, 9), 0.5) == "CONTINUE"
    assert decision(scheduler, again, 9, 0.5) == "STOP" and scheduler.has_paused(0)


def test_trials_that_ended_in_an_earlier_session_take_no_place_of_new_ones() -> None:
    scheduler = SCHEDULERS.load("promotion")(18, 0)
    replay(scheduler, {n: ({"schedule": "onecycle"}, rows(0.9, 1)) for n in range(6)})
    assert decision(scheduler, trial(scheduler, "6", "onecycle"), 1, 0.5) == "STOP"
    assert scheduler.promoted() == 6


@pytest.mark.parametrize("lengths", [(3, 81), (81, 3)])
def test_trials_of_different_lengths_pause_at_rungs_of_their_own(lengths: tuple[int, int]) -> None:
    scheduler = SCHEDULERS.load("promotion")(6, 0)
    stopped: dict[int, list[int]] = {length: [] for length in lengths}
    for i, length in enumerate(lengths):
        one = trial(scheduler, str(i), epochs=length)
        for epoch in range(1, length + 1):
            stopped[length] += [epoch] if decision(scheduler, one, epoch, 0.5) == "STOP" else []
        assert not scheduler.has_paused(i)
    assert stopped == {3: [1, 3], 81: [3, 9, 27, 81]}


def rows(accuracy: float, n: int) -> list[dict[str, float]]:
    return [{"epoch": epoch, "valid_accuracy": accuracy} for epoch in range(1, n + 1)]


@pytest.mark.parametrize("name", ["asha", "hyperband"])
def test_numpys_random_numbers_are_left_to_others(name: str) -> None:
    def brackets() -> list[int]:
        """Returns how many epochs each of some trials gets, all of which are as good."""
        scheduler, found = SCHEDULERS.load(name)(27, 0), []
        for number in range(12):
            trial: Any = StandIn(str(number), {"trial": number, "config": {"epochs": 27, "schedule": "constant"}})
            scheduler.on_trial_add(None, trial)
            found.append(len(scheduler._of(trial)._trial_info[trial.trial_id]._rungs))
        return found

    np.random.seed(5)  # noqa: NPY002  It is what a notebook may rely on.
    first = brackets()
    drawn = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    assert drawn == np.random.random()  # noqa: NPY002
    assert brackets() == first and (len(set(first)) > 1) == (name == "hyperband")
