"""When a search ends before its samples are done."""

import os
import signal
import time
from typing import Any

import optuna
import pytest

from tuning.images.splitting import Splits
from tuning.sampling.spaces import load_space
from tuning.sampling.study import RunStudy
from tuning.trials import session
from tuning.trials.progress import Progress
from tuning.trials.session import Session
from tuning.trials.settings import Settings


@pytest.fixture
def begin(tmp_path: Any, splits: Splits) -> Any:
    """Returns a function that makes a session with a time budget, and one running trial."""

    def made(time_budget: float | None) -> Session:
        settings = Settings(
            samples=3, space="smoke", dataset="x", epochs=5, seed=7, sampler="random", scheduler="none", device="cpu",
            concurrency=2, cpus_per_trial=1.0, gpus_per_trial=0.0, train_images=None, data_dir=None, max_failures=0,
            time_budget=time_budget,
        )  # fmt: skip
        study = RunStudy(tmp_path, load_space("smoke"), optuna.samplers.RandomSampler(seed=0), epochs=5, seed=7)
        found = Session(settings, tmp_path, splits, study, Progress(3, quiet=True))
        assert found.propose("cpu") is not None
        return found

    return made


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_search_once_all_that_run_have_reported(begin: Any, number: int) -> None:
    search = begin(None)
    with search.ends_on_signals():
        assert not search.should_end()
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), number)  # As `timeout` and a closing terminal do; it is no second wish.
        assert not search.should_end()
        search.reported(0, {"error": "Training loss is not finite."})
        assert search.should_end()
        assert search.reason == "interrupt"


def test_a_signal_ends_the_search_though_nothing_reports(begin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SECONDS_FOR_AN_EPOCH", 0.1)
    search = begin(None)
    with search.ends_on_signals():
        os.kill(os.getpid(), signal.SIGHUP)
        time.sleep(0.2)
        assert search.should_end()
        assert search.reason == "interrupt"


def test_a_spent_budget_is_no_interrupt(begin: Any) -> None:
    search = begin(0.0)
    time.sleep(0.01)
    assert search.should_end()
    assert search.reason == "time budget"
