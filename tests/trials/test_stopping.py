"""When a search ends before its samples are done."""

import os
import signal
import time

import pytest

from tuning.trials import stopping
from tuning.trials.stopping import Stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_search_once_all_that_run_have_reported(number: int) -> None:
    stop = Stop(None)
    reported: list[float] = []
    stop.all_reported_since = lambda moment: bool(reported) and reported[-1] >= moment
    with stop.on_signals():
        assert not stop.now()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # As `timeout` and a closing terminal do; it is no second wish.
        assert not stop.now()
        reported.append(time.monotonic())
        assert stop.now()
        assert stop.reason == "interrupt"


def test_a_signal_ends_the_search_though_nothing_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "SECONDS_FOR_AN_EPOCH", 0.1)
    stop = Stop(None)
    with stop.on_signals():
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.2)
        assert stop.now()
        assert stop.reason == "interrupt"


def test_a_spent_budget_is_no_interrupt() -> None:
    stop = Stop(0.0)
    time.sleep(0.01)
    assert stop.now()
    assert stop.reason == "time budget"
