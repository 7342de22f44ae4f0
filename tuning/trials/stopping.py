"""Why and when a search ends before its samples are done."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tuning.base import interrupts

SECONDS_FOR_AN_EPOCH = 10.0


class Stop:
    """Why and when the search should end before its samples are done: a budget, a signal or a problem of our own."""

    def __init__(self, time_budget: float | None) -> None:
        self.reason: str | None = None
        self.problem: BaseException | None = None
        self._deadline = math.inf if time_budget is None else time.monotonic() + time_budget
        self._interrupted_at: float | None = None
        self.all_reported_since: Callable[[float], bool] = lambda moment: False

    def on_problem(self, error: BaseException) -> None:
        self.problem = self.problem or error

    @contextmanager
    def on_signals(self) -> Iterator[None]:
        """SIGINT, SIGTERM and SIGHUP end the search after the running epoch, or 10 s if that is less.

        Another one, a second or more later, ends it at once.
        """

        def interrupt(number: int) -> None:
            self._interrupted_at = time.monotonic()

        with interrupts.caught(interrupt):
            yield

    def now(self) -> bool:
        """Returns whether the search should end, and sets `reason`."""
        if self._interrupted_at is not None:
            interrupts.drop_closed_output()  # Who reads it may end a moment after the signal came.
            waited = time.monotonic() - self._interrupted_at
            if waited > SECONDS_FOR_AN_EPOCH or self.all_reported_since(self._interrupted_at):
                self.reason = "interrupt"
        elif time.monotonic() > self._deadline:
            self.reason = self.reason or "time budget"
        return self.reason is not None or self.problem is not None
