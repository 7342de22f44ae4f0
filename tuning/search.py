"""Search hyperparameters with Ray Tune and Optuna; trials train on the train split and are judged on the valid split.

    python -m tuning.search --samples 20

The run folder holds everything: the study, the frames, the checkpoints. The test split is not opened.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuning import cluster, database, files, interrupts, locks, machine, mirror, record, results, tracking
from tuning import storage as storages
from tuning.errors import UserError, counted, run_command
from tuning.settings import (
    DEFAULT_EPOCHS,
    N_STARTUP,
    Settings,
    check_names,
    check_resumed,
    of_run,
    parse_duration,
    placed,
    plan_slots,
)
from tuning.stopping import Stop

if TYPE_CHECKING:
    from optuna.samplers import BaseSampler

    from tuning.data import Splits
    from tuning.jobs import Job
    from tuning.progress import Progress
    from tuning.spaces import Space
    from tuning.study import RunStudy


def load(settings: Settings, source: str, progress: "Progress") -> tuple["Splits", "Space"]:
    """Returns the splits and the space of a search; `source` names the space, or is its file.

    Raises:
        UserError: The data cannot be had, or the space is wrong.
    """
    import optuna

    from tuning import data, spaces

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = usable_space(spaces.load_space(source), settings, progress)
    folder = None if settings.data_dir is None else Path(settings.data_dir)
    splits = data.load_splits(settings.dataset, folder, seed=settings.seed, train_images=settings.train_images)
    return splits, space


def search(
    settings: Settings, path: Path, splits: "Splits", space: "Space", progress: "Progress", *, resumed: bool = False
) -> None:
    """Runs or resumes the search of a run folder.

    Raises:
        UserError: The record does not fit the study or the images; the space raised in mid-search; the disk is full;
            or another process has the run in its storage.
    """
    from tuning import schedulers

    before = files.read_json(path / "meta.json").get("split_hash") if resumed else None
    if before not in (None, splits.split_hash):
        raise UserError(
            f"The images are not those that {path} was begun with (their hash is {splits.split_hash}, not {before}). "
            "Its trials could not be compared with new ones. Name the folder of the former ones with --data-dir."
        )
    sampler = schedulers.SAMPLERS[settings.sampler](_sampler_seed(settings.seed, path), N_STARTUP)
    with database.writing(path):
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
    from tuning.study import RunStudy

    study = RunStudy(path, space, sampler, epochs=settings.epochs, seed=settings.seed, minimize=settings.minimize)
    stop = Stop(settings.time_budget)
    with record.mirrored(settings, path, progress, stop.on_problem):
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
                mirror.sweep(files.read_json(path / "meta.json")["id"], record.stored_at(settings.storage, path))
        if settings.audit and not (to_run > 0 and stopped_by == "interrupt"):
            hold_audit(settings, path, splits, progress)
        record.conclude(results.Run(path), progress.note)
        if settings.storage is not None:
            record.conclude_stored(results.Run(path), record.stored_at(settings.storage, path), progress)


def hold_audit(settings: Settings, path: Path, splits: "Splits", progress: "Progress") -> None:
    """Trains some trials that the scheduler stopped to their end, and writes what came of it into `meta.json`."""
    from tuning import audit
    from tuning.trainable import train_all

    run = results.Run(path)
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

    from tuning import schedulers
    from tuning.trainable import EndSearch, Proposals, Recorder, TensorBoard, sweep_nodes, train_trial, trial_folder

    slots = cluster.Slots(asdict(settings), study.is_running, progress.note)
    recorder = Recorder(study, progress, stop.on_problem, slots, alone=_whole_device(settings))
    stop.all_reported_since = recorder.all_reported_since

    def exhausted() -> None:
        progress.note(f"The space has nothing new after {study.n_finished} trials and those that run; they end it.")

    scheduler = schedulers.SCHEDULERS[settings.scheduler](settings.epochs, settings.seed)
    schedulers.replay(scheduler, study.finished())
    stored = None
    if settings.storage is not None:
        stored = (record.stored_at(settings.storage, path), files.read_json(path / "meta.json")["id"])
    trainable = tune.with_parameters(
        train_trial,
        splits=splits,
        run=str(path.absolute()),
        threads=max(1, int(settings.cpus_per_trial)),
        stored=stored,
    )

    def resources(config: dict[str, Any]) -> tune.PlacementGroupFactory:
        return tune.PlacementGroupFactory([cluster.resources(asdict(settings), config["device"])])

    with cluster.started(asdict(settings), logging.FileHandler(path / "driver.log")), stop.on_signals():
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
        left = [] if stored is None else sweep_nodes(stored[1], stored[0])
        if left:
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
    """Returns what a search of these settings will take, from a few real steps; see `tuning.estimate`.

    With `choose_slots` it measures how many trials side by side on a GPU pay, and keeps that for later searches.
    """
    from tuning import estimate

    kinds = estimate.kinds(space, settings.epochs)
    rates: dict[int, float] = {}
    n_gpus = max(1, len(machine.gpu_memory()))
    most = max(settings.concurrency, n_gpus * max(estimate.SIDE_BY_SIDE)) if choose_slots else settings.concurrency
    with cluster.started(asdict(settings) | {"concurrency": most}, logging.NullHandler()):
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
    from tuning.spaces import check_space

    if settings.device != "cuda" and space.gpu_only:
        left_out = "; ".join(f"{name} {', '.join(map(str, choices))}" for name, choices in space.gpu_only.items())
        progress.note(f"On a CPU the space {settings.space} leaves out: {left_out}.")
        space = space.without(space.gpu_only)
    offered = check_space(space, settings.epochs)
    if "pretrained=True" in offered:
        from tuning.fetch import resnet18_weights

        try:
            resnet18_weights()
        except UserError as error:
            progress.note(f"The space leaves out pretrained=True: {error}")
            space = space.without({"pretrained": [True]})
            check_space(space, settings.epochs)
    return space


def _sampler_seed(seed: int, path: Path) -> int:
    """Returns the sampler's seed: the run's, moved on by the trials there are, so that a resumed one draws anew."""
    return (seed * 1_000_003 + max(database.studies(path).values(), default=0)) % 2**31


def main(
    context: typer.Context,
    samples: Annotated[int | None, typer.Option(help="Trials to run in all (default: 20).")] = None,
    space: Annotated[
        str, typer.Option(help="A search space: resnet, resnet8, resnet18, smoke, or FILE.py.")
    ] = "resnet",
    dataset: Annotated[str, typer.Option(help="The data set.")] = "fashion-mnist",
    epochs: Annotated[int | None, typer.Option(min=1, help="Length of a full trial (default: 6; on GPUs 18).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Chooses the valid split, the points and the trials' seeds.")] = 0,
    run: Annotated[
        str | None, typer.Option(help="Name of the run folder below results/ (default: date-dataset-n).")
    ] = None,
    sampler: Annotated[
        str | None,
        typer.Option(help="curves, tpe, gp, random, qmc or nsga2 (default: curves; tpe with --minimize)."),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(help="asha, hyperband, median or none: what stops trials early (default: asha, or none)."),
    ] = None,
    minimize: Annotated[
        str | None, typer.Option(help="n_parameters or seconds_per_image: beside accuracy, without a scheduler.")
    ] = None,
    address: Annotated[
        str | None, typer.Option(help="Run on this Ray cluster: auto or HOST:PORT, from a node of it; with --storage.")
    ] = None,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Serve Ray's dashboard, to this machine only.")
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="cpu or cuda (default: cuda where there is one); on a cluster also any.")
    ] = None,
    cpus_per_trial: Annotated[float | None, typer.Option(min=0.1, help="CPU cores a trial (default: 1).")] = None,
    gpus_per_trial: Annotated[float | None, typer.Option(min=0, help="GPUs, or a share of one, a trial.")] = None,
    concurrency: Annotated[int | None, typer.Option(help="Trials side by side (default: as many as fit).")] = None,
    time_budget: Annotated[
        str | None, typer.Option(help="End after e.g. 30m; what runs then counts as stopped.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="A folder that holds the data set's files.")] = None,
    train_images: Annotated[int | None, typer.Option(help="Train on this many images only, stratified.")] = None,
    storage: Annotated[
        str | None, typer.Option(help="Keep the run in this place, too: s3://BUCKET/FOLDER, gs://… or a shared folder.")
    ] = None,
    mlflow: Annotated[str | None, typer.Option(help="Log each trial to this MLflow tracking URI, too.")] = None,
    audit: Annotated[
        int,
        typer.Option(min=0, help="Train so many stopped trials to their end afterwards, to see what stopping lost."),
    ] = 0,
    max_failures: Annotated[int, typer.Option(min=0, help="Retries of a trial that fails, from its last epoch.")] = 2,
    resume: Annotated[
        str | None, typer.Option(help="Go on with this run, or 'latest'; more --samples extend it.")
    ] = None,
    dry_run_only: Annotated[
        bool,
        typer.Option("--dry-run", help="Time a few steps of each kind of trial, say what the search takes, and end."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print notes and the result only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="In a terminal, print a line an event, too.")] = False,
) -> None:
    """Search architecture, learning rate, batch size and the rest; print the best configurations."""
    from tuning.progress import Progress

    if samples is not None and samples < 1:
        raise UserError(f"--samples must be at least 1, but got {samples}.")
    budget = None if time_budget is None else parse_duration(time_budget)
    open_slots, trials_a_gpu, password, changed = False, None, "", ""
    if resume is not None:
        found = record.newest(resume)
        if not dry_run_only:
            context.with_resource(locks.hold(found.path, "search"))
            results.mend(found, print)
        settings = replace(of_run(found), time_budget=budget)
        settings = replace(settings, samples=samples or settings.samples, audit=audit or settings.audit)
        if "://" in resume:
            settings = replace(settings, storage=storages.split(resume)[0])
        if settings.mlflow is not None:  # Version 0.2.0 wrote its password down.
            settings = replace(settings, mlflow=tracking.without_secret(settings.mlflow))
        settings = replace(settings, dashboard=dashboard)
        check_resumed(context, found, samples)
        settings, changed = placed(settings, address or settings.address or "local", found.meta.get("hardware"))
        if data_dir is not None:
            settings = replace(settings, data_dir=str(data_dir))
        elif settings.data_dir is not None and not Path(settings.data_dir).is_dir():
            changed = (
                f"{changed} The folder {settings.data_dir} is not here; the images are looked for elsewhere.".strip()
            )
            settings = replace(settings, data_dir=None)
        if dry_run_only and settings.device == "any":
            raise UserError(f"--dry-run must be of a run on cpu or cuda, but got {found.name}, which is on any.")
        source, path = str(found.path / "space.py"), found.path
        if not Path(source).exists():
            raise UserError(f"{source}, the search space of the run, is missing. Put back a copy of it to resume.")
    else:
        sampler, scheduler = check_names(space, dataset, sampler, scheduler, minimize)
        if storage is not None:
            storage = storages.usable(storage)
        taken = storages.Store(storage).runs() if storage is not None else ()
        source, path = space, record.new_path(run, dataset, taken=taken)
        if mlflow is not None:
            recorded = tracking.check(mlflow)
            password, mlflow = "" if recorded == mlflow else tracking.needed(recorded), recorded
        if dashboard:
            cluster.check_dashboard(address)
        if device == "any" and (address is None or dry_run_only):
            raise UserError(
                f"--device must be cpu or cuda {'with --dry-run' if address else 'on one machine'}, but got 'any'."
            )
        from tuning import estimate
        from tuning.spaces import load_space

        open_slots = address is None and concurrency is None and gpus_per_trial is None and device != "cpu"
        trials_a_gpu = estimate.recall_slots(load_space(space).source, dataset) if open_slots else None
        asked = (device, cpus_per_trial, gpus_per_trial, concurrency)
        slots = plan_slots(address, storage, asked, trials_a_gpu)
        settings = Settings(
            samples=samples or 20,
            space=space,
            dataset=dataset,
            epochs=epochs or DEFAULT_EPOCHS["cuda" if slots["device"] == "cuda" else "cpu"],
            seed=seed,
            sampler=sampler,
            scheduler=scheduler,
            train_images=train_images,
            data_dir=None if data_dir is None else str(data_dir),
            max_failures=max_failures,
            time_budget=budget,
            minimize=minimize,
            mlflow=mlflow,
            audit=audit,
            dashboard=dashboard,
            storage=storage,
            **slots,
        )
        if not dry_run_only:
            path = context.with_resource(record.claimed(run, dataset, storage))
    before = results.Run(path)
    trials = before.trials[before.trials["attempt"].fillna(1) != 0]  # Those that were run.
    n_done = int((trials["state"] != "running").sum())
    with Progress(settings.samples, n_done, quiet=quiet, verbose=verbose, time_budget=budget) as progress:
        progress.seed(trials.to_dict("records"), before.epochs.to_dict("records"))
        progress.note(
            f"{'Dry run of' if dry_run_only else 'Run'} {path}: {counted(settings.samples, 'sample')} "
            f"of at most {counted(settings.epochs, 'epoch')}, "
            f"{settings.concurrency} side by side on {settings.device}"
        )
        if password:
            progress.note(password)
        if changed:
            progress.note(changed)
        if trials_a_gpu is not None:
            progress.note(f"Trials on each GPU: {trials_a_gpu}, as the dry run of this space found to pay.")
        splits, found_space = load(settings, source, progress)
        if dry_run_only:
            print(dry_run(settings, splits, found_space, choose_slots=open_slots and settings.device == "cuda"))
            return
        if resume is None and (left := record.begin(path, settings, found_space)):
            progress.note(left)
        resume_it = interrupts.resumable(f"Resume it with: python -m tuning.search --resume {files.called(path)}")
        with resume_it, tracking.logged(settings.mlflow, path, progress.note):
            search(settings, path, splits, found_space, progress, resumed=resume is not None)
    found = results.Run(path)
    print(results.summary_line(found))
    if found.trials["state"].isin(["complete", "pruned"]).any():
        results.print_trials(found, limit=5)
        print(f"Page: {found.path}/report.html")
    if found.meta.get("stopped_by") == "interrupt":
        print(f"Interrupted. Resume it with: python -m tuning.search --resume {files.called(found.path)}")
        raise typer.Exit(130)
    if found.meta["estimate"]:
        print(results.estimate_line(found))
    if found.meta.get("audit"):
        from tuning.audit import text

        print(text(found.meta["audit"]))
    print(f"Run folder: {found.path}. Next: {results.next_step(found)}")


if __name__ == "__main__":
    run_command(main)
