"""Retrain the best configurations of a run on fresh seeds, choose on the valid split, then open the test split once.

    python -m tuning.final [--run RUN] [--top-k 3] [--seeds 3]
    python -m tuning.final --top-k 1 --seeds 1                    the quick way: the best one, once, without comparisons
    python -m tuning.final --config FILE.json|FILE.yaml

Everything lands in `best_model/`; `best_model/test_log.jsonl` says each time that the test split was opened. Killed and
started again, it goes on from the last epochs.
"""

import contextlib
import math
import shutil
import signal
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuning import (
    best_model,
    candidates,
    contest,
    export,
    files,
    interrupts,
    jobs,
    locks,
    machine,
    record,
    report,
    results,
)
from tuning.best_model import Outcome
from tuning.candidates import Plan
from tuning.config import parse_config
from tuning.contest import Contest
from tuning.errors import UserError, counted, each_alone, run_command, unknown_name
from tuning.openings import OPENED, RESULT, times_opened
from tuning.openings import append as log_test

if TYPE_CHECKING:
    from torch import nn

    from tuning.data import Labelled, Splits
    from tuning.seeds import Estimate

MODEL_DIR = Path("best_model")
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

    from tuning.data import Labelled

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


def retrain_and_test(
    plan: Plan,
    slots: Mapping[str, Any],
    *,
    model_dir: Path = MODEL_DIR,
    data_dir: Path | None = None,
    threads: int | None = None,
    train_on: str = "train",
    formats: Sequence[str] = (),
) -> dict[str, Any]:
    """Holds the contest, tests the winner once, and writes and exports it; returns what `metrics.json` holds.

    Before the test split is opened, everything is written and drawn once for valid images in the place of the test
    images: whatever can fail there fails while nothing is lost, and the model before stands.

    Raises:
        UserError: The data cannot be had, every candidate failed, or the disk is full.
    """
    from tuning.data import load_splits

    with best_model.staged(model_dir):  # Whether it can be written is known before hours of training, not after them.
        pass
    splits = load_splits(plan.dataset, data_dir, seed=plan.data_seed, train_images=plan.train_images)
    held = contest.hold(plan, splits, slots, threads)
    contest.show(held)
    chosen = choose(held)
    if train_on == "train+valid":
        chosen = train_on_everything(chosen, splits, slots["device"], threads or machine.cores())
    with best_model.staged(model_dir) as staging:
        ready = rehearse(held, chosen, splits, staging, device=slots["device"])
        for line in export.export(staging, formats, splits.valid.images, shown=model_dir):
            print(line)
        best_model.check_replaceable(staging, model_dir)
        best_model.reserve(staging, MOST_TEST_IMAGES, len(ready.rehearsed))
        trained = [held.winner.job(seed, plan.folder) for seed in plan.seeds]
        models = [jobs.load_model(job, splits, slots["device"]) for job in (chosen.job, *trained)]
        with interrupts.postponed(FINISHING, _written(plan, model_dir)):
            metrics, test, images = test_once(ready, models, data_dir=data_dir, log=model_dir, staging=staging)
            for problem in write_everything(ready, metrics, test, images, staging, rehearsing=False):
                print(problem)
            best_model.publish(staging, model_dir)
            if plan.run is None:  # Of a run the trained models are kept: more seeds go on from them.
                _remove_jobs(plan, (chosen.job, *trained))
    return metrics


def _written(plan: Plan, model_dir: Path) -> str:
    """Returns what there is, and what is left to do, when a signal came after the test split was opened."""
    page = "" if plan.run is None else f" `python -m tuning.report {plan.run}` writes its page."
    return (
        f"The model is in {model_dir}/, with its figures: the test split need not be opened again, so do not run the "
        f"command again.{page}"
    )


def _remove_jobs(plan: Plan, trained: Sequence[jobs.Job]) -> None:
    """Removes what a plan has trained; whatever else is in the folder, which may be a user's own, stays."""
    for job in trained:
        shutil.rmtree(job.path, ignore_errors=True)
    with contextlib.suppress(OSError):  # Not empty.
        plan.folder.rmdir()


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
    probe = best_model.probe_images(splits.train)
    images = type(splits.valid)(splits.valid.images[:REHEARSED], splits.valid.labels[:REHEARSED])
    flip = chosen.flip_averaging
    ready = Ready(held, chosen, splits, model, _outcome(model, probe, splits, "cpu", flip), images, device)
    outcome = _outcome(jobs.load_model(chosen.job, splits, device), images, splits, device, flip)
    figures = _test_metrics(outcome, [outcome.accuracy] * len(held.plan.seeds)) | {"test_opened": 1}
    try:
        problems = write_everything(
            ready, describe(held, chosen, splits) | figures, outcome, images, staging, rehearsing=True
        )
        best_model.check_drawn(staging, problems)
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
    best_model.write_model(folder, ready.model, chosen.job.config, splits, metrics)
    files.write_text(folder / "final.csv", ready.held.table.to_csv(index=False))
    problems = best_model.write_outcome(folder, test, images, splits.class_names, chosen.result.epochs)
    parts = {
        best_model.SEPARABILITY: lambda: problems.extend(best_model.write_separability(folder, ready.trained_on, test)),
        best_model.CARD: lambda: best_model.write_card(folder, splits.valid.images),
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
    from tuning.data import load_test

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
    best_model.give_back(staging)
    log_test(log, metrics | {"event": RESULT, "dataset": splits.dataset})
    return metrics, outcomes[flip_averaging], images


def opened_again(metrics: Mapping[str, Any]) -> str:
    """Returns what it does to the figure that the test split had been opened before."""
    from tuning.seeds import best_of

    n, accuracy = metrics["test_opened"], metrics["test_accuracy"]
    too_high = 100 * best_of(n) * math.sqrt(accuracy * (1 - accuracy) / metrics["test_images"])
    return (
        f"The test split has been opened {n} times for this data set. This figure is unbiased, and its interval right, "
        f"only if nothing was changed in the light of the earlier ones. The best of {n} figures is too high by up to "
        f"{too_high:.2f} points on average ({best_of(n):.2f} standard errors: equally good models, independent errors)."
    )


def _outcome(model: "nn.Module", part: Any, splits: "Splits", device: str, flip_averaging: bool) -> Outcome:
    from tuning.training import evaluate

    log_probabilities, features = evaluate(model, part, splits, device=device, flip_averaging=flip_averaging)
    return Outcome(part.labels, log_probabilities.numpy(), features.numpy())


def _test_metrics(test: Outcome, accuracies: Sequence[float]) -> dict[str, Any]:
    """Returns figures of the saved model, and the mean over the winner's seeds."""
    from tuning import analysis

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


def _summary(plan: Plan) -> str:
    """Returns in a line what is to be trained, and for how long where the search tells."""
    lengths = sorted({entry.config.epochs for entry in plan.entries})
    epochs = " to ".join(map(str, dict.fromkeys((lengths[0], lengths[-1]))))
    names = ", ".join(f"{entry.name} ({entry.config.architecture})" for entry in plan.entries)
    return f"{names}; {counted(len(plan.seeds), 'seed')}, {epochs} {'epoch' if epochs == '1' else 'epochs'} at most"


def replaced(model_dir: Path, plan: Plan) -> str:
    """Returns a line on the model of another run that is in the folder; nothing where there is none."""
    file = model_dir / "metrics.json"
    if not file.exists():
        return ""
    try:
        old = files.read_json(file)
    except UserError as error:
        return f"The model in {model_dir}/ will be replaced; --model-dir DIR keeps it. {error}\n"
    if report.is_of(old, plan.run, plan.identity):
        return ""
    if plan.run is None and old.get("run") is None and old.get("config_hash") == plan.entries[0].config.hash():
        return ""
    accuracy = old.get("test_accuracy")
    scored = f" (test accuracy {accuracy:.2%})" if isinstance(accuracy, float) else ""
    return (
        f"The model of {old.get('source', 'another run')} in {model_dir}/{scored} will be replaced; "
        "--model-dir DIR keeps it.\n"
    )


def _check_test_files(dataset: str, data_dir: Path | None) -> None:
    """Raises UserError where the files of the test split are missing or damaged; no image of them is looked at."""
    from tuning.data import hash_test

    hash_test(dataset, data_dir)


def _write_page(run: results.Run, model_dir: Path) -> None:
    """Writes the run's page and sends it to the storage; what cannot be is said, as the model is there already."""
    try:
        print(f"Page: {report.write(run, model_dir)}")
        results.send(run)
    except (UserError, OSError) as error:
        print(f"The page is not written: {error} `python -m tuning.report {files.called(run.path)}` writes it later.")


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _estimate(name: str, estimate: "Estimate | None") -> dict[str, Any]:
    """Returns a figure and its interval by name; None where there is none."""
    if estimate is None:
        return {name: None, f"{name}_interval": None}
    interval = None if math.isnan(estimate.low) else [estimate.low, estimate.high]
    return {name: _number(estimate.value), f"{name}_interval": interval}


def main(
    run: Annotated[str, typer.Option(help="The run whose best configurations are retrained.")] = "latest",
    config: Annotated[
        Path | None, typer.Option(help="A JSON or YAML file, or original-resnet8: train that, without a search.")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="How many of the run's best configurations.")] = 3,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Fresh seeds for each configuration (default: 3; with --config 1).")
    ] = None,
    max_parameters: Annotated[
        int | None, typer.Option(help="Take the best configurations of this size at most.")
    ] = None,
    compare: Annotated[
        bool | None,
        typer.Option(
            help="Retrain the default configuration and the best random point of the run, too "
            "(default: yes; not with --top-k 1 --seeds 1)."
        ),
    ] = None,
    train_on: Annotated[
        str, typer.Option(help="train; or train+valid: train the winner once more on both, as the model to ship.")
    ] = "train",
    formats: Annotated[
        list[str] | None,
        typer.Option("--export", help="Write the model as onnx, safetensors or pt2, too; may be given again."),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Full length (default: twice the search's; with --config its own).")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The first seed; the others follow it (default: derived from the run).")
    ] = None,
    dataset: Annotated[str, typer.Option(help="The data set, with --config.")] = "fashion-mnist",
    data_dir: Annotated[Path | None, typer.Option(help="A folder that holds the data set's files.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda (default: cuda where there is one).")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Trainings side by side (default: as many as fit).")] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads of a training that has the machine (default: all cores).")
    ] = None,
    model_dir: Annotated[Path, typer.Option(help="Where the model and its scores are written.")] = MODEL_DIR,
) -> None:
    """Retrain the best configurations on fresh seeds, test the winner once, and write best_model/."""
    if train_on not in TRAIN_ON:
        raise unknown_name("--train-on", train_on, TRAIN_ON)
    export.check_formats(formats or [])
    if config is None:
        n_seeds = 3 if seeds is None else seeds
        wanted = top_k * n_seeds > 1 if compare is None else compare
        plan = candidates.from_run(
            run,
            top_k=top_k,
            n_seeds=n_seeds,
            epochs=epochs,
            seed=seed,
            compare=wanted,
            max_parameters=max_parameters,
        )
    elif compare:
        raise UserError(f"--compare must be used with a run, but got --config {config}. Leave one of them out.")
    else:
        plan = candidates.from_file(config, model_dir, dataset, n_seeds=seeds or 1, epochs=epochs, seed=seed)
    slots = machine.plan_slots(device, None, None, concurrency)
    files.make_folder(model_dir, exist_ok=True)
    _check_test_files(plan.dataset, data_dir)
    with contextlib.ExitStack() as held:
        # Two at once would train everything twice, and open the test split twice.
        for folder in (*([] if plan.run is None else [Path(plan.source)]), model_dir):
            held.enter_context(locks.hold(folder, "final"))
        if plan.run is not None and (base := results.Run(Path(plan.source)).settings.get("storage")) is not None:
            uri = record.stored_at(base, Path(plan.source))
            try:
                held.enter_context(locks.leased(uri, "final", print, _end_for))
            except locks.InUseError:
                raise
            except UserError as error:  # The run is here, so that it need not be reached.
                print(f"The storage cannot be asked whether another machine does the same: {error}")
        carry_out(
            plan,
            slots,
            threads=threads,
            train_on=train_on,
            formats=formats or [],
            data_dir=data_dir,
            model_dir=model_dir,
        )


def _end_for(other: UserError) -> None:
    """Ends this process in order, as Ctrl-C does: another one works on the same, and both would open the test split.

    If it is open here, the result is written first.
    """
    print(other, file=sys.stderr)
    signal.raise_signal(signal.SIGTERM)


def carry_out(plan: Plan, slots: Mapping[str, Any], *, model_dir: Path, **asked: Any) -> None:
    """Retrains, tests, writes the model and the run's page, and prints what came of it; `asked` as in the command.

    Raises:
        UserError: As `retrain_and_test`.
    """
    print(f"Retraining {plan.source}: {_summary(plan)}", flush=True)
    print("".join(f"{note}\n" for note in plan.notes) + replaced(model_dir, plan), end="", flush=True)
    metrics = retrain_and_test(plan, slots, model_dir=model_dir, **asked)
    with interrupts.resumable(_written(plan, model_dir)):
        print((model_dir / "scores.txt").read_text(encoding="utf-8"), end="")
        if plan.run is not None:
            _write_page(results.load(plan.source), model_dir)
        if metrics["test_opened"] > 1:
            print(opened_again(metrics))
    where = "" if model_dir == MODEL_DIR else f" --model-dir {model_dir}"
    print(f"Written: {model_dir}/. Next: python -m tuning.predict{where} IMAGE")


if __name__ == "__main__":
    run_command(main)
