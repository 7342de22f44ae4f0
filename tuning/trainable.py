"""The Ray side of a trial: `train_trial` runs in a worker, `Recorder` and `Proposals` sit between Ray and the study.

`train_all` is the Ray side of `tuning.final`: several retrainings beside each other.

A trial's state is written to its own folder after each epoch and before the epoch is reported; whoever runs the trial
again (a retry, a resumed search) goes on from there. Ray's own checkpoints are not used: there is one way to go on.
"""

import contextlib
import logging
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.logger import TBXLoggerCallback
from ray.tune.search import Searcher

from tuning import checkpoints, cluster, files, jobs, machine, mirror, storage
from tuning.config import TrainConfig
from tuning.data import Splits, parts_of
from tuning.errors import DISK_FULL, UserError
from tuning.progress import Progress
from tuning.schedulers import METRIC
from tuning.study import RunStudy

if TYPE_CHECKING:
    from tuning.training import Training

LOG = "trial.log"
FAILURES_THAT_STOP = 3
SECONDS_FOR_A_CHECKPOINT = 600.0  # A storage that is away for longer costs a trial that moved its epochs.
_LOST_NODE = re.compile(r"its node has died|is unavailable: ")


def train_trial(
    config: Mapping[str, Any],
    *,
    splits: Splits,
    run: str,
    threads: int,
    stored: tuple[str, str] | None = None,
) -> None:
    """Trains one configuration in a Ray worker and reports each epoch; the trial's log gets what is printed meanwhile.

    Args:
        config: `trial` (its number), `seed`, `config` (the hyperparameters), `accumulation`, the parts of a batch, and
            `epochs`, how many the study knows of it, and `device`, that of its slot: a "cuda" that torch does not find
            where the trial runs gives way to "cpu".
        splits: From the object store; its arrays are read-only and shared by all trials on a node.
        run: The run folder; the trial's is `trials/<number>` below it.
        threads: For torch, on a CPU.
        stored: The run's URI in a storage, and its id. The run folder may then be on another machine: the trial's is a
            scratch folder of this node, and sent from there.
    """
    import torch

    from tuning.training import Training, prepare

    root = Path(run) if stored is None else mirror.scratch(stored[1])
    folder = trial_folder(root, config["trial"])
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if stored is not None:
            _fetch(stored[0], folder, config["epochs"])
            part = folder.relative_to(root).as_posix()
            stack.enter_context(mirror.Mirror(root, stored[0], print, part=part, every=1.0))
        log = stack.enter_context((folder / LOG).open("a", buffering=1, encoding="utf-8"))
        stack.enter_context(redirect_stdout(log))
        stack.enter_context(redirect_stderr(log))
        try:
            prepare(threads)
            device = "cuda" if config["device"] == "cuda" and torch.cuda.is_available() else "cpu"
            if share := gpu_share(device):
                machine.limit_gpu_memory(share)
            training = Training(
                TrainConfig.model_validate(config["config"]),
                splits,
                seed=config["seed"],
                device=device,
                accumulation=config["accumulation"],
            )
            print(f"trial {config['trial']}, seed {config['seed']}, {device}, {training.precision}: {config['config']}")
            _train(training, folder)
        except Exception:
            print(storage.masked(traceback.format_exc()), end="", file=sys.stderr)
            raise


def gpu_share(device: str) -> float:
    """Returns the share of its GPU that Ray gave to this worker, in [0, 1]; it sees that GPU alone. 0 on a CPU."""
    import ray

    return ray.get_runtime_context().get_assigned_resources().get("GPU", 0.0) if device == "cuda" else 0.0


def _fetch(uri: str, folder: Path, epochs: int) -> None:
    """Fetches checkpoint and log of a trial that has run elsewhere: more epochs of it are known than are here.

    Where the storage is away for long, the trial goes on from what is here, if only from its beginning.
    """
    latest, log = folder / checkpoints.LATEST, folder / LOG
    if epochs == 0 or checkpoints.n_epochs(latest) >= epochs:
        return
    store, fetched = storage.Store(uri, SECONDS_FOR_A_CHECKPOINT), folder / ".fetched"
    try:
        for path, length in ((latest, checkpoints.n_epochs), (log, lambda path: path.exists() and path.stat().st_size)):
            files.write_bytes(fetched, store.read(f"trials/{folder.name}/{path.name}") or b"")
            if length(fetched) > length(path):
                fetched.replace(path)
    except UserError as error:
        with log.open("a", encoding="utf-8") as file:
            print(error, file=file)
    fetched.unlink(missing_ok=True)


def _train(training: "Training", folder: Path) -> None:
    """Goes on from the folder's checkpoint, if there is one, to the end."""
    from tuning.training import NonFiniteLossError, fit

    device, precision = training.device.type, training.precision
    facts = {"n_parameters": training.n_parameters, "device": device, "precision": precision, "error": ""}
    known = checkpoints.load(folder, training)
    for result in known:  # The study knows these already, unless it was cut off; a new scheduler has to learn them.
        tune.report({**result, **facts})
    try:
        for epoch in fit(training):
            result = {**vars(epoch), METRIC: training.best["valid_accuracy"]}
            known.append(result)
            checkpoints.save(folder, training, known)
            print(epoch)
            tune.report({**result, **facts})
    except (
        NonFiniteLossError
    ) as error:  # Training it again would end in the same place, so this is a result, not a failure.
        print(error)
        tune.report({"epoch": training.epoch, METRIC: 0.0, **facts, "error": str(error)})


def train_all(
    wanted: Sequence[jobs.Job], splits: Splits, slots: Mapping[str, Any]
) -> Iterator[tuple[jobs.Job, dict[str, Any]]]:
    """Runs `jobs.train` on all jobs side by side; yields each job's rows as they come.

    One that runs out of memory is run again when the others have ended, alone on its device, where it cuts its batches
    into parts if it must.

    Args:
        wanted: Their folders must be absolute.
        splits: Shared by all through the object store.
        slots: As `machine.plan_slots` gives them.

    Raises:
        UserError: The disk is full.
    """
    import ray

    on_gpu = slots["device"] == "cuda"
    alone = slots["concurrency"] == 1 or (on_gpu and slots["gpus_per_trial"] >= 1)
    with cluster.started(slots, logging.NullHandler()):
        shared = ray.put(splits)

        def start(job: jobs.Job, cpus: float, gpus: float, *, alone: bool) -> Any:
            remote: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, num_returns="streaming")(jobs.train)
            return remote.remote(job, shared, slots["device"], max(1, int(cpus)), alone=alone)

        share = (slots["cpus_per_trial"], slots["gpus_per_trial"])
        running: dict[Any, jobs.Job] = {start(job, *share, alone=alone): job for job in wanted}
        waiting: list[jobs.Job] = []  # For the whole device.
        while running or waiting:
            if not running:
                alone, job = True, waiting.pop(0)
                running = {start(job, float(machine.cpus_in_use(slots)), max(float(on_gpu), share[1]), alone=True): job}
            ready: list[Any] = ray.wait(list(running), num_returns=1, fetch_local=False)[0]
            [rows] = ready
            try:
                row = cluster.get(next(rows))
            except StopIteration:
                del running[rows]
                continue
            except UserError:
                raise
            except ray.exceptions.RayError as error:  # The worker died; `jobs.train` tells of what it can catch.
                reason = str(error).strip()
                no_memory = jobs.OUT_OF_MEMORY.search(f"{type(error).__name__} {reason}") is not None
                row = {"error": reason.splitlines()[0], "out_of_memory": no_memory, "killed": True}
            again = _again(running[rows], row, alone) if row.get("out_of_memory") else None
            if again is not None:
                waiting.append(again)
                row = {"note": f"{row['error']} It is run again, alone, when the others have ended."}
            yield (running.pop(rows) if row.get("killed") else running[rows]), row


def _again(job: jobs.Job, row: Mapping[str, Any], alone: bool) -> jobs.Job | None:
    """Returns the job to run alone after one ran out of memory: in smaller parts if it was alone; None if it cannot."""
    if not alone:
        return job
    # What `jobs.train` catches it mends itself; a worker that the system has killed could not.
    if row.get("killed") and 2 * job.accumulation <= job.config.batch_size // jobs.SMALLEST_PART:
        return replace(job, accumulation=2 * job.accumulation)
    return None


def sweep_nodes(run_id: str, uri: str) -> list[str]:
    """Has each node send what its trials have not, and clear it away; returns what is left, and where."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote, here = ray.remote(num_cpus=0, max_retries=0)(mirror.sweep), ray.get_runtime_context().get_node_id()
    others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
    swept = {
        node["NodeManagerHostname"]: remote.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(run_id, uri)
        for node in others
    }
    left = {"this machine": mirror.sweep(run_id, uri)}
    for name, answer in swept.items():
        try:
            left[name] = cluster.get(answer)
        except UserError as error:
            left[name] = str(error)
        except ray.exceptions.RayError as error:  # The node is gone, and what was only there with it.
            left[name] = f"what was only there: {next(iter(str(error).splitlines()), 'it is gone')}"
    return [f"{what} of {name}" for name, what in left.items() if what]


def trial_folder(run: Path, number: int) -> Path:
    """Returns the folder of a trial's log, events and checkpoints."""
    return run / "trials" / f"{number:04d}"


class _NotRestored:
    """What Ray pickles when it saves its own state, and gets nothing of: the run folder is the record to go on from."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class EndSearch(_NotRestored, tune.Stopper):
    """Ends all trials as soon as `now()` says so."""

    def __init__(self, now: Callable[[], bool]) -> None:
        self._now = now

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Returns False: no trial is stopped by itself."""
        return False

    def stop_all(self) -> bool:
        """Returns whether the search should end."""
        return self._now()


class Proposals(_NotRestored, Searcher):
    """Hands the study's proposals to Ray Tune. What came of them the study learns from `Recorder`, not from here."""

    def __init__(
        self,
        study: RunStudy,
        on_problem: Callable[[BaseException], None],
        on_exhausted: Callable[[], None],
        slots: cluster.Slots,
        hold: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._study = study
        self._on_exhausted = on_exhausted
        self._on_problem = on_problem
        self._slots, self._hold = slots, hold

    def suggest(self, trial_id: str) -> Any:
        """Returns the next trial's configuration, None while no slot is free, or FINISHED if the study has none."""
        device = None if self._hold() else self._slots.free()
        if device is None:
            return None
        try:
            proposal = self._study.ask()
        except Exception as error:  # Ray would bury it; the search stops and shows it.
            self._on_problem(error)
            return Searcher.FINISHED
        if proposal is None:
            self._on_exhausted()
            return Searcher.FINISHED
        self._slots.take(proposal.number, device)
        return {
            "device": device,
            "trial": proposal.number,
            "seed": proposal.seed,
            "config": proposal.config.model_dump(),
            "accumulation": proposal.accumulation,
            "epochs": proposal.epochs,
        }

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Does nothing; see `Recorder`."""

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any) -> bool:
        """Accepts what Ray passes; metric and mode are this class's own."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Does nothing: the study in the run folder is the record."""

    def restore(self, checkpoint_path: str) -> None:
        """Does nothing: the study in the run folder is the record."""


class TensorBoard(TBXLoggerCallback):
    """Ray's own callback, with its library imported at the first epoch, and without the torch that this takes along.

    While the workers start, the import would take a core from them; in the search's own process nothing needs torch.
    """

    def __init__(self) -> None:
        self._trial_writer, self._trial_result = {}, {}

    @property
    def _summary_writer_cls(self) -> Any:
        known = sys.modules.get("torch")
        if known is None:
            sys.modules["torch"] = None  # type: ignore[assignment]  # An import of it raises ImportError.
        try:
            from tensorboardX import SummaryWriter
        finally:
            if known is None:
                del sys.modules["torch"]
        return SummaryWriter

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Does nothing: the first result makes a trial's writer."""


class Recorder(_NotRestored, tune.Callback):
    """Writes what trials do into the study, the frames and the progress view.

    Args:
        study: The record.
        progress: What a person watches.
        on_problem: Is told the first exception that recording raises, so that the search can stop and show it.
        slots: Are watched from the first trial to the last: what a cluster has may change at any time.
        alone: All of a device's resources, for a trial that ran out of memory; empty where each has them anyhow.
    """

    def __init__(
        self,
        study: RunStudy,
        progress: Progress,
        on_problem: Callable[[BaseException], None],
        slots: cluster.Slots,
        alone: Mapping[str, float] | None = None,
    ) -> None:
        self._study = study
        self._progress = progress
        self._on_problem = on_problem
        self._slots = slots
        self._alone = dict(alone or {})
        self._were_alone: set[int] = set()
        self._waiting_alone: set[int] = set()
        self._last_epoch: dict[int, float] = {}

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Looks after the slots."""
        with self._guard():
            self._slots.watch()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Shows that a trial began."""
        self._waiting_alone.discard(trial.config["trial"])
        self._progress.started(self._study.row(trial.config["trial"]))

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Records an epoch."""
        number = trial.config["trial"]
        self._last_epoch[number] = time.monotonic()
        with self._guard():
            self._study.ran_on(number, result.get("hostname"))
            if result["error"]:
                self._fail(number, result["error"])
            elif self._study.report(number, result):
                self._progress.epoch(self._study.row(number), result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Records that a trial ended by itself or was stopped by the scheduler."""
        number = trial.config["trial"]
        with self._guard():
            if self._study.row(number)["state"] == "running":
                self._study.finish(number, "scheduler")
                self._progress.ended(self._study.row(number))

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Records another attempt."""
        number, error = trial.config["trial"], _last_error(trial)
        with self._guard():
            if DISK_FULL in error:  # No trial would fare better; they stay as they are, to be gone on with.
                raise UserError(error[error.index(DISK_FULL) :])
            room = self._give_room(trial) if jobs.OUT_OF_MEMORY.search(_last_failure(trial)) else ""
            if _LOST_NODE.search(_last_failure(trial)):
                error = f"its node {self._study.row(number).get('node') or ''} was lost: {error.partition('. ')[0]}"
            trial.set_config({**trial.config, "epochs": self._study.row(number)["epochs"]})
            self._study.retry(number, f"{error}{room}", accumulation=trial.config["accumulation"])
            self._progress.note(f"trial {number} failed and is tried again{room}: {error}")

    def holds(self) -> bool:
        """Returns whether a trial waits for its device: until it has it, nothing new may begin."""
        return bool(self._waiting_alone)

    def _give_room(self, trial: Any) -> str:
        """Has a trial that ran out of memory run alone on its device, then with its batches in parts; says which."""
        number = trial.config["trial"]
        if self._alone and number not in self._were_alone:
            self._were_alone.add(number)
            self._waiting_alone.add(number)
            trial.update_resources(self._alone)
            return ", alone on its device"
        parts = parts_of(self._study.row(number)["config/batch_size"], 2 * trial.config["accumulation"])
        if parts == trial.config["accumulation"]:
            return ""
        trial.set_config({**trial.config, "accumulation": parts})
        return f", each batch in {parts} parts"

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Records that a trial failed for good."""
        with self._guard():
            self._fail(trial.config["trial"], _last_error(trial))

    def all_reported_since(self, moment: float) -> bool:
        """Returns whether every running trial has reported an epoch since a moment of `time.monotonic()`."""
        return all(self._last_epoch.get(number, 0.0) >= moment for number in self._study.running())

    def _fail(self, number: int, error: str) -> None:
        """Records a failure; where the first trials all fail, the search is told to stop and to show it."""
        self._study.fail(number, error)
        self._progress.ended(self._study.row(number))
        if self._study.n_failed == self._study.n_finished == FAILURES_THAT_STOP:
            self._on_problem(
                UserError(
                    f"The first {FAILURES_THAT_STOP} trials must not all fail, but did; the last with: {error} "
                    f"Its traceback is in trials/{number:04d}/{LOG} of the run."
                )
            )

    @contextlib.contextmanager
    def _guard(self) -> Any:
        try:
            yield
        except Exception as error:  # Ray would take it for a failure of the trial.
            self._on_problem(error)


def _last_failure(trial: Any) -> str:
    """Returns what Ray wrote when a trial failed last: a traceback, or what it knows of the worker."""
    text = Path(trial.error_file).read_text(encoding="utf-8", errors="replace") if trial.error_file else ""
    return text.rpartition("Failure # ")[2]


def _last_error(trial: Any) -> str:
    """Returns the same in a line: the exception of the traceback, or the first that is said of the worker."""
    failure = _last_failure(trial)
    lines = [line.strip() for line in failure.splitlines()[1:] if line.strip()]
    if not lines:
        return "unknown error"
    return (lines[-1] if "Traceback" in failure or "ray::" in lines[0] else lines[0])[:500]
