"""`--ship distilled`: networks of the winner's configuration that learn from the ensemble, on fresh seeds.

One of them costs a prediction no more than the winner does. They are trained on the train images alone, as the winner
was, and judged on the same valid images; the test split has no place here. What has been trained is on disk.
"""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tuning.base.errors import counted
from tuning.base.registries import ACCURACY, Metric
from tuning.retraining import contest, seeds
from tuning.retraining.contest import Contest
from tuning.retraining.ensemble import Ensemble
from tuning.training import jobs
from tuning.training.jobs import Job, Result
from tuning.trials.slots import Slots

if TYPE_CHECKING:
    from tuning.images.splitting import Splits

# They look at every batch: the four best are nearly as good together as all, and each takes a third of a step.
MOST_TEACHERS = 4


@dataclass(frozen=True)
class Distilled:
    """Students of an ensemble.

    Attributes:
        results: Of each student that was trained.
        splits: What each job's seed was trained and judged on.
        n_teachers: Models that each of them learned from, at most.
        metric: What decides.
        lead: By how much their mean is better than the winner's on the valid images; of folds on the same ones.
    """

    results: Mapping[Job, Result]
    splits: "Mapping[int, Splits]"
    n_teachers: int
    metric: Metric
    lead: seeds.Estimate

    @property
    def is_better(self) -> bool:
        """Whether their mean is better than the winner's on the valid images."""
        return self.lead.value > 0

    @property
    def seconds(self) -> float:
        """Training time of all of them."""
        return math.fsum(result.seconds for result in self.results.values())


def reason_against(held: Contest, together: Ensemble | None) -> str:
    """Returns why the winner cannot be taught; "" where it can."""
    if together is None:
        return (
            "No ensemble of what was trained is better on the valid images than a single model, so nothing can teach."
        )
    if held.winner.config.train == "head":
        return "The winner's head alone was trained, on features that never change: a teacher has nothing to add."
    return ""


def students(held: Contest, together: Ensemble) -> dict[Job, "Splits"]:
    """Returns what is to be trained, and on what: as many networks as the winner has, on seeds that nothing had yet.

    A student of a fold learns from the members that were trained on the same fold: the others know its valid images.
    """
    plan, config_hash = held.plan, held.winner.config.hash()
    fresh = seeds.fresh_seeds(f"{plan.identity or config_hash}/distilled", len(plan.seeds), plan.seeds)
    found = {}
    for seed, own in zip(plan.seeds, fresh, strict=True):
        alike = plan.job(held.winner, seed, held.done[config_hash, seed].accumulation)
        taught_by = [
            (job, weight)
            for job, weight in zip(together.jobs, together.weights, strict=True)
            if not plan.folds or job.seed == seed
        ][:MOST_TEACHERS]
        total = sum(weight for _, weight in taught_by)
        teachers, weights = zip(*((job, weight / total) for job, weight in taught_by), strict=True)
        found[replace(alike, seed=own, teachers=teachers, weights=weights)] = held.splits[seed]
    return found


def train(
    held: Contest, together: Ensemble, slots: Slots, threads: int | None, say: Callable[[str], None]
) -> Distilled | None:
    """Trains the students and compares them with the winner; None where all of them failed, which is said.

    Args:
        held: The contest.
        together: The teachers.
        slots: Where they run.
        threads: For torch, in this process; None is all cores.
        say: Receives a line an epoch.

    Raises:
        UserError: The disk is full, or the weights of a teacher are damaged.
    """
    planned, plan = students(held, together), held.plan
    splits = {job.seed: part for job, part in planned.items()}
    n_teachers = max(len(job.teachers) for job in planned)
    say(
        f"Distilling: {counted(len(planned), 'network')} of the winner's configuration "
        f"{'learns' if len(planned) == 1 else 'learn'} from {counted(n_teachers, 'model')}"
    )
    order = list(planned)
    numbers = {job.seed: i for i, job in enumerate(order, start=1)}

    def name(job: Job) -> str:
        return f"distilled, {plan.repeat} {numbers[job.seed]}  "  # A job that is run again may be in smaller parts.

    waiting = iter([job for job in order if jobs.read(job, splits[job.seed].split_hash) is None])
    failures = contest.train(lambda: next(waiting, None), splits, slots, threads, say, name, many=len(order) > 1)
    failed = dict(failures)
    results = {}
    for job in order:
        result = jobs.read(job, splits[job.seed].split_hash)
        if result is not None and not result.error:
            results[job] = result
        elif result is not None:
            failed[job] = result.error
    if not results:
        say(f"No network could be distilled. The last error was: {next(reversed(failed.values()))}")
        return None
    found = Distilled(results, splits, n_teachers, held.metric, _lead(held, list(planned), results))
    say(described(found, plan.repeat))
    return found


def described(found: Distilled, repeat: str) -> str:
    """Returns in a sentence what the students are worth on the valid images."""
    metric, values = found.metric, [result.on_valid(found.metric) for result in found.results.values()]
    over = counted(len(values), repeat if repeat == "fold" else "fresh seed")
    value, low, high = found.lead
    side = "better" if value >= 0 else "worse"
    interval = "" if math.isnan(low) else f" (95% interval {metric.gap(low)} to {metric.gap(high)})"
    return (
        f"Distilled: valid {metric.title} {metric.said(statistics.mean(values))} over {over}, "
        f"{metric.gap(abs(value), '')}{metric.unit} {side} than the winner{interval}"
    )


def as_metrics(found: Distilled) -> dict[str, Any]:
    """Returns what is known before the test split is opened, as in `metrics.json`."""
    return {
        "networks": len(found.results),
        "teachers": found.n_teachers,
        "valid_accuracy_mean": statistics.mean(result.on_valid(ACCURACY) for result in found.results.values()),
        "valid_score_mean": statistics.mean(result.on_valid(found.metric) for result in found.results.values()),
        **contest.estimate("lead", found.lead),
    }


def _lead(held: Contest, planned: list[Job], results: Mapping[Job, Result]) -> seeds.Estimate:
    """Returns by how much the students' mean is better; of folds over those that were judged on the same ones.

    Seeds make no pairs: where a student failed, the winner's mean is still that over all of its seeds.
    """
    import pandas as pd

    metric, winner = held.metric, held.winner.config.hash()
    values = pd.DataFrame(
        {
            i: [held.done[winner, seed].on_valid(metric), results[job].on_valid(metric) if job in results else None]
            for i, (seed, job) in enumerate(zip(held.plan.seeds, planned, strict=True))
        },
        index=["winner", "distilled"],
        dtype="float64",
    )
    found = seeds.summarise(values, "distilled", metric)
    row, mean = found.loc["winner"].to_dict(), found[f"{metric.column}_mean"]
    lead = [float(row[name]) for name in ("difference", "difference_low", "difference_high")]
    value = lead[0] if held.plan.folds else metric.sign * float(mean["distilled"] - mean["winner"])
    return seeds.Estimate(*(each - lead[0] + value for each in lead))
