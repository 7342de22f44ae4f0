"""Ray's schedulers as a search uses them. Every option is named, because Ray's defaults change.

What schedulers compare is the merit of the best epoch so far in the run's metric, of trials whose curves have the same
form (`LikeWithLike`); time is counted in epochs. How long a trial may train is its own configuration's `epochs`. To add
one, write a builder like `asha` and its entry in `registries.SCHEDULERS`.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule, TrialScheduler

from tuning.base.config import MOST_EPOCHS
from tuning.base.registries import ACCURACY, LR_SCHEDULES, Metric

METRIC = "merit"  # In [0, 1], greater is better; see `Metric.merit`.
REDUCTION_FACTOR = 3


class LikeWithLike(FIFOScheduler):
    """Several schedulers of a kind: each trial is compared with those whose learning curves have the form of its own.

    An annealed learning rate is still high where a trial may be stopped, and its accuracy behind that of a rate that is
    held or has dropped; at the end it is ahead. Compared with these, the default search stopped its one-cycle trials
    after two epochs and never saw what they come to. Where a space sets the epochs, an annealed rate falls over these:
    such trials are compared with those of the same full length. A rate that is held does not know how long it will be;
    there it is enough that the trials may be stopped at the same epochs.

    Args:
        build: Makes the scheduler of trials of a full length, in epochs.
        epochs: Full length of a trial that has none of its own.
        grace: Returns the epochs that a trial of a full length gets at least.
        seed: Of what Ray draws for a new trial from numpy's global state, which others have back as it was.
    """

    def __init__(
        self,
        build: Callable[[int], TrialScheduler],
        epochs: int,
        grace: Callable[[int], int] | None = None,
        *,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._random = np.random.RandomState(seed % 2**32).get_state()
        self._build, self._epochs, self._grace = build, epochs, grace or grace_period
        self._schedulers: dict[tuple[bool, int], TrialScheduler] = {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Tells the trial's scheduler; so do the others."""
        scheduler, others = self._of(trial), np.random.get_state()  # noqa: NPY002
        np.random.set_state(self._random)  # noqa: NPY002
        try:
            scheduler.on_trial_add(tune_controller, trial)
        finally:
            self._random = np.random.get_state()  # noqa: NPY002
            np.random.set_state(others)  # noqa: NPY002

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Returns what the trial's scheduler decides; at its full length a trial has ended anyhow.

        One that was interrupted tells its epochs again, and a new scheduler knows trials that came after them. It was
        let go on from these epochs, and is again.
        """
        scheduler, epoch = self._of(trial), result.get("epoch", 0)
        decision = scheduler.on_trial_result(tune_controller, trial, result)
        if isinstance(scheduler, Promotion):
            if epoch >= self._length(trial):
                scheduler.ended(int(trial.config["trial"]))
        elif epoch <= trial.config.get("epochs", 0):
            decision = TrialScheduler.CONTINUE
        ends = decision == TrialScheduler.PAUSE or epoch >= self._length(trial)
        return TrialScheduler.STOP if ends else decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Tells the trial's scheduler that it has ended."""
        self._of(trial).on_trial_complete(tune_controller, trial, result)

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Tells the trial's scheduler that it has failed."""
        self._of(trial).on_trial_error(tune_controller, trial)

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """Tells the trial's scheduler that it is gone."""
        self._of(trial).on_trial_remove(tune_controller, trial)

    def promoted(self) -> int | None:
        """Returns a paused trial that is to go on now, by its number; None where there is none."""
        found = (scheduler.promoted() for scheduler in self._schedulers.values() if isinstance(scheduler, Promotion))
        return next((number for number in found if number is not None), None)

    def ended(self, number: int) -> None:
        """Tells that a trial has ended, and will not go on."""
        for scheduler in self._schedulers.values():
            if isinstance(scheduler, Promotion):
                scheduler.ended(number)

    def has_paused(self, number: int) -> bool:
        """Returns whether a trial waits to go on."""
        return any(s.has_paused(number) for s in self._schedulers.values() if isinstance(s, Promotion))

    def _length(self, trial: Any) -> int:
        return int(trial.config.get("config", {}).get("epochs", self._epochs))

    def _of(self, trial: Any) -> TrialScheduler:
        length = self._length(trial)
        schedule = LR_SCHEDULES.get(trial.config.get("config", {}).get("schedule"))
        annealed = schedule is not None and schedule.annealed
        alike = (annealed, length if annealed else self._grace(length))
        if alike not in self._schedulers:
            self._schedulers[alike] = self._build(length)
        return self._schedulers[alike]


class Promotion(FIFOScheduler):
    """ASHA as it was published (Li et al. 2020, MLSys, algorithm 2): trials pause at each rung, and the best go on.

    A free slot goes to a trial that is among the best of the highest rung where there is one, else to a new trial.
    Ray's ASHA decides at once, by the trials that came before, and a trial that is stopped is lost. Here one that
    others have proved to be good goes on later. For Ray a paused trial has stopped; the search knows that it has not.

    Args:
        rungs: Epochs after which trials are compared, rising.
    """

    def __init__(self, rungs: Sequence[int]) -> None:
        super().__init__()
        self._shown: dict[int, dict[int, float]] = {rung: {} for rung in rungs}
        self._promoted: dict[int, set[int]] = {rung: set() for rung in rungs}
        self._paused: set[int] = set()
        self._ended: set[int] = set()

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Returns STOP at a rung, unless the trial has gone on from there before."""
        number, epoch = int(trial.config["trial"]), result["epoch"]
        self._paused.discard(number)
        self._ended.discard(number)  # An interrupted one, which a new scheduler was shown.
        for rung, shown in self._shown.items():
            if rung < epoch and number in shown:  # A search that is resumed shows what came after its rungs.
                self._promoted[rung].add(number)
        if epoch not in self._shown or number in self._promoted[epoch]:
            return TrialScheduler.CONTINUE
        self._shown[epoch][number] = result[METRIC]
        self._paused.add(number)
        return TrialScheduler.STOP

    def on_trial_complete(self, controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Does nothing: Ray calls it for trials that have paused, too."""

    def on_trial_error(self, controller: Any, trial: Any) -> None:
        """Does nothing: Ray calls it for trials that are tried again, too."""

    def ended(self, number: int) -> None:
        """Never lets a trial that has ended go on."""
        self._ended.add(number)
        self._paused.discard(number)

    def has_paused(self, number: int) -> bool:
        """Returns whether a trial waits to go on."""
        return number in self._paused

    def promoted(self) -> int | None:
        """Returns the best paused trial that is to go on from the highest rung, which it does then."""
        for rung, shown in reversed(self._shown.items()):
            gone_on = self._promoted[rung]
            may = [number for number in shown if number in gone_on or number not in self._ended]
            best = sorted(may, key=lambda number: (-shown[number], number))[: len(shown) // REDUCTION_FACTOR]
            for number in best:
                if number in self._paused and number not in gone_on:
                    gone_on.add(number)
                    self._paused.discard(number)
                    return number
        return None


def grace_period(epochs: int) -> int:
    """Returns the epochs that every trial gets: a ninth of the full length, at least 2.

    A plateau schedule survives that: until its first drop its rate is constant, which is ahead of the other schedules'
    warm-up, and by the second rung, at three times as many epochs, it has had time to drop.
    """
    return min(epochs, max(2, epochs // REDUCTION_FACTOR**2))


def _halving(epochs: int, *, hyperband: bool) -> TrialScheduler:
    grace = grace_period(epochs)
    n_rungs = int(np.log(epochs / grace) / np.log(REDUCTION_FACTOR)) + 1
    return AsyncHyperBandScheduler(
        time_attr="epoch",
        metric=METRIC,
        mode="max",
        # No rung is to end a trial for its length: of trials with a held rate some may have more epochs than others.
        max_t=MOST_EPOCHS,
        grace_period=grace,
        reduction_factor=REDUCTION_FACTOR,
        brackets=n_rungs if hyperband else 1,
        stop_last_trials=True,
    )


def asha(epochs: int, seed: int) -> TrialScheduler:
    """ASHA in its stopping form (Li et al. 2020, MLSys)."""
    return LikeWithLike(partial(_halving, hyperband=False), epochs, seed=seed)


def first_rung(epochs: int) -> int:
    """Returns the epochs after which trials pause first: a 27th of the full length, at least 1."""
    return max(1, epochs // REDUCTION_FACTOR**3)


def _promotion(epochs: int) -> TrialScheduler:
    first = first_rung(epochs)
    n_rungs = math.ceil(math.log(MOST_EPOCHS / first, REDUCTION_FACTOR))  # Of trials with a held rate some are longer.
    return Promotion([first * REDUCTION_FACTOR**i for i in range(n_rungs)])


def promotion(epochs: int, seed: int) -> TrialScheduler:
    """ASHA in its first form, which pauses trials and has the best go on."""
    return LikeWithLike(_promotion, epochs, first_rung)


def hyperband(epochs: int, seed: int) -> TrialScheduler:
    """Asynchronous Hyperband (Li et al. 2020, section 3.3): ASHA with several grace periods."""
    return LikeWithLike(partial(_halving, hyperband=True), epochs, seed=seed)


def _median_stopping(epochs: int) -> TrialScheduler:
    return MedianStoppingRule(
        time_attr="epoch",
        metric=METRIC,
        mode="max",
        grace_period=grace_period(epochs),
        min_samples_required=3,
        # Never pause a trial to let others catch up: that would take it off its slot.
        min_time_slice=math.inf,  # type: ignore[arg-type]
        hard_stop=False,  # It says PAUSE, which ends a trial here, and suffers that a resumed search shows more of it.
    )


def median(epochs: int, seed: int) -> TrialScheduler:
    """The median stopping rule (Golovin et al. 2017, Google Vizier)."""
    return LikeWithLike(_median_stopping, epochs)


def none(epochs: int, seed: int) -> TrialScheduler:
    """No stopping."""
    return FIFOScheduler()


@dataclass(frozen=True)
class StandIn:
    """What stands in for Ray's trial where a scheduler is asked without Ray.

    Attributes:
        config: As the search gives it to a trial: its hyperparameters are `config["config"]`.
    """

    trial_id: str
    config: Mapping[str, Any] = field(default_factory=dict, compare=False)
    status: str = "RUNNING"


def replay(
    scheduler: TrialScheduler,
    trials: Mapping[int, tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]],
    metric: Metric = ACCURACY,
    paused: Collection[int] = (),
) -> None:
    """Shows a new scheduler the trials that have ended or paused, so that a resumed search judges by all of them.

    Args:
        scheduler: Of `SCHEDULERS`.
        trials: Number -> hyperparameters, and a row an epoch.
        metric: The run's.
        paused: Those of them that may still go on.
    """
    for number, (config, rows) in trials.items():
        trial: Any = StandIn(f"before-{number}", {"config": config, "trial": number})
        controller: Any = None
        scheduler.on_trial_add(controller, trial)
        best = 0.0
        for row in sorted(rows, key=lambda r: int(r["epoch"])):
            best = max(best, metric.merit(row[metric.column]))
            scheduler.on_trial_result(controller, trial, {"epoch": row["epoch"], METRIC: best})
        if isinstance(scheduler, LikeWithLike) and number not in paused:
            scheduler.ended(number)
