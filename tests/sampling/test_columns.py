"""Hyperparameters as columns of numbers: of this space, and of earlier runs that had another one."""

import math
from typing import Any

import numpy as np
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from tuning.sampling.columns import (
    FOREIGN,
    INACTIVE,
    Activity,
    Column,
    Limits,
    all_of,
    merged,
    numbers_of,
    numbers_of_earlier,
    values_of,
)

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


def test_what_a_choice_switches_off_has_one_number() -> None:
    columns = [
        Column("optimizer", CategoricalDistribution(["sgd", "adamw"])),
        Column("momentum", FloatDistribution(0, 1)),
    ]
    known = np.array([[0.0, 0.3], [1.0, np.nan], [0.0, 0.9]])
    activity = Activity.of(columns, known)
    blanked = activity.blank(np.array([[0.0, 0.3], [1.0, 0.3]]))
    assert blanked.tolist() == [[0.0, 0.3], [1.0, INACTIVE]]


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (IntDistribution(1, 3), IntDistribution(1, 7), IntDistribution(1, 7)),
        (IntDistribution(0, 8, step=4), IntDistribution(6, 10, step=4), IntDistribution(0, 10, step=2)),
        (IntDistribution(1, 8, log=True), IntDistribution(4, 64, log=True), IntDistribution(1, 64, log=True)),
        (FloatDistribution(0.1, 0.2), FloatDistribution(0.05, 1.0), FloatDistribution(0.05, 1.0)),
        (FloatDistribution(0, 1, step=0.5), FloatDistribution(0, 2, step=0.5), FloatDistribution(0, 2, step=0.5)),
        (FloatDistribution(0, 1, step=0.5), FloatDistribution(0, 2), FloatDistribution(0, 2)),
        (CategoricalDistribution(["a"]), CategoricalDistribution(["a"]), CategoricalDistribution(["a"])),
        # What Optuna refuses within a study.
        (CategoricalDistribution(["a", "b"]), CategoricalDistribution(["a"]), None),
        (FloatDistribution(0.1, 1), FloatDistribution(0.1, 1, log=True), None),
        (IntDistribution(1, 4), CategoricalDistribution([1, 4]), None),
        (IntDistribution(1, 4), FloatDistribution(1, 4), None),
    ],
    ids=repr,
)
def test_ranges_that_differ_between_trials_are_searched_together(one: Any, other: Any, both: Any) -> None:
    assert merged(one, other) == both
    assert merged(other, one) == both
    assert merged(None, one) is None


NUMBER, LOG = FloatDistribution(0.0, 2.0), FloatDistribution(0.01, 1.0, log=True)
CHOICE = CategoricalDistribution(["sgd", True, 64, None])


@pytest.mark.parametrize(
    ("distribution", "value", "number"),
    [
        (NUMBER, 0.5, 0.25),
        (NUMBER, 1, 0.5),  # A number is a number, whatever draws it.
        (NUMBER, 5.0, 2.5),
        (NUMBER, -1.0, -0.5),
        (LOG, 0.1, 0.5),
        (LOG, 100.0, 2.0),
        (LOG, 0.0, math.nan),
        (LOG, -3.0, math.nan),
        (IntDistribution(0, 10), 20, 2.0),
        (NUMBER, "sgd", math.nan),
        (NUMBER, True, math.nan),
        (NUMBER, None, math.nan),
        (NUMBER, math.nan, math.nan),
        (CHOICE, "sgd", 0.0),
        (CHOICE, True, 1.0),
        (CHOICE, 64, 2.0),
        (CHOICE, None, 3.0),
        (CHOICE, "adamw", FOREIGN),
        (CHOICE, 1, FOREIGN),  # Equal to True, and another choice.
    ],
    ids=repr,
)
def test_a_value_of_another_space_has_a_number_where_it_can(distribution: Any, value: Any, number: float) -> None:
    assert Column("x", distribution).encode_foreign(value) == pytest.approx(number, nan_ok=True)


def made(config: dict[str, Any] | None = None, **params: Any) -> FrozenTrial:
    kinds = {name: CHOICE if name == "optimizer" else FloatDistribution(-9, 9) for name in params}
    attrs = {} if config is None else {"config": config}
    return create_trial(state=TrialState.PRUNED, params=params, distributions=kinds, user_attrs=attrs)


COLUMNS = [Column("momentum", NUMBER), Column("optimizer", CHOICE), Column("width", NUMBER)]


def test_what_an_earlier_run_did_not_search_has_the_value_of_its_configurations() -> None:
    config = {"optimizer": "sgd", "momentum": 0.5, "epochs": 6}
    trials = [made(config, momentum=1.0), made(config, width=2.0), made(width=1.0)]
    numbers = numbers_of_earlier(COLUMNS, trials, {"momentum", "width"})
    # Momentum was searched, and one trial did not have it: what its configuration says is no choice that was made.
    np.testing.assert_equal(numbers, [[0.5, 0.0, np.nan], [np.nan, 0.0, 1.0], [np.nan, np.nan, 0.5]])
    assert values_of(trials[1], {"momentum", "width"}) == {"optimizer": "sgd", "epochs": 6, "width": 2.0}
    assert numbers_of_earlier(COLUMNS, [], set()).shape == numbers_of(COLUMNS, []).shape == (0, 3)


def test_an_earlier_trial_without_the_choice_that_decides_keeps_what_it_has() -> None:
    known = np.array([[0.3, 0.0, 0.1], [np.nan, 1.0, 0.2]])
    activity = Activity.of(COLUMNS, known)
    earlier = np.array([[0.4, np.nan, 0.1], [0.4, FOREIGN, 0.1], [0.4, 0.0, np.nan]])
    assert activity.blank(earlier).tolist() == [[0.4, INACTIVE, 0.1], [INACTIVE, FOREIGN, 0.1], [0.4, 0.0, INACTIVE]]


def test_numbers_of_another_space_become_those_of_this_one() -> None:
    draw = np.random.default_rng(0)
    numbers = np.array([0.25, -1.0, 3.0, np.nan])
    adopted = Column("x", FloatDistribution(0, 2, step=0.5)).adopt(numbers, draw)
    assert adopted[:3].tolist() == [0.25, 0.0, 1.0] and 0 <= adopted[3] <= 1
    choices = Column("x", CHOICE).adopt(np.array([2.0, FOREIGN, np.nan]), draw)
    assert choices[0] == 2.0 and set(choices) <= {0.0, 1.0, 2.0, 3.0}


def test_all_hyperparameters_of_trials_are_those_that_can_vary_and_be_compared() -> None:
    one = create_trial(
        state=TrialState.PRUNED,
        params={"x": 0.5, "y": 1.0, "z": 1.0},
        distributions={"x": NUMBER, "y": FloatDistribution(1.0, 1.0), "z": NUMBER},
    )
    other = create_trial(
        state=TrialState.PRUNED, params={"x": 3.0, "z": 0.1}, distributions={"x": FloatDistribution(1, 4), "z": LOG}
    )
    assert all_of([one, other]) == {"x": FloatDistribution(0, 4)}


def drawn(optimizer: str, rate: float, low: float, high: float) -> FrozenTrial:
    ranges = {
        "optimizer": CategoricalDistribution(["sgd", "adamw", "muon"]),
        "rate": FloatDistribution(low, high),
    }
    return create_trial(
        state=TrialState.COMPLETE, value=0.0, params={"optimizer": optimizer, "rate": rate}, distributions=ranges
    )


def test_a_range_that_a_choice_decides_is_known_by_choice() -> None:
    trials = [drawn("sgd", 9.0, 5.0, 10.0), drawn("adamw", 1.0, 0.0, 1.0), drawn("sgd", 6.0, 5.0, 10.0)]
    columns = [Column(name, one) for name, one in all_of(trials).items()]
    limits = Limits.of(columns, trials)
    assert {i: (j, ranges.tolist()) for i, (j, ranges) in limits.ranges.items()} == {
        1: (0, [[0.5, 1.0], [0.0, 0.1], [0.0, 1.0]])
    }
    configs = np.array([[0.0, 0.2], [1.0, 0.2], [2.0, 0.2]])
    assert limits.clipped(configs, columns).tolist() == [[0.0, 0.5], [1.0, 0.1], [2.0, 0.2]]
    assert limits.spread(configs, columns).tolist() == [[0.0, 0.6], [1.0, pytest.approx(0.02)], [2.0, 0.2]]


def test_a_range_that_was_changed_is_that_of_the_last_trials() -> None:
    wide, narrow = [drawn("sgd", 9.0, 0.0, 10.0)] * 3, [drawn("sgd", 2.0, 0.0, 5.0)] * 2
    columns = [Column(name, one) for name, one in all_of(wide).items()]
    assert Limits.of(columns, wide).ranges == Limits.of(columns, [*wide, *narrow[:1]]).ranges == {}
    limits = Limits.of(columns, [*wide, *narrow])
    assert limits.clipped(np.array([[0.0, 0.9], [2.0, 0.4]]), columns).tolist() == [[0.0, 0.5], [2.0, 0.4]]


@pytest.mark.parametrize("distribution", DISTRIBUTIONS, ids=repr)
def test_the_nearest_value_is_one_that_may_be_drawn(distribution: Any) -> None:
    column = Column("x", distribution)
    if column.n_choices:
        assert column.next_to("adamw") == "adamw" and column.next_to("lamb") is None and column.next_to(1) is None
        return
    for value in (-1e6, 1e-9, 0.3, 7, 1e6):
        found = column.next_to(value)
        assert (found is None) == (value < 0 and distribution.log)
        assert found is None or distribution._contains(found)
    assert column.next_to(1e6) == distribution.high
