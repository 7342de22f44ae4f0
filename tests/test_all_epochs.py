"""The sampler that reads all epochs, of the benchmarks: a curve through few numbers says what all of its epochs say."""

import math

import all_epochs
import numpy as np
import optuna
import pytest
from all_epochs import AllEpochs, AllEpochsByLevels, Rows
from optuna.trial import TrialState

from tuning.sampling.gaussian_process import Floats, Points, fit

LENGTH = 20
CATEGORICAL = np.zeros(3, bool)


@pytest.fixture(scope="module")
def curves() -> tuple[Points, Floats]:
    """Thirty curves of up to 20 epochs, all of their epochs."""
    draw = np.random.default_rng(0)
    configs, ends = draw.random((30, 3)), [20] * 8 + [7] * 8 + [2] * 14
    own, epochs = (np.array(c) for c in zip(*((i, e) for i in range(30) for e in range(1, ends[i] + 1)), strict=True))
    values = np.sin(4 * configs[own, 0]) + 0.3 * np.log(epochs / LENGTH) * configs[own, 1]
    values += 0.05 * draw.normal(size=len(own))
    return Points(configs[own], np.log(epochs / LENGTH), own), (values - values.mean()) / values.std()


@pytest.mark.parametrize(("least", "n_rows", "tolerance"), [(1e-9, 140, 1e-5), (all_epochs.LEAST, 92, 0.02)])
def test_few_numbers_of_a_curve_stand_for_all_of_its_epochs(
    curves: tuple[Points, Floats], least: float, n_rows: int, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(all_epochs, "LEAST", least)
    points, values = curves
    rows = Rows.of(points, values)
    assert (len(values), len(rows.values)) == (244, n_rows)
    dense = fit(points, values, CATEGORICAL, start=None, n_steps=30)
    ours = all_epochs.fit(rows, CATEGORICAL, None, 30)
    np.testing.assert_allclose(ours.theta, dense.theta, atol=tolerance)
    places = np.random.default_rng(1).random((5, 3))
    np.testing.assert_allclose(ours.predict(places), dense.predict(places), atol=tolerance)
    first = np.unique(points.trials, return_index=True)[1]
    known = points.configs[first], np.arange(30)
    np.testing.assert_allclose(ours.predict(*known), dense.predict(*known), atol=tolerance)
    end = Points(points.configs[first[-1:]], np.zeros(1), np.array([29]))
    one, other = ours.given(end, np.array([0.5])), dense.given(end, np.array([0.5]))
    np.testing.assert_allclose(one.predict(*known), other.predict(*known), atol=tolerance)


@pytest.mark.parametrize("sampler", [AllEpochs, AllEpochsByLevels])
def test_a_search_that_reads_all_epochs_finds_the_best_point(sampler: type[AllEpochs]) -> None:
    study = optuna.create_study(direction="maximize", sampler=sampler(0, 5, 0.0))
    for number in range(16):
        one = study.ask()
        level = 1 - abs(one.suggest_float("x", 0, 1) - 0.8)
        for epoch in range(1, 10 if number % 3 else 4):
            one.report(level - math.exp(-epoch), epoch)
        study.tell(one, state=TrialState.PRUNED)
    assert min(abs(one.params["x"] - 0.8) for one in study.trials) < 0.02
