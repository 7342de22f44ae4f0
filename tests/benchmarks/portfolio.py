"""Which first points a search should begin with, by recorded curves of its space; nothing is trained.

    python tests/benchmarks/portfolio.py --tables tests/benchmarks/tables --space resnet [--seeds 20]

Recordings of one space and seed (`record_curves.py`) have the same configurations, by number. Of these the portfolio
takes the one with the least mean regret over all recorded data sets, then the one that lowers the mean regret of the
best of the two most, and so on (greedy, as in Feurer et al. 2015's initial designs). Regret is 0 for the best
configuration of a data set that is recorded and 1 for the median one, at most 1.5.

The table says what the best of the first trials is worth on a data set that the portfolio has not seen: it is chosen on
the others. Beside it is what the best of so many random configurations is worth, the mean over all draws, and how many
random ones are worth as much as the whole portfolio. Below the table are the points, chosen on all.

With --seeds, searches of 20 trials on two slots are replayed, too, as by `search_quality.py`: by the default sampler
and scheduler without first points, and beginning with the portfolio that was chosen on the other data sets. Regret is
the median over the seeds.
"""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import comparison
import numpy as np
import numpy.typing as npt
import pandas as pd
import recording
import tables
from common import at_least, command, parser, prepare_out, report
from methods import METHODS
from simulation import replayed
from tables import WORST

from tuning.base.errors import UserError
from tuning.base.registries import METRICS

Floats = npt.NDArray[np.float64]
N_RANDOM = 20
SLOTS, SAMPLES, READ_AT, AT_COST = 2, 20, (5, 10, 20), (2.0, 4.0)
WITHOUT, BEGUN = "ours", "ours, first points"


def regrets(folder: Path, space: str) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """Returns the regret of each configuration, a row each, a column a data set; and their points, by number.

    Only what all recordings have is in the frame.

    Raises:
        UserError: There is no recording of the space or only one, or their configurations are not the same.
    """
    values, points = {}, list[dict[str, Any]]()
    for file in sorted(folder.glob("image-classifiers/*.json")):
        if recording.read_facts(file.with_suffix(".csv"))["space"] != space:
            continue
        facts, frame = recording.read(file.with_suffix(".csv"))
        n = min(len(points), len(facts["points"])) if points else len(facts["points"])
        if points and points[:n] != facts["points"][:n]:
            raise UserError(f"{file} must have the configurations of {', '.join(values)}: record it with that --seed.")
        points = max(points, facts["points"], key=len)
        metric = METRICS[facts["metric"]]
        first = frame[frame["repeat"] == 0]
        found = recording.finals(first.assign(merit=first[metric.column].map(metric.merit)), "merit")
        value = found.set_index("configuration")["value"].fillna(0.0)
        values[file.stem] = value
    if not values:
        raise UserError(f"--space must be one that {folder} has a recording of, but got {space!r}.")
    if len(values) < 2:
        raise UserError(f"--space must have recordings of two data sets, but {space} has one: {', '.join(values)}.")
    for name, value in values.items():
        if not value.max() > value.median():
            raise UserError(
                f"{folder}/image-classifiers/{name}.csv must have a configuration that is better than the median one, "
                f"but has {len(value)} trained, and none is. Record more of it, or move it out of this folder."
            )
    frame = pd.DataFrame(
        {n: ((each.max() - each) / (each.max() - each.median())).clip(upper=WORST) for n, each in values.items()}
    ).dropna()
    if frame.empty:
        raise UserError(f"{', '.join(values)} must have trained configurations in common, by number, but have none.")
    return frame, points


def chosen(known: Floats, n: int) -> list[int]:
    """Returns the rows of a portfolio, in its order; of equals, the better one by itself comes first.

    Args:
        known: Regrets, (n_configurations, n_data_sets).
        n: How many it takes.
    """
    best, rows, alone = np.full(known.shape[1], WORST), list[int](), known.mean(axis=1)
    for _ in range(n):
        together = np.minimum(known, best).mean(axis=1)
        together[rows] = np.inf
        rows.append(int(np.lexsort((alone, together))[0]))
        best = np.minimum(best, known[rows[-1]])
    return rows


def of_random(regret: Floats, n: int) -> float:
    """Returns the regret of the best of `n` different configurations of some, the mean over all ways to draw them."""
    ways = [math.comb(len(regret) - 1 - rank, n - 1) for rank in range(len(regret))]  # The one of a rank is the best.
    return float(np.sort(regret) @ np.array([way / math.comb(len(regret), n) for way in ways]))


def left_out(known: pd.DataFrame, size: int) -> list[dict[str, Any]]:
    """Returns a row a data set: what a portfolio that was chosen on the others is worth on it."""
    rows = []
    for name in known.columns:
        regret = known[name].to_numpy()
        best = np.minimum.accumulate(regret[chosen(known.drop(columns=name).to_numpy(), size)])
        worth = (n for n in range(1, len(regret) + 1) if of_random(regret, n) <= best[-1])
        first = {f"first {n}": best[n - 1] for n in range(1, size + 1)}
        random = {f"{n} random": of_random(regret, n) for n in (size, N_RANDOM) if n <= len(regret)}
        rows.append({"data_set": name, "configurations": len(regret), **first, **random, "worth": next(worth)})
    return rows


def searches(folder: Path, known: pd.DataFrame, points: list[dict[str, Any]], size: int, seeds: int) -> pd.DataFrame:
    """Returns a row a data set: the regrets of searches without first points, and with those chosen on the others."""
    rows = []
    for name in known.columns:
        task = tables.load(folder, "image-classifiers", name)
        tables.check_samples(task, SAMPLES, "the samples of a search")
        portfolio = chosen(known.drop(columns=name).to_numpy(), size)
        task = replace(task, first=[points[known.index[row]] for row in portfolio])
        for method in (WITHOUT, BEGUN):
            for seed in range(seeds):
                own = tables.seed_of(name, seed)
                trials = replayed(task, METHODS[method], slots=SLOTS, samples=SAMPLES, seed=own)
                group = {"task": name, "method": method, "slots": SLOTS, "seed": seed}
                rows += [group | asdict(trial) for trial in trials]
    frame = pd.DataFrame(rows)
    found = comparison.incumbents(frame)
    found = found[found["samples"].isin(READ_AT)].rename(columns={"samples": "at"})[["task", "method", "at", "regret"]]
    by_cost = comparison.regret_by_cost(frame, np.array(AT_COST)).melt(
        ["task", "method"], list(AT_COST), var_name="at", value_name="regret"
    )
    said = [f"after {n} trials" for n in READ_AT] + [f"after the time of {cost:g}" for cost in AT_COST]
    both = pd.concat([found.assign(kind=0), by_cost.assign(kind=1)])
    medians = both.pivot_table(index=["task", "method"], columns=["kind", "at"], values="regret", aggfunc="median")
    return medians.set_axis(said, axis=1).reset_index().rename(columns={"task": "data_set"})


@command
def main() -> None:
    """Prints the table and the points."""
    arguments = parser(__doc__)
    arguments.add_argument("--tables", type=Path, required=True, help="the folder that has image-classifiers/")
    arguments.add_argument("--space", default="resnet", help="the space whose recordings are read (default: resnet)")
    arguments.add_argument("--size", type=at_least(1), default=4, help="points of the portfolio (default: 4)")
    arguments.add_argument("--seeds", type=at_least(1), help="replay so many searches a data set, too (default: none)")
    given = arguments.parse_args()
    prepare_out(given.out)
    known, points = regrets(given.tables, given.space)
    if given.size > len(known):
        raise UserError(
            f"--size must be at most {len(known)}, the number of configurations that {', '.join(known.columns)} "
            f"have in common, but got {given.size}."
        )
    report(f"Regret of the first points of {given.space}", left_out(known, given.size), given.out)
    for row in chosen(known.to_numpy(), given.size):
        print(json.dumps(points[known.index[row]]))
    if given.seeds is not None:
        found = searches(given.tables, known, points, given.size, given.seeds)
        report(f"Regret of searches, median over {given.seeds} seeds", found.to_dict("records"), None)


if __name__ == "__main__":
    main()
