"""The sampler that reads learning curves: its numbers, what it observes, and what it proposes."""

import math
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from tuning.curves import INACTIVE, Activity, Column, CurveSampler, known_best, observations, scores
from tuning.spaces import load_space

DISTRIBUTIONS = [
    FloatDistribution(-1.0, 3.0),
    FloatDistribution(1e-4, 1.0, log=True),
    FloatDistribution(0.0, 1.0, step=0.25),
    IntDistribution(3, 40),
    IntDistribution(8, 512, log=True),
    IntDistribution(0, 10, step=5),
    CategoricalDistribution(["sgd", "adamw", None, True]),
]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
def test_every_number_stands_for_a_value_and_back(distribution: Any) -> None:
    column, generator = Column("x", distribution), np.random.default_rng(0)
    numbers = column.draw(200, generator)
    moved = column.move(numbers, np.full(200, 0.2), generator)
    for number in (*numbers, *moved):
        value = column.decode(number)
        assert distribution._contains(distribution.to_internal_repr(value))
        assert column.encode(value) == pytest.approx(number, abs=1e-9)


def trial(values: list[float], state: TrialState = TrialState.PRUNED, **params: float) -> optuna.trial.FrozenTrial:
    return create_trial(
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


def test_what_a_choice_switches_off_has_one_number() -> None:
    columns = [
        Column("optimizer", CategoricalDistribution(["sgd", "adamw"])),
        Column("momentum", FloatDistribution(0, 1)),
    ]
    known = np.array([[0.0, 0.3], [1.0, np.nan], [0.0, 0.9]])
    activity = Activity.of(columns, known)
    blanked = activity.blank(np.array([[0.0, 0.3], [1.0, 0.3]]))
    assert blanked.tolist() == [[0.0, 0.3], [1.0, INACTIVE]]


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
