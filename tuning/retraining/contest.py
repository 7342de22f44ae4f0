"""The contest of `tuning.final`: the configurations of a plan on fresh seeds, judged on the valid split; who wins.

The test split has no place here. What has been trained is on disk: held again, a contest goes on from there.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tuning.base import interrupts, machine, tables
from tuning.base.errors import counted
from tuning.base.registries import ACCURACY, METRICS, Metric
from tuning.retraining import regularising, seeds
from tuning.retraining.candidates import Entry, Plan
from tuning.retraining.race import Race
from tuning.runs.verdicts import luck, verdicts
from tuning.training import jobs
from tuning.training.jobs import Job, Result
from tuning.trials.slots import Slots

if TYPE_CHECKING:
    import pandas as pd

    from tuning.images.splitting import Splits


@dataclass(frozen=True)
class Contest:
    """What came of a plan.

    Attributes:
        done: Results by configuration hash and seed.
        failed: Configuration hash to the reason; such a configuration cannot win and is not compared.
        table: A row an entry, as in `final.csv`.
        shrinkage: The candidates' search values minus their fresh means; None without a search.
        splits: What each seed was trained and judged on.
    """

    plan: Plan
    done: Mapping[tuple[str, int], Result]
    failed: Mapping[str, str]
    table: "pd.DataFrame"
    shrinkage: seeds.Estimate | None
    splits: Mapping[int, "Splits"] = field(default_factory=dict)

    @property
    def metric(self) -> Metric:
        """What decides."""
        return METRICS[self.plan.metric]

    @property
    def winner(self) -> Entry:
        """Of those that may win, the one with the best mean."""
        return self.plan.entries[int(self.table["chosen"].to_numpy().argmax())]

    @property
    def won(self) -> dict[int, Result]:
        """The winner's results by seed."""
        return {seed: self.done[self.winner.config.hash(), seed] for seed in self.plan.seeds}

    @property
    def models(self) -> dict[Job, Result]:
        """The winner's trainings, each on a seed or fold of its own, with their results."""
        return {self.plan.job(self.winner, seed, result.accumulation): result for seed, result in self.won.items()}

    @property
    def seconds(self) -> float:
        """Training time of all that was trained."""
        return math.fsum(result.seconds for result in self.done.values())

    def behind(self, config_hash: str | None) -> seeds.Estimate | None:
        """Returns the winner's lead over a configuration; None where that is none or failed."""
        rows = self.table[self.table["config_hash"] == config_hash]
        if rows.empty or rows["difference"].isna().all():
            return None
        return seeds.Estimate(*(float(rows[f"difference{end}"].iloc[0]) for end in ("", "_low", "_high")))

    @property
    def facts(self) -> dict[str, Any]:
        """What the search was worth, as in `metrics.json`."""
        return {
            "metric": self.plan.metric,
            "lengthening": self.plan.lengthening,
            **estimate("shrinkage", self.shrinkage),
            "default_trial": self.plan.default_trial,
            **estimate("default_difference", self.behind(self.plan.default)),
            **estimate("random_difference", self.behind(self.plan.random)),
            **estimate("unchanged_difference", self.behind(self.plan.unchanged)),
            "regularised": dict(self.winner.regularised),
        }


def hold(
    plan: Plan,
    splits: "Splits | Mapping[int, Splits]",
    slots: Slots,
    threads: int | None = None,
    say: Callable[[str], None] = print,
) -> Contest:
    """Trains every configuration on the first seed, those that can still win on the others, and compares them.

    Which these are is asked each time that a training ends (`race.py`).

    Args:
        plan: What is to be trained.
        splits: Train and valid images, of all seeds, or of each.
        slots: Where they run; where there is one, or a single training, it is done in this process.
        threads: For torch, in this process; None is all cores.
        say: Receives a line an epoch.

    Raises:
        UserError: Every candidate failed, or the disk is full.
    """
    parts = splits if isinstance(splits, Mapping) else dict.fromkeys(plan.seeds, splits)
    race = Race(plan, parts)
    for job, error in _train(race, slots, threads, say):
        race.failed[job.config.hash()] = error
    return replace(_judge(race), splits=parts)


def show(contest: Contest) -> None:
    """Prints the table, who cannot be told from the winner, what the search's values lost, and what it was worth."""
    table, plan, metric = contest.table, contest.plan, contest.metric
    column, title = metric.column, metric.title
    searched, mean, std = f"search_{metric.called}", f"mean_{title}", f"std_{title}"
    shown = table[["role", "rank", "trial"]].assign(
        **{searched: table[f"search_{column}"], mean: table[f"{column}_mean"], std: table[f"{column}_std"]},
        interval=[_interval(low, high, metric) for low, high in table[[f"{column}_low", f"{column}_high"]].to_numpy()],
        behind=table.apply(_behind, axis="columns", metric=metric),
        note=table.apply(lambda row: _note(row, contest), axis="columns"),
    )
    least = (std, "rank", "trial", searched, "interval", "behind")
    said = dict.fromkeys((searched, mean, std), metric.said)
    heading = f"Valid {title} over {counted(len(plan.seeds), plan.repeat if plan.folds else 'fresh seed')}"
    tables.print_frame(shown, heading, least=least, said=said)
    print("\n".join(explain(contest)))


def _no_gain(contest: Contest) -> str:
    """Returns what counts as no gain, for a person."""
    return f"{contest.metric.gap(seeds.NO_GAIN, '')}{contest.metric.unit}"


def explain(contest: Contest) -> list[str]:
    """Returns sentences on dropped configurations, shrinkage, and what the search was worth."""
    lines = []
    if (contest.table["state"] == "dropped").any():
        lines.append(
            f"Dropped: the chance of the best mean is below {seeds.NO_CHANCE:.0%}, or a candidate would add less than "
            f"{_no_gain(contest)} to it on average. Such a difference was a reason to stop, so it is a little too "
            "large."
        )
    if contest.shrinkage is not None:
        shrunk = points(*contest.shrinkage, contest.metric)
        parts = ["The search's values", "the fresh means"]
        if not contest.metric.greater_is_better:
            parts = ["The fresh means", "the search's values"]
        lines.append(f"{' minus '.join(parts)}: {shrunk}. {luck(contest.plan.lengthening, contest.metric)}")
    return [*lines, *(sentence for _, sentence in verdicts(contest.facts))]


def _train(race: Race, slots: Slots, threads: int | None, say: Callable[[str], None]) -> Iterator[tuple[Job, str]]:
    """Trains what a race asks for, saying each epoch; yields what failed, and why."""
    plan = race.plan
    entries = {entry.config.hash(): entry for entry in plan.entries}
    many = len(plan.entries) * len(plan.seeds) > 1

    def name(job: Job) -> str:
        seed = plan.seeds.index(job.seed) + 1
        return f"{entries[job.config.hash()].name}, {plan.repeat} {seed}  " if many else ""

    yield from train(race.next_job, race.splits, slots, threads, say, name, many=many)


def train(
    next_job: Callable[[], Job | None],
    splits: "Mapping[int, Splits]",
    slots: Slots,
    threads: int | None,
    say: Callable[[str], None],
    name: Callable[[Job], str],
    *,
    many: bool,
) -> Iterator[tuple[Job, str]]:
    """Trains jobs side by side or, where there is one slot or no more than one of them, here; says each epoch.

    Args:
        next_job: As `tuning.trials.worker.train_all` takes it.
        splits: Of each seed.
        slots: Where they run.
        threads: For torch, in this process; None is all cores.
        say: Receives a line an epoch.
        name: Returns how a job's lines begin.
        many: Whether there may be more than one.

    Yields:
        What failed, and why.
    """
    if many and slots.concurrency > 1:
        from tuning.trials.worker import train_all

        rows = train_all(next_job, splits, slots)
    else:
        n_threads, wanted = threads or machine.cores(), iter(next_job, None)
        rows = ((job, row) for job in wanted for row in jobs.train(job, splits[job.seed], slots.device, n_threads))
    for job, row in rows:
        interrupts.check()
        if "note" in row:
            say(f"{name(job)}{row['note']}")
        elif "error" in row:
            say(f"{name(job)}failed: {row['error']}")
            yield job, row["error"]
        else:
            say(name(job) + epoch_line(row, job.length or job.config.epochs, METRICS[job.metric]))


def epoch_line(row: Mapping[str, Any], epochs: int, metric: Metric = ACCURACY) -> str:
    """Returns an epoch in a line."""
    shown = metric.column == "valid_score" and metric.name != "log_loss"  # Else it stands there already.
    score = f"  {metric.title} {metric.said(row['valid_score'])}" if shown else ""
    best = "  best so far" if row["best_epoch"] == row["epoch"] else ""
    return (
        f"epoch {row['epoch']:>3}/{epochs}  train {row['train_loss']:.4f} {row['train_accuracy']:.2%}  "
        f"valid {row['valid_loss']:.4f} {row['valid_accuracy']:.2%}{score}  {row['epoch_seconds']:.0f} s{best}"
    )


def _judge(race: Race) -> Contest:
    import pandas as pd

    plan, done, failed, values = race.plan, race.done, race.failed, race.on_valid()
    hashes, metric = list(values.index), race.metric
    winner = seeds.choose(metric.sign * values.loc[race.candidates])
    taken = [math.fsum(done[key].seconds for key in done if key[0] == config_hash) for config_hash in hashes]
    n_trained = values.notna().sum(axis=1).tolist()
    state = [_state(race, entry, n) for entry, n in zip(plan.entries, n_trained, strict=True)]
    table = pd.DataFrame(
        {
            "role": [entry.role for entry in plan.entries],
            "rank": pd.array([entry.rank for entry in plan.entries], dtype="Int64"),
            "trial": pd.array([entry.trial for entry in plan.entries], dtype="Int64"),
            "config_hash": hashes,
            f"search_{metric.column}": pd.array([e.searched(metric) for e in plan.entries], dtype="float64"),
        },
        index=values.index,
    )
    table = table.join(seeds.summarise(values, winner, metric)).assign(
        chosen=table.index == winner, state=state, seconds=taken
    )
    table = table.join(values.rename(columns=lambda i: f"{plan.repeat}_{i}")).reset_index(drop=True)
    asked = [e for e in plan.entries if e.role in ("candidate", "unchanged") and not e.regularised]
    best = {e.config.hash(): e.searched(metric) for e in asked}
    found, signed = pd.Series(best, dtype="float64"), metric.sign * values.loc[list(best)]
    unknown = found.isna() | signed.isna().all(axis=1)
    shrunk = None if unknown.all() else seeds.shrinkage(metric.sign * found, signed)
    return Contest(plan, done, failed, table, shrunk)


def _state(race: Race, entry: Entry, n_trained: int) -> str:
    """Returns what became of a configuration that was trained on so many seeds."""
    if entry.config.hash() in race.failed:
        return "failed"
    if n_trained == 0:
        return "not needed"
    if n_trained == len(race.plan.seeds):
        return "complete"
    return "no time left" if entry.config.hash() in race.out_of_time else "dropped"


def _note(row: "pd.Series[Any]", contest: Contest) -> str:
    if row["state"] == "failed":
        return f"failed: {contest.failed[row['config_hash']]}"
    changed = {entry.config.hash(): entry.regularised for entry in contest.plan.entries}[row["config_hash"]]
    with_it = f"with {regularising.said(changed)}" if changed else ""
    return ", ".join(filter(None, (_outcome(row, contest), with_it)))


def _outcome(row: "pd.Series[Any]", contest: Contest) -> str:
    """Returns what became of a configuration, for its note."""
    if row["chosen"]:
        return "chosen"
    if row["state"] == "not needed":
        return "not trained: more regularisation already did better than the search"
    repeat = contest.plan.repeat
    n = sum(not math.isnan(row[f"{repeat}_{i + 1}"]) for i in range(len(contest.plan.seeds)))
    if row["state"] == "dropped":
        return f"dropped after its first {repeat}" if n == 1 else f"dropped after {counted(n, repeat)}"
    told = ["cannot be told from the winner"] if row["difference_low"] <= 0 else []
    if row["state"] == "no time left":
        told.append(f"no time for more than {f'its first {repeat}' if n == 1 else counted(n, repeat)}")
    return ", ".join(told)


def _behind(row: "pd.Series[Any]", metric: Metric) -> str:
    return "-" if row["chosen"] else points(row["difference"], row["difference_low"], row["difference_high"], metric)


def _interval(low: float, high: float, metric: Metric) -> str:
    return "-" if math.isnan(low) else f"{metric.said(low)} to {metric.said(high)}"


def points(value: float, low: float, high: float, metric: Metric) -> str:
    """Returns a difference of values, with its interval where there is one."""
    if math.isnan(value):
        return "-"
    interval = "" if math.isnan(low) else f" ({metric.gap(low)} to {metric.gap(high)})"
    return f"{metric.gap(value)}{interval}{metric.unit}"


def estimate(name: str, found: seeds.Estimate | None) -> dict[str, Any]:
    """Returns a figure and its interval by name, as in `metrics.json`; None where there is none."""
    if found is None:
        return {name: None, f"{name}_interval": None}
    interval = None if math.isnan(found.low) else [found.low, found.high]
    return {name: None if math.isnan(found.value) else found.value, f"{name}_interval": interval}
