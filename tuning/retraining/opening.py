"""The one opening of the test split, and its rehearsal with valid images: whatever can fail fails before.

Only this file names what loads the test split.
"""

import contextlib
import functools
import math
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning.base import files, interrupts
from tuning.base.averagings import AVERAGINGS, NONE
from tuning.base.errors import UserError, each_alone
from tuning.base.registries import ACCURACY
from tuning.retraining import artefacts, contest, ensemble, export, folds, model_card, scoring, suspects
from tuning.retraining.artefacts import Outcome
from tuning.retraining.candidates import Plan
from tuning.retraining.shipping import SINGLE, Shipment, settle
from tuning.retraining.verdict import Chosen
from tuning.runs import final_models, openings, replacing
from tuning.runs.openings import OPENED, RESULT
from tuning.runs.openings import append as log_test
from tuning.runs.run_folder import MODEL_DIR
from tuning.runs.verdicts import metric_of
from tuning.training import jobs
from tuning.trials.slots import Slots

if TYPE_CHECKING:
    from torch import nn

    from tuning.images.datasets import Labelled
    from tuning.images.splitting import Splits

REHEARSED, MOST_TEST_IMAGES = 2_000, 10_000
PROBED_IN_REHEARSAL = 500  # Enough to see whether it can be done.
Z_95 = 1.96  # Standard errors on each side of an estimate, in its 95 % interval.
FINISHING = "The test split is open: the command ends as soon as its result is written."


@dataclass(frozen=True)
class Ready:
    """What `write_everything` needs, whichever images stand for the test split.

    Attributes:
        shipment: What is written.
        model: That, on the CPU.
        trained_on: What the model makes of some train images.
        rehearsed: The valid images that stood for the test split.
        device: What the test images are evaluated on.
    """

    shipment: Shipment
    model: "nn.Module"
    trained_on: Outcome
    rehearsed: "Labelled"
    device: str


def rehearse(shipment: Shipment, staging: Path, device: str) -> Ready:
    """Writes everything for valid images, so that what can fail does so before the test split is opened.

    Raises:
        UserError: The disk is full, the pictures cannot be drawn, or the model cannot be loaded again.
    """
    held, splits = shipment.held, shipment.splits
    model = shipment.load("cpu")
    probe = artefacts.probe_images(splits.train)
    images = splits.valid.at(slice(REHEARSED))
    how = NONE if shipment.members else shipment.chosen.averaging
    ready = Ready(shipment, model, _outcome(model, probe, splits, "cpu", how), images, device)
    outcome = _outcome(shipment.load(device), images, splits, device, how)
    figures = scoring.figures(outcome, [outcome] * len(shipment.chosen.models), held.metric) | {"test_opened": 1}
    figures |= {
        "single": scoring.of_single(figures, NONE),
        "ensemble": scoring.of_ensemble(outcome, held.metric, 1.0),
        "distilled": scoring.of_students(figures),
    }
    try:
        problems = write_everything(
            ready, scoring.joined(shipment.describe(), figures), outcome, images, staging, rehearsing=True
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
    shipment, held = ready.shipment, ready.shipment.held
    splits, chosen = shipment.splits, shipment.chosen
    members = ensemble.described(shipment.members, held) if shipment.members else None
    artefacts.write_model(folder, ready.model, chosen.job.config, splits, metrics, members)
    files.write_text(folder / "final.csv", held.table.to_csv(index=False))
    rows, metric = chosen.result.epochs, held.metric
    problems = artefacts.write_outcome(folder, test, images, splits, rows, metric)
    trained_on = ready.trained_on.first(PROBED_IN_REHEARSAL) if rehearsing else ready.trained_on
    parts = {
        artefacts.SEPARABILITY: lambda: problems.extend(artefacts.write_separability(folder, trained_on, test)),
        model_card.CARD: lambda: artefacts.write_card(folder, splits.valid.pixels(slice(artefacts.IMAGES_TO_TIME))),
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
    ready: Ready, models: Mapping[Path, "nn.Module"], *, log: Path, staging: Path
) -> tuple[dict[str, Any], Outcome, "Labelled"]:
    """Opens the test split and writes that down; returns the metrics, the saved model's outcome, and the test images.

    Args:
        ready: What was chosen.
        models: By the path of its job, each model that is tested: the chosen one, the winner's of each seed, and those
            of the ensemble; on the device, ready to evaluate.
        log: The folder of the log.
        staging: Where room was reserved.

    Raises:
        UserError: The data cannot be had.
    """
    from tuning.images.datasets import digest_of, load_test

    shipment, held, metrics = ready.shipment, ready.shipment.held, ready.shipment.describe()
    chosen, winner, student, together = shipment.chosen, shipment.winner, shipment.student, shipment.together
    # The choice is made: only now the test split is opened, and the log says so before anything is seen of it.
    log_test(log, metrics | {"event": OPENED, "dataset": shipment.splits.dataset})
    images = load_test(held.plan.images)
    seconds: dict[Path, float] = {}  # A view.
    chosen_ones = [each for each in (winner, student) if each is not None]
    averagings = {job.path: each.averaging for each in chosen_ones for job in (*each.models, each.job)}

    @functools.cache
    def seen(job: jobs.Job) -> dict[str, Outcome]:
        """Returns what the model of a job makes of the images, as they are and with the averaging that was chosen."""
        names = list(dict.fromkeys((NONE, averagings.get(job.path, NONE))))
        start = time.perf_counter()
        found = _outcomes(models[job.path], images, shipment.splits_of(job), ready.device, names)
        seconds[job.path] = (time.perf_counter() - start) / max(len(AVERAGINGS[name].views) for name in names)
        return found

    def figures_of(each: Chosen) -> dict[str, Any]:
        """Returns the figures of a model, and the mean over its seeds."""
        of_seeds = [seen(job)[each.averaging] for job in each.models]
        return scoring.figures(seen(each.job)[each.averaging], of_seeds, held.metric)

    outcomes, figures = seen(chosen.job), figures_of(chosen)
    saved = outcomes[chosen.averaging]
    figures |= {f"test_accuracy{AVERAGINGS[name].end}": outcome.accuracy for name, outcome in outcomes.items()}
    if student is not None:
        figures["distilled"] = scoring.of_students(figures_of(student))
    if chosen is not winner:
        figures["single"] = scoring.of_single(figures_of(winner), winner.averaging)
    if together is not None:
        mean = scoring.mean([seen(job)[NONE] for job in together.jobs], together.weights)
        alone = len(AVERAGINGS[chosen.averaging].views) * seconds[chosen.job.path]
        times = math.fsum(seconds[job.path] for job in together.jobs) / alone
        figures["ensemble"] = scoring.of_ensemble(mean, held.metric, times)
        if shipment.members is not None:
            saved, figures = mean, scoring.of_shipped(figures, mean, held.metric, chosen.averaging)
    test_hash = digest_of(images)
    times = openings.times_opened(log, shipment.splits.dataset, test_hash, final_models.folders())
    metrics = scoring.joined(metrics, figures) | {"test_opened": times, "test_hash": test_hash}
    artefacts.give_back(staging)
    log_test(log, metrics | {"event": RESULT, "dataset": shipment.splits.dataset})
    return metrics, saved, images


def opened_again(metrics: Mapping[str, Any]) -> str:
    """Returns what it does to the figure that the test split had been opened before."""
    from tuning.retraining.seeds import best_of

    n, accuracy, metric = metrics["test_opened"], metrics["test_accuracy"], metric_of(metrics)
    error = math.sqrt(accuracy * (1 - accuracy) / metrics["test_images"])
    if metric is not ACCURACY:
        low, high = metrics["test_score_interval"]
        error = (high - low) / (2 * Z_95)
    too_high = f"{metric.gap(best_of(n) * error, '')}{metric.unit}"
    side = "high" if metric.greater_is_better else "low"
    return (
        f"The test split has been opened {n} times for this data set. This figure is unbiased, and its interval right, "
        f"only if nothing was changed in the light of the earlier ones. The best of {n} figures is too {side} by up to "
        f"{too_high} on average ({best_of(n):.2f} standard errors: equally good models, independent errors)."
    )


def _outcome(model: "nn.Module", part: Any, splits: "Splits", device: str, averaging: str) -> Outcome:
    return _outcomes(model, part, splits, device, (averaging,))[averaging]


def _outcomes(
    model: "nn.Module", part: Any, splits: "Splits", device: str, averagings: Collection[str]
) -> dict[str, Outcome]:
    """Returns by averaging what a model makes of labelled images, each view evaluated once."""
    from tuning.training.evaluation import evaluate_each

    found = evaluate_each(model, part, splits, averagings, device=device)
    return {
        name: Outcome(part.labels, log_probabilities.numpy(), features.numpy())
        for name, (log_probabilities, features) in found.items()
    }


def retrain_and_test(
    plan: Plan,
    slots: Slots,
    *,
    model_dir: Path = MODEL_DIR,
    threads: int | None = None,
    train_on: str = "train",
    formats: Sequence[str] = (),
    ship: str = SINGLE,
    say: Callable[[str], None] = print,
    shows_contest: bool = True,
) -> dict[str, Any]:
    """Holds the contest, tests the winner once, and writes and exports it; returns what `metrics.json` holds.

    Before the test split is opened, everything is written and drawn once for valid images in the place of the test
    images: whatever can fail there fails while nothing is lost, and the model before stands.

    Raises:
        UserError: The data cannot be had, every candidate failed, or the disk is full.
    """
    with replacing.staged(model_dir):  # Whether it can be written is known before hours of training, not after them.
        pass
    held = contest.hold(plan, folds.load(plan), slots, threads, say)
    if shows_contest:
        contest.show(held)
    shipment = settle(held, slots, threads=threads, train_on=train_on, ship=ship, say=say)
    splits = shipment.splits
    with replacing.staged(model_dir) as staging:
        ready = rehearse(shipment, staging, slots.device)
        for line in export.export(
            staging, formats, splits.valid.pixels(slice(export.IMAGES_TO_COMPARE)), shown=model_dir
        ):
            say(line)
        artefacts.check_replaceable(staging, model_dir)
        artefacts.reserve(staging, MOST_TEST_IMAGES, len(ready.rehearsed))
        openings.times_opened(model_dir, splits.dataset)  # That it cannot be read is known before the opening.
        if problem := openings.why_not_counted():
            say(problem)
        tested, winner = shipment.trainings, shipment.winner
        models = {path: jobs.load_model(job, shipment.splits_of(job), slots.device) for path, job in tested.items()}
        if plan.folds:
            outcomes = [
                _outcome(
                    models[job.path], held.splits[job.seed].valid, held.splits[job.seed], slots.device, winner.averaging
                )
                for job in winner.models
            ]
            for line in suspects.write(staging, plan.images, list(held.splits.values()), outcomes):
                say(line)
        with interrupts.postponed(FINISHING, written(plan, model_dir)):
            metrics, test, images = test_once(ready, models, log=model_dir, staging=staging)
            for problem in write_everything(ready, metrics, test, images, staging, rehearsing=False):
                say(problem)
            if plan.run is not None:  # Before the move: killed in it, the model is found, and the move is ended.
                try:
                    final_models.remember(Path(plan.source), model_dir)
                except (OSError, UserError) as error:
                    say(f"The run cannot keep where its model is: {error} `tuning.report --model-dir` names it.")
            artefacts.publish(staging, model_dir)
            if plan.run is None:  # Of a run the trained models are kept: more seeds go on from them.
                _remove_jobs(plan, tested.values())
    return metrics


def written(plan: Plan, model_dir: Path) -> str:
    """Returns what there is, and what is left to do, when a signal came after the test split was opened."""
    page = "" if plan.run is None else f" `python -m tuning.report {files.quoted(Path(plan.source))}` writes its page."
    return (
        f"The model is in {model_dir}/, with its figures: the test split need not be opened again, so do not run the "
        f"command again.{page}"
    )


def _remove_jobs(plan: Plan, trained: Iterable[jobs.Job]) -> None:
    """Removes what a plan has trained; whatever else is in the folder, which may be a user's own, stays."""
    for job in trained:
        shutil.rmtree(job.path, ignore_errors=True)
    with contextlib.suppress(OSError):  # Not empty.
        plan.folder.rmdir()
