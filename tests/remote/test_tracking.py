"""What MLflow has of a search: one run a trial, whatever happens to the tracker, to the trial and to the search."""

import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import optuna
import pytest
from conftest import write_run

from tuning.base import files
from tuning.base.errors import UserError
from tuning.remote import tracking
from tuning.runs import run_folder
from tuning.sampling.spaces import load_space
from tuning.sampling.study import RunStudy

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's use of SQLAlchemy
PASSWORDS = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_URI")


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """Leaves no password behind; a proxy must not come between the test and loopback."""
    with mock.patch.dict(os.environ, {"no_proxy": "*"}):
        for name in PASSWORDS:
            os.environ.pop(name, None)
        yield


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the file of an empty tracker, whose making takes seconds."""
    file = tmp_path_factory.mktemp("mlflow") / "empty.db"
    tracking.check(f"sqlite:///{file}")
    return file


@pytest.fixture
def uri(empty: Path, tmp_path: Path) -> str:
    shutil.copy(empty, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def logged(uri: str, experiment: str = "one") -> dict[str, Any]:
    """Returns the MLflow runs of an experiment by the number of their trial; fails where a trial has two."""
    client = tracking._client(uri)
    found = client.search_runs([client.get_experiment_by_name(experiment).experiment_id])
    numbers = [run.data.tags[tracking.TRIAL] for run in found]
    assert len(set(numbers)) == len(numbers)
    return dict(zip(numbers, found, strict=True))


def steps(uri: str, run: Any, name: str = "valid_accuracy") -> list[int]:
    history = tracking._client(uri).get_metric_history(run.info.run_id, name)
    return sorted(metric.step for metric in history)


def statuses(uri: str) -> dict[str, str]:
    return {number: run.info.status for number, run in logged(uri).items()}


class Search:
    """A search whose trials do what a test says."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            write_run(path, 0)
            files.write_json(path / "meta.json", run_folder.Run(path).meta | {"id": "af0c"})
        self.study = RunStudy(path, load_space("smoke"), optuna.samplers.RandomSampler(seed=0), epochs=4, seed=0)

    def ask(self) -> int:
        proposal = self.study.ask()
        assert proposal is not None
        return proposal.number

    def report(self, number: int, epoch: int, **more: Any) -> None:
        row = {"epoch": epoch, "valid_accuracy": 0.5 + epoch / 10, "train_accuracy": 0.5, "train_loss": 1.0, "lr": 0.1}
        row |= {"valid_loss": 1.0, "epoch_seconds": 2.0, "images_per_second": 9.0, "seconds_per_image": 1e-3}
        self.study.report(number, row | {"finished": "length" * (epoch == 4)} | more)


@pytest.fixture
def said() -> list[str]:
    return []


def until(reached: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not reached() and time.monotonic() < end:
        time.sleep(0.02)
    assert reached()


def test_a_trial_has_one_run_with_its_configuration_and_a_value_an_epoch(
    tmp_path: Path, uri: str, said: list[str]
) -> None:
    run = write_run(tmp_path / "one", 3)
    with tracking.logged(uri, run.path, said.append):
        pass
    found = logged(uri)
    assert sorted(found) == ["0", "1", "2"] and said == []
    for row in run.trials.to_dict("records"):
        one = found[str(row["trial"])]
        assert one.info.status == "FINISHED"
        assert float(one.data.params["config/learning_rate"]) == row["config/learning_rate"]
        assert one.data.metrics["best_valid_accuracy"] == pytest.approx(row["valid_accuracy"])
        assert steps(uri, one) == list(range(1, row["epochs"] + 1))


def test_a_trial_is_sent_while_it_runs(tmp_path: Path, uri: str, said: list[str]) -> None:
    search = Search(tmp_path / "one")
    tracker = tracking.Tracker(tmp_path / "one", uri, said.append, every=0.02)
    tracker.start()
    number = search.ask()
    search.report(number, 1)
    until(lambda: tracking._client(uri).get_experiment_by_name("one") is not None and statuses(uri) == {"0": "RUNNING"})
    search.report(number, 2)
    until(lambda: steps(uri, logged(uri)["0"]) == [1, 2])
    tracker.finish()
    assert said == []


def test_a_retried_trial_keeps_its_run_and_its_parameters(tmp_path: Path, uri: str, said: list[str]) -> None:
    """Ray's own callback failed here: "Changing param values is not allowed"."""
    search = Search(tmp_path / "one")
    tracker = tracking.Tracker(tmp_path / "one", uri, said.append)
    number = search.ask()
    for epoch in (1, 2):
        search.report(number, epoch)
        tracker._send(False)
    search.study.retry(number, "MemoryError: no more", accumulation=2)
    for epoch in (3, 4):
        tracker._send(False)
        search.report(number, epoch)
    search.study.finish(number, "scheduler")
    tracker._send(True)
    assert statuses(uri) == {"0": "FINISHED"} and steps(uri, logged(uri)["0"]) == [1, 2, 3, 4]


def test_an_interrupted_search_leaves_none_running_and_goes_on_in_the_same_runs(
    tmp_path: Path, uri: str, said: list[str]
) -> None:
    search = Search(tmp_path / "one")
    with tracking.logged(uri, tmp_path / "one", said.append):
        for number in (search.ask(), search.ask()):
            search.report(number, 1)
        search.study.finish(0, "scheduler")
    assert statuses(uri) == {"0": "FINISHED", "1": "KILLED"}
    before = {number: run.info.run_id for number, run in logged(uri).items()}
    search = Search(tmp_path / "one")
    tracker = tracking.Tracker(tmp_path / "one", uri, said.append)
    tracker._send(False)
    assert statuses(uri) == {"0": "FINISHED", "1": "RUNNING"}
    for epoch in (2, 3, 4):
        search.report(1, epoch)
    search.study.finish(1, "scheduler")
    tracker._send(True)
    assert statuses(uri) == {"0": "FINISHED", "1": "FINISHED"}
    assert {number: run.info.run_id for number, run in logged(uri).items()} == before
    assert steps(uri, logged(uri)["1"]) == [1, 2, 3, 4] and said == []


def test_a_search_killed_before_it_could_say_so_goes_on_in_the_same_runs(
    tmp_path: Path, uri: str, said: list[str]
) -> None:
    search = Search(tmp_path / "one")
    search.report(search.ask(), 1)
    tracking.Tracker(tmp_path / "one", uri, said.append)._send(False)
    (tmp_path / "one").rename(tmp_path / "two")  # and under another name.
    with tracking.logged(uri, tmp_path / "two", said.append):
        pass
    assert statuses(uri) == {"0": "KILLED"}
    assert tracking._client(uri).get_experiment_by_name("two") is None


def test_a_failed_trial_says_why(tmp_path: Path, uri: str, said: list[str]) -> None:
    search = Search(tmp_path / "one")
    search.study.fail(search.ask(), "NonFiniteLossError: at http://bob:hunter2@host")
    with tracking.logged(uri, tmp_path / "one", said.append):
        pass
    assert statuses(uri) == {"0": "FAILED"}
    assert logged(uri)["0"].data.tags["error"] == "NonFiniteLossError: at http://***@host"


def test_runs_that_version_0_2_0_began_are_gone_on_with(tmp_path: Path, uri: str, said: list[str]) -> None:
    write_run(tmp_path / "one", 2)
    client = tracking._client(uri)
    experiment = client.create_experiment("one")
    for trial in ("0", "1", "1"):  # The second one was retried.
        old = client.create_run(experiment)
        client.log_param(old.info.run_id, "trial", trial)
        client.log_param(old.info.run_id, "config/learning_rate", "as it was")
    with tracking.logged(uri, tmp_path / "one", said.append):
        pass
    found = client.search_runs([experiment])
    assert sorted(run.info.status for run in found) == ["FINISHED", "FINISHED", "KILLED"]
    assert {run.data.params["config/learning_rate"] for run in found} == {"as it was"} and said == []


def test_runs_of_another_search_of_that_name_are_left_alone(tmp_path: Path, uri: str, said: list[str]) -> None:
    for run_id in ("first", "second"):
        shutil.rmtree(tmp_path / "one", ignore_errors=True)
        run = write_run(tmp_path / "one", 2)
        files.write_json(run.path / "meta.json", run.meta | {"id": run_id})
        with tracking.logged(uri, run.path, said.append):
            pass
    for name, run_id in {"one": "first", "one-second": "second"}.items():  # As of two machines on one server.
        assert {run.data.tags[tracking.RUN] for run in logged(uri, name).values()} == {run_id}
        assert tracking._client(uri).get_experiment_by_name(name).tags[tracking.RUN] == run_id


def test_an_experiment_whose_name_was_deleted_gets_another(tmp_path: Path, uri: str, said: list[str]) -> None:
    client = tracking._client(uri)
    client.delete_experiment(client.create_experiment("one"))
    Search(tmp_path / "one").ask()
    with tracking.logged(uri, tmp_path / "one", said.append):
        pass
    assert len(logged(uri, "one-af0c")) == 1 and said == []


class Broken:
    """A tracker that fails while `away` is true."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wait: float = 0.0) -> None:
        self.away, self.asked, client = True, 0, tracking._client

        def broken(uri: str) -> Any:
            self.asked += 1
            if self.away:
                time.sleep(wait)
                raise ConnectionError("no such table: metrics\n[SQL: INSERT …]")
            return client(uri)

        monkeypatch.setattr(tracking, "_client", broken)


def test_a_tracker_that_fails_is_said_once_and_gets_what_it_missed(
    tmp_path: Path, uri: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Broken(monkeypatch)
    write_run(tmp_path / "one", 2)
    monkeypatch.setattr(tracking, "PAUSE", 0.05)
    tracker = tracking.Tracker(tmp_path / "one", uri, said.append, every=0.02)
    tracker.start()
    until(lambda: broken.asked > 3)
    assert said == [
        f"MLflow at {uri} fails: no such table: metrics. The search goes on. What is missing is sent when MLflow "
        f"answers again, or with: python -m tuning.search --resume {tmp_path / 'one'}"
    ]
    broken.away = False
    until(lambda: len(said) == 2)
    assert said[1] == f"MLflow at {uri} is back, and what was missing is sent."
    tracker.finish()
    assert statuses(uri) == {"0": "FINISHED", "1": "FINISHED"} and len(said) == 2


def test_a_table_that_is_dropped_in_mid_search_ends_nothing(tmp_path: Path, uri: str, said: list[str]) -> None:
    import sqlite3

    search = Search(tmp_path / "one")
    with tracking.logged(uri, tmp_path / "one", said.append):
        number = search.ask()
        search.report(number, 1)
        until(lambda: "0" in statuses(uri) if tracking._client(uri).get_experiment_by_name("one") else False)
        with sqlite3.connect(tmp_path / "mlflow.db", timeout=60) as database:
            database.execute("drop table metrics")
        search.report(number, 2)
    assert len(said) == 1 and "no such table: metrics" in said[0]
    with tracking.logged(uri, tmp_path / "one", said.append):  # Resumed.
        search.report(number, 3)
    assert len(said) == 2


def test_what_was_missed_is_sent_by_the_next_session(
    tmp_path: Path, uri: str, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Broken(monkeypatch)
    write_run(tmp_path / "one", 2)
    for _ in range(2):
        with tracking.logged(uri, tmp_path / "one", said.append):
            pass
        broken.away = False
    assert statuses(uri) == {"0": "FINISHED", "1": "FINISHED"} and len(said) == 1


@pytest.fixture
def silent() -> Iterator[str]:
    """The URI of a server that accepts a connection and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_tracker_that_says_nothing_delays_the_end_by_its_patience_only(
    tmp_path: Path, silent: str, said: list[str]
) -> None:
    write_run(tmp_path / "one", 1)
    tracker = tracking.Tracker(tmp_path / "one", silent, said.append)
    tracker.start()
    tracker.finish(patience=0.3)
    assert tracker._thread.is_alive() and tracker._thread.daemon  # It was not waited for.
    assert [text.partition(". ")[0] for text in said] == [f"MLflow at {silent} fails: it took nothing for 0.3 s"]


def test_a_search_without_a_tracker_starts_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "Tracker", lambda *given: pytest.fail("was begun"))
    with tracking.logged(None, tmp_path, print):
        pass


@pytest.mark.parametrize("uri", ["nowhere://x", "sqlite:////dev/null/x.db"])
def test_a_tracker_that_cannot_be_had_is_refused_before_the_search(uri: str) -> None:
    with pytest.raises(UserError, match=rf"--mlflow must be the URI of a store that answers, but got '{uri}': "):
        tracking.check(uri)


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"--mlflow needs the package mlflow, .*\. Run `pip install mlflow-skinny`\.$"):
        tracking.check("sqlite:///x.db")


@pytest.mark.parametrize(
    ("uri", "recorded", "kept"),
    [
        ("http://host:5000", "http://host:5000", {}),
        ("http://bob:hunter2@host:5000/x", "http://host:5000/x", {"USERNAME": "bob", "PASSWORD": "hunter2"}),
        ("https://bob:a%40b@host", "https://host", {"USERNAME": "bob", "PASSWORD": "a@b"}),
        ("https://bob:a@b@host", "https://host", {"USERNAME": "bob", "PASSWORD": "a@b"}),
        ("https://hunter2@host", "https://host", {"TOKEN": "hunter2"}),
        ("https://host/?token=hunter2", "https://host/?***", {"URI": "https://host/?token=hunter2"}),
        ("postgresql://bob:hunter2@host/db", "postgresql://***@host/db", {"URI": "postgresql://bob:hunter2@host/db"}),
    ],
)
def test_a_password_is_kept_in_the_environment_only(uri: str, recorded: str, kept: dict[str, str]) -> None:
    assert tracking.without_secret(uri) == recorded
    assert {name: os.environ.get(name) for name in PASSWORDS if os.environ.get(name)} == {
        f"MLFLOW_TRACKING_{name}": value for name, value in kept.items()
    }
    names = " and ".join(f"MLFLOW_TRACKING_{name}" for name in kept)
    expected = f"The password of --mlflow is not written down. Set {names} to resume this run." if names else ""
    assert tracking.needed(recorded) == expected
    before = {name: os.environ[name] for name in PASSWORDS if name in os.environ}
    assert tracking.without_secret(recorded) == recorded  # A resumed run.
    assert before == {name: os.environ[name] for name in PASSWORDS if name in os.environ}


def test_a_run_whose_password_is_missing_can_be_resumed(tmp_path: Path, said: list[str]) -> None:
    write_run(tmp_path / "one", 1)
    with tracking.logged("postgresql://***@host/db", tmp_path / "one", said.append):
        pass
    assert len(said) == 1 and "its password is not written down. Set MLFLOW_TRACKING_URI to the whole URI" in said[0]


def test_a_password_that_is_refused_says_where_it_belongs() -> None:
    said = tracking._reason(RuntimeError("API request failed with error code 401 != 200"))
    assert said.endswith("Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or _TOKEN")
