"""`tuning.runs.analysis` against values known from elsewhere, and against mistakes that would still give a number."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tuning.runs import analysis


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


def test_classification_report_by_hand() -> None:
    labels, predictions = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 0, 0])
    report = analysis.classification_report(labels, predictions, ["a", "b", "c"]).set_index("class")
    columns = ["precision", "recall", "f1", "support"]
    assert report.loc["a", columns].tolist() == pytest.approx([2 / 4, 2 / 3, 4 / 7, 3])
    assert report.loc["b", columns].tolist() == pytest.approx([1 / 2, 1 / 2, 1 / 2, 2])
    assert report.loc["c", columns].tolist() == [0, 0, 0, 1]
    assert report.loc["macro average", columns].tolist() == pytest.approx([1 / 3, 7 / 18, 5 / 14, 6])
    assert report.loc["a", ["recall_low", "recall_high"]].tolist() == list(analysis.wilson_interval(2, 3))
    assert report.loc["a", ["precision_low", "precision_high"]].tolist() == list(analysis.wilson_interval(2, 4))
    assert report.loc["c", ["precision_low", "precision_high"]].tolist() == [0, 1]  # never predicted: nothing is known
    assert report.loc["macro average"].filter(regex="low|high").isna().all()


def test_classification_report_agrees_with_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    generator = np.random.default_rng(2)
    labels = generator.integers(0, 4, 300)
    predictions = np.where(generator.random(300) < 0.6, labels, generator.integers(0, 4, 300))
    report = analysis.classification_report(labels, predictions, list("abcd"))
    expected = np.column_stack(metrics.precision_recall_fscore_support(labels, predictions))
    assert report[["precision", "recall", "f1", "support"]].to_numpy()[:4] == pytest.approx(expected)


def test_intervals_of_precision_recall_and_f1_hold_the_truth_as_often_as_they_say() -> None:
    generator, n, repeats = np.random.default_rng(5), 300, 300
    joint = np.array([[0.30, 0.03, 0.02], [0.06, 0.24, 0.05], [0.01, 0.04, 0.25]])  # truth by prediction
    right = np.diag(joint)
    truth = {"precision": right / joint.sum(axis=0), "recall": right / joint.sum(axis=1)}
    truth["f1"] = 2 * right / (joint.sum(axis=0) + joint.sum(axis=1))
    held = {name: np.zeros(3) for name in truth}
    for _ in range(repeats):
        cells = generator.choice(9, size=n, p=joint.ravel())
        report = analysis.classification_report(cells // 3, cells % 3, list("abc")).iloc[:3]
        for name, true in truth.items():
            held[name] += ((report[f"{name}_low"] <= true) & (true <= report[f"{name}_high"])).to_numpy()
    for name, counts in held.items():  # 0.95, give or take three standard errors
        assert np.abs(counts / repeats - 0.95).max() < 0.038, name


def test_wilson_interval_known_values() -> None:
    # Newcombe (1998), table I: 81 of 263, and 0 of 20.
    assert analysis.wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert analysis.wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_calibration_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    error, bins = analysis.calibration(np.array([0, 1, 1, 1]), probabilities, n_bins=10)
    assert error == pytest.approx(0.5 * abs(0.5 - 0.9) + 0.5 * abs(1.0 - 0.6))
    filled = bins[bins["count"] > 0]
    assert filled["upper"].tolist() == pytest.approx([0.6, 0.9])  # a bin holds its upper end
    assert filled["accuracy"].tolist() == [1.0, 0.5]
    assert len(bins) == 10
    assert bins[["accuracy", "accuracy_low", "accuracy_high"]].isna().all(axis=1).sum() == 8
    for row, right in zip(filled.itertuples(), (2, 1), strict=True):
        assert (row.accuracy_low, row.accuracy_high) == analysis.wilson_interval(right, 2)


def test_calibration_is_zero_where_confidence_is_honest_and_not_after_a_permutation() -> None:
    generator = np.random.default_rng(3)
    confidence = generator.uniform(0.5, 1.0, 20_000)
    labels = (generator.random(20_000) > confidence).astype(int)
    probabilities = np.column_stack([confidence, 1 - confidence])
    assert analysis.calibration(labels, probabilities)[0] < 0.02
    assert analysis.calibration(generator.permutation(labels), probabilities)[0] > 0.08


def test_worst_mistakes_are_the_mistakes_of_the_highest_loss() -> None:
    truth_share = np.array([0.9, 0.05, 0.3, 0.001, 0.45, 0.2])
    probabilities = np.column_stack([truth_share, 1 - truth_share])
    labels = np.zeros(6, dtype=int)
    assert analysis.worst_mistakes(labels, probabilities).tolist() == [3, 1, 5, 2, 4]
    assert analysis.worst_mistakes(labels, probabilities, limit=2).tolist() == [3, 1]
    assert analysis.worst_mistakes(labels[:1], probabilities[:1]).size == 0
    # Of three classes, the one that is right may be likelier in the worse mistake of the two by confidence.
    three = np.array([[0.0, 0.5, 0.5], [0.05, 0.05, 0.9]])
    assert analysis.worst_mistakes(np.array([0, 0]), three).tolist() == [0, 1]


def _clusters(n: int, seed: int, *, distance: float) -> tuple["np.ndarray", "np.ndarray"]:
    """Returns features of four classes: the last two are at one place of a wide plane, and apart on a third axis."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 4, n)
    centres = np.zeros((4, 12))
    centres[:, :2] = np.array([[-1, 0], [1, 0], [0, 2], [0, 2]]) * 2 * distance
    centres[2:, 2] = -distance / 2, distance / 2
    return centres[labels] + generator.normal(size=(n, 12)), labels


def test_separability_finds_the_components_that_tell_the_classes_apart() -> None:
    frame = analysis.separability(*_clusters(2000, 0, distance=6), *_clusters(1000, 1, distance=6))
    assert frame["components"].tolist() == [2, 10, 12]
    plane, ten, whole = frame.to_dict("records")
    assert plane["probe_accuracy"] == pytest.approx(0.75, abs=0.04)  # the last two classes are one in the plane
    assert ten["probe_accuracy"] > 0.99 and whole["probe_accuracy"] > 0.99
    assert plane["silhouette"] < 0.6 < ten["silhouette"]
    assert whole["explained"] == pytest.approx(1.0)
    assert 0.8 < plane["explained"] < ten["explained"] < 1
    assert (whole["probe_accuracy_low"], whole["probe_accuracy_high"]) == analysis.wilson_interval(
        round(1000 * whole["probe_accuracy"]), 1000
    )


def test_separability_of_what_has_no_classes_is_that_of_chance() -> None:
    frame = analysis.separability(*_clusters(2000, 0, distance=0), *_clusters(1000, 1, distance=0))
    assert ((frame["probe_accuracy"] - 0.25).abs() < 0.05).all()
    assert (frame["silhouette"].abs() < 0.05).all()


def test_separability_is_that_of_the_features_it_is_given_on_components_of_train() -> None:
    """Labels learned by heart do not count, and the others' own axes are not looked for."""
    train, others = _clusters(2000, 0, distance=6), _clusters(1000, 1, distance=6)
    swapped = analysis.separability(*train, others[0], (others[1] + 1) % 4)
    assert (swapped["probe_accuracy"] < 0.3).all()
    turned = analysis.separability(*train, others[0][:, ::-1], others[1])
    assert (turned["probe_accuracy"] < 0.5).all()
    assert analysis.separability(*train, others[0] ** 3, others[1])["explained"].equals(turned["explained"])


def test_separability_does_not_depend_on_the_scale_of_the_features() -> None:
    train, others = _clusters(500, 0, distance=2), _clusters(500, 1, distance=2)
    frame = analysis.separability(*train, *others)
    scaled = analysis.separability(train[0] * 1e-4, train[1], others[0] * 1e-4, others[1])
    pd.testing.assert_frame_equal(frame, scaled)


def test_separability_refuses_a_single_class() -> None:
    features, labels = _clusters(50, 0, distance=1)
    with pytest.raises(ValueError, match=r"train_labels must be of two or more classes, but got 1\."):
        analysis.separability(features, labels * 0, features, labels)
    with pytest.raises(ValueError, match=r"labels must be of two or more classes, but got 1\."):
        analysis.separability(features, labels, features, labels * 0)


def test_active_blanks_what_does_nothing_in_a_trial_and_leaves_the_frame() -> None:
    trials = pd.DataFrame({"config/optimizer": ["sgd", "adamw"], "config/momentum": [0.8, 0.9]})
    trials["config/width"] = pd.array([16, 32], dtype="Int64")  # No architecture beside it: nobody knows.
    trials["config/schedule"], trials["config/plateau_factor"] = "cosine", 0.2  # The same in all: it stays.
    shown = analysis.active(trials)
    assert shown["config/momentum"].isna().tolist() == [False, True]
    assert shown["config/width"].tolist() == [16, 32] and shown["config/width"].dtype == "Int64"
    assert shown["config/plateau_factor"].tolist() == [0.2, 0.2]
    assert trials["config/momentum"].tolist() == [0.8, 0.9]
    assert analysis.varying(shown) == ["config/optimizer", "config/momentum", "config/width"]


def test_best_so_far_orders_by_time_and_leaves_out_the_unfinished() -> None:
    states = ["complete", "pruned", "failed", "running", "complete", "complete"]
    trials = _trials(states, [0.9, 0.7, 0.99, 0.98, 0.8, np.nan], [3, 1, 2, None, 4, 5])

    def clock(moments: "pd.Series[Any]") -> "pd.Series[float]":
        return (moments - trials["started"].min()).dt.total_seconds()

    frame = analysis.best_so_far(trials, clock)
    assert frame.columns.tolist() == ["trial", "state", "ended_seconds", "valid_accuracy", "best"]
    assert frame["trial"].tolist() == [1, 0, 4]
    assert frame["ended_seconds"].tolist() == [60, 180, 240]
    assert frame["best"].tolist() == [0.7, 0.9, 0.9]
    assert analysis.best_so_far(trials.iloc[:0], clock).empty


def test_equal_budget_values_compares_within_the_shortest_finished_trial() -> None:
    trials = _trials(["complete", "pruned", "failed", "running"], [0.9, 0.8, 0.3, 0.3], [1, 2, 3, None])
    epochs = _epochs({0: [0.5, 0.6, 0.9], 1: [0.8, 0.7], 2: [0.3], 3: [0.3]})
    values = analysis.equal_budget_values(trials, epochs.sample(frac=1, random_state=0))
    assert values.to_dict() == {0: 0.6, 1: 0.8}  # at equal budget the stopped trial was ahead
    assert analysis.equal_budget_values(trials, epochs.iloc[:0]).empty


@pytest.mark.parametrize("reason", ["time budget", "interrupt", "search"])
def test_a_trial_that_the_searchs_end_cut_off_does_not_set_the_budget(reason: str) -> None:
    trials = _trials(["complete", "pruned", "pruned", "pruned"], [0.9, 0.8, 0.5, 0.9], [1, 2, 3, 4])
    trials["stopped_by"] = ["length", "scheduler", reason, reason]
    epochs = _epochs({0: [0.5, 0.6, 0.9], 1: [0.8, 0.7], 2: [0.5], 3: [0.2, 0.3, 0.9]})
    values = analysis.equal_budget_values(trials, epochs)
    assert values.to_dict() == {0: 0.6, 1: 0.8, 3: 0.3}
    # Where the scheduler stopped none, all that is complete counts with what it came to.
    others = analysis.equal_budget_values(trials[trials["trial"] != 1], epochs)
    assert others.to_dict() == {0: 0.9, 3: 0.9}
    assert analysis.equal_budget_values(trials.iloc[2:], epochs).to_dict() == {2: 0.5, 3: 0.2}


def test_a_trial_that_is_complete_after_fewer_epochs_counts_with_what_it_came_to() -> None:
    """A space may set the epochs: the shortest trials must not cut all others down to their length."""
    trials = _trials(["complete", "complete", "pruned"], [0.9, 0.4, 0.5], [1, 2, 3])
    trials["stopped_by"] = ["length", "length", "scheduler"]
    epochs = _epochs({0: [0.5, 0.6, 0.9], 1: [0.4], 2: [0.4, 0.5]})
    assert analysis.equal_budget_values(trials, epochs).to_dict() == {0: 0.6, 1: 0.4, 2: 0.5}


def test_equal_budget_values_leaves_out_nan() -> None:
    trials = _trials(["complete", "complete"], [0.5, np.nan], [1, 2])
    assert analysis.equal_budget_values(trials, _epochs({0: [0.5], 1: [np.nan]})).to_dict() == {0: 0.5}
