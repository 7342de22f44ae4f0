"""Ray Tune's hooks. Each tells the search's `Session` what Ray says, and Ray what the session answers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.search import Searcher

from tuning.trials.schedulers import METRIC

if TYPE_CHECKING:
    from tuning.trials.session import Session


class _NotRestored:
    """What Ray pickles when it saves its own state, and gets nothing of: the run folder is the record to go on from."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class EndSearch(_NotRestored, tune.Stopper):
    """Ends all trials as soon as the search should end."""

    def __init__(self, session: "Session") -> None:
        self._session = session

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Returns False: no trial is stopped by itself."""
        return False

    def stop_all(self) -> bool:
        """Returns whether the search should end."""
        return self._session.should_end()


class Proposals(_NotRestored, Searcher):
    """Hands the session's proposals to Ray Tune. What came of them, `Recorder` tells the session."""

    def __init__(self, session: "Session") -> None:
        super().__init__(metric=METRIC, mode="max")
        self._session = session

    def suggest(self, trial_id: str) -> Any:
        """Returns the next trial's configuration, None while no slot is free, or FINISHED if there is none."""
        device = self._session.free_device()
        if device is None:
            return None
        proposal = self._session.propose(device)
        if proposal is None:
            return Searcher.FINISHED if self._session.has_begun_all() else None
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
    """Tells the session what trials do. What goes wrong there ends the search: Ray would take it for the trial's."""

    def __init__(self, session: "Session") -> None:
        self._session = session

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Looks after the slots: what a cluster has may change at any time."""
        with self._session.guard():
            self._session.watch_slots()

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tells that a trial began, or began again."""
        self._session.began(trial.config["trial"])

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Tells of an epoch."""
        with self._session.guard():
            self._session.reported(trial.config["trial"], result)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tells that a trial ended by itself or was stopped by the scheduler."""
        with self._session.guard():
            self._session.ended(trial.config["trial"])

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tells of a failure after which Ray tries again, and has the next attempt run as the session says."""
        number, parts = trial.config["trial"], trial.config["accumulation"]
        with self._session.guard():
            again = self._session.retried(number, _last_error(trial), _last_failure(trial), parts)
            if again.resources:
                trial.update_resources(again.resources)
            trial.set_config({**trial.config, "epochs": again.epochs, "accumulation": again.accumulation})

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tells that a trial failed for good."""
        with self._session.guard():
            self._session.failed(trial.config["trial"], _last_error(trial))


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
