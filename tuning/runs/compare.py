"""Runs side by side: what differs in how they were made, and how good each was after the same training time.

Runs in, frames out; `tuning.results` prints them, `tuning.figures.run_figures` draws them. Cost is counted in slot
seconds: the wall time of every epoch of every trial, summed in the order in which the epochs ended, which is the order
of the lines of `epochs.csv`. Two trials side by side for a minute cost two slot minutes. Epochs that had not ended are
not counted, nor is a trial that took over the result of a duplicate.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tuning.base import masking
from tuning.base.errors import UserError, counted
from tuning.base.registries import ACCURACY, METRICS, Metric
from tuning.runs import run_folder, schema, summaries
from tuning.runs.run_folder import LATER_HARDWARE, Run

IMAGES = ("dataset", "valid_hash")
GROUPS = ("settings", "versions", "hardware")
HOW = ("dataset", "space", "sampler", "scheduler")
# With another of these, a slot minute buys another amount of training.
PACE = ("settings/device", "settings/concurrency", "settings/cpus_per_trial", "settings/gpus_per_trial", "hardware/")


def differences(runs: Sequence[Run]) -> pd.DataFrame:
    """Returns what differs: a row a setting, version, piece of hardware, space or split, a column a run, all text.

    Raises:
        UserError: There are fewer than two runs, one is there twice, or one's `meta.json` is damaged.
    """
    names, described = _names(runs), [_description(run) for run in runs]
    keys = list(dict.fromkeys(key for one in described for key in one))
    rows = {key: [one.get(key) for one in described] for key in keys}
    differing = {key: values for key, values in rows.items() if any(value != values[0] for value in values)}
    texts = [[_text(value) for value in values] for values in differing.values()]
    return pd.DataFrame(texts, index=pd.Index(list(differing), name="what", dtype="str"), columns=names, dtype="str")


def metric_of(runs: Sequence[Run]) -> Metric:
    """Returns the metric that the runs are compared by: theirs, or the accuracy where they have not one in common."""
    found = {run.metric.name for run in runs}
    return METRICS[found.pop()] if len(found) == 1 else ACCURACY


def caveats(runs: Sequence[Run]) -> list[str]:
    """Returns a sentence for each reason for which the runs' figures are not of the same thing; raises as above."""
    differing = differences(runs)
    images = [name for name in IMAGES if name in differing.index]
    pace = [name for name in differing.index if name.startswith(PACE)]
    sentences = []
    if "settings/metric" in differing.index:
        sentences.append(
            "These runs have different metrics. They are compared by the accuracy, which not all of them searched for."
        )
    for name, run in zip(_names(runs), runs, strict=True):
        if began := _meta(run).get("begun_with"):
            others = " and ".join(str(one["name"]) for one in began)
            sentences.append(f"{name} began with what {others} had found, and the cost of that is not counted.")
    for name, run in zip(_names(runs), runs, strict=True):
        if n := int(run.epochs["epoch_seconds"].isna().sum()):
            sentences.append(f"{name} has no time of {counted(n, 'epoch')}, which cost nothing here.")
    if images:
        reason = " and ".join(images)
        figures = "accuracies" if metric_of(runs) is ACCURACY else "figures"
        sentences.append(f"These runs' {figures} are on different validation images: not the same {reason}.")
    if pace:
        sentences.append(f"A slot minute is not the same amount of training in these runs: see {', '.join(pace)}.")
    return sentences


def at_equal_cost(runs: Sequence[Run]) -> pd.DataFrame:
    """Returns the best and the median value of each run at the cost that all of them reached, and at its own end.

    A failed trial costs, but its values do not count, as it cannot be chosen; a trial that still runs counts.

    Returns:
        at ("equal cost", then "whole run"), run, slot_minutes, trials (that had ended an epoch), best_<metric> and
        median_<metric> (over the trials, of the best of each), as in best_accuracy.

    Raises:
        UserError: There are fewer than two runs, one is there twice, or one has no epoch.
    """
    metric = metric_of(runs)
    names, epochs = _names(runs), [_epochs(run, metric) for run in runs]
    totals = [float(frame["slot_seconds"].iloc[-1]) for frame in epochs]
    rows = []
    for at, costs in (("equal cost", [min(totals)] * len(runs)), ("whole run", totals)):
        for name, frame, cost in zip(names, epochs, costs, strict=True):
            best = metric.sign * frame[frame["slot_seconds"] <= cost].groupby("trial")["signed"].max()
            top = best.max() if metric.greater_is_better else best.min()
            figures = {f"best_{metric.name}": top, f"median_{metric.name}": best.median()}
            values = {"trials": len(best), **figures}
            rows.append({"at": at, "run": name, "slot_minutes": cost / 60, **values})
    return pd.DataFrame(rows).astype({"at": "str", "run": "str"})


def curves(runs: Sequence[Run]) -> pd.DataFrame:
    """Returns run, slot_minutes and best, a row an epoch: the best value so far at each cost; raises as above."""
    metric = metric_of(runs)
    frames = [
        pd.DataFrame(
            {
                "run": name,
                "slot_minutes": frame["slot_seconds"] / 60,
                "best": metric.sign * frame["signed"].cummax().ffill(),
            }
        )
        for name, frame in zip(_names(runs), (_epochs(run, metric) for run in runs), strict=True)
    ]
    return pd.concat(frames, ignore_index=True).astype({"run": "str"})


def list_runs(root: Path = run_folder.RESULTS) -> pd.DataFrame:
    """Returns a row a run below `root`, the one that was started last at the end.

    Returns:
        name, started (UTC), dataset, space, sampler, scheduler, trials (by state, e.g. "15 complete, 5 pruned"),
        best_accuracy (of a finished trial, in [0, 1]), best_score (as text, with the metric's name; there only if a run
        has another metric than the accuracy) and minutes (wall time).

    Raises:
        UserError: There is none.
    """
    rows: list[dict[str, Any]] = []
    for name in run_folder.run_names(root) or [
        run_folder.load("latest", root).name
    ]:  # which raises where there is none
        run = Run(root / name)
        try:
            meta, trials, metric = _meta(run), run_folder.ran(run.trials), run.metric
            minutes = summaries.minutes(run) if len(trials) else None
        except UserError:  # It must not hide the others; asking for this run alone says what is wrong.
            rows.append({"name": name, "trials": "cannot be read"})
            continue
        row = {"name": name, "started": meta.get("started"), "dataset": meta["dataset"]}
        row |= {key: meta["settings"].get(key) for key in HOW[1:]}
        row["trials"] = ", ".join(f"{n} {state}" for state, n in trials["state"].value_counts().items())
        finished = trials[trials["state"].isin(schema.HAVE_RESULTS)]
        best = finished["valid_accuracy"].max()
        if metric is not ACCURACY and len(finished):
            top = metric.sign * (metric.sign * finished[metric.column]).max()
            row["best_score"] = f"{metric.title} {metric.said(top)}"
        rows.append(row | {"best_accuracy": best, "minutes": minutes})
    others = ["best_score"] if any("best_score" in row for row in rows) else []
    frame = pd.DataFrame(rows, columns=["name", "started", *HOW, "trials", "best_accuracy", *others, "minutes"])
    started = pd.to_datetime(frame["started"], utc=True, format="ISO8601", errors="coerce")
    return frame.assign(started=started).sort_values(["started", "name"], na_position="first", ignore_index=True)


def _names(runs: Sequence[Run]) -> list[str]:
    """Returns what to call the runs: their folders' names, or their paths where two folders have one name."""
    paths = [run.path.resolve() for run in runs]
    if len(runs) < 2:
        raise UserError(
            f"compare must be given at least two runs, but got {len(runs)}. `python -m tuning.results list` lists them."
        )
    twice = [run.name for run, path in zip(runs, paths, strict=True) if paths.count(path) > 1]
    if twice:
        raise UserError(f"compare must be given different runs, but got {twice[0]!r} twice.")
    names = [run.name for run in runs]
    return names if len(set(names)) == len(names) else [str(run.path) for run in runs]


def _meta(run: Run) -> dict[str, Any]:
    """Returns the run's `meta.json`; raises UserError where what every comparison needs is not in it."""
    meta = run.meta
    wrong = [name for name in GROUPS if not isinstance(meta.get(name, {}), dict)]
    wrong += [name for name in ("settings", "dataset") if name not in meta]
    if wrong:
        raise UserError(
            f"{run.path / 'meta.json'} must hold a dataset and objects of settings, versions and hardware, "
            f"but got another {' and '.join(wrong)} or none."
        )
    return meta


def _description(run: Run) -> dict[str, Any]:
    """Returns how the run was made, flat: `settings/epochs`, `versions/torch`, ...; None is what was not recorded."""
    meta, space = _meta(run), run.path / "space.py"
    flat = {name: meta.get(name) for name in (*IMAGES, "split_hash", "seed", "git_commit")}
    flat["space.py"] = hashlib.sha256(space.read_bytes()).hexdigest()[:12] if space.exists() else None
    for group in GROUPS:
        flat |= {f"{group}/{name}": value for name, value in meta.get(group, {}).items() if name not in flat}
    if later := meta.get(LATER_HARDWARE):
        flat["hardware/later"] = [", ".join(map(str, one.get("gpus") or [one.get("cpu")])) for one in later]
    return {"settings/metric": METRICS.default} | flat  # Earlier versions knew no other, and did not write it.


def _epochs(run: Run, metric: Metric) -> pd.DataFrame:
    """Returns trial, slot_seconds (so far, this epoch included) and signed (the metric times its sign; NaN: failed)."""
    epochs, trials = run.epochs, run.trials
    if epochs.empty:
        raise UserError(f"Run {run.path} cannot be compared: no epoch of it has ended.")
    failed = epochs["trial"].isin(trials.loc[trials["state"] == "failed", "trial"])
    signed = metric.sign * epochs[metric.column].mask(failed)
    cost = epochs["epoch_seconds"].fillna(0.0).cumsum()
    return pd.DataFrame({"trial": epochs["trial"], "slot_seconds": cost, "signed": signed})


def _text(value: Any) -> str:
    if isinstance(value, list):
        value = ", ".join(map(str, value)) or None
    return "none" if value is None else masking.masked(str(value))
