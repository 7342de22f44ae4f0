"""Between Ray and the study: what a worker's failure is called, and when it stops the search."""

import contextlib
import logging
import os
import platform
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optuna
import pytest
import torch

from tuning.base import interrupts, machine
from tuning.base.errors import UserError
from tuning.images.batches import to_tensors
from tuning.images.datasets import Labelled
from tuning.images.splitting import Splits
from tuning.sampling.spaces import load_space
from tuning.sampling.study import RunStudy
from tuning.training import checkpoints
from tuning.trials.local_ray import StartError, TakenSlots, started
from tuning.trials.progress import Progress
from tuning.trials.recorder import EndSearch, Proposals, Recorder, _trainable
from tuning.trials.session import Session
from tuning.trials.settings import Settings
from tuning.trials.slots import Slots
from tuning.trials.worker import LOG, _fetch, train_trial

FAILURE = """Failure # 1 (occurred at 2026-11-23_18-00-00)
ray::ImplicitFunc.train() (pid=1, ip=127.0.0.1)
  File "trainable.py", line 1, in train_trial
{error}
"""


@pytest.fixture
def study(tmp_path: Path) -> RunStudy:
    return RunStudy(tmp_path, load_space("smoke"), optuna.samplers.RandomSampler(seed=0), epochs=5, seed=7)


@pytest.fixture
def session(study: RunStudy, splits: Splits, tmp_path: Path) -> Session:
    settings = Settings(
        samples=3, space="smoke", dataset="x", epochs=5, seed=7, sampler="random", scheduler="none", device="cpu",
        concurrency=2, cpus_per_trial=1.0, gpus_per_trial=0.0, train_images=None, data_dir=None, max_failures=0,
        time_budget=None,
    )  # fmt: skip
    return Session(settings, tmp_path, splits, study, Progress(3, quiet=True))


@pytest.fixture
def recorder(session: Session) -> Recorder:
    return Recorder(session)


@pytest.fixture
def failed(study: RunStudy, tmp_path: Path) -> Callable[[str], Any]:
    """Returns a function that makes a trial as Ray has it after a failure with that text."""

    def make(text: str) -> Any:
        proposal = study.ask()
        assert proposal is not None
        path = tmp_path / f"error-{proposal.number}.txt"
        path.write_text(text)
        trial = SimpleNamespace(config={"trial": proposal.number, "accumulation": 1}, error_file=str(path))
        trial.set_config = lambda config: setattr(trial, "config", config)
        trial.update_resources = lambda resources: setattr(trial, "resources", resources)
        return trial

    return make


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (FAILURE.format(error="ValueError: too wide"), "ValueError: too wide"),
        (
            "Failure # 1 (then)\nThe actor died unexpectedly before finishing.\n\tpid: 7\n",
            "The actor died unexpectedly",
        ),
        (FAILURE.format(error="KeyError: 1") + FAILURE.format(error="KeyError: 2"), "KeyError: 2"),
        (
            FAILURE.format(
                error="RuntimeError: CUDA error: an illegal memory access was encountered\nCompile with `X`.\n"
            ),
            "RuntimeError: CUDA error: an illegal memory access was encountered",
        ),
        (
            FAILURE.format(
                error="    x = f(y)\n        ^^^^\npydantic.ValidationError: 1 validation error for TrainConfig\n"
                "epochs\n  Input should be a number\n    For further information visit https://errors.pydantic.dev"
            ),
            "pydantic.ValidationError: 1 validation error for TrainConfig",
        ),
        ("Failure # 1 (then)\nray::train() (pid=1)\nTraceback (most recent call last):\nKeyError: 1\n", "KeyError: 1"),
    ],
)
def test_a_failure_is_told_in_a_line(recorder: Recorder, study: RunStudy, failed: Any, text: str, error: str) -> None:
    trial = failed(text)
    recorder.on_trial_recover(0, [], trial)
    assert study.row(0)["error"].startswith(error)
    assert (study.row(0)["attempt"], study.row(0)["state"], trial.config["epochs"]) == (2, "running", 0)
    recorder.on_trial_error(0, [], trial)
    assert study.row(0)["state"] == "failed"


@pytest.mark.parametrize(
    "text",
    [
        FAILURE.format(error="torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB."),
        FAILURE.format(error="torch.AcceleratorError: CUDA error: out of memory"),
        FAILURE.format(error="RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: you tried ..."),
        "Failure # 1 (then)\nThe actor died.\n1 worker(s) were killed due to the node running low on memory.\n",
    ],
)
def test_out_of_memory_is_tried_alone_and_then_in_parts(
    session: Session, recorder: Recorder, study: RunStudy, failed: Any, text: str
) -> None:
    proposals = Proposals(session)
    trial = failed(text)
    session.turns.slots.take(0, "cpu")
    recorder.on_trial_recover(0, [], trial)
    assert (trial.resources.bundles, trial.config["accumulation"]) == ([{"CPU": 2.0}], 1)
    assert study.row(0)["error"].endswith(", alone on its device")
    assert proposals.suggest("next") is None  # it would take the slot that the trial waits for
    recorder.on_trial_start(0, [], trial)
    assert proposals.suggest("next") is None  # There is no room beside it.
    for parts in (2, 4):
        recorder.on_trial_recover(0, [], trial)
        assert trial.config["accumulation"] == study.row(0)["accumulation"] == parts
        assert study.row(0)["error"].endswith(f", each batch in {parts} parts")


def test_a_trial_that_is_alone_asks_ray_for_all_of_its_device(
    session: Session, recorder: Recorder, study: RunStudy, failed: Any
) -> None:
    proposals = Proposals(session)
    wanted = _trainable(session)._resources
    first = proposals.suggest("a")
    assert wanted(first).bundles == [{"CPU": 1.0}]
    trial = failed(FAILURE.format(error="torch.OutOfMemoryError: CUDA out of memory."))
    trial.config["trial"] = first["trial"]
    recorder.on_trial_recover(0, [], trial)
    assert wanted({**first, "alone": True}) == trial.resources
    recorder.on_trial_start(0, [], trial)
    session.study.pause(0)
    session.turns.paused(0)
    session.turns.scheduler = SimpleNamespace(promoted=lambda: 0, has_paused=lambda n: False, ended=lambda n: None)
    again = proposals.suggest("b")
    assert again["trial"] == 0 and wanted(again).bundles == [{"CPU": 2.0}]


def test_a_failure_of_a_trial_that_is_alone_has_the_others_wait_again(
    session: Session, recorder: Recorder, study: RunStudy, failed: Any
) -> None:
    proposals, trial = Proposals(session), failed(FAILURE.format(error="torch.OutOfMemoryError: CUDA out of memory."))
    for _ in range(2):
        recorder.on_trial_recover(0, [], trial)
        assert proposals.suggest("next") is None
        recorder.on_trial_start(0, [], trial)


def test_a_batch_that_cannot_be_cut_further_is_tried_again_as_it_is(
    session: Session, recorder: Recorder, study: RunStudy, failed: Any
) -> None:
    session.settings = replace(session.settings, concurrency=1)  # Each is alone on its device.
    trial = failed(FAILURE.format(error="torch.OutOfMemoryError: CUDA out of memory."))
    batch_size = study.row(0)["config/batch_size"]
    for _ in range(12):
        recorder.on_trial_recover(0, [], trial)
    assert trial.config["accumulation"] == study.row(0)["accumulation"] == batch_size // 2
    assert study.row(0)["error"] == "torch.OutOfMemoryError: CUDA out of memory."


def test_another_failure_is_tried_again_as_it_was(session: Session, recorder: Recorder, failed: Any) -> None:
    trial = failed(FAILURE.format(error="ValueError: too wide"))
    recorder.on_trial_recover(0, [], trial)
    assert not hasattr(trial, "resources") and trial.config["accumulation"] == 1 and session.turns.next() is not None


FULL = "No space left on the disk while writing trials/0000/latest.pt. Free some space."


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (f"tuning.base.errors.UserError: {FULL}", FULL),
        (
            "OSError: [Errno 28] No space left on device: 'mine.log'",
            "No space left on the disk: OSError: [Errno 28] No space left on device: 'mine.log'. Free some space, then "
            "run the command again.",
        ),
    ],
)
def test_a_full_disk_stops_the_search_and_leaves_the_trial_to_be_gone_on_with(
    session: Session, recorder: Recorder, study: RunStudy, failed: Any, error: str, said: str
) -> None:
    recorder.on_trial_recover(0, [], failed(FAILURE.format(error=error)))
    assert isinstance(session.problem, UserError) and str(session.problem) == said
    assert session.should_end() and study.trials.running == [0]


def test_a_full_disk_does_so_where_no_retry_is_left(
    session: Session, recorder: Recorder, study: RunStudy, failed: Any
) -> None:
    recorder.on_trial_error(0, [], failed(FAILURE.format(error=f"tuning.base.errors.UserError: {FULL}")))
    assert isinstance(session.problem, UserError) and str(session.problem) == FULL
    assert session.should_end() and study.trials.running == [0]


def test_a_problem_while_recording_is_told_and_not_raised(
    session: Session, recorder: Recorder, failed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise UserError("No space left on the disk while writing epochs.csv.")

    monkeypatch.setattr("tuning.base.files.append_row", full)
    result = {"epoch": 1, "error": "", "train_loss": 1.0, "train_accuracy": 0.1, "valid_loss": 1.0, "lr": 0.1}
    result |= {"valid_accuracy": 0.1, "epoch_seconds": 1.0, "images_per_second": 1.0, "seconds_per_image": 1.0}
    recorder.on_trial_result(0, [], failed(""), result)
    assert "epochs.csv" in str(session.problem)


@pytest.mark.parametrize(
    ("known", "here", "stored", "taken"),
    [(0, 0, 3, 0), (3, 0, 3, 3), (3, 2, 3, 3), (3, 3, 2, 3), (3, 3, 5, 3), (4, 3, 2, 3), (4, 3, 5, 5), (3, 0, 0, 0)],
)
def test_a_trial_takes_the_later_of_its_checkpoints_where_more_is_known_than_is_here(
    tmp_path: Path, known: int, here: int, stored: int, taken: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuning.trials.worker.SECONDS_TO_ARRIVE", 0.0)
    folders = {name: tmp_path / name / "trials" / "0000" for name in ("here", "stored")}
    for (name, folder), n_epochs in zip(folders.items(), (here, stored), strict=True):
        folder.mkdir(parents=True)
        if n_epochs:
            torch.save({"results": [{}] * n_epochs}, folder / "latest.pt")
            (folder / "trial.log").write_text(name * n_epochs)
    _fetch(str(tmp_path / "stored"), folders["here"], known)
    assert checkpoints.n_epochs(folders["here"] / "latest.pt") == taken
    log = folders["here"] / "trial.log"
    assert not log.exists() if taken == 0 else log.read_text() == ("here" if taken == here else "stored") * taken
    assert not (folders["here"] / ".fetched").exists()


def test_a_trial_waits_for_the_checkpoint_that_the_node_it_has_left_is_still_sending(tmp_path: Path) -> None:
    here, stored = (tmp_path / name / "trials" / "0000" for name in ("here", "stored"))
    for folder, n_epochs in ((here, 0), (stored, 2)):
        folder.mkdir(parents=True)
        torch.save({"results": [{}] * n_epochs}, folder / "latest.pt")
    torch.save({"results": [{}] * 3}, tmp_path / "sent.pt")
    sending = threading.Timer(0.5, lambda: (tmp_path / "sent.pt").replace(stored / "latest.pt"))
    sending.start()
    _fetch(str(tmp_path / "stored"), here, 3)
    sending.join()
    assert checkpoints.n_epochs(here / "latest.pt") == 3


def test_a_trial_whose_storage_is_away_for_long_begins_with_what_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tuning.trials.worker.SECONDS_FOR_A_CHECKPOINT", 0.0)
    _fetch("s4://away/one", tmp_path, 3)
    assert "--storage must be a folder, or s3://" in (tmp_path / "trial.log").read_text()


def test_the_log_of_a_trial_has_the_traceback_without_the_password(
    tmp_path: Path, splits: Splits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(threads: int) -> None:
        raise ValueError("no answer from http://bob:hunter2@host")

    monkeypatch.setattr("tuning.training.fit.prepare", fail)
    config = {"trial": 0, "seed": 0, "config": {}, "accumulation": 1, "epochs": 0, "device": "cpu"}
    with pytest.raises(ValueError, match="no answer from"):
        train_trial(config, splits=splits, run=str(tmp_path), threads=1)
    written = (tmp_path / "trials" / "0000" / LOG).read_text(encoding="utf-8")
    assert written.startswith("Traceback (most recent call last):")
    assert written.endswith("ValueError: no answer from http://***@host\n")


def test_where_the_first_three_trials_fail_the_search_is_stopped(
    session: Session, recorder: Recorder, failed: Any
) -> None:
    for i in range(3):
        assert not session.should_end()
        recorder.on_trial_error(0, [], failed(FAILURE.format(error=f"ValueError: {i}")))
    assert "All of the first 3 trials failed. The last error was: ValueError: 2" in str(session.problem)
    assert "trials/0002/trial.log" in str(session.problem)


def test_three_failures_stop_a_resumed_search_in_which_nothing_has_a_result_too(
    session: Session, recorder: Recorder, study: RunStudy, failed: Any
) -> None:
    for _ in range(2):
        proposal = study.ask()
        assert proposal is not None
        study.finish(proposal.number, "time budget")  # Before its first epoch: that says nothing of it.
    for i in range(3):
        assert not session.should_end()
        recorder.on_trial_error(0, [], failed(FAILURE.format(error=f"ValueError: {i}")))
    assert "All of the first 3 trials failed. The last error was: ValueError: 2" in str(session.problem)
    again = Session(session.settings, session.path, session.splits, study, Progress(9, quiet=True))
    for i in range(3):
        assert not again.should_end()
        Recorder(again).on_trial_error(0, [], failed(FAILURE.format(error=f"ValueError: {i}")))
    assert "All of the first 6 trials failed. The last error was: ValueError: 2" in str(again.problem)


def test_later_failures_stop_nothing(session: Session, recorder: Recorder, study: RunStudy, failed: Any) -> None:
    done = study.ask()
    assert done is not None
    study.report(done.number, {"epoch": 1, "finished": "length", **dict.fromkeys(EPOCH, 0.5)})
    study.finish(done.number, "scheduler")
    for _ in range(5):
        recorder.on_trial_error(0, [], failed(FAILURE.format(error="ValueError: x")))
    assert not session.should_end()


EPOCH = ("train_loss", "train_accuracy", "valid_loss", "valid_accuracy", "lr")
EPOCH += ("epoch_seconds", "images_per_second", "seconds_per_image")


def test_all_have_reported_once_each_running_trial_has(session: Session, recorder: Recorder, study: RunStudy) -> None:
    session.turns.slots = TakenSlots(Slots("cpu", 3))
    proposals = Proposals(session)
    trials = [SimpleNamespace(config=proposals.suggest(name)) for name in "abc"]
    for trial in trials[:2]:  # The third one waits for Ray, and has no epoch to lose.
        recorder.on_trial_start(0, [], trial)
    result = {"epoch": 1, "error": "", "finished": "", **dict.fromkeys(EPOCH, 0.5)}
    moment = time.monotonic()
    for trial in trials[:2]:
        assert not session.all_reported_since(moment)
        recorder.on_trial_result(0, [], trial, result)
    assert session.all_reported_since(moment)


def test_a_search_ends_where_the_space_raises_or_is_exhausted(
    session: Session, study: RunStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    proposals, notes = Proposals(session), list[str]()
    session.turns._note = notes.append
    assert proposals.suggest("a")["trial"] == 0
    monkeypatch.setattr(study, "ask", lambda: None)
    assert proposals.suggest("b") == Proposals.FINISHED and not session.should_end()
    assert notes == ["The space has nothing new after 0 trials and those that run; they end it."]

    def broken() -> None:
        raise UserError("Search space mine must return a dict")

    session.turns.to_begin = 1
    monkeypatch.setattr(study, "ask", broken)
    assert proposals.suggest("c") == Proposals.FINISHED
    assert "must return a dict" in str(session.problem) and session.should_end()


def test_a_trial_takes_a_slot_until_it_has_ended(session: Session, study: RunStudy) -> None:
    proposals = Proposals(session)
    first, second = proposals.suggest("a"), proposals.suggest("b")
    assert proposals.suggest("c") is None
    session.retried(first["trial"], "ValueError: x", "", 1)
    assert proposals.suggest("c") is None
    session.failed(first["trial"], "ValueError: x")
    assert proposals.suggest("c")["trial"] == 2 and proposals.suggest("d") is None
    session.reported(second["trial"], {"error": "Training loss is not finite."})
    session.ended(second["trial"])  # As Ray tells of it afterwards.
    assert study.row(second["trial"])["state"] == "failed" and proposals.suggest("d")["trial"] == 3


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from Linux's /proc")
def test_the_images_are_in_memory_once_for_all_workers(splits: Splits) -> None:
    import ray

    def look_at(splits: Splits) -> tuple[bool, bool, float]:
        """Returns, in a worker: may it write to the images, are its tensors over them, MB that reading them took."""
        import torch

        def private() -> int:
            text = Path("/proc/self/smaps_rollup").read_text()
            return sum(int(kb) for kb in re.findall(r"^Private_\w+: +(\d+) kB", text, re.MULTILINE))

        images, *_ = to_tensors(splits.valid, torch.device("cpu"))
        images.sum()  # Now torch has what it takes for itself.
        before = private()
        images, *_ = to_tensors(splits.train, torch.device("cpu"))
        images.sum()
        shared = images.data_ptr() == splits.train.images.ctypes.data
        return splits.train.images.flags.writeable, shared, (private() - before) / 1e3

    images = np.random.default_rng(0).integers(256, size=(60_000, 1, 28, 28), dtype=np.uint8)
    large = replace(splits, train=Labelled(images, np.zeros(60_000, np.int64)))
    with started(Slots("cpu", 1), logging.NullHandler()):
        writeable, shared, megabytes = ray.get(ray.remote(look_at).remote(ray.put(large)))
    assert not writeable and shared
    assert megabytes < 5  # Of 47.


@pytest.mark.parametrize("text", ["The current node timed out during startup. This", "Failed to start GCS.  Last"])
def test_that_ray_does_not_start_on_a_busy_machine_is_a_sentence(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    import ray

    def init(**options: Any) -> None:
        raise Exception(f"{text} could happen because ...")

    monkeypatch.setattr(ray, "init", init)
    said = rf"^Ray did not start on this machine in time \({text.partition('.')[0]}\)\. Try again when less runs"
    with pytest.raises(StartError, match=said), started(Slots("cpu", 1), logging.NullHandler()):
        pass
    text = "something else"
    with (
        pytest.raises(Exception, match=r"^something else could happen"),
        started(Slots("cpu", 1), logging.NullHandler()),
    ):
        pass


def test_all_trials_end_when_the_search_is_to_end(session: Session) -> None:
    stopper = EndSearch(session)
    assert not stopper("any", {}) and not stopper.stop_all()
    session.on_problem(UserError("no more"))
    assert stopper.stop_all() and not stopper("any", {})


# Prints the pages that are mapped anew when 80 MB are freed and allocated a second time.
FAULTS = """
import resource
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    [bytes(4 << 20).replace(bytes(1), bytes([1])) for _ in range(20)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
@pytest.mark.parametrize(("asked", "keeps"), [(None, True), ("glibc.malloc.check=0", False)])
def test_processes_that_are_started_later_keep_what_they_freed_unless_the_user_said_otherwise(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, keeps: bool
) -> None:
    monkeypatch.setattr(os, "environ", {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"})
    if asked is not None:
        os.environ["GLIBC_TUNABLES"] = asked
    machine.tune_malloc()
    assert os.environ["GLIBC_TUNABLES"].startswith(asked or "glibc.malloc.hugetlb=1:")
    command = [sys.executable, "-c", FAULTS]
    done = subprocess.run(command, env=dict(os.environ), capture_output=True, text=True, check=True)
    assert (int(done.stdout) < 20) == keeps


@pytest.mark.parametrize("command", [False, True])
def test_a_process_that_is_no_commands_has_its_environment_and_loggers_back(
    monkeypatch: pytest.MonkeyPatch, command: bool
) -> None:
    for name in ("ray", "ray.tune"):
        monkeypatch.setattr(logging.getLogger(name), "handlers", [logging.NullHandler()])
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    monkeypatch.setattr(os, "environ", {name: value for name, value in os.environ.items() if "TUN" not in name})
    monkeypatch.setattr("tuning.trials.local_ray._own", lambda *args, **more: contextlib.nullcontext())

    def state() -> Any:
        loggers = [logging.getLogger(name) for name in ("ray", "ray.tune")]
        return dict(os.environ), [(list(logger.handlers), logger.propagate) for logger in loggers]

    before = state()
    with interrupts.raised(command=command), started(Slots("cpu", 1), logging.NullHandler()):
        assert os.environ["TUNE_DISABLE_SIGINT_HANDLER"] == "1" and state() != before
    assert (state() == before) != command
