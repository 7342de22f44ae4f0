"""Search hyperparameters with Ray Tune and Optuna; trials train on the train split and are judged on the valid split.

    python -m tuning.search --samples 20

The run folder holds everything: the study, the frames, the checkpoints. The test split is not opened.
"""

import importlib.util
import logging
import math
import os
import re
import secrets
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tuning import cluster, files, machine, mirror, results
from tuning import storage as storages
from tuning.errors import UserError, counted, run_command, unknown_name

if TYPE_CHECKING:
    from tuning.data import Splits
    from tuning.jobs import Job
    from tuning.progress import Progress
    from tuning.spaces import Space
    from tuning.study import RunStudy

SAMPLERS = ("curves", "tpe", "gp", "random", "qmc", "nsga2")
SCHEDULERS = ("asha", "hyperband", "median", "none")
DEFAULT_EPOCHS = {"cpu": 6, "cuda": 18}
N_STARTUP = 8
SECONDS_FOR_AN_EPOCH = 10.0
# What a search that is gone on with may be told anew; all else is as it was begun.
OF_ANY_SESSION = {"samples", "time_budget", "data_dir", "audit", "resume", "dry_run_only", "quiet", "verbose"}
OF_ANY_SESSION |= {"address", "dashboard"}
Asked = tuple[str | None, float | None, float | None, int | None]  # Device, CPUs and GPUs a trial, concurrency.


@dataclass(frozen=True)
class Settings:
    """What a search was asked to do, with all defaults resolved; `meta.json` keeps it for `--resume`."""

    samples: int
    space: str
    dataset: str
    epochs: int
    seed: int
    sampler: str
    scheduler: str
    device: str
    concurrency: int
    cpus_per_trial: float
    gpus_per_trial: float
    train_images: int | None
    data_dir: str | None
    max_failures: int
    time_budget: float | None
    minimize: str | None = None
    mlflow: str | None = None
    audit: int = 0
    storage: str | None = None
    address: str | None = None
    limit: int | None = None
    dashboard: bool = False


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


def search(settings: Settings, path: Path, splits: "Splits", space: "Space", progress: "Progress") -> None:
    """Runs or goes on with the search of a run folder.

    Raises:
        UserError: The space raised in mid-search, or the disk is full.
    """
    from tuning import schedulers
    from tuning.study import RunStudy

    sampler = schedulers.SAMPLERS[settings.sampler](_sampler_seed(settings.seed, path), N_STARTUP)
    study = RunStudy(path, space, sampler, epochs=settings.epochs, seed=settings.seed, minimize=settings.minimize)
    _update_meta(path, settings, split_hash=splits.split_hash, valid_hash=splits.valid_hash)
    to_run = settings.samples - study.n_finished
    if to_run > 0:
        stopped_by = run_trials(settings, path, splits, study, progress, to_run)
        _update_meta(path, settings, ended=_now(), stopped_by=stopped_by)
    elif settings.storage is not None:  # What an earlier session could not send.
        mirror.sweep(files.read_json(path / "meta.json")["id"], _stored_at(settings, path))
    if settings.audit and not (to_run > 0 and stopped_by == "interrupt"):
        hold_audit(settings, path, splits, progress)
    conclude(results.Run(path))
    if settings.storage is not None:
        conclude_stored(results.Run(path), _stored_at(settings, path), progress)


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
    _update_meta(path, settings, audit=found)


def conclude(run: results.Run) -> None:
    """Writes the run's pictures, page and `best.json`, if a trial has finished; of the losers no checkpoint is kept."""
    from tuning import analysis, checkpoints, importances, plots, report, style
    from tuning.trainable import trial_folder

    trials, epochs = run.trials, run.epochs
    if not trials["state"].isin(["complete", "pruned"]).any():
        return
    best = run.best["trial"]
    for number in trials.loc[trials["state"] != "running", "trial"]:
        if number != best:
            checkpoints.remove(trial_folder(run.path, number))
    results.write_best(run)
    importance = importances.of_run(run)
    figures = {
        "best_so_far": plots.best_so_far(analysis.best_so_far(trials, run.clock)),
        "learning_curves": plots.learning_curves(epochs, trials),
        "parallel_coordinates": plots.parallel_coordinates(trials),
        "importances": plots.importances(importance),
    }
    if (minimized := run.meta["settings"]["minimize"]) is not None:
        figures["pareto"] = plots.pareto(trials, minimized)
    for name, figure in figures.items():
        style.save(figure, run.path / f"{name}.png")
    report.write(run, importances=importance)


def conclude_stored(run: results.Run, uri: str, progress: "Progress") -> None:
    """Removes the losers' checkpoints from the storage, and brings the winner's best one into the run folder."""
    from tuning import checkpoints
    from tuning.trainable import trial_folder

    trials = run.trials
    if not trials["state"].isin(["complete", "pruned"]).any():
        return
    store, best = storages.Store(uri), run.best["trial"]
    losers = {f"{number:04d}" for number in trials.loc[trials["state"] != "running", "trial"] if number != best}
    try:
        stored = [name.split("/") for name in store.names("trials")]
        lost = ["/".join(name) for name in stored if name[1] in losers and name[-1] in checkpoints.NAMES]
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(store.remove, lost))
        folder = trial_folder(run.path, best)
        if checkpoint := store.read(f"trials/{folder.name}/{checkpoints.BEST}"):
            files.write_bytes(folder / checkpoints.BEST, checkpoint)
    except UserError as error:
        progress.note(f"The losers' checkpoints stay in the storage: {error}. {mirror.sent_by(run.name)}")


@contextmanager
def mirrored(settings: Settings, path: Path, progress: "Progress") -> Iterator[None]:
    """Sends the run folder to its storage, if it has one, while something is going on in it."""
    from tuning import checkpoints

    if settings.storage is None:
        yield
        return
    with mirror.Mirror(path, _stored_at(settings, path), progress.note, skip=checkpoints.NAMES) as sending:
        try:
            yield
        finally:
            sending.finish()


def _stored_at(settings: Settings, path: Path) -> str:
    return storages.joined(settings.storage or "", path.name)


def run_trials(
    settings: Settings, path: Path, splits: "Splits", study: "RunStudy", progress: "Progress", n_trials: int
) -> str | None:
    """Runs trials through Ray Tune until there are `n_trials` more; returns why it ended sooner, or None."""
    from ray import tune

    from tuning import schedulers
    from tuning.trainable import EndSearch, Proposals, Recorder, TensorBoard, sweep_nodes, train_trial, trial_folder

    stop = _Stop(settings.time_budget)
    slots = cluster.Slots(asdict(settings), study.is_running, progress.note)
    recorder = Recorder(study, progress, stop.on_problem, alone=_whole_device(settings))
    stop.all_reported_since = recorder.all_reported_since

    def exhausted() -> None:
        progress.note(f"The space has nothing new after {study.n_finished} trials and those that run; they end it.")

    scheduler = schedulers.SCHEDULERS[settings.scheduler](settings.epochs, settings.seed)
    schedulers.replay(scheduler, study.finished_epochs())
    stored = None
    if settings.storage is not None:
        stored = (_stored_at(settings, path), files.read_json(path / "meta.json")["id"])
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
                failure_config=tune.FailureConfig(max_failures=settings.max_failures),
                callbacks=[recorder, TensorBoard(), *_mlflow_callbacks(settings, path)],
                stop=EndSearch(stop.now),
                verbose=0,
            ),
        )
        tuner.fit()
        _update_meta(path, settings, side_by_side=slots.most)
        left = [] if stored is None else sweep_nodes(stored[1], stored[0])
        if left:
            progress.note(f"Not in the storage yet: {'; '.join(left)}. {mirror.sent_by(path.name)}")
    for leftover in (path / "trials").glob("*"):
        if leftover.is_file():  # Ray's own state, pickled: the study and the frames are the record to go on from.
            leftover.unlink()
    if stop.problem is not None:
        study.close(stopped_by=None)
        raise stop.problem
    # What was interrupted stays as it is, to be gone on with; a budget that is spent is an end.
    study.close(stopped_by=None if stop.reason == "interrupt" else stop.reason or "search")
    return stop.reason


def _mlflow_callbacks(settings: Settings, path: Path) -> list[Any]:
    """Returns Ray's own callback for MLflow, one run a trial, in an experiment named after the run; or nothing."""
    if settings.mlflow is None:
        return []
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    return [MLflowLoggerCallback(tracking_uri=settings.mlflow, experiment_name=path.name)]


def _check_mlflow(uri: str) -> None:
    """Raises UserError where MLflow is not installed, or nothing answers at the URI within some seconds."""
    if importlib.util.find_spec("mlflow") is None:
        raise UserError(
            "--mlflow must have the package mlflow, but it is missing. Run `pip install mlflow-skinny` first."
        )
    os.environ |= {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
    import mlflow

    try:
        mlflow.MlflowClient(tracking_uri=uri).search_experiments(max_results=1)
    except Exception as error:  # A library's many ways to say that it cannot.
        reason = next(iter(str(error).splitlines()), "")
        raise UserError(f"--mlflow must be the URI of a store that answers, but got {uri!r}: {reason}") from error


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
    most = max(settings.concurrency, *estimate.SIDE_BY_SIDE) if choose_slots else settings.concurrency
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


def parse_duration(text: str) -> float:
    """Returns seconds from "90s", "30m", "1.5h" or "1h30m"; raises UserError for anything else, and for nothing."""
    units = {"h": 3600, "m": 60, "s": 1}
    parts = re.findall(r"(\d+(?:\.\d+)?)([hms])", text)
    seconds = sum(float(number) * units[unit] for number, unit in parts)
    if "".join(number + unit for number, unit in parts) != text or seconds <= 0:
        raise UserError(f"--time-budget must be a duration such as 90s, 30m or 1h30m, but got {text!r}.")
    return seconds


class _Stop:
    """Why and when the search should end before its samples are done: a budget, a signal or a problem of our own."""

    def __init__(self, time_budget: float | None) -> None:
        self.reason: str | None = None
        self.problem: BaseException | None = None
        self._deadline = math.inf if time_budget is None else time.monotonic() + time_budget
        self._interrupted_at: float | None = None
        self.all_reported_since: Callable[[float], bool] = lambda moment: False

    def on_problem(self, error: BaseException) -> None:
        self.problem = self.problem or error

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the search after the running epoch, or 10 s if that is less; a second one at once."""

        def handle(number: int, frame: Any) -> None:
            if self._interrupted_at is not None:
                if os.isatty(1):
                    os.write(1, b"\x1b[?25h")  # The live view hides the cursor.
                os._exit(130)
            self._interrupted_at = time.monotonic()

        old = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def now(self) -> bool:
        """Returns whether the search should end, and sets `reason`."""
        if self._interrupted_at is not None:
            waited = time.monotonic() - self._interrupted_at
            if waited > SECONDS_FOR_AN_EPOCH or self.all_reported_since(self._interrupted_at):
                self.reason = "interrupt"
        elif time.monotonic() > self._deadline:
            self.reason = self.reason or "time budget"
        return self.reason is not None or self.problem is not None


def _sampler_seed(seed: int, path: Path) -> int:
    """Returns the sampler's seed: the run's, moved on by the trials there are, so that a resumed one draws anew."""
    return (seed * 1_000_003 + len(results.Run(path).trials)) % 2**31


def _update_meta(path: Path, settings: Settings, **values: Any) -> None:
    file = path / "meta.json"
    meta = files.read_json(file) if file.exists() else {}
    files.write_json(file, meta | {"settings": asdict(settings)} | values)


def _begin_run(path: Path, settings: Settings, space: "Space") -> None:
    """Makes the run folder, with `space.py` and `meta.json`."""
    from tuning import estimate

    files.make_folder(path)
    files.write_text(path / "space.py", space.source)
    _update_meta(
        path,
        settings,
        id=secrets.token_hex(6),
        dataset=settings.dataset,
        seed=settings.seed,
        command=storages.masked(shlex.join(["python", "-m", "tuning.search", *sys.argv[1:]])),
        started=_now(),
        estimate=estimate.recall(asdict(settings)),
        versions=machine.versions(),
        hardware=machine.hardware(),
        git_commit=machine.git_commit(),
    )


def _resume_run(path: Path, settings: Settings) -> None:
    """Writes into `meta.json` for how long nothing was written to the frames: no time that the search took."""
    last = max(
        (path / name).stat().st_mtime for name in ("trials.csv", "epochs.csv", "meta.json") if (path / name).exists()
    )
    pauses = files.read_json(path / "meta.json").get("pauses", [])
    _update_meta(path, settings, pauses=[*pauses, [datetime.fromtimestamp(last, UTC).isoformat(), _now()]])


def _now() -> str:
    return datetime.now(UTC).isoformat()


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
    open_slots, trials_a_gpu = False, None
    if resume is not None:
        found = _newest(resume)
        settings = replace(Settings(**found.meta["settings"]), time_budget=budget)
        settings = replace(settings, samples=samples or settings.samples, audit=audit or settings.audit)
        if "://" in resume:
            settings = replace(settings, storage=storages.split(resume)[0])
        settings = replace(settings, dashboard=dashboard)
        _check_resumed(context, found, samples)
        if address is not None or settings.address is not None:
            settings = _placed(settings, address or str(settings.address))
        if data_dir is not None:
            settings = replace(settings, data_dir=str(data_dir))
        source, path = str(found.path / "space.py"), found.path
    else:
        sampler, scheduler = _check_names(space, dataset, sampler, scheduler, minimize)
        taken: list[str] = []
        if storage is not None:
            storage = storages.usable(storage)
            taken = [*storages.Store(storage).runs()]
        source, path = space, results.new_path(run, dataset, taken=taken)
        if mlflow is not None:
            _check_mlflow(mlflow)
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
        slots = _plan_slots(address, storage, asked, trials_a_gpu)
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
    before = results.Run(path)
    n_done = int((before.trials["state"] != "running").sum())
    with Progress(settings.samples, n_done, quiet=quiet, verbose=verbose, time_budget=budget) as progress:
        progress.seed(before.trials.to_dict("records"), before.epochs.to_dict("records"))
        progress.note(
            f"{'Dry run of' if dry_run_only else 'Run'} {path}: {counted(settings.samples, 'sample')} "
            f"of at most {counted(settings.epochs, 'epoch')}, "
            f"{settings.concurrency} side by side on {settings.device}"
        )
        if trials_a_gpu is not None:
            progress.note(f"Trials on each GPU: {trials_a_gpu}, as the dry run of this space found to pay.")
        splits, found_space = load(settings, source, progress)
        if dry_run_only:
            print(dry_run(settings, splits, found_space, choose_slots=open_slots and settings.device == "cuda"))
            return
        if resume is None:
            _begin_run(path, settings, found_space)
        else:
            _resume_run(path, settings)
        with mirrored(settings, path, progress):
            search(settings, path, splits, found_space, progress)
    found = results.Run(path)
    print(results.summary_line(found))
    if found.trials["state"].isin(["complete", "pruned"]).any():
        results.print_trials(found, limit=5)
        print(f"Page: {found.path}/report.html")
    if found.meta.get("stopped_by") == "interrupt":
        print(f"Interrupted. Go on with: python -m tuning.search --resume {found.name}")
        raise typer.Exit(130)
    if found.meta["estimate"]:
        print(results.estimate_line(found))
    if found.meta.get("audit"):
        from tuning.audit import text

        print(text(found.meta["audit"]))
    print(f"Run folder: {found.path}. Next: python -m tuning.final --run {found.name}")


def _plan_slots(address: str | None, storage: str | None, asked: Asked, trials_a_gpu: int | None) -> dict[str, Any]:
    """Returns what `machine.plan_slots` or, with an address, `cluster.plan_slots` does; a cluster needs a storage."""
    if address is None:
        return machine.plan_slots(*asked, trials_a_gpu)
    if storage is None:
        raise UserError(
            f"--storage must be given with --address, because checkpoints must outlive a node, but got --address "
            f"{address} alone. Add --storage s3://BUCKET/FOLDER, or a folder that all nodes share."
        )
    return cluster.plan_slots(address, *asked)


def _placed(settings: Settings, address: str) -> Settings:
    """Returns the settings of a run that is gone on with on a cluster, or on this machine after all ("local")."""
    asked = (settings.device, settings.cpus_per_trial, settings.gpus_per_trial, settings.limit)
    if address != "local":
        return replace(settings, **_plan_slots(address, settings.storage, asked, None))
    return replace(settings, address=None, **machine.plan_slots(None, settings.cpus_per_trial, None, None))


def _newest(name: str) -> results.Run:
    """Returns the run to go on with: as it is here, or in its storage, if it has gone on elsewhere since."""
    uri, root = name, results.RESULTS
    if "://" not in name:
        found = results.load(name)
        base = found.meta["settings"].get("storage")
        if base is None:
            return found
        uri, root = storages.joined(base, found.name), root if storages.is_at(base, found.path) else found.path.parent
    storages.usable(storages.split(uri)[0])
    return results.Run(mirror.fetch(uri, root, retrained=True))


def _check_resumed(context: typer.Context, run: results.Run, samples: int | None) -> None:
    """Raises UserError for an option that a run cannot take when it is gone on with, or fewer samples than it has."""
    given = [name for name in context.params if str(context.get_parameter_source(name)).endswith("COMMANDLINE")]
    fixed = [f"--{name.replace('_', '-')}" for name in given if name not in OF_ANY_SESSION]
    if fixed:
        raise UserError(
            f"--resume must go on with the settings of run {run.name}, but got {', '.join(fixed)}. Leave that out, "
            "or begin another run."
        )
    n_trials = len(run.trials)
    if samples is not None and samples < n_trials:
        raise UserError(
            f"--samples must be at least the {counted(n_trials, 'trial')} of {run.name}, but got {samples}."
        )


def _check_names(
    space: str, dataset: str, sampler: str | None, scheduler: str | None, minimize: str | None
) -> tuple[str, str]:
    """Returns sampler and scheduler; raises UserError for an unknown name. Imports neither torch nor Ray."""
    if sampler is not None and sampler not in SAMPLERS:
        raise unknown_name("--sampler", sampler, SAMPLERS)
    if scheduler is not None and scheduler not in SCHEDULERS:
        raise unknown_name("--scheduler", scheduler, SCHEDULERS)
    if minimize is not None and minimize not in results.OBJECTIVES:
        raise unknown_name("--minimize", minimize, results.OBJECTIVES)
    if minimize is not None and sampler == "curves":
        raise UserError("--sampler must be one for two objectives beside --minimize, but got 'curves'. Choose tpe.")
    if minimize is not None and scheduler not in (None, "none"):
        raise UserError(
            f"--scheduler must be none beside --minimize, which compares full trials, but got {scheduler!r}."
        )
    from tuning.data import find_dataset
    from tuning.spaces import load_space

    find_dataset(dataset)
    load_space(space)
    return (sampler or "curves", scheduler or "asha") if minimize is None else (sampler or "tpe", "none")


if __name__ == "__main__":
    run_command(main)
