"""A Gaussian process over learning curves: what it learns of planted functions."""

import math

import numpy as np
import pytest

from tuning.sampling.gaussian_process import Floats, Points, Process, fit

LENGTH = 9


def curve(configs: Floats, epoch: int) -> Floats:
    """A curve that rises to a level which the first column decides; the second one decides nothing."""
    level = -np.square(configs[:, 0] - 0.7) * 4
    return np.asarray(level + 0.3 * math.log(epoch / LENGTH) + 0.2 * np.sin(60 * configs[:, 0]))


@pytest.fixture(scope="module")
def process() -> Process:
    """Thirty trials, of which the first ten ran to their end and the others to a third of it."""
    configs = np.random.default_rng(0).random((30, 2))
    rows = [(i, epoch) for i in range(30) for epoch in ((1, 3, 9) if i < 10 else (1, 3))]
    own, epochs = (np.array(column) for column in zip(*rows, strict=True))
    values = np.array([curve(configs[i : i + 1], epoch)[0] for i, epoch in rows])
    points = Points(configs[own], np.log(epochs / LENGTH), own)
    return fit(points, (values - values.mean()) / values.std(), np.zeros(2, bool), start=None, n_steps=100)


def test_a_column_that_decides_nothing_gets_a_greater_length(process: Process) -> None:
    assert process.theta[1] > process.theta[0] + 1


def test_the_fit_is_at_a_minimum(process: Process) -> None:
    again = fit(process.points, process.values, process.categorical, start=process.theta, n_steps=100)
    np.testing.assert_allclose(again.theta, process.theta, atol=0.1)


def test_a_trial_that_ended_is_known_and_one_that_was_stopped_is_not_quite(process: Process) -> None:
    configs = process.points.configs[np.unique(process.points.trials, return_index=True)[1]]
    mean, deviation = process.predict(configs, np.arange(30))
    ended = process.points.progress == 0
    np.testing.assert_allclose(mean[:10], process.values[ended], atol=0.15)
    assert deviation[:10].max() < deviation[10:].min()


def test_a_stopped_trial_knows_more_of_its_own_end_than_a_new_one_at_its_place(process: Process) -> None:
    place = process.points.configs[-1:]
    _, own = process.predict(place, np.array([29]))
    _, new = process.predict(place)
    assert own[0] < new[0]


def test_the_ends_of_stopped_trials_are_foretold(process: Process) -> None:
    first = np.unique(process.points.trials, return_index=True)[1]
    configs = process.points.configs[first][10:]
    mean, deviation = process.predict(configs, np.arange(10, 30))
    at_three = process.values[(process.points.progress == math.log(3 / LENGTH)) & (process.points.trials >= 10)]
    values = np.concatenate([curve(process.points.configs[i : i + 1], LENGTH) for i in first[10:]])
    scale = np.std([curve(process.points.configs[i : i + 1], LENGTH) for i in first])
    rise = mean - at_three
    assert rise.min() > 0  # All curves rise, and so are these thought to.
    assert np.corrcoef(mean, values)[0, 1] > 0.95
    assert deviation.max() < 2 * scale


def test_what_is_taken_for_given_leaves_less_to_be_learned_beside_it(process: Process) -> None:
    place = np.array([[0.05, 0.5]])
    _, before = process.predict(place)
    given = process.given(Points(place, np.zeros(1), np.array([99])), np.zeros(1))
    _, after = given.predict(place + 0.01)
    assert after[0] < before[0]


def test_two_choices_are_as_far_from_each_other_as_any_two() -> None:
    configs = np.array([[0.0], [1.0], [2.0], [0.0], [1.0], [2.0]])
    points = Points(configs, np.zeros(6), np.arange(6))
    process = fit(points, np.array([1.0, -1, 0, 1, -1, 0]), np.array([True]), start=None, n_steps=50)
    mean, _ = process.predict(np.array([[0.0], [1.0], [2.0]]))
    assert mean[0] > mean[2] > mean[1]
    assert abs(mean[2]) < 0.2
