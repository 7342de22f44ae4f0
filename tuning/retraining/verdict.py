"""What `final` does after its contest: the choice, the rehearsal, and the one opening of the test split."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning.base import files
from tuning.base.config import parse_config
from tuning.base.errors import UserError, each_alone
from tuning.retraining import artefacts, contest, model_card
from tuning.retraining.artefacts import Outcome
from tuning.retraining.contest import Contest
from tuning.runs.openings import OPENED, RESULT, times_opened
from tuning.runs.openings import append as log_test
from tuning.training import jobs

if TYPE_CHECKING:
    from torch import nn

    from tuning.images.datasets import Labelled
    from tuning.images.splitting import Splits
    from tuning.retraining.seeds import Estimate

TRAIN_ON = ("train", "train+valid")
REHEARSED, MOST_TEST_IMAGES = 2_000, 10_000
FINISHING = "The test split is open: the command ends as soon as its result is written, in seconds."


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


def train_on_everything(chosen: Chosen, splits: "Splits", device: str, threads: int) -> Chosen:
    """Trains what was chosen once more, on train and valid images, as long as its best epoch says; no early stopping.

    Raises:
        UserError: It failed, or the disk is full.
    """
    import numpy as np

    from tuning.images.datasets import Labelled

    both = zip(vars(splits.train).values(), vars(splits.valid).values(), strict=True)
    everything = replace(splits, train=Labelled(*map(np.concatenate, both)), split_hash=f"{splits.split_hash}+valid")
    job = replace(
        chosen.job,
        config=parse_config(chosen.job.config.model_dump() | {"patience": None}, "--train-on train+valid"),
        length=chosen.result.best_epoch,
        lrs=tuple(row["lr"] for row in chosen.result.epochs),
    )
    print(
        f"Training once more for {job.length} epochs, on train and valid images: these judge no more",
        flush=True,
    )
    for row in jobs.train(job, everything, device, threads):
        said = row.get("note") or row.get("error")
        print(said or contest.epoch_line(row, job.length or 0), flush=True)
    result = jobs.read(job, everything.split_hash)
    if result is None or result.error:
        raise UserError(f"--train-on train+valid must train to its end, but failed; see {job.path} for why.")
    # Its own valid figures are of images that it was trained on; the epochs to show are those that validation judged.
    return replace(chosen, job=job, result=replace(result, epochs=chosen.result.epochs), train_on="train+valid")


def describe(held: Contest, chosen: Chosen, splits: "Splits") -> dict[str, Any]:
    """Returns what is known before the test split is opened, as in `metrics.json`."""
    plan, winner = held.plan, held.winner
    row = held.table.loc[held.table["chosen"]].iloc[0]
    default, random = held.behind(plan.default), held.behind(plan.random)
    return {
        "source": plan.source + ("" if winner.trial is None else f", trial {winner.trial}"),
        "run": plan.run,
        "run_id": plan.identity,
        "trial": winner.trial,
        "search_valid_accuracy": winner.search_accuracy,
        "valid_accuracy": chosen.valid_accuracy,
        "valid_accuracy_mean": float(row["valid_accuracy_mean"]),
        "valid_accuracy_std": _number(row["valid_accuracy_std"]),
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
        "lengthening": plan.lengthening,
        **_estimate("shrinkage", held.shrinkage),
        **_estimate("default_difference", default),
        **_estimate("random_difference", random),
    }


@dataclass(frozen=True)
class Ready:
    """What `write_everything` needs, whichever images stand for the test split.

    Attributes:
        model: On the CPU.
        trained_on: What the model makes of some train images.
        rehearsed: The valid images that stood for the test split.
        device: What the test images are evaluated on.
    """

    held: Contest
    chosen: Chosen
    splits: "Splits"
    model: "nn.Module"
    trained_on: Outcome
    rehearsed: "Labelled"
    device: str


def rehearse(held: Contest, chosen: Chosen, splits: "Splits", staging: Path, *, device: str) -> Ready:
    """Writes everything for valid images, so that what can fail does so before the test split is opened.

    Raises:
        UserError: The disk is full, the pictures cannot be drawn, or the model cannot be loaded again.
    """
    model = jobs.load_model(chosen.job, splits, "cpu")
    probe = artefacts.probe_images(splits.train)
    images = type(splits.valid)(splits.valid.images[:REHEARSED], splits.valid.labels[:REHEARSED])
    flip = chosen.flip_averaging
    ready = Ready(held, chosen, splits, model, _outcome(model, probe, splits, "cpu", flip), images, device)
    outcome = _outcome(jobs.load_model(chosen.job, splits, device), images, splits, device, flip)
    figures = _test_metrics(outcome, [outcome.accuracy] * len(held.plan.seeds)) | {"test_opened": 1}
    try:
        problems = write_everything(
            ready, describe(held, chosen, splits) | figures, outcome, images, staging, rehearsing=True
        )
        artefacts.check_drawn(staging, problems)
    except ImportError as error:
        raise UserError(
            f"What belongs to the model cannot be written, because a package is missing or broken: {error}. Install it "
            "again; what has been trained is kept."
        ) from error
    return ready


def write_everything(
    ready: Ready, metrics: Mapping[str, Any], test: Outcome, images: "Labelled", folder: Path, *, rehearsing: bool
) -> list[str]:
    """Writes all that belongs to the model but its exports; returns a sentence for each part that is left out.

    What describes the model only must not cost its figures: except when rehearsing, its failure is such a sentence.

    Raises:
        UserError: The disk is full.
    """
    splits, chosen = ready.splits, ready.chosen
    artefacts.write_model(folder, ready.model, chosen.job.config, splits, metrics)
    files.write_text(folder / "final.csv", ready.held.table.to_csv(index=False))
    problems = artefacts.write_outcome(folder, test, images, splits.class_names, chosen.result.epochs)
    parts = {
        artefacts.SEPARABILITY: lambda: problems.extend(artefacts.write_separability(folder, ready.trained_on, test)),
        model_card.CARD: lambda: model_card.write_card(folder, splits.valid.images),
    }
    for name in parts:
        (folder / name).unlink(missing_ok=True)  # Of the rehearsal: it is of other images.
    if rehearsing:
        for write in parts.values():
            write()
    else:
        each_alone(parts, problems.append)
    return problems


def test_once(
    ready: Ready, models: Sequence["nn.Module"], *, data_dir: Path | None, log: Path, staging: Path
) -> tuple[dict[str, Any], Outcome, "Labelled"]:
    """Opens the test split and writes that down; returns the metrics, the saved model's outcome, and the test images.

    Args:
        ready: What was chosen.
        models: The model to be saved, then the winner's of each seed; on the device, ready to evaluate.
        data_dir: Holds the data set's files, where they are the user's own.
        log: The folder of the log.
        staging: Where room was reserved.

    Raises:
        UserError: The data cannot be had.
    """
    from tuning.images.datasets import load_test

    splits, flip_averaging = ready.splits, ready.chosen.flip_averaging
    metrics = describe(ready.held, ready.chosen, splits)
    # The choice is made: only now the test split is opened, and the log says so before anything is seen of it.
    log_test(log, metrics | {"event": OPENED, "dataset": splits.dataset})
    images = load_test(splits.dataset, data_dir)
    outcomes = {flip: _outcome(models[0], images, splits, ready.device, flip) for flip in (False, True)}
    accuracies = [_outcome(each, images, splits, ready.device, flip_averaging).accuracy for each in models[1:]]
    metrics |= _test_metrics(outcomes[flip_averaging], accuracies) | {
        "test_accuracy_plain": outcomes[False].accuracy,
        "test_accuracy_flip_averaging": outcomes[True].accuracy,
        "test_opened": times_opened(log, splits.dataset),
    }
    artefacts.give_back(staging)
    log_test(log, metrics | {"event": RESULT, "dataset": splits.dataset})
    return metrics, outcomes[flip_averaging], images


def opened_again(metrics: Mapping[str, Any]) -> str:
    """Returns what it does to the figure that the test split had been opened before."""
    from tuning.retraining.seeds import best_of

    n, accuracy = metrics["test_opened"], metrics["test_accuracy"]
    too_high = 100 * best_of(n) * math.sqrt(accuracy * (1 - accuracy) / metrics["test_images"])
    return (
        f"The test split has been opened {n} times for this data set. This figure is unbiased, and its interval right, "
        f"only if nothing was changed in the light of the earlier ones. The best of {n} figures is too high by up to "
        f"{too_high:.2f} points on average ({best_of(n):.2f} standard errors: equally good models, independent errors)."
    )


def _outcome(model: "nn.Module", part: Any, splits: "Splits", device: str, flip_averaging: bool) -> Outcome:
    from tuning.training.fit import evaluate

    log_probabilities, features = evaluate(model, part, splits, device=device, flip_averaging=flip_averaging)
    return Outcome(part.labels, log_probabilities.numpy(), features.numpy())


def _test_metrics(test: Outcome, accuracies: Sequence[float]) -> dict[str, Any]:
    """Returns figures of the saved model, and the mean over the winner's seeds."""
    from tuning.runs import analysis

    n = len(test.labels)
    right = int((test.predictions == test.labels).sum())
    loss = -float(test.log_probabilities[range(n), test.labels].mean())
    return {
        "test_accuracy": right / n,
        "test_interval": list(analysis.wilson_interval(right, n)),
        "test_accuracy_mean": statistics.mean(accuracies),
        "test_accuracy_std": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "test_loss": loss,
        "test_images": n,
        "ece": analysis.calibration(test.labels, test.probabilities)[0],
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _estimate(name: str, estimate: "Estimate | None") -> dict[str, Any]:
    """Returns a figure and its interval by name; None where there is none."""
    if estimate is None:
        return {name: None, f"{name}_interval": None}
    interval = None if math.isnan(estimate.low) else [estimate.low, estimate.high]
    return {name: _number(estimate.value), f"{name}_interval": interval}
