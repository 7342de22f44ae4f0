"""Schedulers from papers that pause trials and resume the best, as `simulation.Pausing` has it. Ray has none."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from ray.tune.schedulers import FIFOScheduler

from tuning.trials.schedulers import METRIC, StandIn


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


class Promotion(FIFOScheduler):
    """ASHA as it was published (Li et al. 2020, algorithm 2): trials pause at each rung, and the best are resumed.

    A free slot goes to a trial that is among the best of the highest rung where there is one, else to a new trial.
    Ray's ASHA decides at once and stops the others. Here a trial can be resumed later, when others have proved worse.

    Args:
        rungs: Epochs after which trials are compared, rising.
        reduction: One in so many of a rung goes on.
    """

    def __init__(self, rungs: Sequence[int], reduction: int) -> None:
        super().__init__()
        self._reduction = reduction
        self._shown: dict[int, dict[int, float]] = {rung: {} for rung in rungs}
        self._promoted: dict[int, set[int]] = {rung: set() for rung in rungs}

    def on_trial_result(self, controller: Any, trial: StandIn, result: dict[str, Any]) -> str:
        """Returns PAUSE at a rung."""
        if result["epoch"] not in self._shown:
            return str(self.CONTINUE)
        self._shown[result["epoch"]][int(trial.trial_id)] = result[METRIC]
        return str(self.PAUSE)

    def on_trial_complete(self, controller: Any, trial: StandIn, result: dict[str, Any]) -> None:
        """Never resumes a trial that has ended."""
        for promoted in self._promoted.values():
            promoted.add(int(trial.trial_id))

    def resumed(self, last: bool) -> int | None:
        """Returns the best trial that is to go on from the highest rung."""
        for rung, shown in reversed(self._shown.items()):
            for number in _best(shown)[: len(shown) // self._reduction]:
                if number not in self._promoted[rung]:
                    self._promoted[rung].add(number)
                    return number
        return None


def one_epoch(batch: int, kept: int) -> Callable[[int, int], OneEpoch]:
    """Returns a builder of `OneEpoch`."""
    return lambda epochs, seed: OneEpoch(batch, kept)


def promotion(grace: Callable[[int], int], reduction: int = 3) -> Callable[[int, int], Promotion]:
    """Returns a builder of `Promotion`.

    Args:
        grace: Epochs of the first rung, of the length of a full trial.
        reduction: One in so many goes on, for so many times as many epochs.
    """

    def build(epochs: int, seed: int) -> Promotion:
        first = grace(epochs)
        n_rungs = math.ceil(round(math.log(epochs / first, reduction), 9))
        return Promotion([first * reduction**i for i in range(n_rungs)], reduction)

    return build


def _best(shown: dict[int, float]) -> list[int]:
    """Returns the numbers of trials, the best first; of equal ones the earlier."""
    return sorted(shown, key=lambda number: (-shown[number], number))
