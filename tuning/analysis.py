"""Numbers behind the figures: PCA, confusion, calibration, fair comparisons of trials, hyperparameter importances.

Arrays and frames in, arrays and frames out. What must never live here: files, figures, torch and Ray. Optuna is named
in `importances` alone and imported when it is called.
"""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

if TYPE_CHECKING:
    import optuna

FINISHED = ("complete", "pruned")
MIN_IMPORTANCE_TRIALS = 8

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True)
class PCA2:
    """A projection onto principal components.

    Attributes:
        points: float64 (N, k), the centred features on the components, largest variance first.
        explained: float64 (k,), the share of the features' variance that each component holds, in [0, 1].
    """

    points: npt.NDArray[np.float64]
    explained: npt.NDArray[np.float64]


def pca(features: Floats, n_components: int = 2) -> PCA2:
    """Returns the features on their first principal components; the same features give the same signs.

    Args:
        features: float (N, D), finite.
        n_components: 1 to min(N, D).

    Raises:
        ValueError: There are more components than images or features.
    """
    from sklearn.decomposition import PCA

    if not 1 <= n_components <= min(features.shape):
        raise ValueError(f"n_components must be 1 to {min(features.shape)}, but got {n_components}.")
    # A full decomposition: "auto" may choose a randomised one, whose figures depend on the number of images.
    model = PCA(n_components=n_components, svd_solver="full")
    with np.errstate(invalid="ignore"):  # features that are all equal have no variance to share: 0 / 0
        points = model.fit_transform(features.astype(np.float64))
    return PCA2(points=points, explained=np.nan_to_num(model.explained_variance_ratio_, nan=0.0))


def confusion(labels: Integers, predictions: Integers, class_names: Sequence[str]) -> pd.DataFrame:
    """Returns how many images of each class (rows: truth) were given each class (columns: prediction), int64.

    Args:
        labels: int (N,), 0 to C - 1.
        predictions: int (N,), 0 to C - 1.
        class_names: The C names.

    Raises:
        ValueError: The lengths differ, or a number is no class.
    """
    if labels.shape != predictions.shape:
        raise ValueError(f"predictions must be of shape {labels.shape}, but got {predictions.shape}.")
    n_classes = len(class_names)
    for name, values in (("labels", labels), ("predictions", predictions)):
        if values.size and not 0 <= values.min() <= values.max() < n_classes:
            raise ValueError(f"{name} must be 0 to {n_classes - 1}, but got {values.min()} to {values.max()}.")
    cells = labels.astype(np.int64) * n_classes + predictions.astype(np.int64)
    counts = np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes).astype(np.int64)
    return pd.DataFrame(
        counts, index=pd.Index(class_names, name="truth"), columns=pd.Index(class_names, name="prediction")
    )


def classification_report(labels: Integers, predictions: Integers, class_names: Sequence[str]) -> pd.DataFrame:
    """Returns class, precision, recall, f1 (all in [0, 1]) and support, a row a class, then `macro average`.

    A precision or recall of a class that was never predicted or never occurs is 0. Arguments as in `confusion`.
    """
    counts = confusion(labels, predictions, class_names).to_numpy()
    correct, support, predicted = np.diag(counts).astype(float), counts.sum(axis=1), counts.sum(axis=0)
    scores = pd.DataFrame(
        {
            "class": list(class_names),
            "precision": correct / np.maximum(predicted, 1),
            "recall": correct / np.maximum(support, 1),
            "f1": 2 * correct / np.maximum(support + predicted, 1),
            "support": support,
        }
    )
    means = scores[["precision", "recall", "f1"]].mean()
    average = pd.DataFrame([{"class": "macro average", **means, "support": int(support.sum())}])
    return pd.concat([scores, average], ignore_index=True)


def wilson_interval(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Returns the interval of a share by the score method (Wilson 1927), within [0, 1].

    Args:
        successes: 0 to n.
        n: At least 1.
        confidence: In (0, 1).

    Raises:
        ValueError: An argument is out of range.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1, but got {n}.")
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be 0 to {n}, but got {successes}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), but got {confidence}.")
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = share + z**2 / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    scale = 1 + z**2 / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def calibration(labels: Integers, probabilities: Floats, n_bins: int = 15) -> tuple[float, pd.DataFrame]:
    """Returns the expected calibration error (Guo et al. 2017) in [0, 1], and its bins.

    Args:
        labels: int (N,), N at least 1.
        probabilities: float (N, C); a row adds up to 1.
        n_bins: Bins of equal width over [0, 1], at least 1; a bin holds its upper end.

    Returns:
        The error: the mean over the images of |accuracy - confidence| of their bin. The bins: lower, upper, count,
        confidence and accuracy (means; NaN in an empty bin).

    Raises:
        ValueError: There are no labels, or not as many as rows of probabilities.
    """
    if not 0 < len(labels) == len(probabilities):
        raise ValueError(f"probabilities must be a row a label, but got {len(probabilities)} for {len(labels)} labels.")
    edges = np.linspace(0.0, 1.0, n_bins + 1)
    confidences = probabilities.max(axis=1).astype(np.float64)
    correct = (probabilities.argmax(axis=1) == labels).astype(np.float64)
    index = np.digitize(confidences, edges[1:-1], right=True)
    counts = np.bincount(index, minlength=n_bins)
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(index, weights=confidences, minlength=n_bins) / counts
        accuracy = np.bincount(index, weights=correct, minlength=n_bins) / counts
    bins = pd.DataFrame(
        {"lower": edges[:-1], "upper": edges[1:], "count": counts, "confidence": confidence, "accuracy": accuracy}
    )
    return float(np.nansum(counts * np.abs(accuracy - confidence)) / len(labels)), bins


def best_so_far(trials: pd.DataFrame) -> pd.DataFrame:
    """Returns the finished trials in the order in which they ended, and the best accuracy up to each.

    Args:
        trials: A run's trials; those that are complete or pruned and have a `valid_accuracy` count.

    Returns:
        trial, ended_seconds (since the first start of any trial of the run), valid_accuracy, best.
    """
    start = trials["started"].min()
    ended = trials["state"].isin(FINISHED) & trials["valid_accuracy"].notna() & trials["ended"].notna()
    done = trials[ended].sort_values(["ended", "trial"])
    return pd.DataFrame(
        {
            "trial": done["trial"],
            "ended_seconds": (done["ended"] - start).dt.total_seconds(),
            "valid_accuracy": done["valid_accuracy"],
            "best": done["valid_accuracy"].cummax(),
        }
    ).reset_index(drop=True)


def equal_budget_values(trials: pd.DataFrame, epochs: pd.DataFrame) -> "pd.Series[float]":
    """Returns trial -> best `valid_accuracy` within the first k epochs, for the complete and the pruned trials.

    k is the fewest epochs that any of them has, so that a trial which was stopped early is not held against one that
    was not. Trials without a finite value are left out.
    """
    finished = trials.loc[trials["state"].isin(FINISHED), "trial"]
    rows = epochs[epochs["trial"].isin(finished)].sort_values(["trial", "epoch"])
    by_trial = rows.groupby("trial")
    budget = by_trial.size().min() if len(rows) else 0
    values: pd.Series[float] = rows[by_trial.cumcount() < budget].groupby("trial")["valid_accuracy"].max()
    return values[np.isfinite(values)].rename("valid_accuracy")


def importances(study: "optuna.Study", values: "pd.Series[float]") -> pd.DataFrame:
    """Returns how much each hyperparameter matters to being among the best trials, by PED-ANOVA (Watanabe et al. 2023).

    "The best" are the top tenth, but at least five trials, at most half, and never one that ties with the worst. A
    conditional hyperparameter, which not all trials have, is assessed over the trials that have it and weighted by the
    share of them among the best (conditional PED-ANOVA, Optuna 5); ranges that a single trial has are left out.

    Args:
        study: Where the trials' hyperparameters and their ranges are read; it is not changed.
        values: trial number -> a value to be maximised, e.g. from `equal_budget_values`; NaN is left out.

    Returns:
        parameter, importance (adds up to 1), most important first; empty if there are fewer than 8 trials, or all
        values are equal, or nothing was searched.
    """
    import optuna

    empty = pd.DataFrame({"parameter": pd.Series(dtype="str"), "importance": pd.Series(dtype="float64")})
    value_of = {int(str(number)): float(value) for number, value in values.items() if math.isfinite(value)}
    trials = [
        optuna.trial.create_trial(
            state=optuna.trial.TrialState.COMPLETE,
            params=trial.params,
            distributions=trial.distributions,
            value=value_of[trial.number],
        )
        for trial in study.get_trials(deepcopy=False)
        if trial.number in value_of and trial.state.is_finished()
    ]
    searched = sorted({name for trial in trials for name, d in trial.distributions.items() if not d.single()})
    found = [trial.value for trial in trials if trial.value is not None]
    n_above_worst = sum(value > min(found) for value in found)
    if len(trials) < MIN_IMPORTANCE_TRIALS or n_above_worst == 0 or not searched:
        return empty
    n_top = min(max(5, math.ceil(len(trials) / 10)), len(trials) // 2, n_above_worst)
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(
        target_quantile=(n_top - 0.5) / len(trials),  # Optuna rounds up: the half keeps it from one trial too many
        region_quantile=1.0,
        evaluate_on_local=True,
    )
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)  # else each call prints that a study was created
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of ranges that a single trial has; the docstring says so
            copy = optuna.create_study(
                storage=optuna.storages.InMemoryStorage(),
                sampler=optuna.samplers.RandomSampler(seed=0),
                pruner=optuna.pruners.NopPruner(),
                study_name="importances",
                direction=optuna.study.StudyDirection.MAXIMIZE,
                load_if_exists=False,
            )
            copy.add_trials(trials)
            shares = optuna.importance.get_param_importances(
                copy, evaluator=evaluator, params=searched, target=None, normalize=True
            )
    finally:
        optuna.logging.set_verbosity(verbosity)
    frame = pd.DataFrame({"parameter": list(shares), "importance": list(shares.values())})
    return frame.sort_values(["importance", "parameter"], ascending=[False, True], ignore_index=True)
