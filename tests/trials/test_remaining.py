"""How long a search will go on: trials whose times and ends are known, and the share of their epochs that they get."""

import pytest

from tuning.trials.remaining import Timed, seconds_left, survival

FULL = Timed(6, 6, 10.0)


def test_without_a_timed_epoch_nothing_is_known() -> None:
    assert seconds_left([], 5, 2) is None
    assert seconds_left([Timed(0, 6, None, running=True, since=3.0)], 5, 2) is None


def test_where_all_train_to_their_ends_nearly_all_of_it_is_to_come() -> None:
    many = [FULL] * 1000
    assert seconds_left(many, 10, 2) == pytest.approx(10 * 60 / 2, rel=0.01)
    begun = Timed(2, 6, 10.0, running=True, since=4.0)
    assert seconds_left([*many, begun], 0, 2) == pytest.approx(36, rel=0.01)  # It is alone: the other slot is empty.


def test_a_trial_to_come_gets_the_share_that_others_got_and_one_that_went_on_the_rest_of_those_that_did() -> None:
    trials = [*[FULL] * 500, *[Timed(2, 6, 10.0)] * 500]
    assert survival(trials) == pytest.approx([1, 1, 0.5, 0.5, 0.5, 0.5], abs=0.01)
    assert seconds_left(trials, 1, 1) == pytest.approx(40, rel=0.01)
    assert seconds_left([*trials, Timed(3, 6, 10.0, running=True)], 0, 1) == pytest.approx(30, rel=0.01)
    assert seconds_left([*trials, Timed(1, 6, 10.0, running=True)], 0, 1) == pytest.approx(30, rel=0.01)


def test_trials_that_still_run_count_as_far_as_they_have_come() -> None:
    """The first to end are those that were stopped: by these alone every trial would be short."""
    trials = [Timed(2, 6, 10.0), *[Timed(3, 6, 10.0, running=True)] * 9]
    assert survival(trials)[2] == pytest.approx((1 - 1 / 2 / 11) * (1 - (1 + 1 / 3) / 11))


def test_lengths_differ_and_a_full_training_takes_its_own_epochs_time() -> None:
    trials = [*[Timed(2, 2, 100.0)] * 300, *[Timed(20, 20, 1.0)] * 300]
    assert len(survival(trials)) == 20
    assert seconds_left(trials, 2, 1) == pytest.approx(200 + 20, rel=0.03)
    late = Timed(1, 2, 100.0, running=True, since=500.0)
    assert seconds_left([*trials, late], 0, 1) == 0


def test_a_stop_between_two_steps_of_a_longer_training_counts_at_the_one_that_was_reached() -> None:
    trials = [*[Timed(2, 6, 10.0)] * 500, *[Timed(20, 20, 3.0)] * 500]  # Two of 6 epochs are 6.7 of 20.
    shares = survival(trials)
    assert shares[5] == pytest.approx(1, abs=0.01)
    assert shares[6:] == pytest.approx([0.5] * 14, abs=0.01)
    assert seconds_left(trials, 1, 1) == pytest.approx(60 * (6 + 14 / 2) / 20, rel=0.01)
    begun = Timed(2, 6, 10.0, running=True)
    assert seconds_left([*trials, begun], 0, 1) == pytest.approx(60 * 14 / 20, rel=0.01)
