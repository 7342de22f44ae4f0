"""What a run says of whether its search had something left to gain; `tuning.sampling.convergence` decides it."""

from tuning.base.errors import counted
from tuning.runs import schema
from tuning.runs.run_folder import Run


def said(n_trials: int, *, perfect: bool = False) -> str:
    """Returns the sentence for a search that had nothing left to gain after so many trials, or by a perfect one."""
    why = (
        "a trial has the best value that there is."
        if perfect
        else "the sampler expects far less of its proposals than what seeds make, and the last trials were no better."
    )
    return f"Nothing left to gain after {counted(n_trials, 'trial')}: {why}"


def text(run: Run) -> str:
    """Returns what the end of a search and its page say; "" where something was left, or where nobody knows."""
    after = run.meta.get("converged")
    if not isinstance(after, int):
        return ""
    trials, metric = run.trials, run.metric
    trained = trials[~trials["stopped_by"].str.startswith(schema.REPEAT).fillna(False).astype(bool)]
    # A perfect trial that ended later is not why; a trial that has not ended has been paused.
    by_then = trained.sort_values("ended", na_position="first", kind="stable").head(after)
    values = by_then[metric.column].dropna()
    perfect = any(metric.merit(value) >= 1 for value in values)
    ended = run.meta.get("stopped_by") == "converged"
    return f"{said(after, perfect=perfect)}{' The search ended there.' * ended}"
