"""What searches find on recorded learning curves, others' and our own, method by method; nothing is trained.

    python tests/benchmarks/search_quality.py --tables DIR [--methods ours stock ...] [--seeds 10] [--out FOLDER]

DIR holds the tables, in the formats that `tables/` reads: `taskset/*.json`, `lcbench-surrogate/model.onnx`,
`image-classifiers/*.csv` (our own recordings: --tables tests/benchmarks/tables). Each method (`methods.py`) searches
each task with the project's own study, sampler and scheduler, in simulated time. Regret is that of the configuration
that the search would choose, after a full training: 0 is the best of the table, 1 the median of random configurations.
Prints a table; writes `frame.csv` and the figures into FOLDER. Killed, it goes on where it was when it is started
again.

"regret at the time of N": after the time of N full trainings of a typical configuration, in which the proposals' own
time counts, too (--training-seconds).
"ahead/behind": on so many tasks the regret is smaller/larger than that of random + asha, beyond a 95 % interval over
the seeds. "samples to stock's 100": after how many samples the regret is at most that of stock Ray Tune after 100.
"""

import argparse
import concurrent.futures
import csv
import functools
import importlib.util
import io
import multiprocessing
import os
import re
import time
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import comparison
import quality_figures
import tables
from methods import MAIN, METHODS
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from simulation import Ended, replayed

from tuning.base.tables import print_frame
from tuning.figures import style

COLUMNS = [*comparison.GROUP, *Ended.__dataclass_fields__, "seconds"]


@dataclass(frozen=True)
class Search:
    """One search to be simulated."""

    task: str
    method: str
    slots: int
    seed: int


def planned(names: list[str], methods: list[str], slots: list[int], seeds: int, half: str) -> list[Search]:
    """Returns the searches, seed by seed; half `a` is every other task and every other seed, `b` has the others."""
    first = {"a": 0, "b": 1}.get(half)
    if first is not None:
        names = names[first::2]
    of_half = range(seeds) if first is None else range(first, seeds, 2)
    return [Search(task, method, n, seed) for seed, n, task, method in product(of_half, slots, names, methods)]


def runs_file(out: Path, method: str) -> Path:
    """Returns where the trials of a method's searches are."""
    return out / "runs" / f"{re.sub('[^a-z0-9]+', '-', method)}.csv"


def read_runs(out: Path, methods: list[str], samples: int) -> Any:
    """Returns the trials of all searches of so many samples that were written whole."""
    import pandas as pd

    frames = []
    for file in (runs_file(out, method) for method in methods):
        if file.exists():
            text = file.read_text()
            frames.append(pd.read_csv(io.StringIO(text[: text.rfind("\n") + 1]), names=COLUMNS, header=0))
    if not frames:
        return pd.DataFrame(columns=COLUMNS)
    frame = pd.concat(frames, ignore_index=True)
    ends = frame.assign(ends=frame["state"] != "shown").groupby(comparison.GROUP)["ends"].transform("sum")
    return frame[ends == samples]


def run(folder: Path, kind: str, search: Search, samples: int) -> list[dict[str, Any]]:
    """Returns the rows of one search."""
    task = _task(folder, kind, search.task)
    begin = time.process_time()
    trials = replayed(task, METHODS[search.method], slots=search.slots, samples=samples, seed=search.seed)
    seconds = round(time.process_time() - begin, 4)
    return [
        {name: f"{v:.6g}" if isinstance(v, float) else v for name, v in (asdict(search) | asdict(trial)).items()}
        | {"seconds": seconds}
        for trial in trials
    ]


@functools.cache
def _task(folder: Path, kind: str, name: str) -> tables.Task:
    return tables.load(folder, kind, name)


def write(out: Path, method: str, rows: list[dict[str, Any]]) -> None:
    """Appends a search's rows in one piece."""
    file = runs_file(out, method)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    if not file.exists():
        writer.writeheader()
    writer.writerows(rows)
    with file.open("a") as opened:
        opened.write(text.getvalue())


def run_missing(wanted: list[Search], kinds: dict[str, str], folder: Path, out: Path, given: Any) -> None:
    """Runs those searches that FOLDER has not, and keeps only whole ones in its files."""
    (out / "runs").mkdir(parents=True, exist_ok=True)
    methods = sorted({search.method for search in wanted})
    known = read_runs(out, methods, given.samples)
    for method, rows in known.groupby("method"):
        rows.to_csv(runs_file(out, str(method)), index=False)
    done = {Search(*row) for row in known[comparison.GROUP].drop_duplicates().itertuples(index=False, name=None)}
    missing = [search for search in wanted if search not in done]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    context = multiprocessing.get_context("spawn")
    os.environ["OMP_NUM_THREADS"] = "1"
    with (
        concurrent.futures.ProcessPoolExecutor(given.processes, mp_context=context) as pool,
        Progress(*columns, disable=not missing) as progress,
    ):
        bar = progress.add_task("searches", total=len(wanted), completed=len(wanted) - len(missing))
        futures = {pool.submit(run, folder, kinds[one.task], one, given.samples): one for one in missing}
        for future in concurrent.futures.as_completed(futures):
            write(out, futures[future].method, future.result())
            progress.advance(bar)


def report(trials: Any, methods: list[str], out: Path, training_seconds: float) -> None:
    """Prints the table; writes it, the frame and the figures."""
    frame = comparison.incumbents(trials)
    frame.to_csv(out / "frame.csv", index=False)
    found = comparison.table(frame, trials, methods, training_seconds)
    seconds = trials.groupby(["slots", "method"])["seconds"].mean()
    found["ms a search"] = [round(1000 * seconds[row.slots, row.method]) for row in found.itertuples()]
    found.to_csv(out / "table.csv", index=False)
    n_tasks, n_seeds = trials["task"].nunique(), trials["seed"].nunique()
    print_frame(found, f"Regret: median over {n_seeds} seeds, mean over {n_tasks} tasks")
    first, *_, last = 2 * comparison.numbers_of_samples(frame)
    by_cost = comparison.regret_by_cost(comparison.with_proposals(trials, training_seconds))
    style.save(quality_figures.regret(frame, by_cost, methods), out / "regret.png")
    style.save(quality_figures.ranks(frame, methods), out / "ranks.png")
    if len(methods) > 1:
        style.save(
            quality_figures.critical_differences(frame, methods, sorted({first, last})), out / "critical_difference.png"
        )
    print(f"Frame, table and figures: {out}")


def parser() -> argparse.ArgumentParser:
    """Returns what the command understands."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--tables", type=Path, required=True, help="the folder of tables")
    names = "; ".join(METHODS).replace("%", "%%")
    made.add_argument("--methods", nargs="+", default=MAIN, choices=[*METHODS], metavar="NAME", help=f"of: {names}")
    made.add_argument(
        "--tasks", nargs="+", metavar="NAME", help="only these (default: all); a part of the name will do"
    )
    made.add_argument("--seeds", type=int, default=10, help="searches a task, method and number of slots (default: 10)")
    made.add_argument("--slots", type=int, nargs="+", default=[2, 8], help="trials side by side (default: 2 8)")
    made.add_argument("--samples", type=int, default=100, help="trials a search (default: 100)")
    made.add_argument(
        "--half", choices=["a", "b", "all"], default="all", help="of tasks and seeds: a to choose by, b to confirm"
    )
    made.add_argument(
        "--training-seconds",
        type=float,
        default=comparison.TRAINING_SECONDS,
        help="at equal time, what a full training takes beside the proposals' own time "
        f"(default: {comparison.TRAINING_SECONDS:g})",
    )
    made.add_argument("--processes", type=int, default=2, help="side by side, of one thread each (default: 2)")
    made.add_argument(
        "--out", type=Path, default=Path("search-quality"), help="where the results are (default: search-quality/)"
    )
    return made


def missing_package(methods: list[str]) -> str:
    """Returns which package a method lacks, in a sentence; nothing if they can all be run."""
    for name in methods:
        package = METHODS[name].needs
        if package and importlib.util.find_spec(package.replace("-", "_")) is None:
            return (
                f"--methods {name!r} needs the package {package}, which is not installed. Run `pip install {package}`."
            )
    return ""


def main() -> None:
    given = parser().parse_args()
    if lacks := missing_package(given.methods):
        parser().error(lacks)
    kinds = tables.names(given.tables)
    chosen = [name for name in kinds if not given.tasks or any(part in name for part in given.tasks)]
    wanted = planned(chosen, given.methods, given.slots, given.seeds, given.half)
    if not wanted:
        raise SystemExit(f"--tasks must be parts of the names {', '.join(kinds)}, but got {given.tasks}.")
    run_missing(wanted, kinds, given.tables, given.out, given)
    trials = read_runs(given.out, given.methods, given.samples)
    keys = {(one.task, one.method, one.slots, one.seed) for one in wanted}
    of_these = [key in keys for key in trials[comparison.GROUP].itertuples(index=False, name=None)]
    report(trials[of_these], given.methods, given.out, given.training_seconds)


if __name__ == "__main__":
    main()
