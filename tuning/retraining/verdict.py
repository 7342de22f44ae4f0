"""What `final` does after its contest: the choice, and what follows from it, up to the model folder."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tuning.base import averagings
from tuning.base.averagings import AVERAGINGS
from tuning.base.config import parse_config
from tuning.base.errors import UserError
from tuning.base.registries import ACCURACY, METRICS
from tuning.retraining import averaging, contest
from tuning.retraining.averaging import Gain
from tuning.retraining.contest import Contest
from tuning.training import jobs
from tuning.training.jobs import Job, Result

if TYPE_CHECKING:
    from tuning.images.splitting import Splits

TRAIN_ON = ("train", "train+valid")


@dataclass(frozen=True)
class Chosen:
    """The model that is to be saved.

    Attributes:
        job: How it was trained.
        result: What came of it.
        averaging: A name in `AVERAGINGS`: what its probabilities are the mean over.
        valid_accuracy: Of the winner's best seed or middle fold, with the averaging that was chosen.
        valid_score: The same of the metric that decides.
        train_on: "train" or "train+valid".
        gains: By how much each averaging is better than none on the valid images.
        models: The trainings that it is one of, each on a seed or fold of its own, with their results.
    """

    job: Job
    result: Result
    averaging: str
    valid_accuracy: float
    valid_score: float
    train_on: str
    gains: Mapping[str, Gain] = field(default_factory=dict)
    models: Mapping[Job, Result] = field(default_factory=dict)


def choose(held: Contest, models: Mapping[Job, Result] | None = None) -> Chosen:
    """Returns the model with the best value on the valid split; on the averaging all of them decide.

    Of folds it is the one in the middle: the best one had the easiest valid images, and need not be the best model.

    Args:
        held: The contest.
        models: What is chosen from; None is the winner's seeds or folds.
    """
    models, metric, folds = held.models if models is None else models, held.metric, held.plan.folds > 0
    taken, gains = averaging.choose(models, metric, folds=folds)
    ranked = sorted(models, key=lambda job: metric.sign * models[job].on_valid(metric), reverse=True)
    job = ranked[len(ranked) // 2 if folds else 0]
    accuracy, score = (models[job].on_valid(each, AVERAGINGS[taken].end) for each in (ACCURACY, metric))
    return Chosen(job, models[job], taken, accuracy, score, "train", gains, models)


def train_on_everything(
    chosen: Chosen, splits: "Splits", device: str, threads: int, say: Callable[[str], None]
) -> Chosen:
    """Trains what was chosen once more, on train and valid images, as long as its best epoch says; no early stopping.

    Raises:
        UserError: It failed, or the disk is full.
    """
    both = splits.train.joined(splits.valid)
    everything = replace(splits, train=both, split_hash=f"{splits.split_hash}+valid")
    job = replace(
        chosen.job,
        config=parse_config(chosen.job.config.model_dump() | {"patience": None}, "--train-on train+valid"),
        length=chosen.result.best_epoch,
        lrs=tuple(row["lr"] for row in chosen.result.epochs),
    )
    say(f"Training once more for {job.length} epochs, on train and valid images: these judge no more")
    for row in jobs.train(job, everything, device, threads):
        said = row.get("note") or row.get("error")
        say(said or contest.epoch_line(row, job.length or 0, METRICS[job.metric]))
    result = jobs.read(job, everything.split_hash)
    if result is None or result.error:
        raise UserError(f"The training on train and valid images (--train-on train+valid) failed. {job.path} says why.")
    # Its own valid figures are of images that it was trained on; the epochs to show are those that validation judged.
    return replace(chosen, job=job, result=replace(result, epochs=chosen.result.epochs), train_on="train+valid")


def spread(values: Sequence[float]) -> float | None:
    """Returns the standard deviation; None of a single value."""
    return statistics.stdev(values) if len(values) > 1 else None


def _mean_and_spread(values: Sequence[float]) -> dict[str, float | None]:
    return {"mean": statistics.mean(values), "std": spread(values)}


def _none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def describe(held: Contest, chosen: Chosen, splits: "Splits") -> dict[str, Any]:
    """Returns what is known before the test split is opened, as in `metrics.json`."""
    plan, winner, metric = held.plan, held.winner, held.metric
    row = held.table.loc[held.table["chosen"]].iloc[0]
    score = {name: _none_if_nan(row[f"{metric.column}_{name}"]) for name in ("mean", "std")}
    if chosen.job.teachers:
        score = _mean_and_spread([result.on_valid(metric) for result in chosen.models.values()])
    accuracies = [result.on_valid(ACCURACY) for result in chosen.models.values()]
    accuracy = score if metric is ACCURACY else _mean_and_spread(accuracies)
    folds = [plan.job(winner, seed).fold for seed in plan.seeds]  # One may have no model: what was to learn failed.
    return {
        "source": plan.source + ("" if winner.trial is None else f", {winner.name}"),
        "run": plan.run,
        "run_id": plan.identity,
        "trial": winner.trial,
        "search_valid_accuracy": winner.search_accuracy,
        "search_valid_score": winner.searched(metric),
        "valid_accuracy": chosen.valid_accuracy,
        "valid_score": chosen.valid_score,
        **{f"valid_accuracy_{name}": value for name, value in accuracy.items()},
        **{f"valid_score_{name}": value for name, value in score.items()},
        **averagings.recorded(chosen.averaging),
        "averaging_gains": {
            name: {"gain": each.value, "standard_error": _none_if_nan(each.error)}
            for name, each in chosen.gains.items()
        },
        "train_on": chosen.train_on,
        "train_images": len(splits.train) + (len(splits.valid) if chosen.train_on != "train" else 0),
        "best_epoch": chosen.result.best_epoch,
        "epochs": len(chosen.result.epochs),
        "seconds": chosen.result.seconds,
        "seconds_total": held.seconds + (chosen.result.seconds if chosen.train_on != "train" else 0.0),
        "seed": chosen.job.seed,
        "seeds": [job.seed for job in chosen.models],
        "folds": plan.folds,
        "fold": folds.index(chosen.job.fold) + 1 if plan.folds else None,
        "split_hash": splits.split_hash,
        "config_hash": winner.config.hash(),
        **held.facts,
    }
