"""The Ray side of a trial: `train_trial` runs in a worker, `Recorder` and `Proposals` sit between Ray and the study.

`train_all` is the Ray side of `tuning.final`: several retrainings beside each other.

A trial's state is written to its own folder after each epoch and before the epoch is reported; whoever runs the trial
again (a retry, a resumed search) goes on from there. Ray's own checkpoints are not used: there is one way to go on.
"""

import contextlib
import logging
import os
import re
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.search import Searcher

from tuning import checkpoints, jobs, machine
from tuning.config import TrainConfig
from tuning.data import Splits
from tuning.errors import DISK_FULL, UserError
from tuning.progress import Progress
from tuning.schedulers import METRIC
from tuning.study import RunStudy

if TYPE_CHECKING:
    from tuning.training import Training

LOG = "trial.log"
FAILURES_THAT_STOP = 3
# As torch says it of a GPU and of the host, Python of itself, and Ray of a worker that it has killed.
_OUT_OF_MEMORY = re.compile(r"OutOfMemory|MemoryError|can't allocate memory|running low on memory")


def train_trial(config: Mapping[str, Any], *, splits: Splits, run: str, device: str, threads: int) -> None:
    """Trains one configuration in a Ray worker and reports each epoch; the trial's log gets what is printed meanwhile.

    Args:
        config: `trial` (its number), `seed`, `config` (the hyperparameters), and `accumulation`, the parts of a batch.
        splits: From the object store; its arrays are read-only and shared by all trials on a node.
        run: The run folder; the trial's is `trials/<number>` below it.
        device: "cpu" or "cuda".
        threads: For torch, on a CPU.
    """
    from tuning.training import Training, prepare

    folder = trial_folder(Path(run), config["trial"])
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("a", buffering=1) as log, redirect_stdout(log), redirect_stderr(log):
        try:
            prepare(threads)
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
            traceback.print_exc()
            raise


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

    Args:
        wanted: Their folders must be absolute.
        splits: Shared by all through the object store.
        slots: As `machine.plan_slots` gives them.

    Raises:
        UserError: The disk is full.
    """
    import ray

    threads = max(1, int(slots["cpus_per_trial"]))
    remote = ray.remote(
        num_cpus=slots["cpus_per_trial"], num_gpus=slots["gpus_per_trial"], max_retries=0, num_returns="streaming"
    )(jobs.train)
    with started_ray(slots, logging.NullHandler()):
        shared = ray.put(splits)
        running: dict[Any, jobs.Job] = {remote.remote(job, shared, slots["device"], threads): job for job in wanted}
        while running:
            ready: list[Any] = ray.wait(list(running), num_returns=1, fetch_local=False)[0]
            [rows] = ready
            try:
                yield running[rows], ray.get(next(rows))
            except StopIteration:
                del running[rows]
            except UserError:
                raise
            except ray.exceptions.RayError as error:  # The worker died; `jobs.train` tells of what it can catch.
                yield running.pop(rows), {"error": str(error).strip().splitlines()[0]}


@contextlib.contextmanager
def started_ray(slots: Mapping[str, Any], log: logging.Handler) -> Iterator[None]:
    """Starts a Ray of our own, on this machine, bound to the loopback address, without a dashboard.

    Args:
        slots: `device`, `concurrency` and `cpus_per_trial`, as `machine.plan_slots` gives them.
        log: Gets what Ray has to say.
    """
    os.environ |= {
        "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
        "TUNE_DISABLE_SIGINT_HANDLER": "1",
        "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
        "RAY_AIR_NEW_OUTPUT": "0",
        # Ray would run trials at niceness 15, where whatever else the machine does takes their cores from them.
        "RAY_worker_niceness": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Tune gives its trials an environment of their own, which the workers that Ray starts in advance do not have.
        "RAY_prestart_worker_first_driver": "0",
    }
    machine.huge_pages()
    import ray

    n_gpus = len(machine.gpu_memory()) if slots["device"] == "cuda" else 0
    ray.init(
        address="local",
        num_cpus=machine.cpus_in_use(slots),
        num_gpus=n_gpus,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    loggers = [logging.getLogger("ray"), logging.getLogger("ray.tune")]
    for logger in loggers:
        logger.handlers, logger.propagate = [log], False
    try:
        yield
    finally:
        ray.shutdown()
        for logger in loggers:
            logger.removeHandler(log)
        log.close()


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
        hold: Callable[[], bool] = lambda: False,
    ) -> None:
        super().__init__(metric=METRIC, mode="max")
        self._study = study
        self._on_exhausted = on_exhausted
        self._on_problem = on_problem
        self._hold = hold

    def suggest(self, trial_id: str) -> Any:
        """Returns the next trial's configuration, None while `hold()`, or FINISHED if the study cannot give one."""
        if self._hold():
            return None
        try:
            proposal = self._study.ask()
        except Exception as error:  # Ray would bury it; the search stops and shows it.
            self._on_problem(error)
            return Searcher.FINISHED
        if proposal is None:
            self._on_exhausted()
            return Searcher.FINISHED
        return {
            "trial": proposal.number,
            "seed": proposal.seed,
            "config": proposal.config.model_dump(),
            "accumulation": proposal.accumulation,
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


class Recorder(_NotRestored, tune.Callback):
    """Writes what trials do into the study, the frames and the progress view.

    Args:
        study: The record.
        progress: What a person watches.
        on_problem: Is told the first exception that recording raises, so that the search can stop and show it.
        alone: All of a device's resources, for a trial that ran out of memory; empty where each has them anyhow.
    """

    def __init__(
        self,
        study: RunStudy,
        progress: Progress,
        on_problem: Callable[[BaseException], None],
        alone: Mapping[str, float] | None = None,
    ) -> None:
        self._study = study
        self._progress = progress
        self._on_problem = on_problem
        self._alone = dict(alone or {})
        self._were_alone: set[int] = set()
        self._waiting_alone: set[int] = set()
        self._last_epoch: dict[int, float] = {}

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
            room = self._give_room(trial) if _OUT_OF_MEMORY.search(_last_failure(trial)) else ""
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
        parts = 2 * trial.config["accumulation"]
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
    text = Path(trial.error_file).read_text() if trial.error_file else ""
    return text.rpartition("Failure # ")[2]


def _last_error(trial: Any) -> str:
    """Returns the same in a line: the exception of the traceback, or the first that is said of the worker."""
    failure = _last_failure(trial)
    lines = [line.strip() for line in failure.splitlines()[1:] if line.strip()]
    if not lines:
        return "unknown error"
    return (lines[-1] if "Traceback" in failure or "ray::" in lines[0] else lines[0])[:500]
