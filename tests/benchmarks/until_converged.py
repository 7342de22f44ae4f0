"""What `--until-converged` saves and what it costs, on recorded learning curves; nothing is trained.

    python tests/benchmarks/until_converged.py --tables DIR [--slots 2] [--samples 100] [--seeds 3] [--half b]

Searches are replayed as by `search_quality.py`, with the project's default sampler and scheduler, to their last sample.
"samples" and "time" are the shares of both that would have been saved, had each search ended when nothing was left to
gain. "regret" is that of the configuration it would have chosen then, "after all" that after all samples, and "lost"
the difference, with its 95 % interval over searches (Student's t; none of fewer than 5). "0.1 lost" is the share of
searches that would have lost more.
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
from common import at_least, command, ended, parser, prepare_out, report
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

    task, method = tables.load(folder, kind, name), Method(sampler, OURS)
    trials = simulate(task, method, slots=slots, samples=samples, seed=tables.seed_of(name, seed))
    n = ends_after(trials, made[-1].gains, slots)
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


def ends_after(trials: list[Ended], gains: dict[int, float], slots: int) -> int:
    """Returns after how many trials a search would have ended.

    It asks when a slot is free, before it begins a trial. By then all trials before that one have begun, and their
    proposals have said what they promise, but only some of them have ended. The others train to their end, too.

    Args:
        trials: As they ended, by number, of a search whose trials never pause.
        gains: What the sampler expected of a trial's proposal, by its number.
        slots: Trials side by side.
    """
    for begun in range(slots, len(trials)):
        before = trials[:begun]
        free = sorted(trial.ended for trial in before)[begun - slots]
        said = [gains[trial.trial] for trial in before if trial.trial in gains]
        shown = [trial for trial in before if trial.ended <= free]
        merits = [-np.inf if trial.state == "failed" else trial.observed for trial in shown]
        if convergence.has_converged(said, merits):
            return begun
    return len(trials)


def summary(rows: pd.DataFrame, name: str) -> dict[str, Any]:
    """Returns a row of the table."""
    lost = (rows["regret"] - rows["after all"]).to_numpy()
    return {
        "tables": name,
        "searches": len(rows),
        "ended": rows["ended"].mean(),
        "samples": rows["samples"].mean(),
        "time": rows["time"].mean(),
        "regret": rows["regret"].mean(),
        "after all": rows["after all"].mean(),
        "lost": comparison.with_interval(lost, ".3f"),
        f"{MUCH} lost": (lost > MUCH).mean(),
    }


@command
def main() -> None:
    """Prints the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--tables", type=Path, required=True, help="the folder of tables")
    arguments.add_argument("--slots", type=at_least(1), default=2, help="trials side by side (default: 2)")
    arguments.add_argument("--samples", type=at_least(1), default=100, help="trials a search (default: 100)")
    arguments.add_argument("--seeds", type=at_least(1), default=3, help="searches a task (default: 3)")
    arguments.add_argument("--half", choices=["a", "b", "all"], default="all", help="of the tasks (default: all)")
    arguments.add_argument("--processes", type=at_least(1), default=2, help="side by side (default: 2)")
    given = arguments.parse_args()
    prepare_out(given.out)
    kinds = tables.names(given.tables)
    names = tables.half_of(list(kinds), given.half)
    for name in names:
        tables.check_samples(tables.load(given.tables, kinds[name], name), given.samples, "--samples")
    wanted = [(name, seed) for name in names for seed in range(given.seeds)]
    os.environ["OMP_NUM_THREADS"] = "1"
    found: dict[tuple[str, int], dict[str, Any]] = {}
    with ProcessPoolExecutor(given.processes, multiprocessing.get_context("spawn")) as pool:
        jobs = {
            pool.submit(search, given.tables, kinds[name], name, given.slots, given.samples, seed): (name, seed)
            for name, seed in wanted
        }
        try:
            for job, row in ended(pool, jobs, lambda job: f"The search of {job[0]} (seed {job[1]})"):
                found[job] = row
        finally:  # What has ended is shown, also where another search failed.
            if found:
                show([found[job] for job in wanted if job in found], kinds, given.out)


def show(found: list[dict[str, Any]], kinds: dict[str, str], out: Path | None) -> None:
    """Prints a row a format and one of all searches."""
    rows = pd.DataFrame(found)
    each = [summary(of, kind) for kind, of in rows.groupby(rows["task"].map(kinds))]
    report("What ending a search saves, where nothing is left to gain", [*each, summary(rows, "all")], out)


if __name__ == "__main__":
    main()
