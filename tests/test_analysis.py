"""`tuning.analysis` against values known from elsewhere, and against the mistakes that would still give a number."""

import logging
import warnings

import numpy as np
import optuna
import pandas as pd
import pytest

from tuning import analysis


def _trials(states: list[str], accuracies: list[float], ended_minutes: list[float | None]) -> pd.DataFrame:
    start = pd.Timestamp("2026-11-23T10:00:00", tz="UTC")
    ended = [pd.NaT if minute is None else start + pd.Timedelta(minutes=minute) for minute in ended_minutes]
    frame = pd.DataFrame({"trial": range(len(states)), "state": states, "valid_accuracy": accuracies})
    return frame.assign(started=start, ended=pd.Series(ended, dtype="datetime64[us, UTC]"))


def _epochs(curves: dict[int, list[float]]) -> pd.DataFrame:
    rows = [(trial, epoch, value) for trial, curve in curves.items() for epoch, value in enumerate(curve, 1)]
    return pd.DataFrame(rows, columns=["trial", "epoch", "valid_accuracy"])


def test_pca_finds_a_known_plane() -> None:
    generator = np.random.default_rng(0)
    hidden = generator.normal(size=(500, 2)) * [3.0, 1.0]
    basis = np.linalg.qr(generator.normal(size=(6, 6)))[0][:2]
    result = analysis.pca(hidden @ basis + 7.0)
    assert result.points.shape == (500, 2)
    assert result.explained == pytest.approx(np.array([0.9, 0.1]), abs=0.02)
    assert result.explained.sum() == pytest.approx(1.0)
    for component in range(2):
        assert abs(np.corrcoef(result.points[:, component], hidden[:, component])[0, 1]) > 0.99


def test_pca_signs_do_not_depend_on_the_order_of_the_images() -> None:
    generator = np.random.default_rng(1)
    features = generator.normal(size=(200, 5)) * [5, 3, 1, 1, 1]
    order = generator.permutation(200)
    points = analysis.pca(features).points
    assert analysis.pca(features[order]).points == pytest.approx(points[order])
    shuffled = np.column_stack([column[generator.permutation(200)] for column in features.T])
    assert not np.allclose(analysis.pca(shuffled).points, points)


def test_pca_of_equal_features_explains_nothing() -> None:
    result = analysis.pca(np.ones((5, 3)))
    assert result.explained.tolist() == [0.0, 0.0]
    assert not result.points.any()


def test_pca_refuses_more_components_than_features() -> None:
    with pytest.raises(ValueError, match=r"n_components must be 1 to 2, but got 3\."):
        analysis.pca(np.zeros((10, 2)), 3)


def test_confusion_has_truth_in_rows() -> None:
    frame = analysis.confusion(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), ["a", "b", "c"])
    assert frame.loc["a", "b"] == 1
    assert frame.loc["b", "a"] == 0
    assert frame.to_numpy().tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert (frame.index.name, frame.columns.name) == ("truth", "prediction")


def test_confusion_does_not_overflow_small_integers() -> None:
    labels = np.array([19, 3], dtype=np.uint8)
    frame = analysis.confusion(labels, labels, [str(number) for number in range(20)])
    assert np.argwhere(frame.to_numpy()).tolist() == [[3, 3], [19, 19]]


def test_confusion_refuses_what_is_no_class() -> None:
    with pytest.raises(ValueError, match=r"predictions must be 0 to 1, but got 0 to 2\."):
        analysis.confusion(np.array([0, 1]), np.array([0, 2]), ["a", "b"])
    with pytest.raises(ValueError, match=r"labels must be 0 to 1, but got -1 to 0\."):
        analysis.confusion(np.array([0, -1]), np.array([0, 1]), ["a", "b"])
    with pytest.raises(ValueError, match=r"predictions must be of shape \(2,\), but got \(1,\)\."):
        analysis.confusion(np.array([0, 1]), np.array([0]), ["a", "b"])


def test_classification_report_by_hand() -> None:
    labels, predictions = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 0])
    report = analysis.classification_report(labels, predictions, ["a", "b", "c"]).set_index("class")
    assert report.loc["a"].tolist() == pytest.approx([2 / 4, 2 / 3, 4 / 7, 3])
    assert report.loc["b"].tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 2, 2])
    assert report.loc["c"].tolist() == [0, 0, 0, 1]
    assert report.loc["macro average"].tolist() == pytest.approx([1 / 3, 7 / 18, 5 / 14, 6])


def test_classification_report_agrees_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 4, 300)
    predictions = np.where(generator.random(300) < 0.6, labels, generator.integers(0, 4, 300))
    report = analysis.classification_report(labels, predictions, list("abcd"))
    expected = np.column_stack(metrics.precision_recall_fscore_support(labels, predictions))
    assert report[["precision", "recall", "f1", "support"]].to_numpy()[:4] == pytest.approx(expected)


def test_wilson_interval_known_values() -> None:
    # Newcombe (1998), table I: 81 of 263, and 0 of 20.
    assert analysis.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert analysis.wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    low, high = analysis.wilson_interval(81, 263, confidence=0.99)
    assert low < 0.2553 < 0.3662 < high


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 0), r"n must be at least 1, but got 0\."),
        ((3, 2), r"successes must be 0 to 2, but got 3\."),
        ((1, 2, 1.0), r"confidence must be in \(0, 1\), but got 1\.0\."),
    ],
)
def test_wilson_interval_refuses(arguments: tuple[int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        analysis.wilson_interval(*arguments)


def test_calibration_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    error, bins = analysis.calibration(np.array([0, 1, 1, 1]), probabilities, n_bins=10)
    assert error == pytest.approx(0.5 * abs(0.5 - 0.9) + 0.5 * abs(1.0 - 0.6))
    filled = bins[bins["count"] > 0]
    assert filled["upper"].tolist() == pytest.approx([0.6, 0.9])  # a bin holds its upper end
    assert filled["accuracy"].tolist() == [1.0, 0.5]
    assert len(bins) == 10
    assert bins["accuracy"].isna().sum() == 8


def test_calibration_is_zero_where_confidence_is_honest_and_not_after_a_permutation() -> None:
    generator = np.random.default_rng(3)
    confidence = generator.uniform(0.5, 1.0, 20_000)
    labels = (generator.random(20_000) > confidence).astype(int)
    probabilities = np.column_stack([confidence, 1 - confidence])
    assert analysis.calibration(labels, probabilities)[0] < 0.02
    assert analysis.calibration(generator.permutation(labels), probabilities)[0] > 0.08


def test_calibration_refuses_other_lengths() -> None:
    with pytest.raises(ValueError, match=r"probabilities must be a row a label, but got 3 for 2 labels\."):
        analysis.calibration(np.array([0, 1]), np.ones((3, 2)) / 2)
    with pytest.raises(ValueError, match="but got 0 for 0 labels"):
        analysis.calibration(np.array([], dtype=int), np.ones((0, 2)))


def test_best_so_far_orders_by_time_and_leaves_out_the_unfinished() -> None:
    states = ["complete", "pruned", "failed", "running", "complete", "complete"]
    trials = _trials(states, [0.9, 0.7, 0.99, 0.98, 0.8, np.nan], [3, 1, 2, None, 4, 5])
    frame = analysis.best_so_far(trials)
    assert frame.columns.tolist() == ["trial", "ended_seconds", "valid_accuracy", "best"]
    assert frame["trial"].tolist() == [1, 0, 4]
    assert frame["ended_seconds"].tolist() == [60, 180, 240]
    assert frame["best"].tolist() == [0.7, 0.9, 0.9]
    assert analysis.best_so_far(trials.iloc[:0]).empty


def test_equal_budget_values_compares_within_the_shortest_finished_trial() -> None:
    trials = _trials(["complete", "pruned", "failed", "running"], [0.9, 0.8, 0.3, 0.3], [1, 2, 3, None])
    epochs = _epochs({0: [0.5, 0.6, 0.9], 1: [0.8, 0.7], 2: [0.3], 3: [0.3]})
    values = analysis.equal_budget_values(trials, epochs.sample(frac=1, random_state=0))
    assert values.to_dict() == {0: 0.6, 1: 0.8}  # at equal budget the stopped trial was ahead
    assert analysis.equal_budget_values(trials, epochs.iloc[:0]).empty


def test_equal_budget_values_leaves_out_nan() -> None:
    trials = _trials(["complete", "complete"], [0.5, np.nan], [1, 2])
    assert analysis.equal_budget_values(trials, _epochs({0: [0.5], 1: [np.nan]})).to_dict() == {0: 0.5}


def _study(n_trials: int, *, prune_every: int = 0) -> tuple[optuna.Study, "pd.Series[float]"]:
    """Returns a study whose value depends on `matters` alone, and its values; every fifth trial lacks `momentum`."""
    study = optuna.create_study(storage=optuna.storages.InMemoryStorage(), direction="maximize")
    generator = np.random.default_rng(4)
    values = {}
    for number in range(n_trials):
        params = {"matters": generator.uniform(), "noise": generator.uniform(), "fixed": 1.0}
        ranges = {name: optuna.distributions.FloatDistribution(0.0, 1.0) for name in ("matters", "noise")}
        distributions: dict[str, optuna.distributions.BaseDistribution] = {
            **ranges, "fixed": optuna.distributions.FloatDistribution(1.0, 1.0),
        }  # fmt: skip
        if number % 5:
            params["momentum"] = generator.uniform()
            distributions["momentum"] = optuna.distributions.FloatDistribution(0.0, 1.0)
        values[number] = float(params["matters"])
        pruned = bool(prune_every) and number % prune_every == 0
        state = optuna.trial.TrialState.PRUNED if pruned else optuna.trial.TrialState.COMPLETE
        study.add_trial(
            optuna.trial.create_trial(
                state=state, params=params, distributions=distributions, value=None if pruned else values[number]
            )
        )
    return study, pd.Series(values)


def test_importances_find_what_matters_and_count_pruned_trials() -> None:
    study, values = _study(60, prune_every=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = analysis.importances(study, values)
    assert frame["parameter"].iloc[0] == "matters"
    assert set(frame["parameter"]) == {"matters", "noise", "momentum"}
    assert frame["importance"].sum() == pytest.approx(1.0)
    assert frame["importance"].is_monotonic_decreasing
    assert frame["importance"].iloc[0] > 0.6
    only_complete = analysis.importances(study, values[values.index % 2 == 1])
    assert not np.allclose(only_complete["importance"], frame["importance"])
    assert len(study.trials) == 60


def test_importances_follow_the_values_not_the_study() -> None:
    study, _ = _study(60)
    noise = pd.Series({trial.number: trial.params["noise"] for trial in study.trials})
    assert analysis.importances(study, noise)["parameter"].iloc[0] == "noise"


def test_importances_are_about_the_best_not_the_worst() -> None:
    study, _ = _study(120)
    params = pd.DataFrame([trial.params for trial in study.trials])
    values = (params["noise"] - 0.7).clip(lower=0) - (0.3 - params["matters"]).clip(lower=0)
    assert analysis.importances(study, values)["parameter"].iloc[0] == "noise"


def test_importances_log_nothing_and_leave_the_log_as_it_was() -> None:
    study, values = _study(12)
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("optuna")
    before = logger.level
    logger.addHandler(handler)
    optuna.logging.set_verbosity(optuna.logging.INFO)
    try:
        analysis.importances(study, values)
        assert records == []
        assert optuna.logging.get_verbosity() == optuna.logging.INFO
    finally:
        optuna.logging.set_verbosity(before)
        logger.removeHandler(handler)


def test_importances_do_not_warn_of_a_parameter_that_one_trial_has() -> None:
    study, values = _study(11)
    lone = optuna.trial.create_trial(
        params={"rare": 0.5}, distributions={"rare": optuna.distributions.FloatDistribution(0.0, 1.0)}, value=0.1
    )
    study.add_trial(lone)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = analysis.importances(study, pd.concat([values, pd.Series({11: 0.1})])).set_index("parameter")
    assert frame.loc["rare", "importance"] == 0


def test_importances_survive_a_tie_of_most_trials_with_the_worst() -> None:
    study, values = _study(20)
    frame = analysis.importances(study, values.where(values > values.quantile(0.8), 0.1))
    assert frame["parameter"].iloc[0] == "matters"
    assert frame["importance"].nunique() > 1


def test_importances_are_empty_where_nothing_can_be_said() -> None:
    study, values = _study(12)
    empty = [analysis.importances(study, values.head(7)), analysis.importances(study, values * 0 + 0.9)]
    empty.append(analysis.importances(study, values * np.nan))
    for frame in empty:
        assert frame.empty
        assert frame.columns.tolist() == ["parameter", "importance"]
    assert not analysis.importances(study, values.head(8)).empty
