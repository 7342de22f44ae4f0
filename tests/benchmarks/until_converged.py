"""What `--until-converged` saves and what it costs, on recorded learning curves; nothing is trained.

    python tests/benchmarks/until_converged.py --tables DIR [--slots 2] [--samples 100] [--seeds 3] [--half b]

Searches are replayed as by `search_quality.py`, with the project's default sampler and scheduler, to their last sample.
"samples" and "time" are the shares of both that would have been saved, had each search ended when nothing was left to
gain. "regret" is that of the configuration it would have chosen then, "after all" that after all samples, and "lost"
the difference, with its 95 % interval over searches. "0.1 lost" is the share of searches that would have lost more.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import comparison
import numpy as np
import pandas as pd
import tables
from common import parser, report
from methods import OURS, SAMPLER
from simulation import Ended, Method, simulate

from tuning.sampling import convergence, samplers
from tuning.sampling.curve_sampler import CurveSampler
from tuning.trials.settings import N_STARTUP

MUCH = 0.1


def search(folder: Path, kind: str, name: str, slots: int, samples: int, seed: int) -> dict[str, Any]:
    """Returns what ending a search where it has converged would have saved and cost."""
    made: list[CurveSampler] = []

    def sampler(seed: int) -> CurveSampler:
        made.append(samplers.make(SAMPLER, seed, N_STARTUP))
        return made[-1]

    trials = simulate(tables.load(folder, kind, name), Method(sampler, OURS), slots=slots, samples=samples, seed=seed)
    n = ends_after(trials, made[-1].gains)
    rows = pd.DataFrame(
        [vars(trial) | {"task": name, "method": "ours", "slots": slots, "seed": seed} for trial in trials]
    )
    found = comparison.incumbents(rows)
    regrets, times = found["regret"].to_numpy(), found["cost"].to_numpy()
    return {
        "task": name,
        "ended": n < samples,
        "samples": 1 - n / samples,
        "time": 1 - times[n - 1] / times[-1],
        "regret": regrets[n - 1],
        "after all": regrets[-1],
    }


def ends_after(trials: list[Ended], gains: dict[int, float]) -> int:
    """Returns after how many trials a search would have ended."""
    for n in range(1, len(trials)):
        said = [gains[trial.trial] for trial in trials[: n + 1] if trial.trial in gains]
        merits = [-np.inf if trial.state == "failed" else trial.observed for trial in trials[:n]]
        if convergence.has_converged(said, merits):
            return n
    return len(trials)


def summary(rows: pd.DataFrame, name: str) -> dict[str, Any]:
    """Returns a row of the table."""
    lost = (rows["regret"] - rows["after all"]).to_numpy()
    drawn = np.random.default_rng(0).integers(len(lost), size=(comparison.RESAMPLES, len(lost)))
    low, high = np.quantile(lost[drawn].mean(axis=1), [0.025, 0.975])
    return {
        "tables": name,
        "searches": len(rows),
        "ended": rows["ended"].mean(),
        "samples": rows["samples"].mean(),
        "time": rows["time"].mean(),
        "regret": rows["regret"].mean(),
        "after all": rows["after all"].mean(),
        "lost": f"{lost.mean():.3f} ({low:.3f} to {high:.3f})",
        f"{MUCH} lost": (lost > MUCH).mean(),
    }


def main() -> None:
    """Prints the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--tables", type=Path, required=True, help="the folder of tables")
    arguments.add_argument("--slots", type=int, default=2, help="trials side by side (default: 2)")
    arguments.add_argument("--samples", type=int, default=100, help="trials a search (default: 100)")
    arguments.add_argument("--seeds", type=int, default=3, help="searches a task (default: 3)")
    arguments.add_argument("--half", choices=["a", "b", "all"], default="all", help="of the tasks (default: all)")
    arguments.add_argument("--processes", type=int, default=2, help="side by side (default: 2)")
    given = arguments.parse_args()
    kinds = tables.names(given.tables)
    names = {"a": list(kinds)[::2], "b": list(kinds)[1::2], "all": list(kinds)}[given.half]
    jobs = [
        (given.tables, kinds[name], name, given.slots, given.samples, seed)
        for name in names
        for seed in range(given.seeds)
    ]
    os.environ["OMP_NUM_THREADS"] = "1"
    with ProcessPoolExecutor(given.processes, multiprocessing.get_context("spawn")) as pool:
        rows = pd.DataFrame(pool.map(search, *zip(*jobs, strict=True)))
    found = [summary(of, kind) for kind, of in rows.groupby(rows["task"].map(kinds))]
    report("What ending a search saves, where nothing is left to gain", [*found, summary(rows, "all")], given.out)


if __name__ == "__main__":
    main()
