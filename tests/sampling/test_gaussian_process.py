"""A Gaussian process over learning curves: what it learns of planted functions."""

import math

import numpy as np
import pytest

from tuning.sampling.gaussian_process import JITTER, Floats, Points, Process, distances, fit, matern, posterior

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


def two_tasks(sign: float, n_own: int, seed: int = 0) -> tuple[Points, Floats]:
    """Returns `n_own` trials of a task and 25 of an earlier one, whose function is the same, times `sign`."""
    configs = np.random.default_rng(seed).random((n_own + 25, 2))
    tasks = np.array([0] * n_own + [1] * 25)
    values = curve(configs, LENGTH) * np.where(tasks, sign, 1.0)
    for task in set(tasks):
        values[tasks == task] -= values[tasks == task].mean()
        values[tasks == task] /= values[tasks == task].std()
    return Points(configs, np.zeros(len(configs)), np.arange(len(configs)), tasks), values


def test_the_gradient_is_that_of_finite_differences_also_by_what_tasks_share() -> None:
    draw = np.random.default_rng(1)
    configs, tasks = draw.random((18, 3)), np.arange(18) % 3
    configs[:, 2] = configs[:, 2].round()
    points = Points(configs, np.log(draw.uniform(0.1, 1, 18)), np.arange(18) // 6 * 3 + tasks, tasks)
    loss, mean, _ = posterior(points, draw.normal(size=18), np.array([False, False, True]), 2)
    theta = mean + draw.normal(0, 0.3, len(mean))
    _, gradient = loss(theta)
    steps = 1e-5 * np.eye(len(theta))
    numeric = [(loss(theta + step)[0] - loss(theta - step)[0]) / 2e-5 for step in steps]
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-6)
    assert (np.abs(gradient[-2:]) > 1e-3).all()


def test_without_earlier_tasks_the_numbers_are_those_of_the_formula_without_them() -> None:
    draw = np.random.default_rng(2)
    points = Points(draw.random((12, 2)), np.log(draw.uniform(0.1, 1, 12)), np.arange(12) // 2)
    values, categorical = draw.normal(size=12), np.zeros(2, bool)
    loss, mean, _ = posterior(points, values, categorical)
    shared, along, scales = np.exp(-2 * mean[:2]), math.exp(-2 * mean[2]), np.exp(mean[3:])
    similar, _ = matern(np.tensordot(shared, distances(points.configs, points.configs, categorical), 1))
    alike = np.exp(-0.5 * along * (points.progress[:, None] - points.progress) ** 2)
    same = (points.trials[:, None] == points.trials).astype(np.float64)
    covariance = alike * (scales[0] + scales[1] * similar + scales[2] * same) + (scales[3] + JITTER) * np.eye(12)
    root = np.linalg.cholesky(covariance)
    weights = np.linalg.solve(covariance, values)
    assert loss(mean)[0] == pytest.approx(0.5 * values @ weights + np.log(np.diag(root)).sum(), rel=1e-9)
    one = fit(points, values, categorical, start=None, n_steps=5)
    in_tasks = Points(points.configs, points.progress, points.trials, np.zeros(12, np.int64))
    other = fit(in_tasks, values, categorical, start=None, n_steps=5)
    assert one.theta.tolist() == other.theta.tolist() and len(one.theta) == 7  # To the last bit.
    place = draw.random((5, 2))
    assert [x.tolist() for x in one.predict(place)] == [x.tolist() for x in other.predict(place)]


def test_a_task_that_says_the_same_is_believed_and_one_that_misleads_is_found_out() -> None:
    categorical = np.zeros(2, bool)
    shares = {}
    for sign in (1.0, -1.0):
        points, values = two_tasks(sign, n_own=8)
        process = fit(points, values, categorical, start=None, n_steps=50, n_earlier=1)
        shares[sign] = math.exp(process.theta[-1])
    assert shares[1.0] > 0.9
    assert shares[-1.0] < 0.3


def test_before_a_task_has_trials_of_its_own_the_earlier_one_says_where_it_is_good() -> None:
    points, values = two_tasks(1.0, n_own=0)
    process = fit(points, values, np.zeros(2, bool), start=None, n_steps=50, n_earlier=1)
    places = np.array([[0.7, 0.5], [0.05, 0.5]])
    mean, deviation = process.predict(places)
    assert mean[0] > mean[1] + 0.5
    known = process.points.configs[:1]
    _, own = process.predict(known)
    assert own[0] > 0.5 and deviation.min() > 0.5  # It is another task: what is known of it there is not known here.


def test_points_of_one_task_and_of_several_can_be_joined() -> None:
    own = Points(np.zeros((2, 1)), np.zeros(2), np.arange(2))
    theirs = Points(np.ones((3, 1)), np.zeros(3), np.arange(2, 5), np.ones(3, np.int64))
    assert (own + own).tasks is None
    assert (own + theirs).of_tasks.tolist() == [0, 0, 1, 1, 1]
    assert (own + theirs + own).of_tasks.tolist() == [0, 0, 1, 1, 1, 0, 0]
