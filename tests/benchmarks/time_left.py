"""How far off the time is that a search says it will still take, on recorded learning curves; nothing is trained.

    python tests/benchmarks/time_left.py --tables DIR

Searches of random points with ASHA are replayed: 20 trials on two slots, and 60 on eight, or as many as the table has
configurations, if these are fewer. At five moments of each, the time that is left is estimated from what a person has
seen by then. "off" is the mean distance from the truth, "bias" the mean difference, in per cent of the whole search's
time. "by the mean" is the rule of version 0.2.0: a trial to come takes the mean of those that have ended, and so does
one that runs, unless it has taken more already. Both rules are averaged over the moments at which both say something;
"said" is their number.

`--seeds`, `--tasks` and `--samples` shorten the run.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import tables
from common import at_least, command, parser, prepare_out, report
from methods import METHODS
from simulation import _Search

from tuning.trials.remaining import Timed, seconds_left

METHOD = METHODS["random + asha"]
MOMENTS = (0.15, 0.3, 0.5, 0.7, 0.9)
SEARCHES = ((2, 20), (8, 60))  # Slots and trials.
RULES = ("this one", "by the mean")


class Watched(_Search):
    """A replayed search whose epochs and ends have moments, in the table's unit of cost.

    Attributes:
        began: Of each trial, by number.
        epochs: Of each, the moments at which its epochs ended.
        ended: Of each, when it left its slot.
    """

    def run(self, slots: int, samples: int) -> list[Any]:
        """Runs the search."""
        self.began: dict[int, float] = {}
        self.epochs: dict[int, list[float]] = {}
        self.ended: dict[int, float] = {}
        return super().run(slots, samples)

    def _begin(self) -> None:
        super()._begin()
        self.began[len(self.began)] = self._clock

    def _report(self, number: int) -> None:
        self.epochs.setdefault(number, []).append(self._clock)
        super()._report(number)

    def _end(self, number: int, row: Any) -> None:
        self.ended[number] = self._clock
        super()._end(number, row)

    def seen(self, now: float) -> list[tuple[Timed, float]]:
        """Returns what is known of the trials at a moment, and how long each has had a slot."""
        found = []
        for number, began in self.began.items():
            if began <= now:
                moments = [moment for moment in self.epochs[number] if moment <= now]
                last, length = max([began, *moments]), self._trials[number].stand_in.config["config"]["epochs"]
                known = (last - began) / len(moments) if moments else None
                running = self.ended[number] > now
                since = now - last if running else 0.0
                found.append((Timed(len(moments), length, known, running, since), last - began + since))
        return found


def by_mean(seen: Sequence[tuple[Timed, float]], n_to_come: int, slots: int) -> float | None:
    """Returns what version 0.2.0 said."""
    spans = [span for trial, span in seen if not trial.running]
    if len(spans) < 2:
        return None
    mean, running = sum(spans) / len(spans), []
    for trial, span in seen:
        if trial.running:
            in_full = (trial.length - trial.epochs) * (trial.epoch_seconds or 0.0) - trial.since
            running.append(mean - span if span < mean else max(0.0, in_full))
    return max([(n_to_come * mean + sum(running)) / slots, *running])


def measured(task: tables.Task, slots: int, samples: int, seeds: int) -> list[dict[str, Any]]:
    """Returns a row for each rule: how far off it is on a task, at each moment, in per cent of the search's time."""
    off: dict[tuple[str, float], list[float]] = {}
    for seed in range(seeds):
        own = tables.seed_of(task.name, seed)
        search = Watched(task, METHOD, METHOD.sampler(own), own)
        search.run(slots, samples)
        end = max(search.ended.values())
        for moment in MOMENTS:
            seen = search.seen(moment * end)
            to_come = samples - len(seen)
            said = {
                RULES[0]: seconds_left([trial for trial, _ in seen], to_come, slots),
                RULES[1]: by_mean(seen, to_come, slots),
            }
            for rule, seconds in said.items() if None not in said.values() else ():
                off.setdefault((rule, moment), []).append(100 * (seconds / end - (1 - moment)))
    rows = []
    for rule in RULES:
        known = {moment: np.array(off.get((rule, moment), [])) for moment in MOMENTS}
        each = {f"off at {moment:.0%}": _mean(np.abs(values)) for moment, values in known.items()}
        every = np.concatenate(list(known.values()))
        some = {"trials": samples, "searches": seeds, "said": len(every)}
        rows.append({"task": task.name, "slots": slots, "rule": rule, **some, **each, "bias": _mean(every)})
    return rows


def _mean(values: Sequence[float] | tables.Array) -> float:
    """Returns the mean, NaN of none."""
    return float(np.mean(values)) if len(values) else float("nan")


@command
def main() -> None:
    """Prints the table."""
    arguments = parser(__doc__)
    arguments.add_argument("--tables", type=Path, required=True, help="a folder as search_quality.py takes it")
    arguments.add_argument("--tasks", type=at_least(1), help="of each format, the first so many (default: all)")
    arguments.add_argument("--seeds", type=at_least(1), default=10, help="searches of a task (default: 10)")
    arguments.add_argument(
        "--samples",
        type=at_least(2),
        help="trials a search (default: 20 on two slots, 60 on eight, at most as many as the table has configurations)",
    )
    given = arguments.parse_args()
    prepare_out(given.out)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    kinds = tables.names(given.tables)
    names = [
        name for kind in set(kinds.values()) for name in [n for n, of in kinds.items() if of == kind][: given.tasks]
    ]
    loaded = [tables.load(given.tables, kinds[name], name) for name in sorted(names)]
    for task in loaded if given.samples else ():
        tables.check_samples(task, given.samples, "--samples")
    rows = []
    for task in loaded:
        for slots, usual in SEARCHES:
            samples = given.samples or min(usual, task.n_configurations or usual)
            if samples < usual and not given.samples:
                print(f"{task.name}: {samples} trials on {slots} slots, all its configurations", file=sys.stderr)
            rows += measured(task, slots, samples, given.seeds)
        print(f"{task.name} is measured", file=sys.stderr)
    report("How far off the time that is left was, in per cent of the search's time", rows, given.out)
    for rule in RULES:
        of_rule = [row for row in rows if row["rule"] == rule]
        every = [row[name] for row in of_rule for name in row if name.startswith("off") and np.isfinite(row[name])]
        n = sum(row["said"] for row in of_rule)
        print(f"{rule}: off by {_mean(every):.0f} % on average, at the {n} moments at which both rules say something")


if __name__ == "__main__":
    main()
