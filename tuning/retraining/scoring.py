"""What outcomes on the test images come to: the figures of `metrics.json`.

Arrays in, numbers out; where the outcomes come from, `opening.py` knows alone.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tuning.base import averagings
from tuning.base.registries import Metric
from tuning.retraining.artefacts import Outcome
from tuning.retraining.verdict import spread

_MEANS = ("test_accuracy_mean", "test_accuracy_std")
OF_ONE = ("test_accuracy", "test_interval", "test_score", "test_score_interval", "test_loss", "ece")


def figures(test: Outcome, of_seeds: Sequence[Outcome], metric: Metric) -> dict[str, Any]:
    """Returns figures of the saved model, and the mean over the winner's seeds."""
    from tuning.runs import analysis

    n = len(test.labels)
    accuracies, values = [each.accuracy for each in of_seeds], [each.score(metric) for each in of_seeds]
    right = int((test.predictions == test.labels).sum())
    loss = -float(test.log_probabilities[range(n), test.labels].mean())
    return {
        "test_accuracy": right / n,
        "test_interval": list(analysis.wilson_interval(right, n)),
        "test_accuracy_mean": statistics.mean(accuracies),
        "test_accuracy_std": spread(accuracies),
        "test_score": test.score(metric),
        "test_score_interval": list(test.score_interval(metric)),
        "test_score_mean": statistics.mean(values),
        "test_score_std": spread(values),
        "test_loss": loss,
        "test_images": n,
        "ece": analysis.calibration(test.labels, test.probabilities)[0],
    }


def of_ensemble(test: Outcome, metric: Metric, times: float) -> dict[str, Any]:
    """Returns what an ensemble scores, and how many times the single model's time it takes for an image."""
    return of_one(figures(test, [test], metric)) | {"times_single": times}


def of_one(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those figures that are of one model."""
    return {name: found[name] for name in OF_ONE}


def of_single(found: Mapping[str, Any], averaging: str) -> dict[str, Any]:
    """Returns the figures of the winner alone, where something else is saved."""
    names = (*_MEANS, "test_score_mean", "test_score_std")
    return of_one(found) | {name: found[name] for name in names} | averagings.recorded(averaging)


def of_students(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what distilled networks score: the mean over their seeds or folds."""
    return {name: found[name] for name in (*_MEANS, "test_score_mean", "test_score_std")}


def of_shipped(found: Mapping[str, Any], test: Outcome, metric: Metric, averaging: str) -> dict[str, Any]:
    """Returns the figures where an ensemble is saved: its own, and those of the winner alone in a place of their own.

    The mean over the winner's seeds stays what it is; nothing else is left of the single model's beside the ensemble's.
    """
    own = of_one(figures(test, [test], metric))
    plain = {name: found[name] for name in found if name.startswith("test_accuracy_") and name not in _MEANS}
    single = of_single(found, averaging) | plain
    return {name: value for name, value in found.items() if name not in plain} | own | {"single": single}


def joined(metrics: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what was known before, with the figures on the test images; those of the others in their places."""
    places = {name: metrics[name] and metrics[name] | found[name] for name in ("ensemble", "distilled")}
    return {**metrics, **found, **places}


def mean(outcomes: Sequence[Outcome], weights: Sequence[float]) -> Outcome:
    """Returns the weighted mean of probabilities, with the first one's features."""
    from scipy.special import logsumexp

    stacked = np.stack([each.log_probabilities for each in outcomes])
    log_probabilities = logsumexp(stacked, axis=0, b=np.asarray(weights)[:, None, None])
    return Outcome(outcomes[0].labels, log_probabilities.astype(np.float32), outcomes[0].features)
