"""Searches in simulated time, for what a search will take: they train nothing, but stop trials as the search would."""

import heapq
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tuning.base.config import TrainConfig
from tuning.base.registries import SAMPLERS, SCHEDULERS
from tuning.trials.kinds import Cost, kind_of
from tuning.trials.settings import N_STARTUP

SIMULATIONS = 200
LEAST_SIMULATIONS, MOST_SECONDS = 20, 10.0  # Large searches are simulated fewer times.
RISE = 0.3  # Of a simulated trial's accuracy, from its beginning to its end.
NOISE = 0.03  # Of it after each epoch, a standard deviation.
# What a simulated sampler does once it has seen enough: so many of its proposals are of the kind of the best trial, and
# so near to it in what else decides. How much of a trial's level its size decides differs from search to search.
NEAR_BEST, SPREAD, MOST_BY_SIZE = 0.9, 0.05, 1.0
START_SECONDS = 8.0  # From the command to the first step, two cores.


def simulate(
    settings: Any, costs: Sequence[Cost], first: Sequence[TrainConfig] = (), n_done: int = 0, n: int = SIMULATIONS
) -> npt.NDArray[np.float64]:
    """Returns the seconds that each of `n` simulated searches takes, (n,); fewer, where that itself takes long.

    Accuracies rise to a trial's level, with noise; who is stopped when, the search's own scheduler says, which is shown
    the best accuracy so far, as in a search.

    Args:
        settings: Of the search.
        costs: Of the kinds of its space.
        first: The configurations that it begins with, which are good ones.
        n_done: Trials that have ended already; other ones of the space are simulated in their place, and not counted.
        n: How many searches.
    """
    generator, end = np.random.default_rng(settings.seed), time.monotonic() + MOST_SECONDS
    found: list[float] = []
    while len(found) < min(n, LEAST_SIMULATIONS) or (len(found) < n and time.monotonic() < end):
        found.append(_Simulated(settings, costs, first, n_done, generator).run())
    return np.array(found)


class _Simulated:
    """One simulated search.

    How good a trial is at its end, its level, depends on its size and on all else. Both are drawn at random for a trial
    of a random sampler and for the first ones of any other, which later mostly proposes what is near the best so far.
    """

    def __init__(
        self,
        settings: Any,
        costs: Sequence[Cost],
        first: Sequence[TrainConfig],
        n_done: int,
        generator: np.random.Generator,
    ) -> None:
        self._settings, self._costs, self._n_done, self._generator = settings, costs, n_done, generator
        index = {kind_of(cost.config): i for i, cost in enumerate(costs)}
        self._first = [index.get(kind_of(config)) for config in first]
        shares = np.array([cost.share for cost in costs])
        self._shares = shares / shares.sum() if shares.sum() else np.full(len(costs), 1 / len(costs))
        sizes = np.log([cost.epoch_seconds * cost.config.epochs for cost in costs])
        self._sizes = (sizes - sizes.min()) / max(float(np.ptp(sizes)), 1e-9)
        self._by_size = MOST_BY_SIZE * generator.random()
        self._kinds: list[int] = []
        self._rest: list[float] = []
        self._best: list[float] = []
        self._trials: list[Any] = []
        self._n_epochs: list[int] = []

    def run(self) -> float:
        """Returns the seconds that it takes, its trials to come after those that have ended; more than its budget ends.

        The scheduler judges trials by all before them. What has paused is another thing: that is not simulated.
        """
        settings = self._settings
        scheduler = SCHEDULERS.load(settings.scheduler)(settings.epochs, int(self._generator.integers(2**31)))
        n_before = 0 if SCHEDULERS[settings.scheduler].pauses_trials else self._n_done
        self._train(scheduler, n_before)
        n_to_come = max(0, settings.samples - self._n_done)
        return self._train(scheduler, n_before + n_to_come, settings.time_budget or math.inf) + START_SECONDS

    def _train(self, scheduler: Any, n_trials: int, budget: float = math.inf) -> float:
        """Trains trials until there are so many, each as long as the scheduler lets it; returns the seconds."""
        from tuning.trials.schedulers import METRIC, StandIn

        pauses = SCHEDULERS[self._settings.scheduler].pauses_trials
        events: list[tuple[float, int]] = []
        clock = 0.0
        while clock < budget:
            while len(events) < self._settings.concurrency:
                number = scheduler.promoted() if pauses else None
                if number is None:
                    if len(self._trials) == n_trials:
                        break
                    number, config = len(self._trials), self._propose()
                    given = {"config": {"schedule": config.schedule, "epochs": config.epochs}, "trial": number}
                    self._trials.append(StandIn(str(number), given))
                    self._n_epochs.append(0)
                    scheduler.on_trial_add(None, self._trials[number])
                heapq.heappush(events, (clock + self._cost(number).epoch_seconds, number))
            if not events:
                break
            clock, number = heapq.heappop(events)
            self._n_epochs[number] += 1
            self._observe(number, self._n_epochs[number])
            result = {"epoch": self._n_epochs[number], METRIC: self._best[number]}
            goes_on = scheduler.on_trial_result(None, self._trials[number], result) != "STOP"
            if goes_on and self._n_epochs[number] < self._cost(number).config.epochs:
                heapq.heappush(events, (clock + self._cost(number).epoch_seconds, number))
        return clock

    def _cost(self, number: int) -> Cost:
        return self._costs[self._kinds[number]]

    def _propose(self) -> TrainConfig:
        """Draws a trial, and returns what its configuration is like."""
        n_unseen = self._n_done if SCHEDULERS[self._settings.scheduler].pauses_trials else 0
        generator, number = self._generator, n_unseen + len(self._kinds)
        kind, rest = int(generator.choice(len(self._costs), p=self._shares)), generator.random()
        guided = not SAMPLERS[self._settings.sampler].random and number >= N_STARTUP
        if number < len(self._first) and (known := self._first[number]) is not None:
            kind, rest = known, (1 + rest) / 2
        elif guided and self._best and generator.random() < NEAR_BEST:
            best = int(np.argmax(self._best))
            kind, rest = self._kinds[best], min(1.0, self._rest[best] + SPREAD * generator.normal())
        self._kinds.append(kind)
        self._rest.append(rest)
        self._best.append(-math.inf)
        return self._costs[kind].config

    def _observe(self, number: int, epoch: int) -> None:
        """Draws the accuracy of a trial after an epoch."""
        level = self._by_size * self._sizes[self._kinds[number]] + (1 - self._by_size) * self._rest[number]
        still = RISE * (1 - epoch / self._cost(number).config.epochs)
        self._best[number] = max(self._best[number], level - still + NOISE * self._generator.normal())
