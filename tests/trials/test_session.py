"""When a search ends before its samples are done."""

import os
import signal
import time
from dataclasses import replace
from typing import Any

import optuna
import pytest
import studies

from tuning.base import files
from tuning.base.errors import UserError
from tuning.images import partition
from tuning.images.splitting import Splits
from tuning.runs import run_folder, summaries
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
        assert found.turns.next() is not None
        found.began(0)
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


def test_after_a_signal_no_trial_begins(begin: Any) -> None:
    search = begin(None)
    with search.ends_on_signals():
        os.kill(os.getpid(), signal.SIGINT)
        search.reported(0, {"error": "Training loss is not finite."})  # It frees its slot.
        assert search.turns.next() is None and list(search.study.trials) == [0]


@pytest.mark.parametrize("reason", ["time budget", None])
def test_what_ends_with_the_search_is_shown(begin: Any, reason: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    search, shown = begin(None), list[tuple[int, str]]()
    monkeypatch.setattr(search.progress, "ended", lambda row: shown.append((row["trial"], row["state"])))
    more = {"valid_score": 0.7, "valid_error": 0.03, "error": "", "hostname": None}
    assert search.turns.next() is not None
    search.reported(1, studies.epoch(1, 0.7) | more)
    search.reason = reason
    search.end_trials()
    assert sorted(shown) == [(0, "failed"), (1, "pruned")]


def test_an_interrupted_search_shows_no_trial_as_ended(begin: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    search = begin(None)
    monkeypatch.setattr(search.progress, "ended", None)
    search.reason = "interrupt"
    search.end_trials()
    assert search.study.trials[0].state == "running"


def test_how_surely_the_best_value_is_known_is_written_down_where_the_valid_split_is_small(
    begin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = begin(None)
    more = {"valid_score": 0.8, "valid_error": 0.02, "error": "", "hostname": None}
    search.reported(0, studies.epoch(1, 0.7) | more | {"valid_error": 0.03, "valid_score": 0.7})
    search.reported(0, studies.epoch(2, 0.8, "length") | more)
    search.ended(0)
    search.study.close(None)
    monkeypatch.setattr(partition, "MOST_VALID_IMAGES", 120)
    search._note_noise()
    assert not (search.path / "meta.json").exists()
    monkeypatch.setattr(partition, "MOST_VALID_IMAGES", 121)
    search._note_noise()
    assert files.read_json(search.path / "meta.json")["noise"] == {"valid_images": 120, "half_width": 1.96 * 0.02}
    text = "The valid accuracy of a trial is known to ± 3.92 points (95 %): there are 120 valid images."
    assert summaries.noise_text(run_folder.Run(search.path)) == text


@pytest.mark.parametrize("paused", [True, False])
def test_failures_end_no_search_in_which_a_trial_has_paused_or_trains(begin: Any, paused: bool) -> None:
    search = begin(None)
    search.reported(0, studies.epoch(1, 0.7) | {"valid_score": 0.7, "valid_error": 0.03, "error": "", "hostname": None})
    if paused:
        search.study.pause(0)
        search.turns.paused(0)
    for _ in range(session.FAILURES_THAT_STOP):
        search.failed(search.turns.next().proposal.number, "Training loss must be finite.")
    assert search.problem is None
    other = begin_anew(search)
    with pytest.raises(UserError, match="All of the first 3 trials failed"):
        for _ in range(session.FAILURES_THAT_STOP):
            other.failed(other.turns.next().proposal.number, "Training loss must be finite.")


def test_a_configuration_whose_nodes_were_lost_may_be_run_again(begin: Any) -> None:
    search = begin(None)
    search.failed(search.turns.next().proposal.number, "ActorDiedError", "The actor died because its node has died.")
    search.failed(search.turns.next().proposal.number, "ValueError", "Traceback ... ValueError")
    failed = [trial for trial in search.study.trials.values() if trial.state == "failed"]
    assert [trial.failed_by_itself for trial in failed] == [False, True]


@pytest.mark.parametrize(("budget", "audited"), [(None, 1), (0.0, 0)])
def test_a_spent_budget_leaves_the_audit_out_and_says_so(
    begin: Any, budget: float | None, audited: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, notes, calls = begin(budget), list[str](), list[Any]()
    files.write_json(search.path / "meta.json", {"audit": {"trials": [7]}, "settings": {}})
    search.settings = replace(search.settings, audit=2)

    def train(n: int) -> None:
        assert files.read_json(search.path / "meta.json")["audit"] is None  # It was of fewer trials.
        search.should_end()

    for owner, name, value in (
        (search, "run_trials", train),
        (search, "_audit", lambda: calls.append(None)),
        (search, "_note_noise", lambda: None),
        (search, "_conclude", lambda: None),
        (search.progress, "note", notes.append),
    ):
        monkeypatch.setattr(owner, name, value)
    search.run(resumed=False, left_out={})
    said = "The time budget is spent, so the audit is left out. To have it, resume the run: python -m tuning.search "
    assert len(calls) == audited
    assert notes == ([] if audited else [f"{said}--resume {search.path} --audit 2"])


def begin_anew(search: Session) -> Session:
    """Returns a session of a run of its own, in which nothing has been shown."""
    path = search.path / "other"
    path.mkdir()
    study = RunStudy(path, load_space("smoke"), optuna.samplers.RandomSampler(seed=0), epochs=5, seed=7)
    return Session(search.settings, path, search.splits, study, Progress(3, quiet=True))


def test_a_spent_budget_is_no_interrupt(begin: Any) -> None:
    search = begin(0.0)
    time.sleep(0.01)
    assert search.should_end()
    assert search.reason == "time budget"


def test_who_loses_the_run_in_its_storage_after_the_trials_leaves_it_and_says_so(
    begin: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, store, concluded = begin(None), tmp_path / "store" / "one", list[str]()
    checkpoint = store / "trials" / "0001" / "best.pt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    meta = {"id": "a", "stored_as": "one", "settings": {}, "started": "2026-11-30"}
    files.write_json(search.path / "meta.json", meta)
    search.settings = replace(search.settings, samples=2, storage=str(store.parent))
    monkeypatch.setattr(session.record, "conclude", lambda run, tell: concluded.append(run.name))

    def train(n: int) -> None:
        assert search.turns.next() is not None
        for number, accuracy in enumerate((0.8, 0.7)):
            more = {"valid_score": accuracy, "valid_error": 0.02, "error": "", "hostname": None}
            search.reported(number, studies.epoch(1, accuracy, "length") | more)
            search.ended(number)

    def lose() -> None:  # Another process takes it over between two beats.
        assert concluded == [] and checkpoint.exists()
        (store / "search.lease").write_text('{"lease": "another", "pid": 3, "host": "other"}')

    monkeypatch.setattr(search, "run_trials", train)
    monkeypatch.setattr(search, "_note_noise", lose)
    with pytest.raises(UserError, match=r"process 3 on other .* has taken over"):
        search.run(resumed=False, left_out={})
    assert checkpoint.exists() and concluded == []
