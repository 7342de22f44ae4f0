"""A search from its first trial to its last."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning.base import files, machine
from tuning.base.errors import UserError, counted
from tuning.base.registries import SAMPLERS, SCHEDULERS
from tuning.runs import run_folder, study_file
from tuning.trials import local_ray, record
from tuning.trials.settings import (
    N_STARTUP,
    Settings,
)
from tuning.trials.stopping import Stop

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from tuning.images.splitting import Splits
    from tuning.sampling.spaces import Space
    from tuning.sampling.study import RunStudy
    from tuning.training.jobs import Job
    from tuning.trials.progress import Progress


def load(settings: Settings, source: str, progress: "Progress") -> tuple["Splits", "Space"]:
    """Returns the splits and the space of a search; `source` names the space, or is its file.

    Raises:
        UserError: The data cannot be had, or the space is wrong.
    """
    import optuna

    from tuning.images import splitting
    from tuning.sampling import spaces

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = usable_space(spaces.load_space(source), settings, progress)
    folder = None if settings.data_dir is None else Path(settings.data_dir)
    splits = splitting.load_splits(settings.dataset, folder, seed=settings.seed, train_images=settings.train_images)
    return splits, space


def search(
    settings: Settings, path: Path, splits: "Splits", space: "Space", progress: "Progress", *, resumed: bool = False
) -> None:
    """Runs or resumes the search of a run folder.

    Raises:
        UserError: The record does not fit the study or the images; the space raised in mid-search; the disk is full;
            or another process has the run in its storage.
    """
    before = files.read_json(path / "meta.json").get("split_hash") if resumed else None
    if before not in (None, splits.split_hash):
        raise UserError(
            f"The images are not those that {path} was begun with (their hash is {splits.split_hash}, not {before}). "
            "Its trials could not be compared with new ones. Name the folder of the former ones with --data-dir."
        )
    sampler = SAMPLERS.load(settings.sampler)(_sampler_seed(settings.seed, path), N_STARTUP)
    with study_file.writing(path):
        _search(settings, path, splits, space, progress, sampler, resumed=resumed)


def _search(
    settings: Settings,
    path: Path,
    splits: "Splits",
    space: "Space",
    progress: "Progress",
    sampler: "BaseSampler",
    *,
    resumed: bool,
) -> None:
    """Does what `search` says, with its sampler."""
    from tuning.sampling.study import RunStudy

    study = RunStudy(path, space, sampler, epochs=settings.epochs, seed=settings.seed, minimize=settings.minimize)
    stop = Stop(settings.time_budget)
    with _stored(settings, path, progress, stop):
        if resumed:
            record.go_on(path, settings, study.last_moment, study.now())
        left_out = {name: list(choices) for name, choices in space.left_out.items()}
        hashes = {"split_hash": splits.split_hash, "valid_hash": splits.valid_hash}
        record.update_meta(path, settings, **hashes, left_out=left_out, stopped_by=None)
        if study.waiting:
            progress.note(
                f"{counted(len(study.waiting), 'trial')} ({', '.join(map(str, study.waiting))}) cannot be resumed on "
                "this machine, which lacks what the space leaves out. Resume the run where that is there."
            )
        to_run = settings.samples - study.n_finished - len(study.waiting)
        if to_run > 0:
            stopped_by = run_trials(settings, path, splits, study, progress, stop, to_run)
            record.update_meta(path, settings, ended=study.now(), stopped_by=stopped_by)
        else:
            study.close(None)
            if settings.storage is not None:  # What an earlier session could not send.
                from tuning.remote import mirror, stored_runs

                mirror.sweep(files.read_json(path / "meta.json")["id"], stored_runs.stored_at(settings.storage, path))
        if settings.audit and not (to_run > 0 and stopped_by == "interrupt"):
            hold_audit(settings, path, splits, progress)
        record.conclude(run_folder.Run(path), progress.note)
        if settings.storage is not None:
            from tuning.remote import stored_runs
            from tuning.training import checkpoints

            uri = stored_runs.stored_at(settings.storage, path)
            names, best = checkpoints.NAMES, checkpoints.BEST
            stored_runs.conclude(run_folder.Run(path), uri, progress.note, checkpoints=names, best=best)


@contextmanager
def _stored(settings: Settings, path: Path, progress: "Progress", stop: Stop) -> Iterator[None]:
    """Sends the run folder to its storage, if it has one."""
    if settings.storage is None:
        yield
        return
    from tuning.remote import stored_runs
    from tuning.training import checkpoints

    skip, note = checkpoints.NAMES, progress.note
    with stored_runs.mirrored(settings.storage, path, skip=skip, note=note, on_lost=stop.on_problem):
        yield


def hold_audit(settings: Settings, path: Path, splits: "Splits", progress: "Progress") -> None:
    """Trains some trials that the scheduler stopped to their end, and writes what came of it into `meta.json`."""
    from tuning.trials import audit
    from tuning.trials.worker import train_all

    run = run_folder.Run(path)
    chosen = audit.wanted(run, settings.audit, settings.seed)
    # What it trains is kept in the run folder, which a cluster's nodes may not share.
    slots = asdict(settings) if settings.address is None else machine.plan_slots(None, None, None, None)

    def train(wanted: Sequence["Job"]) -> Iterator[tuple["Job", dict[str, Any]]]:
        return train_all(wanted, splits, slots)

    found = audit.hold(run, chosen, splits.split_hash, train, progress.note)
    record.update_meta(path, settings, audit=found)


def run_trials(
    settings: Settings,
    path: Path,
    splits: "Splits",
    study: "RunStudy",
    progress: "Progress",
    stop: Stop,
    n_trials: int,
) -> str | None:
    """Runs trials through Ray Tune until there are `n_trials` more; returns why it ended sooner, or None."""
    from pyarrow.fs import LocalFileSystem
    from ray import tune

    from tuning.runs.run_folder import trial_folder
    from tuning.trials import schedulers
    from tuning.trials.recorder import EndSearch, Proposals, Recorder
    from tuning.trials.tensorboard import TensorBoard
    from tuning.trials.worker import sweep_nodes, train_trial

    slots = local_ray.Slots(asdict(settings), study.is_running, progress.note)
    recorder = Recorder(study, progress, stop.on_problem, slots, alone=_whole_device(settings))
    stop.all_reported_since = recorder.all_reported_since

    def exhausted() -> None:
        progress.note(f"The space has nothing new after {study.n_finished} trials and those that run; they end it.")

    scheduler = SCHEDULERS.load(settings.scheduler)(settings.epochs, settings.seed)
    schedulers.replay(scheduler, study.finished())
    stored = None
    if settings.storage is not None:
        from tuning.remote import stored_runs

        stored = (stored_runs.stored_at(settings.storage, path), files.read_json(path / "meta.json")["id"])
    trainable = tune.with_parameters(
        train_trial,
        splits=splits,
        run=str(path.absolute()),
        threads=max(1, int(settings.cpus_per_trial)),
        stored=stored,
    )

    def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([local_ray.resources(asdict(settings), config["device"])])

    with local_ray.started(asdict(settings), logging.FileHandler(path / "driver.log")), stop.on_signals():
        tuner = tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=Proposals(study, stop.on_problem, exhausted, slots, recorder.holds),
                scheduler=scheduler,
                num_samples=n_trials,
                reuse_actors=True,
                trial_dirname_creator=lambda trial: trial_folder(path, trial.config["trial"]).name,
            ),
            run_config=tune.RunConfig(
                name="trials",
                storage_path=str(path.absolute()),
                storage_filesystem=LocalFileSystem(),  # Else Ray reads the path as a URI: "#", "?" and "%20" break it.
                failure_config=tune.FailureConfig(max_failures=settings.max_failures),
                callbacks=[recorder, TensorBoard()],
                stop=EndSearch(stop.now),
                verbose=0,
            ),
        )
        tuner.fit()
        record.update_meta(path, settings, side_by_side=slots.most)
        if stored is not None and (left := sweep_nodes(stored[1], stored[0])):
            from tuning.remote import mirror

            progress.note(f"Not in the storage yet: {'; '.join(left)}. {mirror.sent_by(path)}")
    for leftover in (path / "trials").glob("*"):
        if leftover.is_file():  # Ray's own state, pickled: the study and the frames are the record to go on from.
            leftover.unlink()
    return end_trials(stop, study, path)


def end_trials(stop: Stop, study: "RunStudy", path: Path) -> str | None:
    """Ends what still runs, closes the study, and returns why the search ended before its samples were done, or None.

    Trials that were interrupted stay as they are, to be resumed; a budget that is spent is an end.

    Raises:
        UserError: A problem ended the search that the user can mend; any other exception is raised as it is.
    """
    if stop.problem is None:
        study.close(stopped_by=None if stop.reason == "interrupt" else stop.reason or "search")
        return stop.reason
    try:
        study.close(stopped_by=None)
    except Exception as error:  # The first problem is the one to show.
        stop.problem.add_note(f"Closing the study failed, too: {error}")
        study.abandon()
    raise stop.problem


def _whole_device(settings: Settings) -> dict[str, float]:
    """Returns the resources with which a trial is alone on its device; nothing where each is, and on a cluster.

    There one trial would keep all nodes waiting until a device is free of others.
    """
    if settings.address is not None:
        return {}
    if settings.device == "cuda":
        return {"cpu": settings.cpus_per_trial, "gpu": 1.0} if settings.gpus_per_trial < 1 else {}
    alone = settings.concurrency == 1
    return {} if alone else {"cpu": float(machine.cpus_in_use(asdict(settings))), "gpu": 0.0}


def dry_run(settings: Settings, splits: "Splits", space: "Space", *, choose_slots: bool = False) -> str:
    """Returns what a search of these settings will take, from a few real steps; see `tuning.trials.estimate`.

    With `choose_slots` it measures how many trials side by side on a GPU pay, and keeps that for later searches.
    """
    from tuning.trials import estimate

    kinds = estimate.kinds(space, settings.epochs)
    rates: dict[int, float] = {}
    n_gpus = max(1, len(machine.gpu_memory()))
    most = max(settings.concurrency, n_gpus * max(estimate.SIDE_BY_SIDE)) if choose_slots else settings.concurrency
    with local_ray.started(asdict(settings) | {"concurrency": most}, logging.NullHandler()):
        if choose_slots:
            rates = estimate.measure_slots(settings, kinds, splits)
            pays = estimate.slots_that_pay(rates)
            slots = machine.plan_slots(settings.device, settings.cpus_per_trial, None, None, pays)
            settings = replace(settings, **slots)
        costs = estimate.measure(settings, kinds, splits)
    found = estimate.summarise(settings, costs)
    estimate.keep(asdict(settings), found)
    if rates:
        estimate.keep_slots(space.source, settings.dataset, rates)
    return estimate.text(settings, costs, found, rates)


def usable_space(space: "Space", settings: Settings, progress: "Progress") -> "Space":
    """Returns the space less what this machine cannot do, each omission said in one line; checks what is left.

    Raises:
        UserError: A point of the space is no valid configuration.
    """
    from tuning.sampling.spaces import check_space

    if settings.device != "cuda" and space.gpu_only:
        left_out = "; ".join(f"{name} {', '.join(map(str, choices))}" for name, choices in space.gpu_only.items())
        progress.note(f"On a CPU the space {settings.space} leaves out: {left_out}.")
        space = space.without(space.gpu_only)
    offered = check_space(space, settings.epochs)
    if "pretrained=True" in offered:
        from tuning.base.downloads import resnet18_weights

        try:
            resnet18_weights()
        except UserError as error:
            progress.note(f"The space leaves out pretrained=True: {error}")
            space = space.without({"pretrained": [True]})
            check_space(space, settings.epochs)
    return space


def _sampler_seed(seed: int, path: Path) -> int:
    """Returns the sampler's seed: the run's, moved on by the trials there are, so that a resumed one draws anew."""
    return (seed * 1_000_003 + max(study_file.studies(path).values(), default=0)) % 2**31
