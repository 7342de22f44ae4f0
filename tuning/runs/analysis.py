"""Numbers behind the figures: what a model gets right and how sure that is, its features, fair comparisons of trials.

Arrays and frames in, arrays and frames out. What must never live here: files, figures, torch, Ray and Optuna.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from tuning.base.config import IDLE_WITH
from tuning.base.registries import ACCURACY, Metric
from tuning.base.threads import one_thread
from tuning.runs import schema

PROBE_IMAGES, SILHOUETTE_IMAGES = 10_000, 2_000

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
    """
    from sklearn.decomposition import PCA

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
    """
    n_classes = len(class_names)
    cells = labels.astype(np.int64) * n_classes + predictions.astype(np.int64)
    counts = np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes).astype(np.int64)
    return pd.DataFrame(
        counts, index=pd.Index(class_names, name="truth"), columns=pd.Index(class_names, name="prediction")
    )


def most_confused(counts: pd.DataFrame, most: int) -> Integers:
    """Returns the places, in their order, of the classes that are most often confused; of at most so many, of all.

    Args:
        counts: As `confusion` returns them.
        most: Classes, at least 1.
    """
    cells = counts.to_numpy()
    mistakes = cells.sum(axis=0) + cells.sum(axis=1) - 2 * np.diag(cells)
    return np.sort(np.argsort(-mistakes, kind="stable")[:most])


def classification_report(labels: Integers, predictions: Integers, class_names: Sequence[str]) -> pd.DataFrame:
    """Returns precision, recall and f1 of each class, in [0, 1], with 95 % intervals; then their `macro average`.

    A precision or recall of a class that was never predicted or never occurs is 0. The intervals are Wilson's; that of
    f1 is carried over from f1 / (2 - f1) (F* of Hand, Christen and Kirielle 2021), which is a share, too: of the images
    whose truth or prediction is the class, those of which both are.

    Args:
        labels: int (N,), 0 to C - 1.
        predictions: int (N,), 0 to C - 1.
        class_names: The C names.

    Returns:
        class, precision, precision_low, precision_high, the same for recall and f1, support; the average has no
        intervals (NaN).
    """
    counts = confusion(labels, predictions, class_names).to_numpy()
    correct, support, predicted = np.diag(counts), counts.sum(axis=1), counts.sum(axis=0)
    scores = pd.DataFrame({"class": list(class_names)})
    either = support + predicted - correct
    for name, n in (("precision", predicted), ("recall", support), ("f1", either)):
        shares = np.array([correct / np.maximum(n, 1), *wilson_interval(correct, n)])
        if name == "f1":
            shares = 2 * shares / (1 + shares)
        scores[name], scores[f"{name}_low"], scores[f"{name}_high"] = shares
    means = scores[["precision", "recall", "f1"]].mean()
    average = pd.DataFrame([{"class": "macro average", **means, "support": int(support.sum())}])
    return pd.concat([scores.assign(support=support), average], ignore_index=True)


def wilson_interval(successes: Any, n: Any) -> tuple[Any, Any]:
    """Returns the 95 % interval of a share by the score method (Wilson 1927), within [0, 1]; of no trials, [0, 1].

    Args:
        successes: 0 to n; a number, or an array of them.
        n: The same, at least 0.
    """
    z = NormalDist().inv_cdf(0.975)
    centre = (successes + z**2 / 2) / (n + z**2)
    half = z * np.sqrt(successes * (n - successes) / np.maximum(n, 1) + z**2 / 4) / (n + z**2)
    return np.maximum(centre - half, 0.0), np.minimum(centre + half, 1.0)


def calibration(labels: Integers, probabilities: Floats, n_bins: int = 15) -> tuple[float, pd.DataFrame]:
    """Returns the expected calibration error (Guo et al. 2017) in [0, 1], and its bins.

    Args:
        labels: int (N,), N at least 1.
        probabilities: float (N, C); a row adds up to 1.
        n_bins: Bins of equal width over [0, 1], at least 1; a bin holds its upper end.

    Returns:
        The error: the mean over the images of |accuracy - confidence| of their bin. The bins: lower, upper, count,
        confidence and accuracy (means), accuracy_low and accuracy_high (95 %, Wilson); NaN in an empty bin.
    """
    if not 0 < len(labels) == len(probabilities):
        raise ValueError(f"probabilities must be a row a label, but got {len(probabilities)} for {len(labels)} labels.")
    edges = np.linspace(0.0, 1.0, n_bins + 1)
    judged = pd.DataFrame({"confidence": probabilities.max(axis=1).astype(float)})
    judged["accuracy"] = probabilities.argmax(axis=1) == labels
    by_bin = judged.groupby(np.digitize(judged["confidence"], edges[1:-1], right=True))
    bins = pd.DataFrame({"lower": edges[:-1], "upper": edges[1:], "count": by_bin.size()}, index=range(n_bins))
    bins = bins.fillna({"count": 0}).astype({"count": "int64"}).join(by_bin.mean())
    bins["accuracy_low"], bins["accuracy_high"] = wilson_interval(bins["accuracy"] * bins["count"], bins["count"])
    return float((bins["count"] * (bins["accuracy"] - bins["confidence"]).abs()).sum() / len(labels)), bins


def worst_mistakes(labels: Integers, probabilities: Floats, limit: int = 30) -> npt.NDArray[np.int64]:
    """Returns the places of the wrongly labelled images with the highest losses, the worst first; at most `limit`.

    Args:
        labels: int (N,), 0 to C - 1.
        probabilities: float (N, C); a row adds up to 1.
        limit: At least 0.
    """
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    order = np.argsort(probabilities[wrong, labels[wrong]], kind="stable")
    return wrong[order][:limit]


@one_thread()  # With a thread a core, beside other work, it took 30 s and not 1.
def separability(
    train_features: Floats, train_labels: Integers, features: Floats, labels: Integers, *, seed: int = 0
) -> pd.DataFrame:
    """Returns how well the classes separate on 2, on 10 and on all principal components of the features.

    Components and probe, a multinomial logistic regression, are fitted on train features; both scores are those of the
    other ones. About 1 s of one core for 64 features, however many images there are: at most 10,000 train images are
    fitted, and the silhouette is that of at most 2,000 images, both drawn at random.

    Args:
        train_features: float (M, D), finite.
        train_labels: int (M,) of two or more classes.
        features: float (N, D), finite.
        labels: int (N,), of two or more classes.
        seed: Of the draws.

    Returns:
        components, explained (share of the variance of the train features), silhouette (Rousseeuw 1987, in [-1, 1]),
        probe_accuracy in [0, 1], probe_accuracy_low and probe_accuracy_high (95 %, Wilson).

    Raises:
        ValueError: All train images, or all others, are of one class.
    """
    from sklearn.decomposition import PCA
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import silhouette_score

    for name, given in (("train_labels", train_labels), ("labels", labels)):
        if len(np.unique(given)) < 2:
            raise ValueError(f"{name} must be of two or more classes, but got {len(np.unique(given))}.")
    draw = np.random.default_rng(seed)
    fitted = draw.permutation(len(train_labels))[:PROBE_IMAGES]
    judged = draw.permutation(len(labels))[:SILHOUETTE_IMAGES]
    model = PCA(svd_solver="full").fit(train_features[fitted].astype(np.float64))
    scale = max(float(np.sqrt(model.explained_variance_[0])), 1e-12)  # so that one penalty suits all features
    train, others = (model.transform(part.astype(np.float64)) / scale for part in (train_features[fitted], features))
    rows = []
    for n in sorted({min(n, train.shape[1]) for n in (2, 10, train.shape[1])}):
        probe = LogisticRegression(max_iter=1000).fit(train[:, :n], train_labels[fitted])
        right = int((probe.predict(others[:, :n]) == labels).sum())
        low, high = wilson_interval(right, len(labels))
        rows.append(
            {
                "components": n,
                "explained": float(model.explained_variance_ratio_[:n].sum()),
                "silhouette": float(silhouette_score(others[judged, :n], labels[judged])),
                "probe_accuracy": right / len(labels),
                "probe_accuracy_low": low,
                "probe_accuracy_high": high,
            }
        )
    return pd.DataFrame(rows)


def active(trials: pd.DataFrame) -> pd.DataFrame:
    """Returns the trials with NaN in place of what varies but does nothing in them, as momentum with AdamW."""
    shown, differs = trials.copy(), varying(trials)
    for name, (other, choices) in IDLE_WITH.items():
        column, decider = f"config/{name}", f"config/{other}"
        if column in differs and decider in shown:
            shown[column] = shown[column].mask(shown[decider].isin(choices))
    return shown


def varying(trials: pd.DataFrame) -> list[str]:
    """Returns the columns config/<name> in which the trials differ."""
    return [name for name in trials.columns if name.startswith("config/") and trials[name].nunique(dropna=False) > 1]


def best_so_far(
    trials: pd.DataFrame, clock: Callable[["pd.Series[Any]"], "pd.Series[float]"], metric: Metric = ACCURACY
) -> pd.DataFrame:
    """Returns the finished trials in the order in which they ended, and the best value up to each.

    Args:
        trials: A run's trials; those that have a result and a value of the metric count.
        clock: Gives the seconds that the search had taken at some moments, as `results.Run.clock` does.
        metric: The run's.

    Returns:
        trial, state, ended_seconds (on the clock), the metric's column, best.
    """
    column = metric.column
    ended = trials["state"].isin(schema.HAVE_RESULTS) & trials[column].notna() & trials["ended"].notna()
    done = trials[ended].sort_values(["ended", "trial"])
    return pd.DataFrame(
        {
            "trial": done["trial"],
            "state": done["state"],
            "ended_seconds": clock(done["ended"]),
            column: done[column],
            "best": best_until(done[column], metric),
        }
    ).reset_index(drop=True)


def best_until(values: "pd.Series[float]", metric: Metric) -> "pd.Series[float]":
    """Returns the best of the values up to each."""
    return values.cummax() if metric.greater_is_better else values.cummin()


def equal_budget_values(trials: pd.DataFrame, epochs: pd.DataFrame, metric: Metric = ACCURACY) -> "pd.Series[float]":
    """Returns trial -> best merit of the metric within the first k epochs, for the complete and the pruned trials.

    k is the fewest epochs after which the scheduler stopped one of them, so that a trial which was stopped early is not
    held against one that was not. One that is complete after fewer has shown all that it comes to, and counts; one that
    the search's end cut off after fewer has not, and is left out, as are those without a finite value.
    """
    finished = trials[trials["state"].isin(schema.HAVE_RESULTS)]
    rows = epochs[epochs["trial"].isin(finished["trial"])].sort_values(["trial", "epoch"])
    by_trial = rows.groupby("trial")
    n_epochs = by_trial.size()
    whole = finished.loc[finished["state"] == "complete", "trial"]
    stopped = finished.loc[finished["state"] != "complete"]
    if "stopped_by" in stopped:  # "time budget", or "search" where it ended for another reason.
        stopped = stopped[stopped["stopped_by"].isna() | (stopped["stopped_by"] == "scheduler")]
    by_scheduler, complete = n_epochs[n_epochs.index.isin(stopped["trial"])], n_epochs.index.isin(whole)
    budget = by_scheduler.min() if len(by_scheduler) else n_epochs[complete].max() if complete.any() else n_epochs.min()
    counted = n_epochs.index[complete | (n_epochs >= budget)]
    within = rows[(by_trial.cumcount() < budget) & rows["trial"].isin(counted)]
    merits = within[metric.column].map(metric.merit)
    values: pd.Series[float] = merits.groupby(within["trial"]).max()
    return values[np.isfinite(values)].rename(metric.column)
