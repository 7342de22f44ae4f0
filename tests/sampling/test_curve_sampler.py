"""The sampler that reads learning curves: its numbers, what it observes, and what it proposes."""

import math
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import TrialState, create_trial

from tuning.base.registries import SAMPLERS
from tuning.sampling import samplers
from tuning.sampling.curve_sampler import CurveSampler, known_best, observations, says_nothing, scores
from tuning.sampling.spaces import load_space


def trial(
    values: list[float], state: TrialState = TrialState.PRUNED, attrs: Any = None, **params: float
) -> optuna.trial.FrozenTrial:
    return create_trial(
        user_attrs=attrs or {},
        state=state,
        value=max(values) if state == TrialState.COMPLETE else None,
        params=params,
        distributions=dict.fromkeys(params, FloatDistribution(0, 1)),
        intermediate_values=dict(enumerate(values, start=1)),
    )


def test_of_a_curve_the_best_so_far_counts_at_the_levels_and_at_its_end() -> None:
    whole = trial([0.1, 0.3, 0.2, 0.4, 0.5, 0.5, 0.6, 0.4, 0.4], TrialState.COMPLETE)
    own, progress, values = observations([whole, trial([0.2, 0.1])], sign=1.0)
    assert own.tolist() == [0, 0, 0, 1, 1]
    np.testing.assert_allclose(np.exp(progress) * 9, [1, 3, 9, 1, 2])
    assert values.tolist() == [0.1, 0.3, 0.6, 0.2, 0.2]


def test_a_failed_trial_counts_as_the_worst_at_its_end() -> None:
    own, progress, values = observations([trial([0.5, 0.6, 0.7]), trial([0.9], TrialState.FAIL)], sign=1.0)
    assert (own[-1], progress[-1], values[-1]) == (1, 0.0, 0.5)  # Not what it once had.


NO_RESULT = [
    {},
    {"no_result": True},
    {"no_result": True, "error": "The search ended before the trial's first epoch."},
    {"error": "stopped by time budget before its first epoch ended"},  # As 0.2.0 wrote it.
    {"error": "stopped by interrupt before its first epoch ended"},
    {"error": "same configuration as trial 12, which is running"},
]


@pytest.mark.parametrize("attrs", NO_RESULT, ids=repr)
def test_a_trial_that_was_ended_before_its_first_epoch_is_no_evidence(attrs: dict[str, Any]) -> None:
    ended = trial([], TrialState.FAIL, attrs)
    assert says_nothing(ended)
    own, _, values = observations([ended, trial([0.5, 0.6])], sign=1.0)
    assert own.tolist() == [1] and values.tolist() == [0.6]


@pytest.mark.parametrize("error", ["Training loss is nan.", "stopped by the kernel", "OutOfMemoryError"])
def test_a_trial_that_failed_by_itself_is_the_worst(error: str) -> None:
    failed = trial([], TrialState.FAIL, {"error": error})
    assert not says_nothing(failed)
    own, progress, values = observations([failed, trial([0.5, 0.6])], sign=1.0)
    assert (own[0], progress[0], values[0]) == (0, 0.0, 0.6)


def test_a_time_budget_does_not_turn_the_sampler_away_from_a_configuration() -> None:
    """Trials near the best point were cut off by a budget, in one of two sessions; the search still goes there."""

    def mean_of_last(attrs: dict[str, Any]) -> float:
        study = search(CurveSampler(0, 5), 12)
        for x in np.linspace(0.6, 0.95, 12):
            study.add_trial(trial([], TrialState.FAIL, attrs, x=float(x), learning_rate=0.01))
        proposed = []
        for _ in range(6):
            one = study.ask()
            proposed.append(one.suggest_float("x", 0, 1))
            one.suggest_float("learning_rate", 1e-4, 1, log=True)
            study.tell(one, state=TrialState.FAIL)
        return float(np.mean([abs(x - 0.8) for x in proposed]))

    assert mean_of_last({"no_result": True}) < mean_of_last({"error": "it crashed"})


def test_trials_count_along_their_own_lengths() -> None:
    lengths = [{"config": {"epochs": n}} for n in (4, 12, 12)]
    short, long = trial([0.1, 0.2, 0.3, 0.4], TrialState.COMPLETE, lengths[0]), trial([0.1] * 12, attrs=lengths[1])
    stopped = trial([0.5, 0.6], attrs=lengths[2])
    own, progress, _ = observations([short, long, stopped], sign=1.0)
    shares = np.exp(progress)
    np.testing.assert_allclose(shares[own == 0], [1 / 4, 1])
    np.testing.assert_allclose(shares[own == 1], [1 / 12, 4 / 12, 1])
    np.testing.assert_allclose(shares[own == 2], [1 / 12, 2 / 12])


def test_the_length_is_known_before_any_trial_has_reached_it() -> None:
    _, progress, _ = observations([trial([0.5, 0.6], attrs={"config": {"epochs": 6}})], sign=1.0)
    assert np.exp(progress).tolist() == pytest.approx([2 / 6])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_an_epoch_that_has_diverged_is_never_the_best(value: float) -> None:
    for sign, expected in ((1.0, [0.2, 0.3, 0.4, 0.2]), (-1.0, [-0.3, -0.3, -0.3, -0.2])):
        _, _, values = observations([trial([value]), trial([0.3, value, 0.4]), trial([0.2])], sign)
        assert values.tolist() == expected
    trials = [trial([value]), *(trial([0.1 * i]) for i in range(6))]
    assert known_best(trials, 2, 1.0, np.random.default_rng(0))[0].intermediate_values == {1: 0.5}


SPACES: dict[str, Any] = {
    "moving": lambda t: t.suggest_int("n", 1, t.suggest_int("k", 2, 8)) + t.suggest_float("x", 0, 1),
    "widening": lambda t: t.suggest_float("x", 1e-3, 0.05 if t.number < 8 else 1.0, log=True),
    "narrowing": lambda t: t.suggest_float("x", 0.1 if t.number > 8 else 0.0, 0.2 if t.number > 8 else 1.0),
    "steps": lambda t: t.suggest_int("x", 0, 12, step=1 + t.number % 3) + t.suggest_float("y", 0, 1),
    "apart": lambda t: t.suggest_float("x", t.number, t.number + 0.5),
    "often a point": lambda t: t.suggest_int("x", 1, 1 + t.number % 2) + t.suggest_float("y", 0, 1),
    "tiny": lambda t: t.suggest_float("x", 1e-9, 1e-9 * (2 + t.number % 2)) * 1e9,
}


@pytest.mark.filterwarnings("ignore:Inconsistent parameter values:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:The distribution is specified by:UserWarning")
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", SPACES)
def test_every_sampler_serves_a_space_whose_ranges_depend_on_the_trial(name: str, sampler: str) -> None:
    study = optuna.create_study(direction="maximize", sampler=samplers.make(sampler, 0, 4))
    for number in range(16):
        one = study.ask()
        value = SPACES[name](one)
        one.report(value, 1)
        study.tell(one, value) if number % 3 else study.tell(one, state=TrialState.PRUNED)


def test_a_loss_is_read_upside_down() -> None:
    _, _, values = observations([trial([0.5, 0.4, 0.6])], sign=-1.0)
    assert values.tolist() == [-0.5, -0.4]


def test_of_many_trials_the_best_and_those_that_run_are_kept_and_some_others() -> None:
    trials = [trial([0.01 * i]) for i in range(40)] + [trial([], TrialState.RUNNING)]
    kept = known_best(trials, 11, 1.0, np.random.default_rng(0))
    values = [one.intermediate_values.get(1) for one in kept]
    assert values[0] is None
    assert values[1:6] == pytest.approx([0.39, 0.38, 0.37, 0.36, 0.35])
    assert len(set(values)) == 11
    assert known_best(trials, 41, 1.0, np.random.default_rng(0)) == trials


def test_scores_are_not_moved_by_how_far_down_the_worst_is() -> None:
    np.testing.assert_allclose(scores(np.array([0.5, 0.6, -1e9])), scores(np.array([0.5, 0.6, 0.4])))


def level_of(params: dict[str, Any]) -> float:
    return float(0.9 - abs(params["x"] - 0.8) - 0.1 * abs(math.log10(params["learning_rate"]) + 2))


def search(sampler: optuna.samplers.BaseSampler, n: int, slow: float = 0.0) -> optuna.Study:
    """Runs trials of nine epochs on a planted landscape, each stopped after three that is below the median there.

    With `slow` a good configuration lags behind by so much in its first epochs.
    """
    study = optuna.create_study(direction="maximize", sampler=sampler)
    at_three: list[float] = []
    for _ in range(n):
        one = study.ask()
        x = one.suggest_float("x", 0, 1)
        one.suggest_float("learning_rate", 1e-4, 1, log=True)
        level = level_of(one.params)
        values = [level - (0.3 + slow * x) * (9 - epoch) / 9 for epoch in range(1, 10)]
        at_three.append(values[2])
        stopped = values[2] < np.median(at_three)
        for epoch, value in enumerate(values[: 3 if stopped else 9], start=1):
            one.report(value, epoch)
        study.tell(one, state=TrialState.PRUNED) if stopped else study.tell(one, values[-1])
    return study


def test_it_finds_a_better_point_than_chance() -> None:
    def best(sampler: optuna.samplers.BaseSampler) -> float:
        return max(level_of(one.params) for one in search(sampler, 25).trials)

    ours = [best(CurveSampler(seed, 5)) for seed in range(3)]
    chance = [best(optuna.samplers.RandomSampler(seed=seed)) for seed in range(3)]
    assert np.mean(ours) > np.mean(chance) + 0.03


def test_configurations_that_start_slowly_are_not_taken_for_bad_ones() -> None:
    study = search(CurveSampler(0, 5), 30, slow=0.6)
    assert np.mean([one.params["x"] for one in study.trials[-10:]]) > 0.6


def test_what_runs_is_not_proposed_again() -> None:
    study = search(CurveSampler(0, 5), 12)
    points = []
    for _ in range(4):
        one = study.ask()
        points.append(
            (one.suggest_float("x", 0, 1), math.log10(one.suggest_float("learning_rate", 1e-4, 1, log=True)) / 4)
        )
    apart = [math.dist(a, b) for i, a in enumerate(points) for b in points[:i]]
    assert min(apart) > 0.002


def test_the_default_space_with_its_branches_is_searched_to_the_same_points_each_time() -> None:
    def configs() -> list[str]:
        study = optuna.create_study(direction="maximize", sampler=CurveSampler(0, 4))
        space, hashes = load_space("resnet"), []
        for number in range(10):
            one = study.ask()
            config = space.sample(one, epochs=3)
            hashes.append(config.hash())
            for epoch in (1, 2, 3):
                one.report(0.8 + 0.01 * epoch - 0.1 * config.label_smoothing, epoch)
            study.tell(one, state=TrialState.FAIL) if number == 3 else study.tell(
                one, 0.83 - 0.1 * config.label_smoothing
            )
        return hashes

    assert configs() == configs()
    assert len(set(configs())) == 10
