"""Ray Tune as a search uses it.

Its hooks tell the search's `Session` what Ray says, and Ray what the session answers.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune
from ray.tune.search import Searcher

from tuning.base import own_model
from tuning.base.registries import METRICS, SCHEDULERS
from tuning.runs import run_folder
from tuning.trials import schedulers
from tuning.trials.schedulers import METRIC

if TYPE_CHECKING:
    from tuning.trials.session import Session


def tuner(session: "Session", n_trials: int) -> tune.Tuner:
    """Returns what runs so many trials of a session through Ray Tune, with our searcher, scheduler and stopper."""
    from pyarrow.fs import LocalFileSystem

    from tuning.trials.tensorboard import TensorBoard

    settings, path = session.settings, session.path
    scheduler = SCHEDULERS.load(settings.scheduler)(settings.epochs, settings.seed)
    pauses = SCHEDULERS[settings.scheduler].pauses_trials
    # Others would count an interrupted trial twice, whose worker tells all of its epochs again.
    shown = session.study.trials.shown(interrupted=pauses)
    schedulers.replay(scheduler, shown, METRICS[settings.metric], session.study.trials.paused)
    if pauses:
        session.turns.scheduler, n_trials = scheduler, -1  # Of Ray's trials: one that goes on is another one for it.
    tune_config = tune.TuneConfig(
        search_alg=Proposals(session),
        scheduler=scheduler,
        num_samples=n_trials,
        reuse_actors=True,
        trial_dirname_creator=lambda trial: run_folder.trial_folder(path, trial.config["trial"]).name,
    )
    run_config = tune.RunConfig(
        name="trials",
        storage_path=str(path.absolute()),
        storage_filesystem=LocalFileSystem(),  # Else Ray reads the path as a URI: "#", "?" and "%20" break it.
        failure_config=tune.FailureConfig(max_failures=settings.max_failures),
        callbacks=[Recorder(session), TensorBoard()],
        stop=EndSearch(session),
        verbose=0,
    )
    return tune.Tuner(_trainable(session), tune_config=tune_config, run_config=run_config)


def _trainable(session: "Session") -> Any:
    """Returns what Ray runs as a trial."""
    from tuning.trials.worker import train_trial

    settings, slots = session.settings, session.settings.slots
    trainable = tune.with_parameters(
        train_trial,
        splits=session.splits if settings.address is None else session.splits.in_memory(),
        run=str(session.path.absolute()),
        threads=max(1, int(slots.cpus_per_trial)),
        metric=settings.metric,
        stored=session.stored_at(),
        own_models=own_model.known(),
    )

    def resources(config: dict[str, Any]) -> Any:
        alone = slots.whole_device if config["alone"] else {}
        return tune.PlacementGroupFactory([alone or slots.resources(config["device"])])

    return tune.with_resources(trainable, resources)


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
        turns, turn = self._session.turns, None
        with self._session.guard():  # Ray would bury an error; the search stops and shows it.
            turn = turns.next()
        if turn is None:
            return Searcher.FINISHED if turns.are_over or self._session.problem is not None else None
        proposal = turn.proposal
        return {
            "device": turn.device,
            "alone": proposal.alone,
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
            self._session.turns.watch_slots()

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
                trial.update_resources(tune.PlacementGroupFactory([dict(again.resources)]))
            trial.set_config({**trial.config, "epochs": again.epochs, "accumulation": again.accumulation})

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Tells that a trial failed for good."""
        with self._session.guard():
            self._session.failed(trial.config["trial"], _last_error(trial), _last_failure(trial))


def _last_failure(trial: Any) -> str:
    """Returns what Ray wrote when a trial failed last: a traceback, or what it knows of the worker."""
    text = Path(trial.error_file).read_text(encoding="utf-8", errors="replace") if trial.error_file else ""
    return text.rpartition("Failure # ")[2]


def _last_error(trial: Any) -> str:
    """Returns the same in a line: the exception of the traceback, or the first that is said of the worker.

    An exception may have several lines, of which the first says what it is.
    """
    failure = _last_failure(trial)
    lines = [line.rstrip() for line in failure.splitlines()[1:] if line.strip()]
    if not lines:
        return "unknown error"
    if "Traceback" not in failure and "ray::" not in lines[0]:
        return lines[0].strip()[:500]
    calls = [number for number, line in enumerate(lines) if line.startswith("  File ")]
    said = [line for line in lines[calls[-1] :] if not line[0].isspace()] if calls else []
    return (said or lines[::-1])[0].strip()[:500]
