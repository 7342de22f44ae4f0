"""The Optuna side of a run: what the sampler is asked, and what a finished, stopped or failed trial tells it.

The study (SQLite, in the run folder) and `epochs.csv` are the record; `trials.csv` is written from them. Nothing here
knows Ray: whoever runs trials calls `ask`, `report`, `finish`, `fail`.
"""

import hashlib
import math
import os
import sqlite3
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from tuning import files, results
from tuning.config import TrainConfig
from tuning.errors import unknown_name
from tuning.names import SAMPLERS
from tuning.spaces import Space
from tuning.threads import one_thread

OBJECTIVE = "valid_accuracy"
_STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
# What the study keeps of a trial that has ended, beside its configuration.
_KEPT = (
    "state",
    "ended",
    "stopped_by",
    "error",
    "attempt",
    "accumulation",
    "device",
    "precision",
    "node",
    *results.OBJECTIVES,
)
_SECONDS_BETWEEN_WRITES = 1.0
REPEATS_BEFORE_RANDOM, REPEATS_THAT_EXHAUST = 10, 200


@dataclass(frozen=True)
class Proposal:
    """A trial to run: its number in the study, its seed, its configuration, and the parts that a batch is cut into.

    `epochs` are those that the study knows of it already: more than none for a trial that was interrupted.
    """

    number: int
    seed: int
    config: TrainConfig
    accumulation: int = 1
    epochs: int = 0


class _Connection(sqlite3.Connection):
    """A connection that waits for the disk now and then, and not at each of some 35 commits a trial (16 ms each).

    Whoever is killed loses nothing by that. A machine that loses power may lose the last commits, but not the file.
    """

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.execute("PRAGMA journal_mode=WAL")
        self.execute("PRAGMA synchronous=NORMAL")


class RunStudy:
    """A run's trials.

    Args:
        path: The run folder; a study that it holds already is gone on with.
        space: Makes configurations.
        sampler: Chooses parameters.
        epochs: Length of a trial where the space sets none.
        seed: The run's; a trial's seed derives from it and the trial's number.
        minimize: A column of `trials.csv` to be minimized beside the accuracy, or None. With it the sampler gets final
            values only: Optuna has no intermediate ones for two objectives.

    Attributes:
        study: The Optuna study.
    """

    def __init__(
        self,
        path: Path,
        space: Space,
        sampler: optuna.samplers.BaseSampler,
        *,
        epochs: int,
        seed: int,
        minimize: str | None = None,
    ) -> None:
        self._minimize = minimize
        self._path, self._space, self._epochs, self._seed = path, space, epochs, seed
        self._database = optuna.storages.RDBStorage(
            f"sqlite:///{path.absolute()}/study.db", engine_kwargs={"connect_args": {"factory": _Connection}}
        )
        self.study = optuna.create_study(
            study_name=path.name,
            storage=self._database,
            sampler=sampler,
            pruner=optuna.pruners.NopPruner(),
            directions=["maximize"] if minimize is None else ["maximize", "minimize"],
            load_if_exists=True,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
            self.study.set_metric_names([OBJECTIVE] if minimize is None else [OBJECTIVE, minimize])
        self._attrs: dict[int, dict[str, Any]] = {}
        self._rows: dict[int, list[dict[str, Any]]] = {}
        self._numbers: dict[str, list[int]] = {}
        self._opened, self._written, self._write_seconds = time.monotonic(), -math.inf, 0.0
        trials = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state != TrialState.WAITING]
        numbers = {trial.number for trial in trials}
        rows = [{str(k): v for k, v in row.items()} for row in results.Run(path).epochs.to_dict("records")]
        known = [row for row in rows if row["trial"] in numbers]
        if len(known) < len(rows):  # Of a record from a storage, which the study's last trials did not reach any more.
            files.write_rows(path / "epochs.csv", results.EPOCH_COLUMNS, known)
        for row in known:
            self._rows.setdefault(row["trial"], []).append(row)
        for trial in trials:
            self._attrs[trial.number] = dict(trial.user_attrs)
            if "seed" in trial.user_attrs:  # The last of what a proposal writes; a twin's has none.
                config = TrainConfig.model_validate(trial.user_attrs["config"])
                self._numbers.setdefault(config.hash(), []).append(trial.number)
        running = [trial.number for trial in trials if trial.state == TrialState.RUNNING]
        for number in running:  # Cut off while it was being told, perhaps.
            self._attrs[number].pop("state", None)
        self._interrupted = [number for number in running if "seed" in self._attrs[number]]
        self._undrawn = [number for number in running if "seed" not in self._attrs[number]]
        if not self.study.get_trials(deepcopy=False):
            for point in space.first:
                self.study.enqueue_trial(dict(point))

    @property
    def n_finished(self) -> int:
        """Trials that were run and are complete, stopped or failed for good."""
        return sum("state" in attrs and "same_as" not in attrs for attrs in self._attrs.values())

    @property
    def n_failed(self) -> int:
        """Trials that failed for good."""
        return sum(attrs.get("state") == "failed" and "same_as" not in attrs for attrs in self._attrs.values())

    def running(self) -> list[int]:
        """Returns the numbers of the trials that have not ended."""
        return [number for number, attrs in self._attrs.items() if "state" not in attrs]

    def is_running(self, number: int) -> bool:
        """Returns whether a trial has not ended."""
        return "state" not in self._attrs[number]

    def finished(self) -> dict[int, tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Returns hyperparameters and epochs of each trial that has ended; a new scheduler has to learn them again."""
        return {
            number: (attrs["config"], self._rows[number])
            for number, attrs in self._attrs.items()
            if attrs.get("state") in ("complete", "pruned") and "same_as" not in attrs
        }

    @one_thread()  # Trials train beside the sampler.
    def ask(self) -> Proposal | None:
        """Returns a trial that was interrupted, or else a new one; None where the space has nothing new.

        A configuration that was proposed before is not run again: the sampler is told the result of its twin. After
        some such proposals in a row points are drawn at random, and after many the space counts as exhausted.

        Raises:
            UserError: The space gave no valid configuration.
        """
        if self._interrupted:
            number = self._interrupted.pop(0)
            attrs = self._attrs[number]
            attrs["attempt"] = attrs.get("attempt", 1) + 1
            config = TrainConfig.model_validate(attrs["config"])
            n_known = len(self._rows.get(number, []))
            return Proposal(number, attrs["seed"], config, attrs.get("accumulation", 1), n_known)
        sampler = self.study.sampler
        try:
            for n_repeats in range(REPEATS_THAT_EXHAUST):
                if n_repeats == REPEATS_BEFORE_RANDOM:
                    self.study.sampler = optuna.samplers.RandomSampler(seed=trial_seed(self._seed, len(self._attrs)))
                # What a trial that was cut off while it was drawn has of its point, it keeps.
                begun = self._undrawn.pop(0) if self._undrawn else None
                trial = self.study.ask() if begun is None else optuna.Trial(self.study, self._id(begun))
                config = self._space.sample(trial, self._epochs)
                twin = self._twin(config)
                if twin is None:
                    return self._propose(trial, config)
                self._reuse(trial.number, config, twin)
        finally:
            self.study.sampler = sampler
        return None

    def _propose(self, trial: optuna.Trial, config: TrainConfig) -> Proposal:
        seed = trial_seed(self._seed, trial.number)
        attrs = {"config": config.model_dump(), "started": _now(), "seed": seed}
        for name, value in attrs.items():
            trial.set_user_attr(name, value)
        self._attrs[trial.number] = {**attrs, "attempt": 1, "accumulation": 1}
        self._numbers.setdefault(config.hash(), []).append(trial.number)
        self._rows[trial.number] = []
        self._write_now_and_then()
        return Proposal(trial.number, seed, config)

    def _twin(self, config: TrainConfig) -> int | None:
        """Returns the number of the trial that runs or ran this configuration and did not fail."""
        for number in self._numbers.get(config.hash(), []):
            attrs = self._attrs[number]
            if attrs.get("state") != "failed" and "same_as" not in attrs:
                return number
        return None

    def _reuse(self, number: int, config: TrainConfig, twin: int) -> None:
        """Tells the sampler, for a trial that is not run, what its twin told; nothing yet, while that one runs."""
        state = self._attrs[twin].get("state")
        self._attrs[number] = {"config": config.model_dump(), "started": _now(), "attempt": 0, "same_as": twin}
        for name, value in self._attrs[number].items():
            self._storage.set_trial_user_attr(self._id(number), name, value)
        if state is None:
            self._end(number, TrialState.FAIL, error=f"same configuration as trial {twin}, which is running")
            return
        for row in self._rows[twin]:
            self._tell_epoch(number, row)
        self._end(number, TrialState.COMPLETE if state == "complete" else TrialState.PRUNED)

    def report(self, number: int, result: Mapping[str, Any]) -> bool:
        """Takes an epoch's result into the study and `epochs.csv`; returns False for an epoch that was known."""
        rows, attrs = self._rows.setdefault(number, []), self._attrs[number]
        for name in ("n_parameters", "device", "precision", "finished"):
            attrs[name] = result.get(name)
        attrs["seconds_per_image"] = min(attrs.get("seconds_per_image", math.inf), result["seconds_per_image"])
        if any(row["epoch"] == result["epoch"] for row in rows):
            return False
        row = {"trial": number, **{name: result[name] for name in results.EPOCH_COLUMNS if name != "trial"}}
        files.append_row(self._path / "epochs.csv", results.EPOCH_COLUMNS, row)
        rows.append(row)
        self._tell_epoch(number, row)
        self._write_now_and_then(_SECONDS_BETWEEN_WRITES)
        return True

    def ran_on(self, number: int, node: str | None) -> None:
        """Notes the host that a trial's last result came from."""
        self._attrs[number]["node"] = node

    def _tell_epoch(self, number: int, row: Mapping[str, Any]) -> None:
        if self._minimize is None:
            tell_epoch(self.study, number, row["epoch"], row[OBJECTIVE])

    def retry(self, number: int, error: str, *, accumulation: int) -> None:
        """Notes that a trial failed and begins another attempt, its batches cut into so many parts."""
        self._attrs[number] |= {"attempt": self._attrs[number]["attempt"] + 1, "error": error}
        self._attrs[number]["accumulation"] = accumulation
        self._storage.set_trial_user_attr(self._id(number), "accumulation", accumulation)

    def finish(self, number: int, stopped_by: str) -> None:
        """Tells the sampler the outcome of a trial that ended without an error; see `end_state`."""
        finished = self._attrs[number].get("finished")
        state = end_state(bool(finished), len(self._rows[number]))
        if state == TrialState.FAIL:
            self._end(number, state, error=f"stopped by {stopped_by} before its first epoch ended")
        else:
            self._end(number, state, stopped_by=finished or stopped_by)

    def fail(self, number: int, error: str) -> None:
        """Tells the sampler that a trial failed for good, and why."""
        self._end(number, TrialState.FAIL, error=error)

    def close(self, stopped_by: str | None) -> None:
        """Writes everything; with a reason, ends the trials that still run. Without one they can be gone on with."""
        if stopped_by is not None:
            for number in self.running():
                self.finish(number, stopped_by)
        self.write_trials()
        self._database.remove_session()
        self._database.engine.dispose()  # Whereupon SQLite has everything in the one file.

    def row(self, number: int) -> dict[str, Any]:
        """Returns a trial's row of `trials.csv`."""
        attrs, rows = self._attrs[number], self._rows.get(number, [])
        if "same_as" in attrs and attrs.get("state") != "failed":
            same = {"trial": number, "seconds": 0.0, "stopped_by": f"same configuration as trial {attrs['same_as']}"}
            return (
                self.row(attrs["same_as"]) | same | {name: attrs.get(name) for name in ("started", "ended", "attempt")}
            )
        row = {name: attrs.get(name) for name in results.TRIAL_COLUMNS if name in attrs}
        row |= {"trial": number, "state": attrs.get("state", "running"), "epochs": len(rows)}
        row |= {f"config/{name}": value for name, value in attrs.get("config", {}).items()}
        if rows:
            best = max(rows, key=lambda r: (r["valid_accuracy"], -r["valid_loss"]))
            seconds = sum(r["epoch_seconds"] for r in rows)
            row |= {
                "valid_accuracy": best["valid_accuracy"],
                "valid_loss": best["valid_loss"],
                "best_epoch": best["epoch"],
            }
            row |= {"seconds": seconds, "images_per_second": sum(r["images_per_second"] for r in rows) / len(rows)}
        return row

    def write_trials(self) -> None:
        """Writes `trials.csv`."""
        begun = time.monotonic()
        os.utime(self._path / "study.db")  # Changes are in a file beside it at first; whoever watches this one sees.
        rows = [self.row(number) for number in sorted(self._attrs)]
        if self._minimize is not None:
            front = {trial.number for trial in self.study.best_trials}
            rows = [row | {"pareto": row["trial"] in front} for row in rows]
        files.write_rows(self._path / "trials.csv", results.TRIAL_COLUMNS, rows)
        self._written = time.monotonic()
        self._write_seconds += self._written - begun

    def _write_now_and_then(self, seconds: float = 0.0) -> None:
        """Does so unless it was done within these seconds, or has taken a twentieth of the time (and a second)."""
        now = time.monotonic()
        if now - self._written >= seconds and self._write_seconds <= 1.0 + (now - self._opened) / 20:
            self.write_trials()

    @property
    def _storage(self) -> optuna.storages.BaseStorage:
        return self.study._storage

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)

    def _end(self, number: int, state: TrialState, *, stopped_by: str | None = None, error: str | None = None) -> None:
        attrs = self._attrs.setdefault(number, {})
        attrs |= {"state": _STATES[state], "ended": _now(), "stopped_by": stopped_by}
        if error is not None:
            attrs["error"] = error
        for name in _KEPT:
            if attrs.get(name) is not None:
                self._storage.set_trial_user_attr(self._id(number), name, attrs[name])
        objectives = [OBJECTIVE] if self._minimize is None else [OBJECTIVE, self._minimize]
        tell_end(self.study, number, state, [self.row(number).get(name, math.nan) for name in objectives])
        self._write_now_and_then()


def tell_epoch(study: optuna.Study, number: int, epoch: int, value: float) -> None:
    """Tells the sampler what a running trial's value is after an epoch."""
    trial_id = study._storage.get_trial_id_from_study_id_trial_number(study._study_id, number)
    study._storage.set_trial_intermediate_value(trial_id, epoch, value)


def end_state(finished: bool, n_epochs: int) -> TrialState:
    """Returns as what the sampler sees a trial that ended without an error after so many epochs.

    One that is `finished`, as it reached its length or stopped early by itself, is COMPLETE with its *best* value. One
    that was stopped from outside is PRUNED, and its values by epoch stand: it is not a bad configuration, but a short
    run. One that was stopped before its first epoch ended has failed.
    """
    if finished:
        return TrialState.COMPLETE
    return TrialState.PRUNED if n_epochs else TrialState.FAIL


def tell_end(study: optuna.Study, number: int, state: TrialState, values: Sequence[float]) -> None:
    """Tells the sampler that a trial ended; its best values, one an objective, count if it is COMPLETE."""
    study.tell(number, list(values) if state == TrialState.COMPLETE else None, state=state)


def trial_seed(run_seed: int, number: int) -> int:
    """Returns a trial's seed in [0, 2**31): a hash of the run's seed and the trial's number."""
    return int.from_bytes(hashlib.sha256(f"{run_seed}/{number}".encode()).digest()[:4], "big") >> 1


def drawn_at_random(path: Path, sampler: str, n_startup: int) -> set[int]:
    """Returns the numbers of a run's trials that no model proposed, the space's first points not among them.

    Those are all of a sampler that draws at random; of the others the first `n_startup`, as fewer trials were there.

    Raises:
        UserError: `SAMPLERS` has no sampler of that name.
    """
    if sampler not in SAMPLERS:
        raise unknown_name("sampler", sampler, SAMPLERS)
    if not (path / "study.db").exists():
        return set()
    storage = f"sqlite:///{path.absolute()}/study.db"
    study = optuna.load_study(study_name=optuna.get_all_study_names(storage)[0], storage=storage)
    return {
        trial.number
        for trial in study.get_trials(deepcopy=False)
        if "fixed_params" not in trial.system_attrs and (SAMPLERS[sampler] or trial.number < n_startup)
    }


def _now() -> str:
    return datetime.now(UTC).isoformat()
