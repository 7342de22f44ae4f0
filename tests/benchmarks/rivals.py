"""Schedulers from papers that pause trials and resume the best, as `simulation.Pausing` has it. Ray has none."""

import math
from collections.abc import Callable
from typing import Any

from ray.tune.schedulers import FIFOScheduler

from tuning.base.registries import SCHEDULERS
from tuning.trials.schedulers import METRIC, REDUCTION_FACTOR, Promotion, StandIn


class OneEpoch(FIFOScheduler):
    """Is one epoch all you need? (Egele et al. 2023): all configurations get an epoch, and the best go on to the end.

    The paper draws all configurations first. Here a search goes through batches, so that it has an answer at any time:
    when `batch` trials have had their first epoch, the `kept` best of these train to their end before a new trial
    begins. What remains at the end of the search is a smaller batch, of which the same share is kept, rounded up.

    Args:
        batch: Number of trials that are compared.
        kept: How many of them go on.
    """

    def __init__(self, batch: int, kept: int) -> None:
        super().__init__()
        self._batch, self._kept = batch, kept
        self._beginning: set[int] = set()
        self._shown: dict[int, float] = {}
        self._chosen: list[int] = []
        self._ended: set[int] = set()

    def on_trial_add(self, controller: Any, trial: StandIn) -> None:
        """Waits for the first epoch of a trial."""
        self._beginning.add(int(trial.trial_id))

    def on_trial_result(self, controller: Any, trial: StandIn, result: dict[str, Any]) -> str:
        """Returns PAUSE after the first epoch."""
        number = int(trial.trial_id)
        if number not in self._beginning:
            return str(self.CONTINUE)
        self._beginning.discard(number)
        self._shown[number] = result[METRIC]
        return str(self.PAUSE)

    def on_trial_complete(self, controller: Any, trial: StandIn, result: dict[str, Any]) -> None:
        """Never resumes a trial that has ended."""
        self._ended.add(int(trial.trial_id))

    def resumed(self, last: bool) -> int | None:
        """Returns a trial to go on with, the best of its batch first."""
        if len(self._shown) >= self._batch or (last and not self._beginning):
            kept = math.ceil(self._kept * len(self._shown) / self._batch)
            self._chosen += [number for number in _best(self._shown)[:kept] if number not in self._ended]
            self._shown = {}
        return self._chosen.pop(0) if self._chosen else None


class Paused(FIFOScheduler):
    """A scheduler of the project that pauses trials, as the simulation has it.

    Args:
        scheduler: `Promotion` or, by schedules, `LikeWithLike` of such ones.
    """

    def __init__(self, scheduler: Any) -> None:
        super().__init__()
        self._scheduler = scheduler

    def on_trial_add(self, controller: Any, trial: StandIn) -> None:
        """Tells the scheduler."""
        self._scheduler.on_trial_add(controller, trial)

    def on_trial_result(self, controller: Any, trial: StandIn, result: dict[str, Any]) -> str:
        """Returns PAUSE where the scheduler pauses a trial, which it tells Ray to stop."""
        decision = self._scheduler.on_trial_result(controller, trial, result)
        return str(self.PAUSE if self._scheduler.has_paused(int(trial.trial_id)) else decision)

    def on_trial_complete(self, controller: Any, trial: StandIn, result: dict[str, Any]) -> None:
        """Tells the scheduler that a trial has ended."""
        self._scheduler.ended(int(trial.trial_id))

    def resumed(self, last: bool) -> int | None:
        """Returns the trial that the scheduler has go on."""
        found: int | None = self._scheduler.promoted()
        return found


def one_epoch(batch: int, kept: int) -> Callable[[int, int], OneEpoch]:
    """Returns a builder of `OneEpoch`."""
    return lambda epochs, seed: OneEpoch(batch, kept)


def promotion(grace: Callable[[int], int] | None = None) -> Callable[[int, int], Paused]:
    """Returns a builder of ASHA in its first form, the project's (Li et al. 2020, algorithm 2).

    Args:
        grace: Epochs of the first rung, of the length of a full trial; None: as in a search.
    """

    def build(epochs: int, seed: int) -> Paused:
        return Paused(SCHEDULERS.load("promotion")(epochs, seed) if grace is None else Promotion(rungs(epochs, grace)))

    return build


def rungs(epochs: int, grace: Callable[[int], int]) -> list[int]:
    """Returns the epochs after which trials are compared: of the grace period, and three times as many each."""
    return [grace(epochs) * REDUCTION_FACTOR**i for i in range(epochs) if grace(epochs) * REDUCTION_FACTOR**i < epochs]


def _best(shown: dict[int, float]) -> list[int]:
    """Returns the numbers of trials, the best first; of equal ones the earlier."""
    return sorted(shown, key=lambda number: (-shown[number], number))
