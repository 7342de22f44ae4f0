"""The process of a large search: the same as the one that is computed anew, from all trials, at a lower cost."""

import math
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
import pytest
from optuna.trial import TrialState, create_trial

from tuning.sampling import curve_sampler, growing_process
from tuning.sampling.curve_sampler import CurveSampler
from tuning.sampling.gaussian_process import Floats, Points, Process, fit
from tuning.sampling.growing_process import GrowingProcess, extended

LENGTH = 9
CATEGORICAL = np.array([False, False, True])
THETA = np.log([0.6, 1.2, 0.9, 1.5, 0.5, 1.0, 0.1, 0.02])
DRAWN = np.random.default_rng(5).random((200, 3))
CONFIGS = np.where(CATEGORICAL, DRAWN.round(), DRAWN)
PLACES = CONFIGS[-20:]


def curves(ends: list[int]) -> tuple[Points, Floats, list[int]]:
    """Returns where curves are observed that went so far, what was observed, and the numbers of their trials."""
    rows = [(i, epoch) for i, end in enumerate(ends) for epoch in range(1, end + 1)]
    own, epochs = (np.array(column) for column in zip(*rows, strict=True))
    values = np.sin(5 * CONFIGS[own, 0]) + CONFIGS[own, 2] + 0.3 * np.log(epochs)
    return Points(CONFIGS[own], np.log(epochs / LENGTH), own), (values - values.mean()) / values.std(), own.tolist()


def anew(points: Points, values: Floats, theta: Floats = THETA) -> Process:
    """Returns the process as `gaussian_process.py` computes it."""
    nothing = Points(np.zeros((0, 3)), np.zeros(0), np.zeros(0, np.int64))
    return Process(theta, CATEGORICAL, nothing, np.zeros(0), np.zeros((0, 0)), np.zeros(0)).given(points, values)


def assert_same(one: Process, other: Process, n_trials: int) -> None:
    """Both predict the same, of new places and of trials."""
    np.testing.assert_allclose(one.predict(PLACES), other.predict(PLACES), rtol=1e-8, atol=1e-9)
    first = np.array([np.flatnonzero(one.points.trials == i)[0] for i in range(n_trials)])
    known = one.points.configs[first], np.arange(n_trials)
    np.testing.assert_allclose(one.predict(*known), other.predict(*known), rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(one.mean(*known), one.predict(*known)[0])


def test_it_predicts_what_the_process_does_that_is_computed_anew_while_curves_grow_and_trials_come() -> None:
    growing = GrowingProcess()
    for ends in ([9, 3, 2], [9, 5, 3, 1], [9, 9, 3, 2, 4], [9, 9, 3, 2, 5, 9, 1]):
        points, values, numbers = curves(ends)
        running = {len(ends) - 1} | ({1} if len(ends) < 5 else set())
        stays = np.array([number not in running for number in numbers])
        process = growing.of(THETA, CATEGORICAL, points, values, numbers=numbers, stays=stays)
        assert_same(process, anew(points, values), len(ends))


def test_what_is_there_to_stay_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    computed: list[tuple[int, int]] = []
    original = growing_process.covariance

    def noted(theta: Floats, categorical: npt.NDArray[np.bool_], points: Points, others: Points) -> Floats:
        computed.append((len(points.progress), len(others.progress)))
        return original(theta, categorical, points, others)

    monkeypatch.setattr(growing_process, "covariance", noted)
    growing = GrowingProcess()
    for ends in ([9, 9, 9, 2], [9, 9, 9, 3, 1]):
        computed.clear()
        points, values, numbers = curves(ends)
        growing.of(THETA, CATEGORICAL, points, values, numbers=numbers, stays=np.array(numbers) < len(ends) - 1)
    # The fourth trial's three epochs beside the kept 27, and then the running one's.
    assert sorted(computed) == [(1, 1), (3, 3), (27, 3), (30, 1)]


@pytest.mark.parametrize("what", ["configuration", "theta", "trial", "task"])
def test_it_begins_anew_where_something_kept_has_changed(what: str) -> None:
    growing, theta = GrowingProcess(), THETA
    points, values, numbers = curves([9, 9, 3])
    if what == "task":
        theta = np.append(theta, -0.5)
    growing.of(theta, CATEGORICAL, points, values, numbers=numbers, stays=np.ones(len(numbers), bool))
    if what == "configuration":  # As when a range has become wider.
        points = Points(points.configs * [0.5, 1, 1], points.progress, points.trials)
    elif what == "theta":
        theta = theta + 0.1
    elif what == "task":
        points = Points(points.configs, points.progress, points.trials, np.array(numbers) // 2)
    else:  # As when a trial has failed in the end.
        kept = np.array([i for i in range(len(numbers)) if not 9 <= i < 17])
        points, values = Points(points.configs[kept], points.progress[kept], points.trials[kept]), values[kept]
        numbers = [numbers[i] for i in kept]
    stays = np.ones(len(numbers), bool)
    process = growing.of(theta, CATEGORICAL, points, values, numbers=numbers, stays=stays)
    assert_same(process, anew(points, values, theta), 3)


def test_further_observations_count_as_in_the_process_that_is_computed_anew() -> None:
    points, values, _ = curves([9, 3, 3])
    process = anew(points, values)
    ends = Points(points.configs[[9, 12]], np.zeros(2), np.array([1, 2]))
    assert_same(extended(process, ends, np.array([0.5, -0.5])), process.given(ends, np.array([0.5, -0.5])), 3)


def study_of(n: int, epochs: int = LENGTH) -> optuna.Study:
    """Returns a study with trials of a planted landscape, of which two thirds were stopped after a third."""
    study, draw = optuna.create_study(direction="maximize"), np.random.default_rng(0)
    distributions: Any = {name: optuna.distributions.FloatDistribution(0, 1) for name in "xyz"}
    for number in range(n):
        params = dict(zip("xyz", draw.random(3).tolist(), strict=True))
        values = [1 - abs(params["x"] - 0.8) - 0.3 / epoch for epoch in range(1, epochs + 1)]
        values = values if number % 3 == 0 else values[: max(1, epochs // 3)]
        study.add_trial(
            create_trial(
                state=TrialState.PRUNED,
                params=params,
                distributions=distributions,
                intermediate_values=dict(enumerate(values, start=1)),
            )
        )
    return study


def ask(study: optuna.Study) -> optuna.Trial:
    one = study.ask()
    for name in "xyz":
        one.suggest_float(name, 0, 1)
    return one


def test_all_trials_of_a_large_search_count_and_hyperparameters_are_fitted_to_some_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fitted: list[int] = []

    def counted(points: Any, *given: Any, **named: Any) -> Any:
        fitted.append(len(np.unique(points.trials)))
        return fit(points, *given, **named)

    processes, n_staying = list[Process](), list[int]()
    original = GrowingProcess.of

    def noted(*given: Any, **named: Any) -> Process:
        processes.append(original(*given, **named))
        n_staying.append(int(named["stays"].sum()))
        return processes[-1]

    monkeypatch.setattr(curve_sampler, "MOST_TRIALS", 30)
    monkeypatch.setattr(curve_sampler, "fit", counted)
    monkeypatch.setattr(GrowingProcess, "of", noted)
    study = study_of(27)
    study.sampler = CurveSampler(0, 5, 0.0)
    ask(study).report(0.1, 1)  # One that runs until the end.
    found = []
    for _ in range(10):
        one = ask(study)
        found.append(one.params["x"])
        one.report(1 - abs(found[-1] - 0.8), 1)
        study.tell(one, 1 - abs(found[-1] - 0.8))
    assert fitted == [27, 28, 29, 30, 29, 29]  # The last two of 33 and 37 trials, a tenth more than 30 and 33.
    assert [len(np.unique(process.points.trials)) for process in processes] == list(range(31, 38))
    assert n_staying == [len(process.values) - 1 for process in processes]
    assert min(abs(x - 0.8) for x in found) < 0.02


def test_the_process_of_a_thousand_trials_needs_little_memory() -> None:
    own, draw = np.repeat(np.arange(1000), 3)[:2500], np.random.default_rng(0)
    points = Points(draw.random((1000, 3))[own], np.log(np.arange(2500) % 3 + 1) - math.log(3), own)
    values, stays = draw.normal(size=2500), np.arange(2500) < 2475
    places = np.array([[0.2, 0.4, 1.0]] * 768)
    growing = GrowingProcess()
    tracemalloc.start()
    try:
        for _ in range(2):
            process = growing.of(THETA, CATEGORICAL, points, values, numbers=own.tolist(), stays=stays)
            extended(process, Points(points.configs[:8], np.zeros(8), np.arange(1000, 1008)), np.zeros(8)).predict(
                places
            )
        peak = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    assert peak < 6 * 2500**2 * 8 / 2**20, f"{peak:.0f} MiB"


def test_costs_are_learned_from_some_trials_of_a_large_search(monkeypatch: pytest.MonkeyPatch) -> None:
    learned: list[tuple[int, int]] = []
    original = curve_sampler.costs.learned

    def noted(configs: Floats, seconds: Floats, *given: Any) -> Any:
        learned.append((len(configs), len(seconds)))
        return original(configs, seconds, *given)

    monkeypatch.setattr(curve_sampler, "MOST_TRIALS", 30)
    monkeypatch.setattr(curve_sampler.costs, "learned", noted)
    for n in (20, 50):
        study = study_of(n)
        study.sampler = sampler = CurveSampler(0, 5, 0.0)
        sampler.weighs_costs = True
        ask(study)
    assert learned == [(20, 20), (30, 30)]
