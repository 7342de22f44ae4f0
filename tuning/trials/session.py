"""A search from its first trial to its last."""

import errno
import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning.base import files, interrupts
from tuning.base.errors import DISK_FULL, UserError, counted
from tuning.images.batches import parts_of
from tuning.runs import run_folder, schema, study_file
from tuning.trials import local_ray, ray_internals, record
from tuning.trials.settings import N_STARTUP, Settings
from tuning.trials.slots import SlotRequest, plan_slots
from tuning.trials.turns import Turns

if TYPE_CHECKING:
    from tuning.images.splitting import Splits
    from tuning.remote.leases import Lease
    from tuning.sampling.spaces import Space
    from tuning.sampling.study import RunStudy
    from tuning.training.jobs import Job
    from tuning.trials.progress import Progress

FAILURES_THAT_STOP = 3
Z_95 = 1.96  # Standard errors on each side of an estimate, in its 95 % interval.
SECONDS_FOR_AN_EPOCH = 10.0


def search(
    settings: Settings, path: Path, splits: "Splits", space: "Space", progress: "Progress", *, resumed: bool = False
) -> None:
    """Runs or resumes the search of a run folder.

    Raises:
        UserError: The record does not fit the study or the images; the space raised in mid-search; the disk is full;
            or another process has the run in its storage.
    """
    with interrupts.importing():
        from tuning.sampling import earlier, samplers
        from tuning.sampling.study import RunStudy

    before = files.read_json(path / "meta.json").get("split_hash") if resumed else None
    if before not in (None, splits.split_hash):
        raise UserError(
            f"The images are not those that {path} was begun with (their hash is {splits.split_hash}, not {before}). "
            "Its trials could not be compared with new ones. Name the folder of the former ones with --data-dir."
        )
    sampler = samplers.make(settings.sampler, _sampler_seed(settings.seed, path), N_STARTUP)
    if settings.cost == "seconds" and hasattr(sampler, "weighs_costs"):
        sampler.weighs_costs = True
    if settings.start_from is not None:
        space = earlier.begin(path, sampler, space, settings.epochs)
    with study_file.writing(path):
        study = RunStudy(
            path,
            space,
            sampler,
            epochs=settings.epochs,
            seed=settings.seed,
            minimize=settings.minimize,
            metric=settings.metric,
        )
        left_out = {name: list(choices) for name, choices in space.left_out.items()}
        try:
            Session(settings, path, splits, study, progress).run(resumed=resumed, left_out=left_out)
        finally:
            study.abandon()  # Whatever happened: a notebook goes on, and may resume the run.


@dataclass(frozen=True)
class Retry:
    """How a trial that failed is run again.

    Attributes:
        epochs: How many the study knows of it.
        accumulation: The parts that each batch is cut into.
        resources: All of its device's, if it is to be alone there; else empty.
    """

    epochs: int
    accumulation: int
    resources: Mapping[str, float] = field(default_factory=dict)


class Session:
    """A search of a run folder: `run` reads from its first trial to its last.

    While trials run, Ray's hooks (`tuning.trials.recorder`) call the methods below `run`, all from one thread: Ray asks
    for trials, tells what they do, and asks whether the search should end.

    Attributes:
        turns: What takes its slots.
        reason: Why the search ended before its samples were done, "interrupt" or "time budget"; None if it did not.
        problem: The first exception of our own; it ends the search, which then raises it.
        lease: What says in the run's storage that this process works on it; None without a storage.
    """

    def __init__(
        self, settings: Settings, path: Path, splits: "Splits", study: "RunStudy", progress: "Progress"
    ) -> None:
        self.settings, self.path, self.splits = settings, path, splits
        self.study, self.progress = study, progress
        self.turns = Turns(settings, study, progress.note)
        self.reason: str | None = None
        self.problem: BaseException | None = None
        self.lease: Lease | None = None
        budget = settings.time_budget
        self._deadline = math.inf if budget is None else time.monotonic() + budget
        self._interrupted_at: float | None = None
        self._last_epoch: dict[int, float] = {}
        self._attempt_began: dict[int, float] = {}
        self._n_failures = 0  # Of this session: its trials that failed for good.

    def run(self, *, resumed: bool, left_out: Mapping[str, Sequence[Any]]) -> None:
        """Runs the trials that are to come, audits the scheduler, draws the pictures; all is in the storage then, too.

        Args:
            resumed: Whether the run was begun by another session.
            left_out: What this machine cannot do of the space, for `meta.json`.

        Raises:
            UserError: As `end_trials`; or another process has taken the run over in the storage since.
        """
        with self._stored() as self.lease:
            if resumed:
                record.go_on(self.path, self.settings, self.study.last_moment, self.study.now())
            hashes = {"split_hash": self.splits.split_hash, "valid_hash": self.splits.valid_hash}
            known = {**hashes, "valid_images": len(self.splits.valid)}
            record.update_meta(self.path, self.settings, **known, left_out=left_out, stopped_by=None)
            if waiting := self.study.trials.waiting:
                self.progress.note(
                    f"{counted(len(waiting), 'trial')} ({', '.join(map(str, waiting))}) cannot be resumed on this "
                    "machine, which lacks what the space leaves out. Resume the run where that is there."
                )
            to_run = self.settings.samples - self.study.trials.n_finished - len(waiting)
            if to_run > 0:
                record.update_meta(self.path, self.settings, converged=None, audit=None)
                self.run_trials(to_run)
                self.end_trials()
                record.update_meta(self.path, self.settings, ended=self.study.now(), **self.turns.outcome(self.reason))
            else:
                self.study.close(None)
                self._send_what_an_earlier_session_could_not()
            self._note_noise()
            try:
                if self.settings.audit and self.reason != "interrupt" and self._is_ours():
                    self._audit_in_time()
            finally:
                if self._is_ours():
                    self._conclude()
        if self.problem is not None:
            raise self.problem

    def _is_ours(self) -> bool:
        """Returns whether no other process has taken the run over in its storage, which may be its folder."""
        return self.lease is None or not self.lease.is_lost()

    def run_trials(self, n_trials: int) -> None:
        """Runs trials through Ray Tune until there are `n_trials` more, or the search should end."""
        with interrupts.importing():
            from tuning.trials.recorder import tuner

        self.turns.to_begin = n_trials - len(self.study.trials.paused)
        log = logging.FileHandler(self.path / "driver.log")
        note, dashboard = self.progress.note, self.settings.dashboard
        ray = local_ray.started(self.settings.slots, log, dashboard=dashboard, note=note)
        with ray, self.ends_on_signals():
            with ray_internals.uncounted():
                tuner(self, n_trials).fit()
            record.update_meta(self.path, self.settings, side_by_side=self.turns.slots.most)
            self._sweep_nodes()
        for leftover in (self.path / "trials").glob("*"):
            if leftover.is_file():  # Ray's own state, pickled: the study and the frames are the record to go on from.
                leftover.unlink()

    def end_trials(self) -> None:
        """Ends the trials that still run and closes the study.

        Trials that were interrupted stay as they are, to be resumed; a budget that is spent is an end.

        Raises:
            UserError: A problem ended the search that the user can mend; any other exception is raised as it is.
        """
        if self.problem is None:
            trials = self.study.trials
            not_ended = [*trials.running, *trials.paused]
            self.study.close(stopped_by=None if self.reason == "interrupt" else self.reason or "search")
            for number in not_ended:
                if trials[number].has_ended:
                    self.progress.ended(self.study.row(number))
            return
        try:
            self.study.close(stopped_by=None)
        except Exception as error:  # The first problem is the one to show.
            self.problem.add_note(f"Closing the study failed, too: {error}")
            self.study.abandon()
        raise self.problem

    def _note_noise(self) -> None:
        """Writes down how surely the best trial's value is known, where the valid split is a small sample."""
        from tuning.images.partition import MOST_VALID_IMAGES

        run, n_valid = run_folder.Run(self.path), len(self.splits.valid)
        if n_valid >= MOST_VALID_IMAGES or not run.trials["state"].isin(schema.HAVE_RESULTS).any():
            return
        error = self.study.error_of(int(run.best["trial"]))
        if error is not None:
            noise = {"valid_images": n_valid, "half_width": Z_95 * error}
            record.update_meta(self.path, self.settings, noise=noise)

    def _audit_in_time(self) -> None:
        """Audits the scheduler unless the search's time is spent."""
        if self.reason != "time budget":
            self._audit()
            return
        self.progress.note(
            "The time budget is spent, so the audit is left out. To have it, resume the run: python -m tuning.search "
            f"--resume {files.quoted(self.path)} --audit {self.settings.audit}"
        )

    def _audit(self) -> None:
        """Trains some trials that the scheduler stopped to their end, and writes what came of it into `meta.json`."""
        from tuning.trials import audit
        from tuning.trials.worker import train_all

        run = run_folder.Run(self.path)
        # What it trains is kept in the run folder, which a cluster's nodes may not share.
        slots = self.settings.slots if self.settings.address is None else plan_slots(SlotRequest())

        def train(wanted: Sequence["Job"]) -> Iterator[tuple["Job", dict[str, Any]]]:
            left = iter(wanted)
            return train_all(lambda: next(left, None), self.splits, slots)

        chosen = audit.wanted(run, self.settings.audit, self.settings.seed)
        found = audit.hold(run, chosen, self.splits.split_hash, train, self.progress.note)
        if self._is_ours():
            record.update_meta(self.path, self.settings, audit=found)

    # What Ray's hooks ask and tell.

    def should_end(self) -> bool:
        """Returns whether the search should end, and sets `reason`."""
        if self._interrupted_at is not None:
            interrupts.drop_closed_output()  # Who reads it may end a moment after the signal came.
            waited = time.monotonic() - self._interrupted_at
            if waited > SECONDS_FOR_AN_EPOCH or self.all_reported_since(self._interrupted_at):
                self.reason = "interrupt"
        elif time.monotonic() > self._deadline:
            self.reason = self.reason or "time budget"
        return self.reason is not None or self.problem is not None

    def all_reported_since(self, moment: float) -> bool:
        """Returns whether every trial that trains has reported an epoch since a moment of `time.monotonic()`."""
        training = self.turns.slots.by_trial.keys() & self._attempt_began.keys()
        return all(self._last_epoch.get(number, 0.0) >= moment for number in training)

    @contextmanager
    def ends_on_signals(self) -> Iterator[None]:
        """SIGINT, SIGTERM and SIGHUP end the search after the running epoch, or 10 s if that is less.

        Another one, a second or more later, ends it at once.
        """

        def interrupt(number: int) -> None:
            self._interrupted_at = time.monotonic()
            self.turns.are_held = True

        with interrupts.caught(interrupt):
            yield

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Ends the search with the exception that is raised inside."""
        try:
            yield
        except Exception as error:
            self.on_problem(error)

    def on_problem(self, error: BaseException) -> None:
        """Ends the search, which raises the first problem."""
        self.problem = self.problem or error

    def began(self, number: int) -> None:
        """Shows that a trial began."""
        self.turns.began(number)
        self._attempt_began[number] = time.monotonic()
        self.progress.started(self.study.row(number))

    def reported(self, number: int, result: Mapping[str, Any]) -> None:
        """Records an epoch, or the error that ended the trial."""
        self._last_epoch[number] = time.monotonic()
        self.study.ran_on(number, result.get("hostname"))
        if result["error"]:
            self.failed(number, result["error"])
        elif self.study.report(number, result):
            self.progress.epoch(self.study.row(number), result)

    def ended(self, number: int) -> None:
        """Records that a trial ended by itself or was stopped by the scheduler, unless its error is known already."""
        if self.study.trials[number].has_ended:
            return
        if self.turns.has_paused(number):
            self.study.pause(number)
            self.turns.paused(number)
            self._attempt_began.pop(number, None)
            self.progress.paused(self.study.row(number))
            return
        self.study.finish(number, "scheduler")
        self._after(number)

    def failed(self, number: int, error: str, failure: str = "") -> None:
        """Records that a trial failed for good; where all fail before any other has an epoch, the search ends.

        Args:
            number: Of the trial.
            error: What went wrong, in a line.
            failure: All that Ray says of it.

        Raises:
            UserError: They all did; or as `_check_disk`.
        """
        _check_disk(error)
        self.study.fail(number, error, node_lost=bool(ray_internals.LOST_NODE.search(failure)))
        self._after(number)
        self._n_failures += 1
        trials = self.study.trials
        works = any(trial.epochs and trial.state != "failed" for trial in trials.values())
        if self._n_failures >= FAILURES_THAT_STOP and not works:
            from tuning.trials.worker import LOG

            raise UserError(
                f"All of the first {trials.n_failed} trials failed. The last error was: {error} "
                f"Its traceback is in trials/{number:04d}/{LOG} of the run."
            )

    def _after(self, number: int) -> None:
        """Frees the slot of a trial that has ended, and shows what came of it."""
        self.turns.ended(number)
        self.progress.ended(self.study.row(number))

    def retried(self, number: int, error: str, failure: str, accumulation: int) -> Retry:
        """Records a failure, and returns how the trial is run again.

        Args:
            number: Of the trial.
            error: What went wrong, in a line.
            failure: All that Ray says of it.
            accumulation: The parts that each of its batches was cut into.

        Raises:
            UserError: As `_check_disk`.
        """
        _check_disk(error)
        again, room, lost = Retry(self.study.row(number)["epochs"], accumulation), "", 0.0
        if ray_internals.OUT_OF_MEMORY.search(failure):
            began = max(self._attempt_began.get(number, math.inf), self._last_epoch.get(number, 0.0))
            lost = max(0.0, time.monotonic() - began)  # Its configuration costs this as well.
            again, room = self._with_more_room(number, again)
        if ray_internals.LOST_NODE.search(failure):
            error = f"its node {self.study.row(number).get('node') or ''} was lost: {error.partition('. ')[0]}"
        parts, alone = again.accumulation, bool(again.resources)
        if self.settings.slots.whole_device and self.study.trials[number].was_alone:
            self.turns.wait_alone(number)  # It still asks for all of its device.
        self.study.retry(number, f"{error}{room}", accumulation=parts, alone=alone, lost_seconds=lost)
        self.progress.note(f"trial {number} failed and is tried again{room}: {error}")
        return again

    def _with_more_room(self, number: int, again: Retry) -> tuple[Retry, str]:
        """Returns a retry alone on the device, or after that with the batches in smaller parts, and says which.

        Nothing new begins until the trial has its device.
        """
        if self.settings.slots.whole_device and not self.study.trials[number].was_alone:
            return replace(again, resources=self.turns.wait_alone(number)), ", alone on its device"
        parts = parts_of(self.study.row(number)["config/batch_size"], 2 * again.accumulation)
        if parts == again.accumulation:
            return again, ""
        return replace(again, accumulation=parts), f", each batch in {parts} parts"

    # The run's storage, if it has one.

    def stored_at(self) -> tuple[str, str] | None:
        """Returns the URI of the run in its storage, and the run's id there; None where it has no storage."""
        if self.settings.storage is None:
            return None
        from tuning.remote import stored_runs

        return stored_runs.stored_at(self.settings.storage, self.path), files.read_json(self.path / "meta.json")["id"]

    def _stored(self) -> "AbstractContextManager[Lease | None]":
        """Sends the run folder to its storage until the search has ended."""
        if self.settings.storage is None:
            return nullcontext()
        from tuning.remote import stored_runs
        from tuning.training import checkpoints

        skip, note = checkpoints.NAMES, self.progress.note
        return stored_runs.mirrored(self.settings.storage, self.path, skip=skip, note=note, on_lost=self.on_problem)

    def _sweep_nodes(self) -> None:
        """Has each node of a cluster send what its trials have not, while Ray still runs."""
        if (stored := self.stored_at()) is not None:
            from tuning.remote import mirror
            from tuning.trials.worker import sweep_nodes

            if left := sweep_nodes(stored[1], stored[0]):
                self.progress.note(f"Not in the storage yet: {'; '.join(left)}. {mirror.sent_by(self.path)}")

    def _send_what_an_earlier_session_could_not(self) -> None:
        if (stored := self.stored_at()) is not None:
            from tuning.remote import mirror

            mirror.sweep(stored[1], stored[0])

    def _conclude(self) -> None:
        """Writes the pictures and the page, here and in the storage."""
        record.conclude(run_folder.Run(self.path), self.progress.note)
        if (stored := self.stored_at()) is not None:
            from tuning.remote import stored_runs
            from tuning.training import checkpoints

            run, names, best = run_folder.Run(self.path), checkpoints.NAMES, checkpoints.BEST
            stored_runs.conclude(run, stored[0], self.progress.note, checkpoints=names, best=best, lease=self.lease)


def _check_disk(error: str) -> None:
    """Raises UserError where a trial failed on a full disk: none would fare better, so they stay, to be resumed."""
    if DISK_FULL in error:
        raise UserError(error[error.index(DISK_FULL) :])
    if any(f"[Errno {number}]" in error for number in (errno.ENOSPC, errno.EDQUOT)):  # Of whatever else was written.
        raise UserError(f"{DISK_FULL}: {error.rstrip('.')}. Free some space, then run the command again.")


def _sampler_seed(seed: int, path: Path) -> int:
    """Returns the sampler's seed: the run's, moved on by the trials there are, so that a resumed one draws anew."""
    return (seed * 1_000_003 + max(study_file.studies(path).values(), default=0)) % 2**31
