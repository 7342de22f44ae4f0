"""The search as a user runs it: real Ray, real images, a tiny network; killed, gone on with, and given bad input."""

import base64
import contextlib
import http.server
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import studies
from conftest import write_run
from optuna.trial import TrialState

from tuning import search
from tuning.base import files, machine
from tuning.base.errors import UserError
from tuning.runs import run_folder, schema
from tuning.sampling import study_storage
from tuning.sampling.curve_sampler import CurveSampler
from tuning.sampling.spaces import load_space
from tuning.sampling.study import RunStudy
from tuning.trials import settings as search_settings

SMOKE = ["--space", "smoke", "--train-images", "1000"]
SLOWER = ["--space", "smoke", "--train-images", "12000"]  # An epoch takes half a second.
# Any process that opens a file of the test split ends with an error, and says so: sitecustomize runs in all of them.
GUARD = """
import os, sys
def guard(event, arguments):
    torch = event == "import" and arguments[0] == "torch" and sys.modules.get("torch", "") is not None
    if torch and "tuning.search" in sys.orig_argv:  # The search's own process, not its workers.
        with open(os.environ["OPENED"] + "-torch", "a") as log:
            log.write(f"{sys.argv}\\n")
    if event == "open" and "t10k" in str(arguments[0]):
        with open(os.environ["OPENED"], "a") as log:
            log.write(f"{arguments[0]}\\n")
        raise PermissionError("the test split is locked")
sys.addaudithook(guard)
"""


def python_path(folder: Path) -> str:
    """Returns a PYTHONPATH of a folder, for its `sitecustomize`, and of this checkout, wherever the package is from."""
    return f"{folder}{os.pathsep}{Path(__file__).parent.parent}"


def run(folder: Path, *arguments: str, module: str = "search", **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"tuning.{module}", *arguments]
    environment = os.environ | {"PYTHONPATH": python_path(folder)} | variables
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
    )


def processes(folder: Path) -> list[str]:
    """Returns the command lines of processes whose Ray was started for a run below `folder`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"PYTHONPATH={python_path(folder)}" in (process / "environ").read_text():
                found.append((process / "cmdline").read_text())
        except (OSError, UnicodeDecodeError):
            continue
    return [line for line in found if line]


def count_epochs(run_path: Path) -> int:
    """Returns how many epochs a run's file has; to ask for the frame again and again takes a core from the search."""
    file = run_path / "epochs.csv"
    return max(0, file.read_bytes().count(b"\n") - 1) if file.exists() else 0


def check_record(run_path: Path, n_trials: int) -> pd.DataFrame:
    """Asserts that study and frames agree, that nothing is running and no epoch is there twice; returns the trials."""
    trials, epochs = run_folder.Run(run_path).trials, run_folder.Run(run_path).epochs
    assert list(trials["trial"]) == list(range(n_trials))
    assert set(trials["state"]) <= {"complete", "pruned"}
    assert not epochs.duplicated(["trial", "epoch"]).any()
    for number, rows in epochs.groupby("trial"):
        assert list(rows["epoch"]) == list(range(1, len(rows) + 1)), number
    assert list(epochs.groupby("trial").size()) == list(trials["epochs"])
    assert list(epochs.groupby("trial")["valid_accuracy"].max()) == list(trials["valid_accuracy"])
    study = study_storage.load(run_path)
    for trial, row in zip(study.trials, trials.to_dict("records"), strict=True):
        assert trial.state == {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}[row["state"]]
        if trial.state == TrialState.COMPLETE:
            assert trial.values[0] == row["valid_accuracy"]  # noqa: PD011
    return trials


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("searched")
    (folder / "sitecustomize.py").write_text(GUARD)
    done = run(folder, "--samples", "5", "--epochs", "6", "--run", "one", *SMOKE, OPENED=str(folder / "opened"))
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done


@pytest.mark.slow
def test_a_search_writes_its_run_folder(searched: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = searched
    path = folder / "results" / "one"
    trials = check_record(path, 5)
    names = {file.name for file in path.iterdir()}
    assert names >= {"meta.json", "space.py", "study.db", "trials.csv", "epochs.csv", "best.json", "driver.log"}
    pictures = {"best_so_far.png", "learning_curves.png", "parallel_coordinates.png", "importances.png"}
    assert names >= pictures
    assert all((path / name).stat().st_size > 5_000 for name in pictures)
    for number in range(5):
        files = {file.name.split(".tfevents")[0] for file in (path / "trials" / f"{number:04d}").iterdir()}
        assert files >= {"trial.log", "events.out"}
        assert ("best.pt" in files) == ("latest.pt" in files) == (number == run_folder.Run(path).best["trial"])
    assert not list(path.rglob("*.pkl"))
    best = json.loads((path / "best.json").read_text())
    assert best["valid_accuracy"] == trials["valid_accuracy"].max()
    assert best["config"]["epochs"] == 6
    meta = json.loads((path / "meta.json").read_text())
    assert meta["settings"]["samples"] == 5 and meta["split_hash"] and meta["versions"]["ray"]
    assert f"{trials['valid_accuracy'].max():.2%}" in done.stdout
    assert "Next: python -m tuning.final --run one" in done.stdout
    assert "\x1b" not in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_search_opens_no_file_of_the_test_split_and_the_guard_would_tell(
    searched: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = searched
    assert not (folder / "opened").exists()
    arguments = ("--config", str(folder / "tiny.json"), "--model-dir", str(folder / "model"))
    (folder / "tiny.json").write_text(json.dumps({"width": 4, "image_size": 8, "epochs": 1, "batch_size": 4096}))
    run(folder, *arguments, module="final", OPENED=str(folder / "opened"))
    assert "t10k-images" in (folder / "opened").read_text()


@pytest.mark.slow
def test_a_search_imports_no_torch_in_its_own_process_and_its_events_can_be_read(
    searched: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    folder, _ = searched
    assert not (folder / "opened-torch").exists()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    epochs = run_folder.Run(folder / "results" / "one").epochs
    events = EventAccumulator(str(folder / "results" / "one" / "trials" / "0000"))
    events.Reload()
    logged = [event.value for event in events.Scalars("ray/tune/valid_accuracy")]
    assert logged == pytest.approx(list(epochs.loc[epochs["trial"] == 0, "valid_accuracy"]))


@pytest.mark.slow
def test_more_samples_extend_a_finished_run(searched: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = searched
    path = folder / "results" / "one"
    before = run_folder.Run(path).trials
    (path / "trials.csv").unlink()  # The study has it all.
    done = run(folder, "--resume", "one", "--samples", "7", OPENED=str(folder / "opened-later"))
    assert done.returncode == 0, done.stderr
    assert "one/trials.csv was missing, and is written anew from the study." in done.stdout
    trials = check_record(path, 7)
    pd.testing.assert_frame_equal(trials.head(5), before)
    assert not trials["config/learning_rate"].duplicated().any()
    ((paused, resumed),) = json.loads((path / "meta.json").read_text())["pauses"]
    assert before["ended"].max() <= pd.Timestamp(paused) < pd.Timestamp(resumed) < trials["started"].max()


def test_a_run_may_be_resumed_with_as_many_samples_as_were_run() -> None:
    trials = pd.DataFrame({"attempt": pd.array([1, 0, 2, None], dtype="Int64")})  # The second one's result is a twin's.
    one: Any = SimpleNamespace(name="one", trials=trials)
    search_settings.check_resumed((), one, 3)
    with pytest.raises(UserError, match=r"^--samples must be at least the 3 trials of one, but got 2\.$"):
        search_settings.check_resumed((), one, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--sampler", "random", "--gpus-per-trial", "0"),
            "--resume must keep the settings of run one, but got --sampler, --gpus-per-trial. Leave that out",
        ),
        (("--samples", "2"), "--samples must be at least the [57] trials of one, but got 2"),
    ],
)
def test_what_a_resumed_run_cannot_be_told_is_refused(
    searched: tuple[Path, subprocess.CompletedProcess[str]], arguments: tuple[str, ...], message: str
) -> None:
    folder, _ = searched
    before = (folder / "results" / "one" / "meta.json").read_text()
    done = run(folder, "--resume", "one", *arguments)
    assert done.returncode == 2 and re.search(message, done.stderr), done.stderr
    assert (folder / "results" / "one" / "meta.json").read_text() == before


@pytest.mark.slow
def test_a_search_that_is_interrupted_goes_on_where_it_was(tmp_path: Path, every_core: None) -> None:
    given = ["--run", "one", "--samples", "2", "--epochs", "12", "--scheduler", "none", *SLOWER]
    environment = os.environ | {"PYTHONPATH": python_path(tmp_path)}
    path = tmp_path / "results" / "one"
    before = schema.read_frame(path / "epochs.csv", schema.EPOCH_COLUMNS)
    # As Ctrl-C and `timeout` do it; SIGHUP is caught with them (`tests/base/test_interrupts.py`).
    for number, send in ((signal.SIGINT, os.kill), (signal.SIGTERM, os.killpg)):
        command = [sys.executable, "-m", "tuning.search", *given]
        with (tmp_path / "out").open("w") as out:
            process = subprocess.Popen(
                command, cwd=tmp_path, env=environment, stdout=out, stderr=out, start_new_session=True
            )
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and count_epochs(path) < len(before) + 2:
            time.sleep(0.1)
        time.sleep(0.3)
        send(process.pid, number)
        assert process.wait(timeout=300) == 130, number
        assert not processes(tmp_path)
        said = (tmp_path / "out").read_text()
        assert "Resume it with: python -m tuning.search --resume one" in said
        assert "Traceback" not in said and "SIGTERM" not in said
        after = run_folder.Run(path).epochs
        pd.testing.assert_frame_equal(after.head(len(before)), before)
        given, before = ["--resume", "one"], after

    done = run(tmp_path, "--resume", "one")
    assert done.returncode == 0, done.stderr
    trials = check_record(path, 2)
    after = run_folder.Run(path).epochs
    pd.testing.assert_frame_equal(after.head(len(before)), before)
    assert trials["attempt"].max() == 3
    # Nothing was trained again but the epoch that was cut off: the log of the trial tells each that was begun.
    first = (path / "trials" / "0000" / "trial.log").read_text()
    assert first.count("EpochResult(epoch=1,") == 1


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.0, 2.5, 4.0])
def test_a_search_that_is_ended_while_it_starts_says_how_to_go_on(tmp_path: Path, seconds: float) -> None:
    command = [sys.executable, "-m", "tuning.search", "--samples", "4", "--epochs", "12", "--run", "one", *SLOWER]
    environment = os.environ | {"PYTHONPATH": python_path(tmp_path)}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=-1, stderr=-1, text=True, start_new_session=True
    )
    time.sleep(seconds)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=600)
    begun = (tmp_path / "results" / "one" / "meta.json").exists()
    if process.returncode == -signal.SIGTERM:  # On a busy machine Python was still importing the command.
        assert not begun and out + err == "" and not processes(tmp_path)
        return
    assert process.returncode == 130
    wanted = "Resume it with: python -m tuning.search --resume one" if begun else "Run the same command again to go on."
    assert f"Interrupted. {wanted}" in out + err
    assert "Traceback" not in out + err
    assert not processes(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_kills_lose_nothing(tmp_path: Path, every_core: None) -> None:
    path, moments = tmp_path / "results" / "one", random.Random(0)
    environment = os.environ | {"PYTHONPATH": python_path(tmp_path)}
    finished: dict[int, dict[str, Any]] = {}
    # One while it starts, the others while it trains: after a number of epochs and some part of the next one. More
    # kills of a real search are in `benchmarks/kills.py`, and thousands of a replayed one in `test_nothing_lost.py`.
    for kill, n_epochs in enumerate([0, 1, 10]):
        begun = ["--resume", "one"] if (path / "meta.json").exists() else ["--run", "one", "--epochs", "6", *SLOWER]
        command = [sys.executable, "-m", "tuning.search", "--samples", str(4 + 2 * kill), *begun]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
        enough = count_epochs(path) + n_epochs
        deadline = time.monotonic() + 300
        while process.poll() is None and count_epochs(path) < enough and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(moments.uniform(0, 1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not path.is_dir():  # It had not begun.
            continue
        trials = run_folder.Run(path).trials
        for row in trials[trials["state"].isin(["complete", "pruned"])].astype(str).to_dict("records"):
            assert finished.setdefault(row["trial"], row) == row  # What has ended once stands.
        known = run_folder.Run(path).epochs
        latest = known.groupby("trial")["epoch"].max().to_dict()
        for log in path.glob("trials/*/trial.log"):
            log.with_name(f"known-{kill}").write_text(f"{log.stat().st_size} {latest.get(int(log.parent.name), 0)}")
    done = run(tmp_path, "--resume", "one", "--samples", "9")
    assert done.returncode == 0, done.stderr
    check_record(path, 9)
    assert finished
    for note in path.glob("trials/*/known-*"):
        size, epoch = map(int, note.read_text().split())
        later = (note.parent / "trial.log").read_bytes()[size:].decode()
        # It went on after the last epoch that was known, or the one after it: none that was known is trained again.
        again = re.findall(r"Going on after epoch (\d+)|EpochResult\(epoch=(\d+)", later)
        assert all(int(one) >= epoch if one else int(two) > epoch for one, two in again), (note, later)


@pytest.mark.slow
def test_in_a_folder_of_any_name_a_trial_whose_loss_is_not_finite_fails_and_the_search_goes_on(tmp_path: Path) -> None:
    """Also with a TMPDIR that is too long for Ray and with output that may be ASCII only."""
    folder = tmp_path / "Grün #1 50%?" / "a%20b"
    folder.mkdir(parents=True)
    (folder / "wild.py").write_text(
        "def space(trial):\n"
        "    wild = trial.number == 0\n"
        "    return {'width': 4, 'learning_rate': 10.0 if wild else 0.05, 'momentum': 0.99 if wild else 0.9,\n"
        "            'weight_decay': 1.0 if wild else 0.0, 'schedule': 'constant',\n"
        "            'batch_size': trial.suggest_categorical('batch_size', [8, 16])}\n"
    )
    size = ["--samples", "3", "--epochs", "4", "--scheduler", "none", "--train-images", "800"]
    surroundings = {"PYTHONIOENCODING": "ascii", "TMPDIR": str(tmp_path / ("x" * 70)), "RAY_TMPDIR": ""}
    done = run(folder, "--run", "one", "--space", "wild.py", *size, **surroundings)
    assert done.returncode == 0, done.stderr
    trials = run_folder.Run(folder / "results" / "one").trials
    assert list(trials["state"]) == ["failed", "complete", "complete"]
    assert re.match("Training loss must be finite, but got (nan|inf) in epoch", trials["error"][0])
    assert trials["attempt"][0] == 1
    assert len(study_storage.load(folder / "results" / "one").trials) == 3
    assert list(run_folder.Run(folder / "results" / "one").epochs.groupby("trial").size())[-2:] == [4, 4]
    assert "Ray's temporary folder is " in done.stdout
    assert "its path is too long for a socket's" in done.stdout
    ours = re.findall(r"Ray's temporary folder is (\S+),", done.stdout)
    assert len(ours) == 1 and not Path(ours[0]).exists()


# The first two times that trial 0 saves its third epoch, its worker is out of memory.
NO_MEMORY = """
import os, pathlib, sys
def no_memory(event, arguments):
    if event == "open" and "trials/0000/.latest.pt" in str(arguments[0]) and "x" in str(arguments[1]):
        saves = pathlib.Path(os.environ["SAVES"])
        saves.write_text(saves.read_text() + "x" if saves.exists() else "x")
        if len(saves.read_text()) in (3, 4):
            raise MemoryError("no more")
sys.addaudithook(no_memory)
"""


def mlflow_statuses(uri: str) -> list[str]:
    """Returns the status of each MLflow run of the experiment "one"."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    return [run.info.status for run in client.search_runs([client.get_experiment_by_name("one").experiment_id])]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's use of SQLAlchemy
def test_a_trial_that_runs_out_of_memory_goes_on_alone_and_then_in_parts(tmp_path: Path, every_core: None) -> None:
    (tmp_path / "sitecustomize.py").write_text(NO_MEMORY)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    size = ["--samples", "4", "--epochs", "5", "--scheduler", "none"]
    done = run(tmp_path, "--run", "one", *size, *SMOKE, "--mlflow", uri, SAVES=str(tmp_path / "saves"))
    assert done.returncode == 0, done.stderr
    trials = check_record(tmp_path / "results" / "one", 4)
    assert list(trials["attempt"]) == [3, 1, 1, 1]
    assert list(trials["accumulation"]) == [2, 1, 1, 1]
    assert trials["error"][0] == "MemoryError: no more, each batch in 2 parts"
    assert "tried again, alone on its device: MemoryError" in done.stdout
    log = (tmp_path / "results" / "one" / "trials" / "0000" / "trial.log").read_text()
    assert log.count("EpochResult(epoch=1,") == 1 and log.count("Going on after epoch 2") == 2
    assert mlflow_statuses(uri) == ["FINISHED"] * 4 and "MLflow" not in done.stdout


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's use of SQLAlchemy
def test_a_search_with_two_goals_draws_its_front_and_logs_to_mlflow(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    (tmp_path / "mine.py").write_text(
        "def space(trial):\n"
        "    width = trial.suggest_categorical('width', [4, 8, 16])\n"
        "    return {'width': width, 'learning_rate': trial.suggest_float('rate', 0.01, 0.1), 'batch_size': 32}\n"
    )
    size = ["--samples", "8", "--epochs", "2", "--train-images", "1000", "--space", "mine.py"]
    done = run(tmp_path, "--run", "one", *size, "--minimize", "n_parameters", "--mlflow", uri)
    assert done.returncode == 0, done.stderr
    trials = check_record(tmp_path / "results" / "one", 8)
    assert set(trials["state"]) == {"complete"}
    smallest = trials.loc[trials["n_parameters"] == trials["n_parameters"].min(), "valid_accuracy"].idxmax()
    assert trials["pareto"][trials["valid_accuracy"].idxmax()] and trials["pareto"][smallest]
    assert (tmp_path / "results" / "one" / "pareto.png").stat().st_size > 5_000

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("one")
    logged = client.search_runs([experiment.experiment_id])
    assert sorted(round(one.data.metrics["best_valid_accuracy"], 6) for one in logged) == sorted(
        round(value, 6) for value in trials["valid_accuracy"]
    )
    assert {one.info.status for one in logged} == {"FINISHED"}
    assert "config/learning_rate" in logged[0].data.params


@pytest.fixture
def refusing() -> Iterator[tuple[str, list[str]]]:
    """The address of an MLflow server that lists its experiments and refuses all else, and what it was told."""
    told: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(str(self.headers["Authorization"]))
            length = int(self.headers.get("Content-Length", 0))
            lists = self.path.endswith("/experiments/search") and b"filter" not in self.rfile.read(length)
            self.send_response(200 if lists else 500)
            self.end_headers()
            self.wfile.write(b"{}")

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}", told
        server.shutdown()
        thread.join()


@pytest.mark.slow
def test_a_tracker_that_fails_ends_no_search_and_its_password_is_nowhere(
    tmp_path: Path, refusing: tuple[str, list[str]]
) -> None:
    address, told = refusing
    size = ["--samples", "3", "--epochs", "2"]
    done = run(tmp_path, "--run", "one", *size, *SMOKE, "--mlflow", f"http://bob:hunter2@{address}", no_proxy="*")
    assert done.returncode == 0, done.stderr
    assert set(told) == {f"Basic {base64.b64encode(b'bob:hunter2').decode()}"}
    assert "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to resume this run." in done.stdout
    assert done.stdout.count(f"MLflow at http://{address} fails: ") == 1
    told.clear()
    again = run(tmp_path, "--resume", "one", "--samples", "4", no_proxy="*")  # Without the password.
    assert again.returncode == 0, again.stderr
    assert set(told) == {"None"} and again.stdout.count(f"MLflow at http://{address} fails: ") == 1
    check_record(tmp_path / "results" / "one", 4)
    assert "hunter2" not in done.stdout + done.stderr + again.stdout + again.stderr
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hunter2" in path.read_bytes()]


@pytest.mark.slow
def test_an_audit_trains_stopped_trials_to_their_end_outside_the_samplers_sight(tmp_path: Path) -> None:
    size = ["--samples", "8", "--epochs", "5", "--audit", "2"]
    done = run(tmp_path, "--run", "one", *size, *SMOKE)
    assert done.returncode == 0, done.stderr
    path = tmp_path / "results" / "one"
    trials = check_record(path, 8)
    stopped = trials[trials["stopped_by"] == "scheduler"]
    audited = schema.read_frame(path / "audit.csv", schema.EPOCH_COLUMNS)
    assert len(stopped) >= 2 and audited["trial"].nunique() == 2
    assert set(audited["trial"]) <= set(stopped["trial"])
    assert list(audited.groupby("trial")["epoch"].max()) == [5, 5]
    shared = audited.merge(run_folder.Run(path).epochs, on=["trial", "epoch"], suffixes=("", "_search"))
    assert len(shared) >= 4 and (shared["valid_accuracy"] == shared["valid_accuracy_search"]).all()
    meta = run_folder.Run(path).meta["audit"]
    assert meta["trials"] == sorted(audited["trial"].unique())
    assert meta["loss"] == max(0.0, audited["valid_accuracy"].max() - trials["valid_accuracy"].max())
    assert f"Audit: 2 of {len(stopped)} stopped trials trained to their end" in done.stdout
    again = run(tmp_path, "--resume", "one")
    assert again.returncode == 0 and "epoch 5" not in again.stdout  # What was trained once is not trained again.


@pytest.mark.slow
def test_a_search_ends_where_nothing_is_left_to_gain_and_may_be_extended(
    searched: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    path = tmp_path / "results" / "one"
    shutil.copytree(searched[0] / "results" / "one", path)
    study, draw = RunStudy(path, load_space("smoke"), CurveSampler(0, 5), epochs=6, seed=0), np.random.default_rng(0)
    while len(study.trials.shown()) < 50 and not study.has_converged:
        proposal = studies.ask(study)
        studies.train(study, proposal, [draw.normal(0.3, 0.01)] * 6, "length")
        study.finish(proposal.number, "scheduler")
    study.close(None)
    n = study.trials.n_finished
    assert study.has_converged, [trial.user_attrs.get("gain") for trial in study.study.trials]
    done = run(tmp_path, "--resume", "one", "--samples", "60", "--until-converged")
    assert done.returncode == 0, done.stdout + done.stderr
    meta, trials = run_folder.Run(path).meta, run_folder.ran(run_folder.Run(path).trials)
    assert (meta["stopped_by"], meta["converged"], len(trials)) == ("converged", n, n)
    said = f"Nothing left to gain after {n} trials: "
    assert done.stdout.count(said) == 2 and "The search ended there." in done.stdout
    assert said in (path / "report.html").read_text()
    done = run(tmp_path, "--resume", "one", "--samples", str(n + 2))
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(run_folder.ran(run_folder.Run(path).trials)) == n + 2
    assert run_folder.Run(path).meta["stopped_by"] is None


@pytest.mark.slow
def test_paused_trials_go_on_when_others_prove_worse_and_after_an_interrupt(tmp_path: Path) -> None:
    """With --scheduler promotion, of nine trials three go on after their first epoch, and one of these after three."""
    options = ["--samples", "9", "--epochs", "9", "--run", "one", "--scheduler", "promotion", "--sampler", "random"]
    command = [sys.executable, "-m", "tuning.search", *options, *SLOWER, "--seed", "3"]
    environment = os.environ | {"PYTHONPATH": python_path(tmp_path)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as search:
        assert search.stdout is not None
        for line in search.stdout:
            if re.search(r"trial +4  paused after 1 epoch", line):
                search.send_signal(signal.SIGINT)
                break
        rest = search.stdout.read()
    assert "Interrupted. Resume it with" in rest, rest
    path = tmp_path / "results" / "one"
    found = run_folder.Run(path)
    before = found.trials.set_index("trial")
    assert {"paused"} <= set(before["state"]) and not {"complete", "pruned"} & set(before["state"])
    paused = before[before["state"] == "paused"]
    assert paused["ended"].notna().all() and paused["stopped_by"].isna().all()
    assert found.best["valid_accuracy"] == paused["valid_accuracy"].max() and "paused" in rest
    assert all((path / "trials" / f"{number:04d}" / "latest.pt").exists() for number in paused.index)
    assert (path / "best_so_far.png").exists() and (path / "best.json").exists()
    done = run(tmp_path, "--resume", "one")
    assert done.returncode == 0, done.stdout + done.stderr
    trials, epochs = check_record(path, 9), run_folder.Run(path).epochs
    lengths = trials["epochs"].value_counts().to_dict()
    assert lengths[1] <= 6 and 9 in lengths and sum(n for length, n in lengths.items() if length >= 3) >= 3
    assert not epochs.duplicated(["trial", "epoch"]).any()
    assert set(trials["state"]) == {"complete", "pruned"}
    assert set(trials.loc[trials["state"] == "pruned", "stopped_by"]) == {"scheduler"}


@pytest.mark.slow
def test_a_spent_time_budget_ends_the_search_and_leaves_nothing_running(tmp_path: Path) -> None:
    arguments = ["--samples", "50", "--epochs", "500", "--time-budget", "14s", "--run", "one", "--scheduler", "none"]
    done = run(tmp_path, *arguments, *SMOKE)
    assert done.returncode == 0, done.stderr
    trials = run_folder.Run(tmp_path / "results" / "one").trials
    assert not (trials["state"] == "running").any()
    assert "time budget" in set(trials["stopped_by"].dropna())


@pytest.mark.slow
def test_where_the_first_trials_all_fail_the_search_stops_and_shows_it(tmp_path: Path) -> None:
    (tmp_path / "wild.py").write_text(
        "def space(trial):\n"
        "    size = trial.suggest_int('image_size', 8, 60)\n"
        "    return {'width': 4, 'image_size': size, 'batch_size': 8, 'learning_rate': 10.0, 'momentum': 0.99,\n"
        "            'weight_decay': 1.0, 'schedule': 'constant'}\n"
    )
    done = run(
        tmp_path, "--samples", "8", "--epochs", "4", "--run", "one", "--space", "wild.py", "--train-images", "800"
    )
    assert done.returncode == 2
    assert done.stderr.count("error: All of the first 3 trials failed. The last error was: ") == 1
    assert "Training loss must be finite" in done.stderr
    assert len(run_folder.Run(tmp_path / "results" / "one").trials) < 8


def bad(**arguments: Any) -> None:
    search.main(**arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0}, "--samples must be at least 1, but got 0"),
        ({"space": "resnt"}, "Search space must be one of .* Did you mean 'resnet'"),
        ({"dataset": "fashion-mnst"}, "--dataset must be .* Did you mean 'fashion-mnist'"),
        ({"sampler": "tpee"}, "--sampler must be one of .* Did you mean 'tpe'"),
        ({"scheduler": "ash"}, "--scheduler must be one of .* Did you mean 'asha'"),
        ({"until_converged": True, "sampler": "tpe"}, "--until-converged must have a sampler .*curves, but got 'tpe'"),
        ({"cost": "seconds", "sampler": "gp"}, "--cost seconds must have a sampler .*curves, but got 'gp'"),
        ({"cost": "minutes"}, "--cost must be one of epochs, seconds, but got 'minutes'"),
        ({"scheduler": "promotion", "sampler": "tpe"}, "--scheduler promotion must have a sampler .*, but got 'tpe'"),
        ({"minimize": "parameters"}, "--minimize must be one of .* Did you mean 'n_parameters'"),
        ({"minimize": "n_parameters", "scheduler": "asha"}, "--scheduler must be none beside --minimize.*got 'asha'"),
        ({"mlflow": "nowhere://x"}, "--mlflow must be the URI of a store that answers, but got 'nowhere://x'"),
        ({"device": "gpu"}, "--device must be one of cpu, cuda, but got 'gpu'"),
        ({"cpus_per_trial": 1000.0}, "--cpus-per-trial must be at most .*, but got 1000"),
        ({"device": "cpu", "gpus_per_trial": 64.0}, "--gpus-per-trial must be at most .*, but got 64"),
        ({"concurrency": 1000}, "--concurrency must be between 1 and .*, but got 1000"),
        ({"address": "auto"}, "--storage must be given with --address, .*, but got --address auto alone"),
        ({"device": "any"}, "--device must be cpu or cuda on one machine, but got 'any'"),
        ({"device": "any", "address": "auto", "dry_run_only": True}, "--device must be cpu or cuda with --dry-run"),
        ({"concurrency": 0}, "--concurrency must be between 1 and .*, but got 0"),
        ({"time_budget": "soon"}, "--time-budget must be a duration such as .*, but got 'soon'"),
        ({"time_budget": "9" * 400 + "h"}, "--time-budget must be a duration such as .*, but got '999"),
        (
            {"run": "x" * 300},
            "--run must be a name that this file system can have below results/, but got 'xxx.*': File",
        ),
        ({"resume": "x" * 300}, "A run must be a folder that can be read, but got 'xxx.*': File name too long"),
        ({"time_budget": "0s"}, "--time-budget must be a duration such as .*, but got '0s'"),
        ({"run": "taken"}, "--run must be a new name, but got 'taken'"),
        ({"run": "a/b"}, "--run must be letters, digits"),
        ({"resume": "takn"}, "Run below results/ must be one of .* Did you mean 'taken'"),
    ],
)
def test_bad_input_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    taken = tmp_path / "results" / "taken"
    taken.mkdir(parents=True)
    (taken / "meta.json").write_text("{}")
    with pytest.raises(UserError, match=message):
        bad(**arguments)
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["taken"]


def test_bad_input_is_said_before_torch_or_ray_is_imported(tmp_path: Path) -> None:
    errors = [["--samples", "0"], ["--sampler", "tp"], ["--space", "resnt"], ["--concurrency", "99"], ["--run", "a/b"]]
    errors += [["--cpus-per-trial", "999"], ["--device", "cuda"], ["--resume", "one"], ["--data-dir", "none"]]
    program = (
        "import json, sys\nfrom tuning import search\nfrom tuning.base import errors\n"
        f"for arguments in {errors!r}:\n"
        "    sys.argv[1:] = arguments\n"
        "    try: errors.run_command(search.main)\n"
        "    except SystemExit as end: print(end.code, *{'torch', 'ray'} & set(sys.modules))\n"
    )
    if any(Path(device).exists() for device in machine.GPU_DEVICES):
        pytest.skip("torch is asked where there is a GPU")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if line[:1].isdigit()] == ["2"] * len(errors), done.stderr


def test_a_damaged_file_in_the_data_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    (data / "train-images-idx3-ubyte").write_bytes(b"not images")
    with pytest.raises(UserError, match="train-images-idx3-ubyte"):
        bad(data_dir=data, space="smoke")
    assert not (tmp_path / "results").exists()


def test_a_space_that_gives_a_wrong_point_is_named_before_there_is_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def space(trial):\n    return {'learning_rte': 1}\n")
    with pytest.raises(UserError, match="Did you mean 'learning_rate'"):
        bad(space="mine.py", train_images=1000)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("1.5h", 5400), ("1h30m", 5400)])
def test_durations(text: str, seconds: float) -> None:
    assert search_settings.parse_duration(text) == seconds


def test_without_a_gpus_device_torch_is_not_asked_for_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "GPU_DEVICES", (tmp_path / "none",))
    monkeypatch.setitem(sys.modules, "torch", None)
    assert machine.gpu_memory() == [] and machine.hardware()["gpus"] == []
    monkeypatch.setattr(machine, "GPU_DEVICES", (tmp_path / "none", tmp_path))
    with pytest.raises(ImportError):
        machine.gpu_memory()


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs a system that keeps a process to some cores")
def test_only_the_cores_that_this_process_may_use_count() -> None:
    code = "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
    code += "from tuning.base import machine\nprint(machine.cores(), machine.hardware()['cores'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "1"]


@pytest.mark.slow
def test_a_search_begins_with_another_and_is_resumed_when_that_is_gone(
    searched: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    shutil.copytree(searched[0] / "results" / "one", tmp_path / "results" / "one")
    begun = ("--samples", "2", "--epochs", "2", "--run", "two", *SMOKE)
    done = run(tmp_path, *begun, "--start-from", "nobody")
    assert done.returncode == 2 and not (tmp_path / "results" / "two").exists()
    assert "error: --start-from names a run that cannot be read. Run below results/ must be one of" in done.stderr
    done = run(tmp_path, *begun, "--start-from", "latest")
    assert done.returncode == 0, done.stdout + done.stderr
    one = r"one \(\d trials on fashion-mnist\)"
    assert re.search(rf"Begins with {one}: 2 of 2 hyperparameters in common\.", done.stdout)
    worth = re.search(rf"Began with {one}\. The best of its first 2 trials has \d\d\.\d\d%\.", done.stdout)
    assert worth is not None and worth[0] in (tmp_path / "results" / "two" / "report.html").read_text()
    shutil.rmtree(tmp_path / "results" / "one")
    (tmp_path / "results" / "two").rename(tmp_path / "results" / "three")
    done = run(tmp_path, "--resume", "three", "--samples", "3")
    assert done.returncode == 0, done.stdout + done.stderr
    path = tmp_path / "results" / "three"
    points = check_record(path, 3)[["config/learning_rate", "config/momentum"]]  # Two may lie at the end of one range.
    assert len(points.drop_duplicates()) == 3
    meta = run_folder.Run(path).meta
    assert (meta["settings"]["start_from"], meta["begun_with"][0]["name"]) == (["one"], "one")
    assert {trial.user_attrs["origin"] for trial in study_storage.load(path).trials} <= {"model", "random"}
    (path / "earlier.json").unlink()
    done = run(tmp_path, "--resume", "three", "--samples", "4")
    assert done.returncode == 2 and "error: results/three/earlier.json, which holds what run three took" in done.stderr


@pytest.mark.parametrize("error", ["RuntimeError: my network is wrong", ""])
def test_a_search_without_any_result_says_why_and_fails(tmp_path: Path, error: str) -> None:
    found = write_run(tmp_path / "one", 0)
    settings = found.meta["settings"] | {"samples": 2}
    files.write_json(found.path / "meta.json", found.meta | {"estimate": None, "settings": settings})
    moment = "2026-11-30T10:00:00+00:00"
    row = {"state": "failed", "epochs": 0, "started": moment, "ended": moment, "attempt": 3, "error": error or None}
    rows = [{"trial": number, **row} for number in (0, 1)]
    files.write_rows(found.path / "trials.csv", schema.TRIAL_COLUMNS, rows)
    said = rf"^No trial of {re.escape(str(found.path))} has a result\."
    said += (
        rf" The last error was: {error}\." if error else ""
    ) + " Next: python -m tuning.search --resume .* --samples 4$"
    with pytest.raises(UserError, match=said):
        search._print_outcome(found)


def test_a_page_is_named_only_if_it_has_the_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n_trials in (0, 4):
        found = write_run(tmp_path / str(n_trials), n_trials)
        files.write_json(found.path / "meta.json", found.meta | {"estimate": None})
        fails = pytest.raises(UserError, match="has a result") if n_trials == 0 else contextlib.nullcontext()
        with fails:
            search._print_outcome(found)
        assert "Page:" not in capsys.readouterr().out
        page = found.path / "report.html"
        page.write_text("")
        with fails:
            search._print_outcome(found)
        assert f"Page: {page}" in capsys.readouterr().out
    os.utime(page, ns=(0, 0))  # An earlier session wrote it, and this one could not.
    search._print_outcome(found)
    assert "Page:" not in capsys.readouterr().out
