"""What it is worth to begin a search with an earlier one, on learning curves that others recorded; nothing is trained.

    python tests/benchmarks/start_from.py --tables DIR [--tasks PART ...] [--pairs FROM:TO ...] [--seeds 10]

DIR and the tasks are as in `search_quality.py`. For each pair, a search of FROM (20 trials, ASHA, two slots) is
replayed, and then searches of TO: cold, and beginning with that of FROM, by the default sampler and by TPE. First
points of the table's space are tried as in a search: by a cold one before all others, by the default sampler that knows
FROM in every second trial, by TPE after the best five of FROM; those that FROM has had, but for the first, are left out
where a search begins with FROM. Regret is as there; it is read after 5, 10 and 20 trials, median over the seeds.
"behind" is how much larger the regret of the one that begins with FROM is than that of the cold one after 20 trials:
mean and 95 % interval over the seeds, which are paired (Student's t; none of fewer than 5 seeds).

Without --pairs they are chosen by the rank correlation of the final values of 200 random configurations, before any
search: the --alike pairs with the highest one, each TO once, the pair with the lowest one, and for that TO the task
itself upside down ("upside-down:TO"), in which the best configurations are the worst.
"""

import argparse
import concurrent.futures
import itertools
import multiprocessing
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import comparison
import numpy as np
import optuna
import pandas as pd
import tables
from common import at_least, command, ended, prepare_out
from methods import OURS, named
from scipy.stats import spearmanr
from simulation import Method, Ours, simulate

from tuning.base.errors import UserError, unknown_name
from tuning.base.tables import print_frame
from tuning.sampling.columns import all_of
from tuning.sampling.curve_sampler import CurveSampler, best_value
from tuning.sampling.possible import PossibleSampler
from tuning.trials import settings

UPSIDE_DOWN = "upside-down"
READ_AT = (5, 10, 20)
POINTS, BEST = 200, 5
COLD, WARM, COLD_TPE, WARM_TPE = "ours, cold", "ours, begun", "tpe, cold", "tpe, begun"


@dataclass(frozen=True)
class Pair:
    """Two tasks, of which the search of one begins with the search of the other."""

    earlier: str
    task: str

    @property
    def name(self) -> str:
        """How the table calls it."""
        return f"{self.earlier}:{self.task}"


class FirstPoints(PossibleSampler):
    """Another sampler behind some points that are tried first, as a search enqueues them."""

    def __init__(self, sampler: optuna.samplers.BaseSampler, points: Sequence[dict[str, Any]], drawn: Any) -> None:
        super().__init__(sampler, {})
        self._points, self._space = points, all_of(drawn)

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, Any]:
        is_given = trial.number < len(self._points)
        return self._space if is_given else super().infer_relative_search_space(study, trial)

    def sample_relative(self, study: Any, trial: Any, search_space: dict[str, Any]) -> dict[str, Any]:
        is_given = trial.number < len(self._points)
        return self._points[trial.number] if is_given else super().sample_relative(study, trial, search_space)


def turned(task: tables.Task) -> tables.Task:
    """Returns a task in which the best configurations are the worst; its curves rise as those of the task do."""

    def curve(config: dict[str, Any]) -> tables.Curve:
        found = task.curve(config)
        last = found.values[-1]  # noqa: PD011
        factor = (task.best - last + 1e-3) / last if last > 0 else 1.0
        return tables.Curve(found.values * factor, found.costs)  # noqa: PD011

    return replace(task, name=f"{UPSIDE_DOWN} {task.name}", curve=curve)


def draw(task: tables.Task, n: int) -> list[optuna.trial.FrozenTrial]:
    """Returns trials at random points of a task, the same each time."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    for _ in range(n):
        task.space(study.ask())
    return study.get_trials()


def final_values(task: tables.Task) -> list[float]:
    """Returns the final values of random configurations, 0 where one diverged."""
    curves = (task.curve(task.space(optuna.trial.FixedTrial(t.params))) for t in draw(task, POINTS))
    return np.nan_to_num([curve.values[-1] for curve in curves], nan=0.0).tolist()  # noqa: PD011


def searched(task: tables.Task, samples: int, slots: int, seed: int) -> list[optuna.trial.FrozenTrial]:
    """Returns the trials of a search of the project, as its study has them at its end."""
    studies: list[optuna.Study] = []

    class Remembering(Ours):
        @staticmethod
        def end(study: optuna.Study, number: int, values: list[float], finished: bool) -> None:
            studies[:] = [study]
            Ours.end(study, number, values, finished)

    method = Method(named("curves"), OURS, Remembering, first_points=True)
    simulate(task, method, slots=slots, samples=samples, seed=seed)
    return studies[0].get_trials()


def methods(task: tables.Task, earlier: list[optuna.trial.FrozenTrial]) -> dict[str, Method]:
    """Returns the ways to search a task, with and without the trials of an earlier search."""
    drawn = draw(task, 50)
    ranked = sorted(earlier, key=lambda t: best_value(t, 1.0), reverse=True)
    best = [t.params for t in ranked if t.state != optuna.trial.TrialState.FAIL][:BEST]

    def begun(seed: int) -> CurveSampler:
        sampler = CurveSampler(seed, settings.N_STARTUP)
        sampler.earlier, sampler.drawn = [earlier], drawn
        return sampler

    points = [*best, *task.first]
    return {
        COLD: Method(named("curves"), OURS, first_points=True),
        WARM: Method(begun, OURS, first_points=True, interleaved=True),
        COLD_TPE: Method(named("tpe"), OURS, first_points=True),
        WARM_TPE: Method(lambda seed: FirstPoints(named("tpe")(seed), points, drawn), OURS),
    }


def replay(
    earlier: tables.Task, task: tables.Task, pair: Pair, *, slots: int, first: int, seed: int
) -> list[dict[str, Any]]:
    """Returns the rows of all searches of a pair on a seed: task, method, slots, seed, and what `simulate` gives."""
    known = searched(earlier, first, slots, tables.seed_of(earlier.name, 1000 + seed))
    own = tables.seed_of(task.name, seed)
    left = replace(task, first=[p for i, p in enumerate(task.first) if i == 0 or p not in earlier.first[:first]])
    rows = []
    for name, method in methods(left, known).items():
        group = {"task": pair.name, "method": name, "slots": slots, "seed": seed}
        begun = task if name in (COLD, COLD_TPE) else left
        trials = simulate(begun, method, slots=slots, samples=READ_AT[-1], seed=own)
        rows += [group | asdict(trial) for trial in trials]
    return rows


def run(folder: Path, pair: Pair, slots: int, first: int, seed: int, bare: bool = False) -> list[dict[str, Any]]:
    """Returns the same by the names of the tasks; `bare` ones have no first points."""
    kinds = tables.names(folder)
    task = tables.load(folder, kinds[pair.task], pair.task)
    is_turned = pair.earlier == UPSIDE_DOWN
    earlier = turned(task) if is_turned else tables.load(folder, kinds[pair.earlier], pair.earlier)
    if bare:
        task, earlier = replace(task, first=()), replace(earlier, first=())
    return replay(earlier, task, pair, slots=slots, first=first, seed=seed)


def chosen(correlations: "dict[Pair, float]", alike: int) -> list[Pair]:
    """Returns the pairs that are most alike, each second task once, the least alike one, and that task upside down."""
    ranked = sorted(correlations, key=lambda pair: -correlations[pair])
    found: dict[str, Pair] = {}
    for pair in ranked:
        found.setdefault(pair.task, pair)
    least = ranked[-1]
    pairs = [*list(found.values())[:alike], least, Pair(UPSIDE_DOWN, least.task)]
    return list(dict.fromkeys(pairs))  # Of few tasks, the least alike pair is among those that are most alike.


def correlate(loaded: dict[str, tables.Task]) -> "dict[Pair, float]":
    """Returns the rank correlation of the final values of each two tasks with one space."""
    values = {name: final_values(task) for name, task in loaded.items()}
    spaces = {name: sorted(all_of(draw(task, 1))) for name, task in loaded.items()}
    pairs = (Pair(*each) for each in itertools.permutations(loaded, 2) if spaces[each[0]] == spaces[each[1]])
    return {pair: float(spearmanr(values[pair.earlier], values[pair.task])[0]) for pair in pairs}


def table(trials: pd.DataFrame, correlations: "dict[Pair, float] | None" = None) -> pd.DataFrame:
    """Returns what is printed: a row a pair and sampler."""
    frame = comparison.incumbents(trials)
    regrets = frame.pivot_table(index=["task", "method"], columns="samples", values="regret", aggfunc="median")
    known = {pair.name: value for pair, value in (correlations or {}).items()}
    rows = []
    for name in dict.fromkeys(trials["task"]):
        for sampler, cold, begun in (("ours", COLD, WARM), ("tpe", COLD_TPE, WARM_TPE)):
            behind = comparison.against(frame[frame["task"] == name], begun, cold, READ_AT[-1]).loc[name]
            interval = "" if np.isnan(behind["low"]) else f" ({behind['low']:+.3f} to {behind['high']:+.3f})"
            row = {"pair": name, "rank correlation": known.get(name, float("nan")), "sampler": sampler}
            row |= {f"cold at {n}": regrets.loc[(name, cold), n] for n in READ_AT}
            row |= {f"begun at {n}": regrets.loc[(name, begun), n] for n in READ_AT}
            row["5 begun reach 20 cold"] = "yes" if row["begun at 5"] <= row["cold at 20"] else "no"
            row["behind"] = f"{behind['mean']:+.3f}{interval}"
            rows.append(row)
    return pd.DataFrame(rows)


def parser() -> argparse.ArgumentParser:
    """Returns what the command understands."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--tables", type=Path, required=True, help="the folder of tables")
    made.add_argument("--tasks", nargs="+", metavar="NAME", help="choose among these; a part of the name will do")
    made.add_argument("--pairs", nargs="+", metavar="FROM:TO", help="these pairs; FROM may be upside-down")
    made.add_argument("--alike", type=at_least(0), default=4, help="pairs to choose that are alike (default: 4)")
    made.add_argument("--seeds", type=at_least(1), default=10, help="searches of each kind a pair (default: 10)")
    made.add_argument("--slots", type=at_least(1), default=2, help="trials side by side (default: 2)")
    made.add_argument("--first", type=at_least(1), default=20, help="trials of the earlier search (default: 20)")
    made.add_argument(
        "--without-first-points",
        action="store_true",
        help="of the table's space, which may have been chosen on these tables",
    )
    made.add_argument("--processes", type=at_least(1), default=2, help="side by side, of one thread each (default: 2)")
    made.add_argument("--out", type=Path, help="write the trials to this CSV file")
    return made


def pair_of(text: str, kinds: dict[str, str]) -> Pair:
    """Returns the pair that a user wrote as FROM:TO.

    Raises:
        UserError: It is none, or there is no such task.
    """
    earlier, colon, task = text.partition(":")
    if not (earlier and colon and task):
        raise UserError(f"--pairs must be FROM:TO, two names of tasks, but got {text!r}.")
    if earlier not in (UPSIDE_DOWN, *kinds):
        raise unknown_name(f"FROM in --pairs {text}", earlier, [*kinds, UPSIDE_DOWN])
    if task not in kinds:
        raise unknown_name(f"TO in --pairs {text}", task, kinds)
    return Pair(earlier, task)


def planned(given: argparse.Namespace) -> "tuple[list[Pair], dict[Pair, float]]":
    """Returns the pairs, and how alike the tasks of each two are; all tasks are read and checked.

    Raises:
        UserError: A task is unknown, or no two have the same hyperparameters, or a table is no table or too small.
    """
    kinds = tables.names(given.tables)
    pairs = list(dict.fromkeys(pair_of(text, kinds) for text in given.pairs or ()))
    names = {n: None for pair in pairs for n in (pair.earlier, pair.task) if n != UPSIDE_DOWN}
    loaded = {n: tables.load(given.tables, kinds[n], n) for n in names or tables.matching(list(kinds), given.tasks)}
    for task in loaded.values():
        tables.check_samples(task, given.first, "--first")
        if (task.n_configurations or READ_AT[-1]) < READ_AT[-1]:
            raise UserError(
                f"{task.name} must have at least {READ_AT[-1]} configurations, as many as a search has trials, but has "
                f"{task.n_configurations}. Choose other tasks with --tasks or --pairs."
            )
    correlations = correlate(loaded)
    if not pairs and not correlations:
        raise UserError(
            f"--tasks must leave two tasks with the same hyperparameters, but got {', '.join(loaded)}. "
            "Use --pairs upside-down:TASK for one task alone."
        )
    return pairs or chosen(correlations, given.alike), correlations


@command
def main() -> None:
    given = parser().parse_args()
    prepare_out(given.out)
    pairs, correlations = planned(given)
    os.environ["OMP_NUM_THREADS"] = "1"
    context, bare = multiprocessing.get_context("spawn"), given.without_first_points
    wanted = [(pair, seed) for seed in range(given.seeds) for pair in pairs]
    found: dict[tuple[Pair, int], list[dict[str, Any]]] = {}
    with concurrent.futures.ProcessPoolExecutor(given.processes, mp_context=context) as pool:
        jobs = {
            pool.submit(run, given.tables, pair, given.slots, given.first, seed, bare): (pair, seed)
            for pair, seed in wanted
        }
        try:
            for job, rows in ended(pool, jobs, lambda job: f"The search of {job[0].name} (seed {job[1]})"):
                found[job] = rows
        finally:  # What has ended is kept, also where another search failed.
            if found:
                trials = pd.DataFrame([row for job in wanted for row in found.get(job, ())])
                if given.out is not None:
                    trials.to_csv(given.out, index=False)
                n_seeds = trials["seed"].nunique()
                print_frame(table(trials, correlations), f"Regret: median over {n_seeds} seeds, {given.slots} slots")


if __name__ == "__main__":
    main()
