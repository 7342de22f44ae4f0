"""What `final` does after its contest: the choice, and what follows from it, up to the model folder."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tuning.base.config import parse_config
from tuning.base.errors import UserError
from tuning.retraining import contest
from tuning.retraining.contest import Contest
from tuning.training import jobs

if TYPE_CHECKING:
    from tuning.images.splitting import Splits

TRAIN_ON = ("train", "train+valid")


@dataclass(frozen=True)
class Chosen:
    """The model that is to be saved.

    Attributes:
        job: How it was trained.
        result: What came of it.
        flip_averaging: Its probabilities are the mean over an image and its mirror image.
        valid_accuracy: Of the winner's best seed, with the flip averaging that was chosen.
        train_on: "train" or "train+valid".
    """

    job: jobs.Job
    result: jobs.Result
    flip_averaging: bool
    valid_accuracy: float
    train_on: str


def choose(held: Contest) -> Chosen:
    """Returns the winner's seed with the best valid accuracy; on flip averaging all its seeds decide."""
    won = held.won
    plain, mirrored = (
        math.fsum(getattr(result, f"valid_accuracy_{name}") for result in won.values())
        for name in ("plain", "flip_averaging")
    )
    seed = max(won, key=lambda seed: won[seed].valid_accuracy or 0.0)
    flip = mirrored > plain
    accuracy = won[seed].valid_accuracy_flip_averaging if flip else won[seed].valid_accuracy_plain
    job = held.winner.job(seed, held.plan.folder, won[seed].accumulation)
    return Chosen(job, won[seed], flip, float(accuracy or 0.0), "train")


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
        say(said or contest.epoch_line(row, job.length or 0))
    result = jobs.read(job, everything.split_hash)
    if result is None or result.error:
        raise UserError(f"The training on train and valid images (--train-on train+valid) failed. {job.path} says why.")
    # Its own valid figures are of images that it was trained on; the epochs to show are those that validation judged.
    return replace(chosen, job=job, result=replace(result, epochs=chosen.result.epochs), train_on="train+valid")


def describe(held: Contest, chosen: Chosen, splits: "Splits") -> dict[str, Any]:
    """Returns what is known before the test split is opened, as in `metrics.json`."""
    plan, winner = held.plan, held.winner
    row = held.table.loc[held.table["chosen"]].iloc[0]
    return {
        "source": plan.source + ("" if winner.trial is None else f", trial {winner.trial}"),
        "run": plan.run,
        "run_id": plan.identity,
        "trial": winner.trial,
        "search_valid_accuracy": winner.search_accuracy,
        "valid_accuracy": chosen.valid_accuracy,
        "valid_accuracy_mean": float(row["valid_accuracy_mean"]),
        "valid_accuracy_std": None if math.isnan(row["valid_accuracy_std"]) else float(row["valid_accuracy_std"]),
        "flip_averaging": chosen.flip_averaging,
        "train_on": chosen.train_on,
        "train_images": len(splits.train) + (len(splits.valid) if chosen.train_on != "train" else 0),
        "best_epoch": chosen.result.best_epoch,
        "epochs": len(chosen.result.epochs),
        "seconds": chosen.result.seconds,
        "seconds_total": held.seconds + (chosen.result.seconds if chosen.train_on != "train" else 0.0),
        "seed": chosen.job.seed,
        "seeds": list(plan.seeds),
        "split_hash": splits.split_hash,
        "config_hash": winner.config.hash(),
        "n_parameters": chosen.result.n_parameters,
        **held.facts,
    }
