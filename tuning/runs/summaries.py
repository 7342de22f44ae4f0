"""What is said of a run in a line: what it did, how long it took, how sure its figures are, and what comes next."""

from typing import Any

from tuning.base import files
from tuning.base.errors import counted
from tuning.base.registries import ACCURACY, Metric
from tuning.runs import schema
from tuning.runs.run_folder import Run, have_ended, ran, resumption


def summary_line(run: Run) -> str:
    """Returns one line on the run: data set, trials by state, how long it has taken."""
    trials, meta = ran(run.trials), run.meta
    counts = ", ".join(f"{n} {state}" for state, n in trials["state"].value_counts().items())
    dataset = meta.get("dataset", "unknown data")
    if trials.empty:
        return f"{run.name}: {dataset}, no trials yet"
    taken, slots = minutes(run), max(run.setting("concurrency"), meta.get("side_by_side", 1))
    said = f"{run.name}: {dataset}, {counted(len(trials), 'trial')} ({counts}), {taken:.1f} minutes"
    if meta.get("slots_varied"):
        return f"{said}, with other numbers of trials side by side in other sessions"
    busy = trials["seconds"].sum() / 60 / (slots * taken) if taken else 0.0
    return f"{said}, {slots} side by side, training {busy:.0%} of that time"


def minutes(run: Run) -> float:
    """Returns the minutes, on its clock, that a run with trials took until the last end of a trial or of an epoch.

    0 where no trial has begun.
    """
    trials = run.trials
    trained = (1e6 * trials["seconds"].fillna(0.0)).astype("timedelta64[us]")
    seen = trials["ended"].fillna(trials["started"] + trained)  # so a killed run's clock stands still
    return float(run.clock(seen).fillna(0.0).max() / 60)


def next_step(run: Run) -> str:
    """Returns the command that goes on from a run as it is: `final` can work only where a trial has finished."""
    trials = ran(run.trials)
    if trials["state"].isin(schema.HAVE_RESULTS).any():
        return f"python -m tuning.final --run {files.quoted(run.path)}"
    return resumption(run.path, trials)


def estimate_line(run: Run) -> str:
    """Returns how far off the dry run's estimate was, over as many trials as the estimate was for.

    Of a run that was extended these are the first ones; of one with fewer trials the line says only that. An estimate
    of version 0.2.0 does not say for how many it was: the run's samples count, as far as the run was never resumed.
    """
    meta, trials = run.meta, run.trials
    guess = {name: value / 60 for name, value in meta["estimate"].items()}
    said = (
        f"The dry run said {guess['seconds']:.1f} minutes ({guess['seconds_low']:.1f} to {guess['seconds_high']:.1f})"
    )
    n = meta["estimate"].get("samples", None if meta.get("pauses") else meta["settings"]["samples"])
    if n is None:
        return f"{said}, for the samples that the run began with."
    said += f" for {counted(int(n), 'trial')}"
    ended = trials.loc[(trials["attempt"].fillna(1) != 0) & have_ended(trials), "ended"].sort_values()
    if len(ended) < n:
        return f"{said}, of which {len(ended):,} ended."
    took = float(run.clock(ended).iloc[int(n) - 1] / 60)
    which = f"the first {int(n):,}" if len(ended) > n else "it"
    return f"{said}; {which} took {took:.1f}, {took / guess['seconds'] - 1:+.0%}"


def noise_text(run: Run) -> str:
    """Returns how surely the best trial's value is known; "" where the valid split is large, or a version before."""
    noise, metric = run.meta.get("noise"), run.metric
    if not isinstance(noise, dict):
        return ""
    known = f"{metric.gap(noise['half_width'], '')}{metric.unit}"
    n = noise["valid_images"]
    return f"The valid {metric.title} of a trial is known to ± {known} (95 %): there are {n:,} valid images."


def audit_text(found: dict[str, Any], metric: Metric = ACCURACY) -> str:
    """Returns what the summary of a search says of an audit."""
    rungs = ", ".join(
        f"{rung['rank_correlation']:+.2f} after epoch {rung['epoch']} ({rung['n']} trials)"
        for rung in found["rungs"]
        if rung["rank_correlation"] is not None
    )
    return (
        f"Audit: {len(found['trials'])} of {found['n_stopped']} stopped trials trained to their end; the best of them "
        f"reached {metric.said(found['best_audited'])}, so stopping is estimated to have lost "
        f"{metric.gap(found['loss'], '')}{metric.unit}. "
        f"Rank correlation with the final {metric.title}: {rungs or 'too few trials'}."
    )
