"""What fresh seeds say of a search, in sentences: `final` prints them, the model card and the page of a run have them.

The facts are those of `metrics.json`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tuning.base.averagings import AVERAGINGS, Averaging, named_in
from tuning.base.errors import counted
from tuning.base.registries import ACCURACY, METRICS, Metric

COMPARED = {
    "random": "the best of the points drawn at random",
    "default": "the default configuration",
    "unchanged": "the search's best configuration without more regularisation",
}


@dataclass(frozen=True)
class Headline:
    """The figures of `metrics.json` in the metric that decided; None is what there is not.

    Attributes:
        metric: That of the run, or of `final --config`.
        search: In the search.
        valid: Of the saved model on the valid split.
        valid_mean: Over the fresh seeds; so for `valid_std`, and on the test split.
        test: Of the saved model on the test split.
        test_interval: Its 95 % interval.
    """

    metric: Metric
    search: float | None
    valid: float | None
    valid_mean: float | None
    valid_std: float | None
    test: float | None
    test_interval: Sequence[float] | None
    test_mean: float | None
    test_std: float | None


def headline(metrics: Mapping[str, Any]) -> Headline:
    """Returns the figures that a person sees first; those of version 0.2.0, which knew no metric, are accuracies."""
    metric = metric_of(metrics)
    valid = metric.column
    test = valid.replace("valid", "test")
    interval = "test_interval" if metric is ACCURACY else f"{test}_interval"
    names = (f"search_{valid}", valid, f"{valid}_mean", f"{valid}_std", test, interval, f"{test}_mean", f"{test}_std")
    return Headline(metric, *(metrics.get(name) for name in names))


def metric_of(metrics: Mapping[str, Any]) -> Metric:
    """Returns the metric that decided, as `metrics.json` names it."""
    return METRICS.find(metrics.get("metric", METRICS.default), "The metric in metrics.json")


def averaging_of(metrics: Mapping[str, Any]) -> Averaging:
    """Returns the average over views with which the saved model was tested, as `metrics.json` names it."""
    return AVERAGINGS[named_in(metrics, "metrics.json")]


def repeats(metrics: Mapping[str, Any]) -> str:
    """Returns on how many folds, or else fresh seeds, the winner was trained, e.g. "5 folds"."""
    return counted(len(metrics["seeds"]), "fold" if metrics.get("folds") else "fresh seed")


def verdicts(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns a word and a sentence for each thing that the winner was compared with: was the search worth it?"""
    metric = metric_of(metrics)
    found: list[tuple[str, str]] = []
    for name, other in COMPARED.items():
        value = metrics.get(f"{name}_difference")
        if value is None:
            continue
        low, high = metrics.get(f"{name}_difference_interval") or (math.nan, math.nan)
        if value == low == high == 0:  # No two configurations are as equal as that.
            found.append(("No", f"The winner is {other} itself."))
            continue
        side = "better" if value >= 0 else "worse"
        interval = "" if math.isnan(low) else f" (95% interval {metric.gap(low)} to {metric.gap(high)})"
        chance = "" if low > 0 or high < 0 else ", which may be chance"
        word = "Yes" if low > 0 else "No" if high < 0 else "Not shown"
        points = f"{metric.gap(abs(value), '')}{metric.unit} {side} than {other}"
        of = "" if metric is ACCURACY else f" in {metric.title}"
        found.append((word, f"On the valid split, the winner is {points}{of}{interval}{chance}."))
    return found


def luck(lengthening: float | None, metric: Metric = ACCURACY) -> str:
    """Returns why the search's values are better than those of fresh seeds.

    Args:
        lengthening: How many times as long as in the search the models were trained; None without a search.
        metric: That of the values.
    """
    if lengthening is None or math.isclose(lengthening, 1):
        side = "high" if metric.greater_is_better else "low"
        return f"Choosing the best of noisy values makes them too {side}: this is the luck that they had."
    changed = "less what the longer training gained" if lengthening > 1 else "and what the shorter training lost"
    return (
        f"The models were trained {lengthening:.3g} times as long as in the search, so this is the luck that its best "
        f"values had {changed}; --epochs with the search's length shows the luck alone."
    )
