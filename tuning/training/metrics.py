"""The metrics of `METRICS`: what logits are worth on labelled images, and how surely that is known.

To add one, write a function of its name, add it to `_OF_IMAGES` or (with its slopes) to `_OF_COUNTS`, and write its
entry in `registries.METRICS`. Its values are never negative. Arrays in, numbers out; where the logits come from, others
know. `scores` are everywhere logits or log-probabilities, float (N, C), and `labels` int (N,), 0 to C - 1, N at least
1.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from tuning.base.registries import METRICS

Floats = npt.NDArray[np.floating[Any]]
Integers = npt.NDArray[np.integer[Any]]
RESAMPLES, RESAMPLES_AT_ONCE = 2_000, 100


def accuracy(scores: Floats, labels: Integers) -> float:
    """Returns the share of the images whose likeliest class is the right one."""
    return float(_right(scores, labels).mean())


def top5(scores: Floats, labels: Integers) -> float:
    """Returns the share of the images whose class is among the five likeliest, or C - 1 where these are fewer.

    Among all classes every image's would be.
    """
    return float(_among_five(scores, labels).mean())


def log_loss(scores: Floats, labels: Integers) -> float:
    """Returns the mean cross entropy, in nats."""
    return float(_losses(scores, labels).mean())


def balanced_accuracy(scores: Floats, labels: Integers) -> float:
    """Returns the mean recall of the classes that occur in the labels."""
    return float(_mean_recall(_counts(scores, labels)))


def macro_f1(scores: Floats, labels: Integers) -> float:
    """Returns the mean F1 of the classes that occur in the labels."""
    return float(_mean_f1(_counts(scores, labels)))


def score(metric: str, scores: Floats, labels: Integers) -> float:
    """Returns a metric's value; raises UserError for an unknown name."""
    return float(METRICS.load(metric)(scores, labels))


def standard_error(metric: str, scores: Floats, labels: Integers) -> float:
    """Returns the standard error of a metric's value, as the images are a sample of those that there could be.

    Where all images are right, or nearly, their spread says nothing of those that would be wrong. A metric in [0, 1]
    therefore has at least the error of a share with two right and two wrong images added (Agresti and Coull 1998).
    """
    n = len(labels)
    error = float(influence(metric, scores, labels).std()) / math.sqrt(n)
    return max(error, math.sqrt(2 * (n + 2)) / (n + 4) ** 1.5) if METRICS[metric].in_per_cent else error


def influence(metric: str, scores: Floats, labels: Integers) -> Floats:
    """Returns what each image adds to a metric's value, (N,): the standard deviation over sqrt(N) is its error.

    Of a mean over the images it is what the mean is of. Of a function of the confusion matrix it is that of its linear
    approximation (the delta method), up to a constant. The difference of two is that of a difference of values.
    """
    if metric in _OF_IMAGES:
        return _OF_IMAGES[metric](scores, labels)
    slopes = _OF_COUNTS[metric][1](_counts(scores, labels))
    return np.asarray(slopes[labels, scores.argmax(1)] * len(labels))


def bootstrapped(
    metric: str, scores: Floats, labels: Integers, *, n: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Returns the 95 % percentile interval of a metric's value over `n` resamples of the images (Efron 1979)."""
    draw, values = np.random.default_rng(seed), []
    sizes = [min(RESAMPLES_AT_ONCE, n - start) for start in range(0, n, RESAMPLES_AT_ONCE)]
    if metric in _OF_IMAGES:
        each = _OF_IMAGES[metric](scores, labels)
        values = [each[draw.integers(len(each), size=(size, len(each)))].mean(axis=1) for size in sizes]
    else:
        # To draw the images anew is to draw the cells of the confusion matrix anew.
        counts = _counts(scores, labels)
        shares = counts.ravel() / len(labels)
        for size in sizes:
            drawn = draw.multinomial(len(labels), shares, size=size).reshape(size, *counts.shape)
            values.append(_OF_COUNTS[metric][0](drawn))
    low, high = np.quantile(np.concatenate(values), [0.025, 0.975])
    return float(low), float(high)


def _right(scores: Floats, labels: Integers) -> Floats:
    return np.asarray(scores.argmax(1) == labels, dtype=np.float64)


def _among_five(scores: Floats, labels: Integers) -> Floats:
    own = scores[np.arange(len(labels)), labels]
    places = max(1, min(5, scores.shape[1] - 1))
    return np.asarray((scores > own[:, None]).sum(axis=1) < places, dtype=np.float64)


def _losses(scores: Floats, labels: Integers) -> Floats:
    from scipy.special import logsumexp

    exact = scores.astype(np.float64)
    return np.asarray(logsumexp(exact, axis=1) - exact[np.arange(len(labels)), labels])


def _counts(scores: Floats, labels: Integers) -> Integers:
    """Returns the confusion matrix (C, C): rows are the truth, columns the predictions."""
    n_classes = scores.shape[1]
    cells = labels * n_classes + scores.argmax(1)
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)


def _mean_recall(counts: Integers) -> Floats:
    """Returns the mean recall of confusion matrices (..., C, C), over the classes that occur in each."""
    support, right = counts.sum(axis=-1), np.diagonal(counts, axis1=-2, axis2=-1)
    return _mean_where(support > 0, right / np.maximum(support, 1))


def _mean_f1(counts: Integers) -> Floats:
    """Returns the mean F1 of confusion matrices (..., C, C), over the classes that occur in each."""
    support, right = counts.sum(axis=-1), np.diagonal(counts, axis1=-2, axis2=-1)
    either = support + counts.sum(axis=-2)
    return _mean_where(support > 0, 2 * right / np.maximum(either, 1))


def _mean_where(occurs: npt.NDArray[np.bool_], values: Floats) -> Floats:
    return np.asarray((values * occurs).sum(axis=-1) / occurs.sum(axis=-1))


def _slopes_of_recall(counts: Integers) -> Floats:
    """Returns the derivatives of `_mean_recall` by the counts, (C, C)."""
    support = counts.sum(axis=1)
    occurs, n = support > 0, np.maximum(support, 1)
    recall = np.diagonal(counts) / n
    slopes = (np.eye(len(counts)) - recall[:, None]) / n[:, None]
    return np.asarray(slopes * occurs[:, None] / occurs.sum())


def _slopes_of_f1(counts: Integers) -> Floats:
    """Returns the derivatives of `_mean_f1` by the counts, (C, C)."""
    support = counts.sum(axis=1)
    occurs, either = support > 0, np.maximum(support + counts.sum(axis=0), 1)
    part = occurs * 2 * np.diagonal(counts) / either**2
    slopes = np.diag(occurs * 2 / either) - part[:, None] - part[None, :]
    return np.asarray(slopes / occurs.sum())


# A metric is the mean of something over the images, or a function of how often each class is taken for each other one;
# of such a one its derivatives are needed, too.
_OF_IMAGES: Mapping[str, Callable[[Floats, Integers], Floats]] = {
    "accuracy": _right,
    "top5": _among_five,
    "log_loss": _losses,
}
_OF_COUNTS: Mapping[str, tuple[Callable[[Integers], Floats], Callable[[Integers], Floats]]] = {
    "balanced_accuracy": (_mean_recall, _slopes_of_recall),
    "macro_f1": (_mean_f1, _slopes_of_f1),
}
