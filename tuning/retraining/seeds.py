"""What fresh seeds say: which configuration is best, which are as good, by how much the search's values shrank.

Numbers and frames in, numbers and frames out; files, torch and Ray have no place here. `values` is everywhere a frame
of values on the valid split, accuracies or those of another metric: a row a configuration, a column a fresh seed, NaN
where that was not trained.
"""

import hashlib
import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, NamedTuple

from tuning.base.registries import ACCURACY, Metric

if TYPE_CHECKING:
    import pandas as pd

CONFIDENCE = 0.95
# A configuration is dropped where it has less than this chance of the best mean in the end.
NO_CHANCE = 0.01
# Or, if it may be chosen, where it would add less than this to the winner's mean on average: 0.1 points.
NO_GAIN = 0.001


class Estimate(NamedTuple):
    """A figure and its 95 % interval; NaN where there is nothing to estimate it from."""

    value: float
    low: float
    high: float


def fresh_seeds(name: str, n: int, used: Collection[int] = ()) -> tuple[int, ...]:
    """Returns `n` seeds in [0, 2**31) that derive from a name and their index, none of them in `used`."""
    seeds: list[int] = []
    index = 0
    while len(seeds) < n:
        index += 1
        seed = int.from_bytes(hashlib.sha256(f"{name}/final/{index}".encode()).digest()[:4], "big") >> 1
        if seed not in used and seed not in seeds:
            seeds.append(seed)
    return tuple(seeds)


def dropped(
    values: "pd.DataFrame",
    leader: str,
    noise: Mapping[str, float],
    *,
    shared: bool = False,
    candidates: Collection[str] = (),
) -> set[str]:
    """Returns the configurations that need no more seeds: they can hardly win, or would hardly add anything.

    With the mean difference d between the leader and another one over the k seeds that both have, and nothing else
    known of the true difference, the chance that the other has the better mean of all n seeds is
    Phi(-d / s * sqrt(n * k / (n - k))), where s is the standard deviation of such a difference on one seed. s is its
    error as the images are a sample. The luck of a whole training comes on top: after one seed it is taken for as large
    as that, and afterwards, where the differences so far vary by more, their variance is taken. Asked again later, this
    may find that one was dropped too soon. Below 1 % the chance counts as none.

    Two that are equally good would be trained to the end, and in the end chance would choose. So a candidate also gets
    no more seeds when what it may gain on the leader is less than 0.1 points on average: the expected improvement of
    the mean of all n seeds, whose standard deviation is s * sqrt((n - k) / (n * k)).

    Args:
        values: A row without a seed of the leader's is not judged, nor one with all. Greater must be better.
        leader: The row that they are compared with: the best that may be chosen.
        noise: The standard error of each row's difference to the leader on one seed; NaN where there is none.
        candidates: Those of the rows that may be chosen.
        shared: The columns are no seeds but folds, whose valid images are easier or harder for all rows. Only
            differences say then how much chance there is in a value.
    """
    import pandas as pd
    from scipy.stats import norm

    n_seeds = values.shape[1]
    others = values.drop(index=leader).sub(values.loc[leader], axis="columns")
    n_pairs = others.count(axis=1)
    judged = n_pairs.between(1, n_seeds - 1)
    others, n_pairs = others[judged], n_pairs[judged]
    measured = [_variance_within(others)[0], 0 if shared else 2 * _variance_within(values)[0]]
    least = max(1e-12, *(0 if math.isnan(each) else each for each in measured))
    unmeasured = (n_pairs == 1).astype("float64")
    variance = (pd.Series(noise, dtype="float64")[others.index] ** 2 * (1 + unmeasured)).clip(lower=least)
    deviation = (variance * (n_seeds - n_pairs) / (n_seeds * n_pairs)) ** 0.5
    z = others.mean(axis=1) / deviation
    gain = deviation * (norm.pdf(z) + z * norm.cdf(z))
    may_win = others.index.isin(list(candidates))
    return set(others.index[(norm.cdf(z) < NO_CHANCE) | (may_win & (gain < NO_GAIN))])


def choose(values: "pd.DataFrame") -> str:
    """Returns the row with the greatest mean, of those with every seed; the first of equal ones. There must be one."""
    return str(values.dropna().mean(axis=1).idxmax())


def summarise(values: "pd.DataFrame", winner: str, metric: Metric = ACCURACY) -> "pd.DataFrame":
    """Returns each configuration's mean, and how far it is behind the winner, with 95 % t intervals.

    Three seeds say little of a variance, so one is pooled over all configurations: of a mean's interval, that within
    the configurations; of a difference's, what is left when configurations and seeds are accounted for (as in a paired
    t test, over all pairs), of the rows that have every seed. Where one row alone has, that within it. Intervals are
    not widened for the choice of the best of several.

    Returns:
        valid_accuracy_mean, _std (NaN for a single seed), _low, _high, or with another metric's column in the place of
        valid_accuracy; difference (by how much the winner is better, mean over the seeds that both have; 0 for the
        winner), difference_low, difference_high. The index is that of `values`.
    """
    import pandas as pd

    count = values.count(axis=1)
    mean = values.mean(axis=1)
    half = _half_width(*_variance_within(values)) / count.where(count > 0) ** 0.5
    pairs = -metric.sign * values.sub(values.loc[winner], axis="columns")
    difference, n_pairs = pairs.mean(axis=1), pairs.count(axis=1)
    half_difference = _half_width(*_variance_of_residuals(values)) * (2 / n_pairs.where(n_pairs > 0)) ** 0.5
    half_difference[winner] = 0.0
    return pd.DataFrame(
        {
            f"{metric.column}_mean": mean,
            f"{metric.column}_std": values.std(axis=1),
            f"{metric.column}_low": (mean - half).clip(lower=0),
            f"{metric.column}_high": (mean + half).clip(upper=1 if metric.in_per_cent else None),
            "difference": difference,
            "difference_low": difference - half_difference,
            "difference_high": difference + half_difference,
        }
    )


def shrinkage(search: "pd.Series[float]", values: "pd.DataFrame") -> Estimate:
    """Returns by how much the search's values of these configurations exceed their means over fresh seeds.

    The interval is for the luck that these values had: the search's value minus the true mean, averaged over the
    configurations. Only the fresh means are uncertain, with the variance within configurations; runs count as
    independent. Rows without a fresh value are left out. One seed each gives no interval.
    """
    count = values.count(axis=1)
    trained = count > 0
    value = float((search - values.mean(axis=1))[trained].mean())
    half = _half_width(*_variance_within(values)) * math.sqrt((1 / count[trained]).sum()) / max(1, trained.sum())
    return Estimate(value, value - half, value + half)


def best_of(n: int) -> float:
    """Returns by how many standard errors the best of `n` independent, equally good results is too high on average."""
    from scipy.integrate import quad
    from scipy.stats import norm

    return float(quad(lambda x: x * n * norm.pdf(x) * norm.cdf(x) ** (n - 1), -9, 9)[0])


def _variance_within(values: "pd.DataFrame") -> tuple[float, int]:
    """Returns the variance of a single value about its row's mean, pooled over the rows, and its degrees of freedom."""
    import numpy as np

    squares = (values.sub(values.mean(axis=1), axis="index") ** 2).to_numpy()
    freedom = int((values.count(axis=1) - 1).clip(lower=0).sum())
    return (float(np.nansum(squares)) / freedom if freedom else math.nan), freedom


def _variance_of_residuals(values: "pd.DataFrame") -> tuple[float, int]:
    """Returns the variance about row and column effects, of the rows with every seed, and its degrees of freedom."""
    whole = values.dropna()
    freedom = (len(whole) - 1) * (values.shape[1] - 1)
    if freedom < 1:
        return _variance_within(values)
    residuals = whole.sub(whole.mean(axis=1), axis="index")
    residuals = residuals - residuals.mean()
    return float((residuals**2).to_numpy().sum()) / freedom, freedom


def _half_width(variance: float, freedom: int) -> float:
    """Returns half the width of a single value's 95 % t interval; NaN without a degree of freedom."""
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, freedom)) * math.sqrt(variance) if freedom else math.nan
