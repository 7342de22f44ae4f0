"""The Optuna side of a run: what the sampler is asked, and what a finished, stopped or failed trial tells it.

The study (SQLite, in the run folder) is the record: it holds each trial, and each of its epochs. `trials.csv` and
`epochs.csv` are written from it, after the disk has it (`study_frames.py`). Nothing here knows Ray: whoever runs trials
calls `ask`, `report`, `finish`, `fail`.
"""

import hashlib
import itertools
import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from tuning.base.config import TrainConfig
from tuning.base.errors import UserError
from tuning.base.masking import masked
from tuning.base.registries import METRICS
from tuning.base.threads import one_thread
from tuning.runs import schema, study_file
from tuning.runs.study_file import EPOCH
from tuning.sampling import convergence, recalled_trials, spaces, study_frames, study_storage
from tuning.sampling.costs import LOST
from tuning.sampling.known_trials import ALONE, NODE_LOST, PAUSED, KnownTrial, KnownTrials
from tuning.sampling.recalled_trials import OF_END, OF_TRIAL, STATES
from tuning.sampling.spaces import Space
from tuning.sampling.study_frames import StudyFrames

_SECONDS_BETWEEN_WRITES = 1.0
REPEATS_BEFORE_RANDOM, REPEATS_THAT_EXHAUST = 10, 200


@dataclass(frozen=True)
class Proposal:
    """A trial to run: its number in the study, its seed, its configuration, and the parts that a batch is cut into.

    `epochs` are those that the study knows of it already: more than none for a trial that was interrupted. It is to be
    `alone` on its device if it has run out of memory beside others.
    """

    number: int
    seed: int
    config: TrainConfig
    accumulation: int = 1
    epochs: int = 0
    alone: bool = False


class RunStudy:
    """A run's trials.

    Args:
        path: The run folder; a study that it has already is continued, whatever its name.
        space: Makes configurations.
        sampler: Chooses parameters.
        epochs: Length of a trial where the space sets none.
        seed: The run's; a trial's seed derives from it and the trial's number.
        minimize: A column of `trials.csv` to be minimized beside the metric, or None. With it the sampler gets final
            values only: Optuna has no intermediate ones for two objectives.
        metric: A name in `METRICS`. The sampler gets its merit, so that it always maximises, and a loss that has
            diverged does not hide what the others differ in.

    Attributes:
        study: The Optuna study.
        trials: What is known of its trials, by number.

    Raises:
        UserError: The study is damaged or missing, or knows fewer trials than the frames; nothing is written then.
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
        metric: str = METRICS.default,
    ) -> None:
        self._minimize, self._metric = minimize, METRICS.find(metric)
        self._path, self._epochs, self._seed = path, epochs, seed
        study_file.check(path)
        numbers, ended, epoch_rows = study_frames.read(path)
        names = study_file.studies(path)
        if not names and numbers:
            study_frames.refuse(path, f"{study_file.FILE} is missing or empty", numbers)
        self._database = study_storage.storage(path)
        self.study = optuna.create_study(
            study_name=next(iter(names), path.resolve().name),
            storage=self._database,
            sampler=space.possible(sampler),
            pruner=optuna.pruners.NopPruner(),
            directions=["maximize"] if minimize is None else ["maximize", "minimize"],
            load_if_exists=True,
        )
        self._study_id = self._database.get_study_id_from_name(self.study.study_name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", category=optuna.exceptions.ExperimentalWarning)
            objective = self._metric.column if metric == METRICS.default else f"valid_{metric}"
            named = objective if self._metric.greater_is_better else f"exp(-{objective})"
            self.study.set_metric_names([named] if minimize is None else [named, minimize])
        self._has_given_up = False  # Draws at random, because the sampler proposes what has been tried.
        self.trials = KnownTrials()
        self._frames = StudyFrames(path, self.trials, self._metric)
        self._opened = time.monotonic()
        trials = self.study.get_trials(deepcopy=False)
        study_frames.check_belongs(path, trials, numbers)
        self._space = space.as_recorded(trials)
        self._recall(trials, epoch_rows)
        self._first_of_space = self._since_when(trials)
        self._began = max([datetime.now(UTC), *self.trials.moments()])
        for trial in [trial for trial in self.trials.values() if not trial.has_ended]:
            self._resume(trial, ended.get(trial.number))
        self._frames.mend(epoch_rows)

    def _recall(self, trials: Sequence[optuna.trial.FrozenTrial], epoch_rows: Sequence[dict[str, Any]]) -> None:
        """Takes in what the study knows of its trials, and of frames that an earlier version wrote what it lacks."""
        in_frames = recalled_trials.by_trial(epoch_rows)
        for trial in trials:
            point = recalled_trials.point_to_draw(trial)
            if point is not None and not self._space.is_possible(point):  # It would be drawn as it was begun.
                self._database.set_trial_state_values(self._id(trial.number), TrialState.FAIL)
                continue
            known = recalled_trials.recalled(trial, self._id(trial.number), in_frames.get(trial.number, {}))
            if known is None:
                continue
            self.trials[trial.number] = known
            if trial.state == TrialState.RUNNING:
                for row in known.epochs:
                    if row["epoch"] not in trial.intermediate_values:
                        self._tell_epoch(known, row)

    def _since_when(self, trials: Sequence[FrozenTrial]) -> int:
        """Returns the number from which on what was expected of proposals counts: those before were of another space.

        As many of the last ones are looked at as it takes to know that nothing is left to gain.
        """
        proposed = [t for t in trials if t.user_attrs.get("gain") is not None and t.user_attrs.get("same_as") is None]
        for trial in proposed[: -convergence.PROPOSALS - 1 : -1]:
            if not spaces.gives(self._space, trial.params, trial.distributions, self._epochs):
                return trial.number + 1
        return 0

    def _resume(self, trial: KnownTrial, ended: Mapping[str, Any] | None) -> None:
        """Decides what becomes of a trial that the study does not know to have ended; `ended` is what its frame has."""
        state = recalled_trials.adopted_end(trial, ended)
        if state is not None and ended is not None:
            self._end(trial, state, stopped_by=ended["stopped_by"], error=ended["error"], at=ended["ended"])
        elif "seed" not in trial.attrs:
            trial.state = "undrawn"
        elif self._space.is_possible(trial.params):
            trial.state = PAUSED if trial.attrs.get(PAUSED) else "interrupted"
        else:
            trial.state = "waiting"

    def now(self) -> str:
        """Returns the time in UTC; it never goes back, though a clock may, or another machine's be behind."""
        return (self._began + timedelta(seconds=time.monotonic() - self._opened)).isoformat()

    @property
    def last_moment(self) -> str | None:
        """The time of the last thing that the record holds, as it was when this study was opened; None without any."""
        return max((moment.isoformat() for moment in self.trials.moments()), default=None)

    @property
    def has_converged(self) -> bool:
        """Whether nothing is left to gain: with a sampler that does not say what it expects, if a trial is perfect."""
        numbers = sorted(self.trials)
        own = [self.trials[n] for n in numbers if not self.trials[n].is_duplicate]  # A repeat is no other proposal.
        gained = [t for t in own if t.number >= self._first_of_space and t.attrs.get("gain") is not None]
        gains = [float(t.attrs["gain"]) for t in gained]
        if not convergence.expects_nothing(gains):
            return self.is_perfect
        known = [t for t in own if t.has_ended or t.state == PAUSED]
        rows = [self.row(t.number) for t in known]
        merits = [-math.inf if r["state"] == "failed" else self._metric.merit(r["valid_score"]) for r in rows]
        return convergence.has_converged(gains, merits)

    @property
    def is_perfect(self) -> bool:
        """Whether a trial that has ended or paused has the greatest merit that there is, where nothing else counts."""
        if self._minimize is not None:
            return False
        shown = [t for t in self.trials.values() if t.state in ("complete", "pruned", PAUSED)]
        return any(self._metric.merit(row["valid_score"]) >= convergence.PERFECT for t in shown for row in t.epochs)

    @one_thread()  # Trials train beside the sampler.
    def ask(self) -> Proposal | None:
        """Returns a trial that was interrupted, or else a new one; None where the space has nothing new.

        A configuration that was proposed before is not run again: the sampler gets the result of that trial. After
        some such proposals in a row points are drawn at random, and after many the space counts as exhausted.

        Raises:
            UserError: The space gave no valid configuration.
        """
        if (known := self.trials.first_in("interrupted")) is not None:
            self._keep(known, attempt=known.attrs.get("attempt", 1) + 1)
            return self._go_on(known)
        sampler = self.study.sampler
        self._has_given_up = False
        try:
            # A space that was exhausted in an earlier session is tried a little: a trial may have been lost since.
            n_before = min(self._n_repeats, REPEATS_THAT_EXHAUST - 2 * REPEATS_BEFORE_RANDOM)
            for n_repeats in range(n_before, REPEATS_THAT_EXHAUST):
                if n_repeats >= REPEATS_BEFORE_RANDOM and not self._has_given_up:
                    seed = trial_seed(self._seed, len(self.trials))
                    self.study.sampler = self._space.possible(optuna.samplers.RandomSampler(seed=seed))
                    self._has_given_up = hasattr(sampler, "origins")
                trial = self._next_trial()
                try:
                    config = self._space.sample(trial, self._epochs)
                except UserError:  # The next session must not draw the same.
                    self._database.set_trial_state_values(self._id(trial.number), TrialState.FAIL)
                    if self.trials.pop(trial.number, None) is None:
                        raise
                    continue  # An earlier session drew it, perhaps from another range.
                same = self.trials.same(config.hash())
                if same is None:
                    return self._propose(trial, config)
                self._reuse(trial, config, same)
        finally:
            self.study.sampler = sampler
        return None

    @property
    def _n_repeats(self) -> int:
        """How many of the last proposals in a row repeat others, in this session or one before."""
        latest = (self.trials[number] for number in sorted(self.trials, reverse=True))
        return sum(1 for _ in itertools.takewhile(lambda trial: trial.is_duplicate, latest))

    def pause(self, number: int) -> None:
        """Notes that a trial waits until the scheduler has it go on, or until the search ends."""
        trial = self.trials[number]
        trial.state = PAUSED
        self._keep(trial, **{PAUSED: True})
        self._write_now_and_then()

    def go_on(self, number: int) -> Proposal:
        """Returns a trial that was paused, to be run on."""
        return self._go_on(self.trials[number])

    def _go_on(self, trial: KnownTrial) -> Proposal:
        trial.state = "running"
        if trial.attrs.get(PAUSED):
            self._keep(trial, **{PAUSED: False})
        config, parts = TrainConfig.model_validate(trial.attrs["config"]), trial.attrs.get("accumulation", 1)
        return Proposal(trial.number, trial.attrs["seed"], config, parts, len(trial.epochs), trial.was_alone)

    def _next_trial(self) -> optuna.Trial:
        """Returns the trial to draw: one that was cut off meanwhile, a first point, or one of the sampler's."""
        if (known := self.trials.first_in("undrawn")) is not None:  # What it has of its point, it keeps.
            known.state = "running"
            return optuna.Trial(self.study, known.id)
        trials = self.study.get_trials(deepcopy=False)
        if not any(trial.state == TrialState.WAITING for trial in trials):
            drawn = [t for t in trials if t.state != TrialState.FAIL or t.params]
            tried = [t.system_attrs["fixed_params"] for t in drawn if "fixed_params" in t.system_attrs]
            points = [(dict(point), "earlier") for point in self._space.best_before]
            points += [(dict(point), "space") for point in self._space.first]
            point, origin = next((each for each in points if each[0] not in tried), (None, ""))
            is_due = not self._space.interleaved or 2 * len(tried) < len(drawn)
            if point is not None and is_due:
                self.study.enqueue_trial(point, user_attrs={"origin": origin})
        return self.study.ask()

    def _drawn(self, trial: optuna.Trial, config_hash: str = "") -> KnownTrial:
        """Returns what is known of a trial that has been drawn just now."""
        known = KnownTrial(trial.number, self._id(trial.number), "running", dict(trial.params), config_hash)
        self.trials[trial.number] = known
        origins = {trial.number: "random"} if self._has_given_up else getattr(self.study.sampler, "origins", {})
        origin = origins.get(trial.number)
        if origin is not None and "origin" not in trial.user_attrs:  # A point that was given has it already.
            gain = getattr(self.study.sampler, "gains", {}).get(trial.number)
            self._keep(known, origin=origin, **({} if gain is None else {"gain": gain}))
        return known

    def _propose(self, trial: optuna.Trial, config: TrainConfig) -> Proposal:
        seed, known = trial_seed(self._seed, trial.number), self._drawn(trial, config.hash())
        known.attrs |= {"attempt": 1, "accumulation": 1}
        for name in ("same_as", "no_result", "attempt"):  # Of a duplicate that was cut off, and is none any more.
            if trial.user_attrs.get(name) is not None:
                trial.set_user_attr(name, None)
        self._keep(known, config=config.model_dump(), started=self.now(), seed=seed)
        self._write_now_and_then()
        return Proposal(trial.number, seed, config)

    def _reuse(self, trial: optuna.Trial, config: TrainConfig, same: KnownTrial) -> None:
        """Tells the sampler, for a duplicate, what the trial that it repeats told; nothing yet, while that one runs."""
        known = self._drawn(trial)
        self._keep(known, config=config.model_dump(), started=self.now(), attempt=0, same_as=same.number)
        if not same.has_ended:
            self._keep(known, no_result=True)
            self._end(known, TrialState.FAIL, error=f"same configuration as trial {same.number}, which is running")
            return
        if same.state == "failed":
            self._end(known, TrialState.FAIL, error=f"same configuration as trial {same.number}, which failed")
            return
        for row in same.epochs:
            self._tell_epoch(known, row)
        self._end(known, TrialState.COMPLETE if same.state == "complete" else TrialState.PRUNED)

    def report(self, number: int, result: Mapping[str, Any]) -> bool:
        """Takes an epoch's result into the study and `epochs.csv`; returns False for an epoch that was known.

        When this returns, a power cut does not undo it.
        """
        trial = self.trials[number]
        rows, attrs = trial.epochs, trial.attrs
        attrs |= {name: result.get(name) for name in OF_TRIAL[:-1]}
        attrs["seconds_per_image"] = min(attrs.get("seconds_per_image", math.inf), result["seconds_per_image"])
        if any(row["epoch"] == result["epoch"] for row in rows):
            return False
        result = schema.scored(result)
        row: dict[str, Any] = {
            "trial": number,
            **{name: result.get(name, math.nan) for name in schema.EPOCH_COLUMNS if name != "trial"},
        }
        row |= {"at": self.now(), "valid_error": result.get("valid_error")}
        row |= {name: attrs.get(name) for name in OF_TRIAL}
        self._database.set_trial_user_attr(trial.id, f"{EPOCH}{row['epoch']}", row)
        rows.append(row)
        self._tell_epoch(trial, row)
        self._frames.append_epoch(row)
        self._write_now_and_then(_SECONDS_BETWEEN_WRITES)
        return True

    def ran_on(self, number: int, node: str | None) -> None:
        """Notes the host that a trial's last result came from."""
        self.trials[number].attrs["node"] = node

    def retry(
        self, number: int, error: str, *, accumulation: int, alone: bool = False, lost_seconds: float = 0.0
    ) -> None:
        """Notes that a trial failed and begins another attempt, its batches cut into so many parts, alone or not.

        `lost_seconds` are those that its configuration cost since its last epoch.
        """
        trial = self.trials[number]
        if alone:
            self._keep(trial, **{ALONE: True})
        self._keep(trial, attempt=trial.attrs["attempt"] + 1, error=masked(error), accumulation=accumulation)
        if lost_seconds:
            self._keep(trial, **{LOST: trial.attrs.get(LOST, 0.0) + lost_seconds})

    def finish(self, number: int, stopped_by: str) -> None:
        """Tells the sampler the outcome of a trial that ended without an error; see `end_state`."""
        trial = self.trials[number]
        finished = trial.attrs.get("finished")
        state = end_state(bool(finished), len(trial.epochs))
        if state == TrialState.FAIL:
            self._keep(trial, no_result=True)  # It says nothing of its configuration.
            self._end(trial, state, error=f"stopped by {stopped_by} before its first epoch ended")
        else:
            # Where it has paused, nothing has come of it since.
            at = trial.epochs[-1].get("at") if trial.is_paused else None
            self._end(trial, state, stopped_by=finished or stopped_by, at=at)

    def fail(self, number: int, error: str, *, node_lost: bool = False) -> None:
        """Tells the sampler that a trial failed for good, and why; with `node_lost` its configuration may work."""
        if node_lost:
            self._keep(self.trials[number], **{NODE_LOST: True})
        self._end(self.trials[number], TrialState.FAIL, error=masked(error))

    def close(self, stopped_by: str | None) -> None:
        """Writes everything; with a reason, ends the trials that still run. Without one they can be resumed.

        Those that this machine cannot run stay as they are, and so do those that have no configuration yet.
        """
        if stopped_by is not None:
            for number in set(self.trials.running) - set(self.trials.waiting) - set(self.trials.undrawn):
                self.finish(number, stopped_by)
            for number in self.trials.paused:
                self.finish(number, "scheduler")
        self.write_trials()
        self.abandon()

    def abandon(self) -> None:
        """Closes the study's file, whereupon SQLite has everything in the one file; nothing else is written."""
        self._database.remove_session()
        self._database.engine.dispose()

    def row(self, number: int) -> dict[str, Any]:
        """Returns a trial's row of `trials.csv`."""
        return self._frames.row(number)

    def error_of(self, number: int) -> float | None:
        """Returns the standard error of a trial's `valid_score`; None where version 0.2.0 trained it."""
        number = self.trials[number].attrs.get("same_as", number)
        best, rows = self.row(number).get("best_epoch"), self.trials[number].epochs
        return next((row.get("valid_error") for row in rows if row["epoch"] == best), None)

    def write_trials(self) -> None:
        """Writes `trials.csv`."""
        two = self._minimize is not None
        self._frames.write_trials((trial.number for trial in self.study.best_trials) if two else None)

    def _write_now_and_then(self, seconds: float = 0.0) -> None:
        """Does so unless it was done within these seconds, or has taken too much of the time."""
        if self._frames.are_due(seconds):
            self.write_trials()

    def _id(self, number: int) -> int:
        return self._database.get_trial_id_from_study_id_trial_number(self._study_id, number)

    def _keep(self, trial: KnownTrial, **values: Any) -> None:
        """Notes what is to be known of a trial, here and in the study."""
        for name, value in values.items():
            self._database.set_trial_user_attr(trial.id, name, value)  # First: the frames must never know more.
            trial.attrs[name] = value

    def _tell_epoch(self, trial: KnownTrial, row: Mapping[str, Any]) -> None:
        """Tells the sampler what a running trial's value is after an epoch.

        As `optuna.Trial.report` does; but such an object, made of a resumed trial, would begin it anew for the sampler.
        """
        if self._minimize is None:
            self._database.set_trial_intermediate_value(trial.id, row["epoch"], self._metric.merit(row["valid_score"]))

    def _end(
        self,
        trial: KnownTrial,
        state: TrialState,
        *,
        stopped_by: str | None = None,
        error: str | None = None,
        at: str | None = None,
    ) -> None:
        trial.state = STATES[state]
        trial.attrs |= {"ended": at or self.now(), "stopped_by": stopped_by}
        if error is not None:
            trial.attrs["error"] = error
        for name, value in {"state": trial.state, **{name: trial.attrs.get(name) for name in OF_END}}.items():
            if value is not None:
                self._database.set_trial_user_attr(trial.id, name, value)
        row = self.row(trial.number)
        values = [self._metric.merit(row.get("valid_score", math.nan))]
        values += [] if self._minimize is None else [row.get(self._minimize, math.nan)]
        tell_end(self.study, trial.number, state, values)
        self._write_now_and_then()


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
