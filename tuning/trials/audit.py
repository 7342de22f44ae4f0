"""The audit of early stopping: some stopped trials, drawn at random, are trained to their end after the search.

The sampler and the scheduler never see them. What the rungs said is compared with what the trials came to. Nothing here
knows Ray; `tuning.search` hands over what trains the jobs.
"""

import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tuning.base import files
from tuning.base.config import TrainConfig, parse_config
from tuning.base.registries import Metric
from tuning.runs import run_folder, schema
from tuning.training import checkpoints, jobs

if TYPE_CHECKING:
    import pandas as pd

FOLDER, FILE = "audit", "audit.csv"
MIN_TRIALS = 3  # for a rank correlation


def wanted(run: run_folder.Run, n: int, seed: int) -> dict[int, jobs.Job]:
    """Returns `n` trials that the scheduler stopped, drawn at random, as jobs that go on from their last epoch.

    All of an earlier audit are among them. A search that stopped fewer gives those; one that stopped none, nothing.
    """
    import pandas as pd

    trials = run.trials
    stopped = trials[(trials["state"] == "pruned") & (trials["stopped_by"] == "scheduler")]
    # A list: numpy would shuffle the column of an empty frame in place, which pandas does not allow.
    drawn = np.random.default_rng(seed).permutation(stopped["trial"].tolist()).tolist()
    before = set(pd.read_csv(run.path / FILE)["trial"]) if (run.path / FILE).exists() else set()
    drawn = sorted(drawn, key=lambda number: number not in before)[: max(n, len(before))]
    found = {}
    for row in stopped[stopped["trial"].isin(drawn)].to_dict("records"):
        values = {name: row[f"config/{name}"] for name in TrainConfig.model_fields}
        config = parse_config(schema.plain(values), f"{run.path}/trials.csv")
        parts = 1 if pd.isna(row["accumulation"]) else int(row["accumulation"])
        folder, metric = run.path.absolute() / FOLDER, run.metric.name
        job = jobs.Job(config, int(row["seed"]), folder, accumulation=parts, metric=metric)
        found[int(row["trial"])] = job
        latest = run.path / "trials" / f"{row['trial']:04d}" / checkpoints.LATEST
        if latest.exists() and not job.path.exists():
            job.path.mkdir(parents=True)
            shutil.copyfile(latest, job.path / checkpoints.LATEST)
    return found


def hold(
    run: run_folder.Run,
    chosen: dict[int, jobs.Job],
    split_hash: str,
    train: Callable[[Sequence[jobs.Job]], Iterable[tuple[jobs.Job, dict[str, Any]]]],
    tell: Callable[[str], None],
) -> dict[str, Any] | None:
    """Trains the chosen trials to their end, writes `audit.csv`, and returns what `summarise` says of it.

    What has ended is not trained again. A trial that fails is left out, and said.
    """
    import pandas as pd

    if not chosen:
        tell("Audit: the scheduler stopped no trial, so there is nothing to audit.")
        return None
    metric = run.metric
    numbers = {job.path: number for number, job in chosen.items()}
    to_train = [job for job in chosen.values() if jobs.read(job, split_hash) is None]
    for job, row in train(to_train) if to_train else ():
        number = numbers[job.path]
        if row.get("note"):
            tell(f"audit of trial {number}: {row['note']}")
        elif row.get("error"):
            tell(f"audit of trial {number} failed: {row['error']}")
        else:
            value = metric.said(schema.scored(row)[metric.column])
            tell(f"audit of trial {number}: epoch {row['epoch']}  {metric.label} {value}")
    ended = {number: jobs.read(job, split_hash) for number, job in chosen.items()}
    rows = [
        {"trial": number, **{name: schema.scored(row)[name] for name in schema.EPOCH_COLUMNS if name != "trial"}}
        for number, result in ended.items()
        if result is not None and not result.error
        for row in result.epochs
    ]
    if not rows:
        return None
    files.write_rows(run.path / FILE, schema.EPOCH_COLUMNS, rows)
    for job in chosen.values():
        for name in (jobs.WEIGHTS, jobs.VALID_OUTPUTS):
            (job.path / name).unlink(missing_ok=True)
    return summarise(run, pd.DataFrame(rows))


def summarise(run: run_folder.Run, audited: "pd.DataFrame") -> dict[str, Any]:
    """Returns how well rungs told what trials would come to, and what stopping is estimated to have lost.

    `rungs` has for each number of epochs at which trials were stopped the rank correlation (Spearman) of the best
    value until then with the final one, over the complete and the audited trials. `loss` is the amount by which the
    best audited trial beats the best of the search, in its metric, 0 where it does not: of the stopped trials, which
    they were drawn from, some other one may have been better still.
    """
    trials, epochs, metric = run.trials, run.epochs, run.metric
    complete = trials.loc[trials["state"] == "complete", "trial"]
    curves = dict([*epochs[epochs["trial"].isin(complete)].groupby("trial"), *audited.groupby("trial")])
    final = {number: _best(rows, metric) for number, rows in curves.items()}
    best_audited = _best(audited, metric)
    stopped = trials[(trials["state"] == "pruned") & (trials["stopped_by"] == "scheduler")]
    return {
        "trials": sorted(int(number) for number in audited["trial"].unique()),
        "n_stopped": len(stopped),
        "rungs": [
            {"epoch": int(rung), **_rank_correlation(curves, final, int(rung), metric)}
            for rung in sorted(stopped["epochs"].unique())
        ],
        "best_audited": best_audited,
        "loss": max(0.0, metric.sign * (best_audited - float(run.best[metric.column]))),
    }


def _best(rows: "pd.DataFrame", metric: Metric) -> float:
    return metric.sign * float((metric.sign * rows[metric.column]).max())


def _rank_correlation(
    curves: dict[Any, "pd.DataFrame"], final: dict[Any, float], rung: int, metric: Metric
) -> dict[str, Any]:
    from scipy.stats import spearmanr

    longer = [number for number, rows in curves.items() if rows["epoch"].max() > rung]
    early = [_best(curves[number][curves[number]["epoch"] <= rung], metric) for number in longer]
    late = [final[number] for number in longer]
    enough = len(longer) >= MIN_TRIALS and len(set(early)) > 1 and len(set(late)) > 1
    return {"rank_correlation": float(spearmanr(early, late).statistic) if enough else None, "n": len(longer)}
