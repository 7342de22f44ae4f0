"""What a search tells Ray Tune, and what it writes down of what Ray reports."""

import contextlib
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from tuning.base.errors import DISK_FULL, UserError
from tuning.images.batches import parts_of
from tuning.sampling.study import RunStudy
from tuning.trials import local_ray, ray_internals
from tuning.trials.progress import Progress
from tuning.trials.schedulers import METRIC
from tuning.trials.worker import LOG

FAILURES_THAT_STOP = 3


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
        slots: local_ray.Slots,
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
        slots: local_ray.Slots,
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
            room = self._give_room(trial) if ray_internals.OUT_OF_MEMORY.search(_last_failure(trial)) else ""
            if ray_internals.LOST_NODE.search(_last_failure(trial)):
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
