"""What simulated searches say of their methods: incumbents, a table, ranks and tests. Frames in, frames out."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats
from tables import WORST

GROUP = ["task", "method", "slots", "seed"]
READ_AT = (20, 60, 100)
# Slots -> the times, in full trainings of a typical configuration, at which regrets at equal cost are read.
READ_AT_COST = {2: (4, 7), 8: (1, 2)}
TRAINING_SECONDS = 300.0  # What a full training is taken for beside the proposals' own time, if nothing else is said.
BASELINE, STOCK = "random + asha", "stock"
LEAST_SEEDS = 5  # of fewer an interval says nothing
Array = npt.NDArray[np.float64]
GRID: Array = np.geomspace(0.1, 100, 140)  # costs, in full trainings, at which curves are drawn


def incumbents(trials: pd.DataFrame) -> pd.DataFrame:
    """Returns what each search of 1, 2, ... samples would have chosen, a row each.

    A search of n samples is the first n trials of a longer one, all of them ended: its sampler has proposed the same.
    What it chooses is what the project's does, the complete or pruned trial with the best observed value.

    Args:
        trials: A row a trial: task, method, slots, seed, and the fields of `simulation.Ended`. Rows of state
            shown do not count here.

    Returns:
        task, method, slots, seed, samples, cost (in full trainings), value and regret of the incumbent's full training.
    """
    trials = trials[trials["state"] != "shown"].sort_values([*GROUP, "trial"], kind="stable", ignore_index=True)
    starts = (trials["trial"] == 0).to_numpy()
    frame = trials[GROUP].assign(samples=trials["trial"] + 1, cost=_running(np.maximum, trials["ended"], starts))
    chosen = _best_so_far(trials, starts)
    return frame.assign(value=_at(trials["value"], chosen, 0.0), regret=_at(trials["regret"], chosen, WORST))


def with_proposals(trials: pd.DataFrame, training_seconds: float = TRAINING_SECONDS) -> pd.DataFrame:
    """Returns the trials with the proposals' own time in the times at which they ended.

    A proposal holds up its slot alone, so what all of them took is shared by the slots.

    Args:
        trials: As for `incumbents`, with `proposing`: the seconds that all proposals took until a trial's own was made.
        training_seconds: What a full training of a typical configuration takes.
    """
    return trials.assign(ended=trials["ended"] + trials["proposing"] / trials["slots"] / training_seconds)


def regret_by_cost(trials: pd.DataFrame, grid: Array = GRID) -> pd.DataFrame:
    """Returns the incumbent's regret at each cost of a grid, a column each, a row a search; the worst at first.

    A trial counts from when it was the best so far, though it trained on or had paused: a search that ended there would
    choose it.
    """
    trials = trials.sort_values([*GROUP, "ended", "trial"], kind="stable", ignore_index=True)
    starts = (~trials.duplicated(GROUP)).to_numpy()
    regrets = _at(trials["regret"], _best_so_far(trials, starts), WORST)
    begins = np.flatnonzero(starts)
    rows = []
    for begin, end in zip(begins, [*begins[1:], len(trials)], strict=True):
        known = np.searchsorted(trials["ended"].to_numpy()[begin:end], grid, side="right")
        rows.append(np.concatenate([[WORST], regrets[begin:end]])[known])
    found = pd.DataFrame(rows, columns=grid)
    return pd.concat([trials.loc[starts, GROUP].reset_index(drop=True), found], axis=1)


def _best_so_far(trials: pd.DataFrame, starts: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Returns the row of the incumbent after each row, -1 for none; complete before pruned, then the lower number.

    A later row of a trial replaces its earlier ones: one that fails later no longer counts.
    """
    usable = (trials["state"] != "failed").to_numpy()
    numbers = trials["trial"].tolist()
    keys = list(zip(trials["observed"], trials["state"] == "complete", [-n for n in numbers], strict=True))
    chosen, best = np.empty(len(trials), np.int64), -1
    latest: dict[int, int] = {}
    for i, number in enumerate(numbers):
        if starts[i]:
            latest, best = {}, -1
        replaced = latest.pop(number, None)
        if usable[i]:
            latest[number] = i
        if replaced is not None and replaced == best:
            best = max(latest.values(), key=keys.__getitem__, default=-1)
        elif usable[i] and (best < 0 or keys[i] > keys[best]):
            best = i
        chosen[i] = best
    return chosen


def _at(column: "pd.Series[float]", rows: npt.NDArray[np.int64], default: float) -> Array:
    return np.where(rows < 0, default, column.to_numpy()[rows])


def _running(function: np.ufunc, column: "pd.Series[float]", starts: npt.NDArray[np.bool_]) -> Array:
    parts = np.split(column.to_numpy(), np.flatnonzero(starts)[1:])
    return np.concatenate([function.accumulate(part) for part in parts])


def per_task(frame: pd.DataFrame, samples: int, statistic: str = "mean") -> pd.DataFrame:
    """Returns the mean (or median) regret over seeds after so many samples: a row a task, a column a method.

    Tasks that not every method has are left out.
    """
    at = frame[frame["samples"] == samples]
    return at.pivot_table(index="task", columns="method", values="regret", aggfunc=statistic, sort=False).dropna()


def average_ranks(regrets: pd.DataFrame) -> "pd.Series[float]":
    """Returns each method's rank, 1 the best, averaged over tasks; equal ones share theirs."""
    return regrets.round(12).rank(axis=1).mean()


def critical_difference(n_methods: int, n_tasks: int, alpha: float = 0.05) -> float:
    """Returns by how much average ranks must differ to be told apart (Nemenyi; Demsar 2006, JMLR 7)."""
    q = stats.studentized_range.ppf(1 - alpha, n_methods, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(n_methods * (n_methods + 1) / (6 * n_tasks)))


def against(frame: pd.DataFrame, method: str, baseline: str, samples: int) -> pd.DataFrame:
    """Returns how much larger a method's regret is than the baseline's: mean and 95 % interval, a row a task.

    The interval is that of `mean_and_interval` over seeds, which are paired.
    """
    at = frame[frame["samples"] == samples]
    at = at.pivot_table(index=["task", "seed"], columns="method", values="regret")
    differences = (at[method] - at[baseline]).dropna()
    rows = {task: mean_and_interval(row.to_numpy()) for task, row in differences.groupby("task")}
    return pd.DataFrame(rows, index=["mean", "low", "high"]).T


def mean_and_interval(values: Array) -> tuple[float, float, float]:
    """Returns the mean and the ends of its 95 % interval (Student's t); NaN for both, of fewer than `LEAST_SEEDS`.

    A bootstrap of percentiles over 5 to 10 values covered the true mean in 84 to 90 % of cases, not in 95 %.
    """
    mean = float(values.mean())
    if len(values) < LEAST_SEEDS:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def with_interval(values: Array, digits: str = "+.3f") -> str:
    """Returns the same as text; without an interval where there is none."""
    mean, low, high = mean_and_interval(values)
    return f"{mean:{digits}}" + ("" if np.isnan(low) else f" ({low:{digits}} to {high:{digits}})")


def samples_to_reach(frame: pd.DataFrame, method: str, regret: float) -> float:
    """Returns after how many samples a method's regret (median over seeds, mean over tasks) is no larger; else NaN."""
    means = mean_of_medians(frame)[method]
    reached = means.index[means <= regret]
    return float(reached[0]) if len(reached) else float("nan")


def mean_of_medians(frame: pd.DataFrame) -> pd.DataFrame:
    """Returns the regret after each number of samples, median over seeds and mean over tasks: a column a method."""
    medians = frame.groupby(["method", "task", "samples"], sort=False)["regret"].median()
    means = medians.groupby(["method", "samples"], sort=False).mean().reset_index()
    return means.pivot_table(index="samples", columns="method", values="regret")


def numbers_of_samples(frame: pd.DataFrame) -> list[int]:
    """Returns after how many samples regrets are read: those of `READ_AT` that there are, and the last."""
    last = int(frame["samples"].max())
    return [*(samples for samples in READ_AT if samples < last), last]


def mean_of_medians_at_cost(trials: pd.DataFrame, costs: Sequence[float]) -> pd.DataFrame:
    """Returns the regret at each cost, median over seeds and mean over tasks: a column a method."""
    grid = np.array(costs, dtype=np.float64)
    found = regret_by_cost(trials, grid).groupby(["method", "task"], sort=False)[list(grid)].median()
    return found.groupby("method", sort=False).mean().T


def table(
    frame: pd.DataFrame, trials: pd.DataFrame, methods: Sequence[str], training_seconds: float = TRAINING_SECONDS
) -> pd.DataFrame:
    """Returns what the benchmark prints: a row a method and number of slots.

    Args:
        frame: Of `incumbents`.
        trials: Of which it was made.
        methods: Those to show.
        training_seconds: As for `with_proposals`.
    """
    rows = []
    for slots, group in frame.groupby("slots"):
        costs = READ_AT_COST.get(int(slots), (8 / slots, 14 / slots))
        at_cost = mean_of_medians_at_cost(with_proposals(trials[trials["slots"] == slots], training_seconds), costs)
        read_at = numbers_of_samples(group)
        means, last = mean_of_medians(group), read_at[-1]
        ranks = average_ranks(per_task(group, last))
        goal = means[STOCK].loc[last] if STOCK in means else float("nan")
        for method in methods:
            row = {"slots": slots, "method": method}
            row |= {f"regret at {samples}": means[method].loc[samples] for samples in read_at}
            row |= {f"regret at the time of {cost:g}": at_cost[method].loc[cost] for cost in costs}
            row[f"rank at {last}"] = ranks[method]
            row[f"samples to stock's {last}"] = samples_to_reach(group, method, goal)
            for samples in dict.fromkeys((read_at[0], last)):
                row |= _behind(group, method, samples)
            row["trainings"] = group[(group["method"] == method) & (group["samples"] == last)]["cost"].mean()
            rows.append(row)
    return pd.DataFrame(rows)


def _behind(frame: pd.DataFrame, method: str, samples: int) -> dict[str, str]:
    few = frame["seed"].nunique() < LEAST_SEEDS
    if few or method == BASELINE or BASELINE not in set(frame["method"]):
        return {f"ahead/behind at {samples}": ""}
    found = against(frame, method, BASELINE, samples)
    ahead, behind = int((found["high"] < 0).sum()), int((found["low"] > 0).sum())
    return {f"ahead/behind at {samples}": f"{ahead}/{behind} of {len(found)}"}
