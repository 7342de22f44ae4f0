"""At the edge: the ends of a space's ranges at which the best trials lie, so that better ones may lie beyond.

Frames in, a frame out, and its sentences. What must never live here: figures, Optuna, and how a space is parsed.

An end is named where the best trial and most of the best ones lie there, where values become better towards it over
all trials, more than chance explains, and where they have not stopped to do so before it. The best trial alone says
little: a sampler that learns draws the very ends, also where nothing matters. `tests/benchmarks/edges.py` measures how
often each is right.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from tuning.base import files
from tuning.base.config import Limits, limits
from tuning.base.errors import counted
from tuning.base.numerals import rounded
from tuning.base.registries import ACCURACY, Metric
from tuning.runs import schema, space_file, study_file
from tuning.runs.run_folder import Run, ran
from tuning.runs.space_file import written

COLUMNS = {
    "parameter": "str",
    "end": "str",
    "low": "float64",
    "high": "float64",
    "log": "bool",
    "whole": "bool",
    "trials": "int64",
    "best_value": "float64",
    "p_value": "float64",
    "hyperparameter": "str",
    "suggested": "float64",
    "line": "Int64",
    "text": "str",
    "changed": "str",
}
DRAWN = {
    "trial": "int64",
    "parameter": "str",
    "value": "float64",
    "low": "float64",
    "high": "float64",
    "log": "bool",
    "step": "float64",
    "whole": "bool",
}
MIN_TRIALS = 8
# Of all ends of a run together. A sampler that learns draws more where it had luck, which the test does not know: at
# 0.01 an end was named in 2 of 36 searches of noise alone, at 0.005 in one of 40.
LEVEL = 0.005
# Shares of a range: where the best trial lies at an end, and where half of the best quarter does.
OUTER, NEAR = 0.1, 0.2
FACTOR, SHARE = 4.0, 0.5  # By which a range is widened: on a logarithmic scale, and as a share of it on a linear one.
PERMUTATIONS, MOST_PERMUTED = 19_999, 100  # Of more trials the normal approximation is as good.
_DIVERGED = "loss must be finite"  # What stands in the error of a trial whose learning rate, e.g., was too high.


@dataclass(frozen=True)
class _End:
    """An end of a range.

    Attributes:
        closeness: Of each trial to it, by its number: in [0, 1] on the scale of the range.
        ranks: Of these trials; the best one has the highest.
        row: What is known of the end, without its p-value.
    """

    closeness: "pd.Series[float]"
    ranks: "pd.Series[float]"
    row: Mapping[str, Any]


def drawn(folder: Path) -> pd.DataFrame:
    """Returns the numbers that the trials of a run drew, and from where; columns as in `DRAWN`.

    Raises:
        UserError: The study is damaged.
    """
    return pd.DataFrame(study_file.numbers_drawn(folder), columns=list(DRAWN)).astype(DRAWN)


def find(numbers: pd.DataFrame, trials: pd.DataFrame, metric: Metric = ACCURACY) -> pd.DataFrame:
    """Returns the ends at which the best trials lie, the surest first; `line`, `text` and `changed` are empty.

    A parameter is judged by the trials that drew it, at least 8. Those count that ended by themselves, and those that
    the scheduler stopped, by their best values: what is stopped is not among the best. One whose loss diverged counts
    as the worst. The range is that of the latest trial, so that one that was widened meanwhile is judged as it is now.
    An end at which the hyperparameter has its limit, as label smoothing at 0, is none.

    The test is one by permutation of the trials' ranks, its statistic the sum over trials of rank times closeness to
    the end; `p_value` is multiplied by the number of ends that were judged (Bonferroni), and is at most `LEVEL`.

    Args:
        numbers: What the trials drew; columns as in `DRAWN`.
        trials: A run's.
        metric: The run's.

    Returns:
        Columns as in `COLUMNS`.
    """
    trials = ran(trials)
    ranks = _values(trials, metric).rank()
    judged = [each for _, of in numbers.groupby("parameter", sort=True) for each in _ends(of, trials, ranks)]
    left, named, rows = [each for each in judged if _is_at(each)], list[_End](), list[dict[str, Any]]()
    while left:
        values = [len(judged) * _p_value(each, named) for each in left]
        surest = int(np.argmin(values))
        if values[surest] > LEVEL:
            break
        named.append(left.pop(surest))
        rows.append({**named[-1].row, "p_value": values[surest]})
    return pd.DataFrame(rows, columns=list(COLUMNS)).astype(COLUMNS)


def with_lines(edges: pd.DataFrame, space: Path) -> pd.DataFrame:
    """Returns the edges with the lines of the space that end these ranges, where its source tells them.

    Args:
        edges: From `find`.
        space: The run's `space.py`, which may be missing.
    """
    try:
        source = space.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError):
        return edges
    lines = [
        space_file.line_of(source, row["parameter"], row["end"], row[row["end"]], row["suggested"], whole=row["whole"])
        for row in edges.to_dict("records")
    ]
    columns: dict[str, Any] = {
        "line": [None if line is None else line.number for line in lines],
        "text": [None if line is None else line.text for line in lines],
        "changed": [None if line is None else line.changed for line in lines],
    }
    return edges.assign(**columns).astype(COLUMNS)


def said(edges: pd.DataFrame) -> list[str]:
    """Returns a sentence an edge, and one on what its end may be where no line of the space is known."""
    sentences = []
    for row in edges.to_dict("records"):
        side, best = "lower" if row["end"] == "low" else "upper", row["best_value"]
        low, high, other = (written(row[name], whole=row["whole"]) for name in ("low", "high", "suggested"))
        unknown = f" Let it end at {other} in the space, for example." if pd.isna(row["line"]) else ""
        sentences.append(
            f"The best of the {counted(row['trials'], 'trial')} that drew {row['parameter']} lie at the {side} end of "
            f"its range, {low} to {high}: the best one has {rounded(best)}.{unknown}"
        )
    return sentences


def next_step(run: Run) -> str:
    """Returns how a run is resumed with a wider range, or what to do where its space uses other files."""
    settings, n = run.settings, len(ran(run.trials))
    if (run.path / "space.zip").exists():  # What is resumed lies in there.
        return f"To search beyond it, change the space {settings.get('space', run.name)} and begin a new search."
    resume = f"python -m tuning.search --resume {files.quoted(run.path)} --samples {n + (settings.get('samples') or n)}"
    return f"To search beyond it, change {run.path / 'space.py'}, then run `{resume}`."


def text(run: Run) -> str:
    """Returns what a command says of a run's edges, in a few lines; "" where there is none."""
    edges = run.edges
    lines = []
    for sentence, row in zip(said(edges), edges.to_dict("records"), strict=True):
        lines.append(f"At the edge: {sentence}")
        if not pd.isna(row["line"]):
            lines += [f"  space.py, line {row['line']}: {row['text']}", f"  a wider range: {row['changed']}"]
    return "\n".join([*lines, next_step(run)] if lines else [])


def _values(trials: pd.DataFrame, metric: Metric) -> "pd.Series[float]":
    """Returns trial -> merit, -inf where the loss diverged; trials that say nothing of their points are left out.

    One that the end of the search cut off is short for no fault of its own.
    """
    by_scheduler = trials["stopped_by"].isna() | (trials["stopped_by"] == "scheduler")
    ended = (trials["state"] == "complete") | (trials["state"].isin(schema.HAVE_RESULTS) & by_scheduler)
    diverged = (trials["state"] == "failed") & trials["error"].str.contains(_DIVERGED, na=False)
    merits = trials[metric.column].map(metric.merit).where(ended).mask(diverged, -math.inf)
    return merits.set_axis(trials["trial"]).dropna()


def _ends(numbers: pd.DataFrame, trials: pd.DataFrame, ranks: "pd.Series[float]") -> Iterator[_End]:
    """Yields the ends of one parameter's range that could lie elsewhere."""
    of = numbers.iloc[int(numbers["trial"].argmax())]
    numbers = numbers[numbers["trial"].isin(ranks.index)]
    low, high, step = of["low"], of["high"], 1.0 if of["whole"] and pd.isna(of["step"]) else of["step"]
    n_values = math.inf if pd.isna(step) else round((high - low) / step) + 1
    if len(numbers) < MIN_TRIALS or n_values < 3 or low >= high:  # Of two values, the better one always is an end.
        return
    ends, values = np.array([low, high]), numbers["value"].to_numpy()
    if of["log"]:
        ends, values = np.log(ends), np.log(values)
    places = pd.Series(((values - ends[0]) / (ends[1] - ends[0])).clip(0, 1), index=numbers["trial"])
    ranks = ranks.loc[numbers["trial"]].rank()
    name = _hyperparameter(numbers, trials)
    row = {column: of[column] for column in ("parameter", "low", "high", "log", "whole")}
    row |= {"trials": len(numbers), "best_value": numbers["value"].iloc[ranks.argmax()], "hyperparameter": name}
    for end, closeness in (("low", 1 - places), ("high", places)):
        other = wider(low, high, end, log=of["log"], step=step, limit=limits().get(name or "", Limits()))
        if other is not None:
            yield _End(closeness, ranks, row | {"end": end, "suggested": other})


def _hyperparameter(numbers: pd.DataFrame, trials: pd.DataFrame) -> str | None:
    """Returns which hyperparameter has the drawn values: one whose name the parameter's has in it, or the only one."""
    values, rows = numbers["value"].to_numpy(), trials.set_index("trial").loc[numbers["trial"]]
    same = [
        name for name in limits() if np.allclose(rows[f"config/{name}"].astype("float64"), values, rtol=1e-9, atol=0.0)
    ]
    named = sorted((name for name in same if name in numbers["parameter"].iloc[0]), key=len)
    return named[-1] if named else same[0] if len(same) == 1 else None


def _is_at(end: _End) -> bool:
    """Returns whether the best trial and half of the best quarter lie at an end, and no peak does before it.

    The peak is that of the parabola which fits the ranks of all trials best.
    """
    best = end.closeness.to_numpy()[np.argsort(-end.ranks.to_numpy(), kind="stable")]
    lie_there = best[0] >= 1 - OUTER and np.median(best[: max(3, len(best) // 4)]) >= 1 - NEAR
    _, slope, curvature = np.linalg.lstsq(np.vander(end.closeness, 3, increasing=True), end.ranks)[0]
    return bool(lie_there and slope + 2 * curvature > 0)


def _p_value(end: _End, named: Sequence[_End]) -> float:
    """Returns how often ranks that were dealt at random go with the closeness as much as these.

    What the ends that are named already explain is taken out of both: a sampler that learns moves its points to several
    ends at a time, and one of them may do nothing.
    """
    others = [each.closeness.reindex(end.closeness.index).fillna(each.closeness.mean()) for each in named]
    known = np.column_stack([np.ones(len(end.ranks)), *others])
    closeness, ranks = (given - known @ np.linalg.lstsq(known, given)[0] for given in (end.closeness, end.ranks))
    closeness, ranks = closeness.to_numpy(), ranks.to_numpy()
    found = float(closeness @ ranks)
    if len(ranks) > MOST_PERMUTED:
        spread = math.sqrt((closeness @ closeness) * (ranks @ ranks) / (len(ranks) - 1))
        return NormalDist(0.0, max(spread, 1e-12)).cdf(-found)
    dealt = np.random.default_rng(0).permuted(np.tile(closeness, (PERMUTATIONS, 1)), axis=1) @ ranks
    return float((1 + (dealt >= found - 1e-9).sum()) / (1 + PERMUTATIONS))


def wider(low: float, high: float, end: str, *, log: bool, step: float, limit: Limits) -> float | None:
    """Returns where a range may end instead; None where it cannot, for the hyperparameter has its limit there.

    Args:
        low: Of the range.
        high: Of the range.
        end: "low" or "high".
        log: A logarithmic scale: four times as far, else by half of the range.
        step: Of a grid; NaN is none.
        limit: Of the hyperparameter.
    """
    sign, here = (1, high) if end == "high" else (-1, low)
    last, is_open = (limit.high, limit.high_is_open) if end == "high" else (limit.low, limit.low_is_open)
    there = here * FACTOR**sign if log else here + sign * SHARE * (high - low)
    if there <= 0 < low:
        there = low / 2  # What is positive may have to be.
    if not limit.allow(there):
        there = (here + last) / 2 if is_open else last
    if math.isnan(step):
        candidates = [*(float(f"{there:.{digits}g}") for digits in range(2, 7)), there]
    else:
        steps = max(1, round(abs(there - here) / step))
        candidates = [here + sign * n * step for n in (steps, steps - 1)]
    return next((one for one in candidates if limit.allow(one) and sign * (one - here) > 0), None)
