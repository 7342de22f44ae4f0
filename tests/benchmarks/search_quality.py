"""What searches find on recorded learning curves, others' and our own, method by method; nothing is trained.

    python tests/benchmarks/search_quality.py --tables DIR [--methods ours stock ...] [--seeds 10] [--out FOLDER]

DIR holds the tables, in the formats that `tables/` reads: `taskset/*.json`, `lcbench-surrogate/model.onnx`,
`image-classifiers/*.csv` (our own recordings: --tables tests/benchmarks/tables). Each method (`methods.py`) searches
each task with the project's own study, sampler and scheduler, in simulated time. Regret is that of the configuration
that the search would choose, after a full training: 0 is the best of the table, 1 the median of random configurations.
Prints a table; writes `frame.csv` and the figures into FOLDER. Killed, it goes on where it was when it is started
again. The results in FOLDER are kept by method, number of samples, task and what its table holds, so that a table that
has changed is searched again.

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
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import comparison
import quality_figures
import tables
from common import at_least, command, ended
from methods import MAIN, METHODS
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from simulation import Ended, replayed

from tuning.base import files
from tuning.base.errors import UserError
from tuning.base.tables import print_frame
from tuning.figures import style

COLUMNS = [*comparison.GROUP, "samples", "table", *Ended.__dataclass_fields__, "seconds"]
TEXTS, WHOLE = ("task", "method", "table", "state"), ("slots", "seed", "samples", "trial", "epochs")
KINDS = {name: "str" if name in TEXTS else "int64" if name in WHOLE else "float64" for name in COLUMNS}


@dataclass(frozen=True)
class Search:
    """One search to be simulated."""

    task: str
    method: str
    slots: int
    seed: int

    @property
    def said(self) -> str:
        """How a sentence calls it."""
        return f"The search of {self.task} by {self.method!r} ({self.slots} slots, seed {self.seed})"


def planned(names: list[str], methods: list[str], slots: list[int], seeds: int, half: str) -> list[Search]:
    """Returns the searches, seed by seed; half `a` is every other task and every other seed, `b` has the others."""
    first = {"a": 0, "b": 1}.get(half)
    if first is not None:
        names = tables.half_of(names, half)
    of_half = range(seeds) if first is None else range(first, seeds, 2)
    return [Search(task, method, n, seed) for seed, n, task, method in product(of_half, slots, names, methods)]


def runs_file(out: Path, method: str, samples: int) -> Path:
    """Returns where the trials of a method's searches of so many samples are."""
    return out / "runs" / f"{_slug(method)}.{samples}-samples.csv"


def _slug(method: str) -> str:
    return re.sub("[^a-z0-9]+", "-", method)


def read_runs(out: Path, methods: list[str], samples: int, of: Mapping[str, str] | None = None) -> Any:
    """Returns the trials of all searches of so many samples that were written whole, each search once.

    Args:
        out: The folder of results.
        methods: Whose searches are read.
        samples: Trials a search.
        of: Task -> `table` of the table that is there now; what was found on another one is left out.
    """
    import pandas as pd

    found = [_rows(runs_file(out, method, samples)) for method in dict.fromkeys(methods)]
    frame = pd.concat([one for one in found if len(one)] or found, ignore_index=True)
    if of is not None:
        frame = frame[frame["table"] == frame["task"].map(dict(of))]
    search = [*comparison.GROUP, "table"]
    frame = frame.drop_duplicates([*search, "trial", "state", "epochs"], keep="last")
    ends = (frame["state"] != "shown").groupby([frame[name] for name in search]).transform("sum")
    return frame[(frame["samples"] == samples) & (ends == samples)]


def _rows(file: Path) -> Any:
    """Returns the rows of a file that were written whole; none if there is no file."""
    import pandas as pd

    text = files.whole_lines(file)
    if not text:
        return pd.DataFrame(columns=COLUMNS).astype(KINDS)
    try:
        frame = pd.read_csv(io.StringIO(text), dtype=KINDS, keep_default_na=False)
    except ValueError as error:
        raise UserError(f"{file} is damaged: {error}. Choose another --out, or move the file away.") from error
    if list(frame) != COLUMNS:
        raise UserError(f"{file} must have the columns {', '.join(COLUMNS)}, but has others. Choose another --out.")
    return frame


def run(folder: Path, kind: str, search: Search, samples: int) -> list[dict[str, Any]]:
    """Returns the rows of one search."""
    task = _task(folder, kind, search.task)
    begin = time.process_time()
    seed = tables.seed_of(search.task, search.seed)
    trials = replayed(task, METHODS[search.method], slots=search.slots, samples=samples, seed=seed)
    seconds = round(time.process_time() - begin, 4)
    group = asdict(search) | {"samples": samples, "table": task.table}
    return [
        {name: f"{v:.6g}" if isinstance(v, float) else v for name, v in (group | asdict(trial)).items()}
        | {"seconds": seconds}
        for trial in trials
    ]


@functools.cache
def _task(folder: Path, kind: str, name: str) -> tables.Task:
    return tables.load(folder, kind, name)


def write(out: Path, method: str, samples: int, rows: list[dict[str, Any]]) -> None:
    """Appends a search's rows in one piece."""
    file = runs_file(out, method, samples)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    if not file.exists() or not file.stat().st_size:
        writer.writeheader()
    writer.writerows(rows)
    with file.open("a", encoding="utf-8") as opened:
        opened.write(text.getvalue())


def mend(out: Path, method: str, samples: int) -> None:
    """Cuts a last line that is not whole off a method's file; says where there is one of an earlier version."""
    file, old = runs_file(out, method, samples), out / "runs" / f"{_slug(method)}.csv"
    if file.exists() and (whole := files.whole_lines(file)) != file.read_text(encoding="utf-8", errors="replace"):
        files.write_text(file, whole)
    if old.exists() and not file.exists():
        print(
            f"{old} does not say of which tables it is, so that its searches are run again. It stays as it is.",
            file=sys.stderr,
        )


def run_missing(wanted: list[Search], kinds: dict[str, str], of: Mapping[str, str], given: Any) -> None:
    """Runs those searches that FOLDER has not; what has ended is there, also if another one fails.

    Args:
        wanted: The searches.
        kinds: Task -> format.
        of: Task -> `table` of its table.
        given: The options.

    Raises:
        UserError: A search failed.
    """
    files.make_folder(given.out / "runs", exist_ok=True)
    methods = sorted({search.method for search in wanted})
    for method in methods:
        mend(given.out, method, given.samples)
    known = read_runs(given.out, methods, given.samples, of)
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
        jobs = {pool.submit(run, given.tables, kinds[one.task], one, given.samples): one for one in missing}
        for search, rows in ended(pool, jobs, lambda one: one.said):
            write(given.out, search.method, given.samples, rows)
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
    made.add_argument(
        "--seeds", type=at_least(1), default=10, help="searches a task, method and number of slots (default: 10)"
    )
    made.add_argument("--slots", type=at_least(1), nargs="+", default=[2, 8], help="trials side by side (default: 2 8)")
    made.add_argument("--samples", type=at_least(1), default=100, help="trials a search (default: 100)")
    made.add_argument(
        "--half", choices=["a", "b", "all"], default="all", help="of tasks and seeds: a to choose by, b to confirm"
    )
    made.add_argument(
        "--training-seconds",
        type=at_least(0.001, float),
        default=comparison.TRAINING_SECONDS,
        help="at equal time, what a full training takes beside the proposals' own time "
        f"(default: {comparison.TRAINING_SECONDS:g})",
    )
    made.add_argument("--processes", type=at_least(1), default=2, help="side by side, of one thread each (default: 2)")
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


@command
def main() -> None:
    given = parser().parse_args()
    given.methods, given.slots = list(dict.fromkeys(given.methods)), list(dict.fromkeys(given.slots))
    if lacks := missing_package(given.methods):
        parser().error(lacks)
    kinds = tables.names(given.tables)
    chosen = tables.matching(list(kinds), given.tasks)
    names = tables.half_of(chosen, given.half)
    wanted = planned(chosen, given.methods, given.slots, given.seeds, given.half)
    if not wanted:
        raise UserError(f"--seeds must be at least 2 with --half b, which has every other one, but got {given.seeds}.")
    of = {}
    for name in names:
        task = _task(given.tables, kinds[name], name)
        tables.check_samples(task, given.samples, "--samples")
        of[name] = task.table
    run_missing(wanted, kinds, of, given)
    trials = read_runs(given.out, given.methods, given.samples, of)
    keys = {(one.task, one.method, one.slots, one.seed) for one in wanted}
    of_these = [key in keys for key in trials[comparison.GROUP].itertuples(index=False, name=None)]
    report(trials[of_these], given.methods, given.out, given.training_seconds)


if __name__ == "__main__":
    main()
