"""What is known of a run's trials while a study is open, all of which its file on the disk holds, too.

Nothing here asks or changes the study: `study.py` fills this in.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

PAUSED = "paused"  # A state, and an attribute of trials that wait until the scheduler has them go on.
ALONE = "alone"  # An attribute of trials that run alone on their device.
NODE_LOST = "node_lost"  # An attribute of trials that failed for good because their nodes were lost.
# What version 0.2.0 wrote as the error of a trial that has shown nothing.
_NO_RESULT = re.compile(r"stopped by .* before its first epoch ended|same configuration as trial \d+, which is running")


@dataclass
class KnownTrial:
    """What is known of a trial.

    Attributes:
        number: In the study.
        id: In Optuna's storage.
        state: "complete", "pruned" or "failed" once it has ended; until then "running", or if an earlier session began
            it: "undrawn" (it has no configuration yet), "interrupted" (it is resumed next) or "waiting" (this machine
            lacks what it needs). "paused" is one that the scheduler may have go on.
        params: Its point.
        config_hash: Of its configuration; "" if it has none.
        attrs: What the study keeps of it, most of it by the names of the columns of `trials.csv`.
        epochs: Its rows of `epochs.csv`.
    """

    number: int
    id: int
    state: str
    params: dict[str, Any]
    config_hash: str = ""
    attrs: dict[str, Any] = field(default_factory=dict)
    epochs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def has_ended(self) -> bool:
        """Whether it is complete, was stopped, or has failed for good."""
        return self.state in ("complete", "pruned", "failed")

    @property
    def has_finished(self) -> bool:
        """Whether it has come to its own end: its full length, or early stopping."""
        return bool(self.attrs.get("finished"))

    @property
    def failed_by_itself(self) -> bool:
        """Whether it failed for good, and would again: not where its search ended first, or its nodes were lost."""
        by_others = self.attrs.get(NODE_LOST) or has_no_result(self.attrs, has_epochs=bool(self.epochs))
        return self.state == "failed" and not by_others

    @property
    def is_duplicate(self) -> bool:
        """Whether another trial had its configuration before."""
        return "same_as" in self.attrs

    @property
    def is_paused(self) -> bool:
        """Whether it waits to go on, be it for what this machine lacks."""
        return self.state in (PAUSED, "waiting") and bool(self.attrs.get(PAUSED))

    @property
    def was_alone(self) -> bool:
        """Whether it has run out of memory beside others, and was alone on its device after that."""
        return bool(self.attrs.get(ALONE))

    @property
    def was_drawn(self) -> bool:
        """Whether it has a configuration, and so a row: the seed is the last of what a proposal writes."""
        return bool({"seed", "same_as"} & set(self.attrs))


class KnownTrials(dict[int, KnownTrial]):
    """All trials of a run, by number."""

    @property
    def n_finished(self) -> int:
        """Trials that were run and are complete, stopped or failed for good."""
        return sum(trial.has_ended and not trial.is_duplicate for trial in self.values())

    @property
    def n_tried(self) -> int:
        """The same, and those that have paused."""
        return self.n_finished + len(self.paused)

    @property
    def n_failed(self) -> int:
        """Trials that failed for good; not those that were ended before their first epoch."""
        failed = [trial for trial in self.values() if trial.state == "failed" and not trial.is_duplicate]
        return sum(not trial.attrs.get("no_result") for trial in failed)

    @property
    def waiting(self) -> list[int]:
        """The numbers of interrupted trials that this machine cannot run."""
        return [trial.number for trial in self.values() if trial.state == "waiting"]

    @property
    def undrawn(self) -> list[int]:
        """The numbers of trials that were cut off before they had a configuration."""
        return [trial.number for trial in self.values() if trial.state == "undrawn"]

    @property
    def has_interrupted(self) -> bool:
        """Whether a trial that was interrupted is still to go on."""
        return self.first_in("interrupted") is not None

    @property
    def paused(self) -> list[int]:
        """The numbers of the trials that the scheduler has paused."""
        return [trial.number for trial in self.values() if trial.state == PAUSED]

    @property
    def running(self) -> list[int]:
        """The numbers of the trials that have neither ended nor paused."""
        return [trial.number for trial in self.values() if not trial.has_ended and trial.state != PAUSED]

    def first_in(self, state: str) -> KnownTrial | None:
        """Returns the first trial that is in a state."""
        return next((trial for trial in self.values() if trial.state == state), None)

    def same(self, config_hash: str) -> KnownTrial | None:
        """Returns the trial that runs or ran a configuration, or else one that failed by itself."""
        same = [t for t in self.values() if t.config_hash == config_hash and not t.is_duplicate]
        told = [t for t in same if t.state != "failed"] + [t for t in same if t.failed_by_itself]
        return next(iter(told), None)

    def shown(self, *, interrupted: bool = False) -> dict[int, tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Returns hyperparameters and epochs of each trial that has ended or paused, for a new scheduler to learn.

        With `interrupted` there are also those that an earlier session began and that go on next.
        """
        states = ("complete", "pruned", PAUSED, *(["interrupted"] if interrupted else []))
        return {
            trial.number: (trial.attrs["config"], trial.epochs)
            for trial in self.values()
            if trial.state in states and not trial.is_duplicate and trial.epochs
        }

    def moments(self) -> list[datetime]:
        """Returns all times that the record holds."""
        times = []
        for trial in self.values():
            started = trial.attrs.get("started")
            times += [started, trial.attrs.get("ended"), *(row.get("at") for row in trial.epochs)]
            if started and not trial.is_duplicate:  # Version 0.2.0 kept no time of an epoch.
                seconds = timedelta(seconds=total(trial.epochs, "epoch_seconds"))
                times.append((datetime.fromisoformat(started) + seconds).isoformat())
        return [datetime.fromisoformat(moment) for moment in times if moment]


def has_no_result(attrs: Mapping[str, Any], *, has_epochs: bool) -> bool:
    """Returns whether a failed trial was ended before it could show anything, for no fault of its configuration.

    That is one whose search ended before its first epoch did, or one that was proposed while another had its
    configuration: the study counts both as failed. A trial with an error of its own has shown that it fails.
    """
    error = attrs.get("error")
    if attrs.get("no_result"):
        return True
    return not has_epochs if error is None else _NO_RESULT.fullmatch(str(error)) is not None


def total(rows: Iterable[dict[str, Any]], name: str) -> float:
    """Returns the sum of a column, without what is not known."""
    return math.fsum(row[name] for row in rows if not math.isnan(row[name]))
