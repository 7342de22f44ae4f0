"""Signals that end a command: each of them alone, twice at once, again later, ignored, and with nobody left to read."""

import contextlib
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from tuning.base import interrupts

ROOT = Path(__file__).parents[2]
# A command that waits in `main`; what it prints first says that its handlers are there.
COMMAND = """
import sys, time
from tuning.base.errors import run_command
from tuning.base.interrupts import importing, resumable
class Deaf:
    def __del__(self) -> None:
        print("ready", flush=True)
        time.sleep(60)
def main(how: str = "") -> None:
    "Wait."
    try:
        if how == "lost":  # Python drops what a destructor raises.
            Deaf()
            with importing():
                pass
            print("went on", flush=True)
        with resumable("Go on with: this") if how == "resumable" else open("/dev/null"):
            print("ready", flush=True)
            time.sleep(60)
    finally:
        if how == "slow":
            print("ending", flush=True)
            time.sleep(60)
run_command(main)
"""


def begin(*arguments: str, nohup: bool = False) -> subprocess.Popen[str]:
    """Starts the command and returns it once it waits."""
    command = [*(["nohup"] if nohup else []), sys.executable, "-c", COMMAND, *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_any_command_with_a_sentence(number: int) -> None:
    process = begin()
    process.send_signal(number)
    _, said = process.communicate(timeout=600)
    assert (process.returncode, said) == (130, "Interrupted. Run the same command again to go on.\n")


def test_a_signal_whose_exception_gets_lost_ends_the_command_at_the_next_step() -> None:
    process = begin("--how", "lost")
    process.send_signal(signal.SIGTERM)
    out, said = process.communicate(timeout=600)
    assert (process.returncode, out, said) == (130, "", "Interrupted. Run the same command again to go on.\n")


def test_an_exception_that_got_lost_is_raised_again_but_not_while_another_is_handled() -> None:
    with pytest.raises(interrupts.Interrupted, match=r"^Interrupted\. Go on\.$"), interrupts.raised():
        with contextlib.suppress(KeyboardInterrupt):  # As compiled code does.
            signal.raise_signal(signal.SIGTERM)
        try:
            raise ValueError
        except ValueError:
            with interrupts.importing():  # Such as end what had begun.
                pass
        with interrupts.resumable("Go on."):
            raise AssertionError
    interrupts.check()
    with pytest.raises(ValueError, match="later"), interrupts.raised():
        with interrupts.importing():
            pass
        raise ValueError("later")


def test_a_signal_that_importlib_drops_ends_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The end of an import calls back from a weak reference, where Python drops exceptions; numpy's import was so hit.
    (tmp_path / "tuning_test_imported.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    hit: list[str] = []

    def profile(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_name == "cb" and "importlib" in frame.f_code.co_filename and not hit:
            hit.append(frame.f_code.co_filename)
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt), interrupts.raised(command=False):
        sys.setprofile(profile)
        try:
            importlib.import_module("tuning_test_imported")
            gc.collect()
        finally:
            sys.setprofile(None)
        assert hit
        with interrupts.importing():
            raise AssertionError
    assert hit


def test_a_signal_counts_though_what_is_imported_meanwhile_fails() -> None:
    with pytest.raises(KeyboardInterrupt), interrupts.raised(command=False), interrupts.importing():
        signal.raise_signal(signal.SIGTERM)
        raise ImportError


def test_handlers_of_which_one_cannot_be_set_are_all_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    before = {number: signal.getsignal(number) for number in interrupts.numbers()}
    install = signal.signal

    def refuse(number: int, handler: Any) -> Any:
        if number == signal.SIGTERM and handler is not before[signal.SIGTERM]:
            raise KeyboardInterrupt  # As a signal does that comes just then.
        return install(number, handler)

    monkeypatch.setattr(signal, "signal", refuse)
    with pytest.raises(KeyboardInterrupt), interrupts.caught(print):
        raise AssertionError
    assert {number: signal.getsignal(number) for number in before} == before


def test_a_signal_while_the_arguments_are_read_is_said() -> None:
    # typer makes an exit without a word of it.
    code = COMMAND.replace(
        "run_command(main)",
        "import signal, typer.core\n"
        "typer.core.TyperCommand.make_context = lambda *args, **kwargs: signal.raise_signal(signal.SIGTERM)\n"
        "run_command(main)",
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "Interrupted. Run the same command again to go on.\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_says_how_to_go_on_where_that_is_known(number: int) -> None:
    process = begin("--how", "resumable")
    process.send_signal(number)
    _, said = process.communicate(timeout=600)
    assert (process.returncode, said) == (130, "Interrupted. Go on with: this\n")


def test_two_signals_at_once_are_one_and_a_later_one_ends_at_once() -> None:
    process = begin("--how", "slow")
    assert process.stdout is not None
    process.send_signal(signal.SIGHUP)
    assert process.stdout.readline() == "ending\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "Interrupted again: ended at once." in said


def test_under_nohup_a_closed_terminal_ends_nothing() -> None:
    process = begin(nohup=True)
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1.5)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=600)
    assert process.returncode == 130


def test_a_command_whose_terminal_has_closed_ends_as_if_somebody_read_it() -> None:
    ours, terminal = os.openpty()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", COMMAND.replace("finally:", "finally:\n        print('ended', flush=True)")]
    process = subprocess.Popen(
        command, env=environment, stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True
    )
    os.close(terminal)
    assert os.read(ours, 100).strip() == b"ready"
    time.sleep(0.5)  # What is read may still be being written, which would fail.
    os.close(ours)  # No signal comes of it: the terminal was not made the process's own.
    process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=600) == 130


def test_processes_that_start_meanwhile_never_get_a_signal_that_is_held_back_and_this_one_does_later() -> None:
    got: list[int] = []
    with interrupts.caught(got.append):
        with interrupts.held_back():
            child = subprocess.Popen(["sleep", "60"])
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.1)
            assert not got
        assert got == [signal.SIGTERM]
        child.terminate()
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(timeout=0.5)
    child.kill()
    assert child.wait(timeout=100) == -signal.SIGKILL


def test_signals_are_postponed_however_often_they_come_and_the_end_says_what_there_is(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interrupts, "SECONDS_OF_ONE_WISH", 0.0)
    reached: list[int] = []
    with (
        pytest.raises(interrupts.Interrupted, match=r"^Interrupted\. All is there\.$"),
        interrupts.raised(),
        interrupts.postponed("In a moment.", "All is there."),
    ):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)
            time.sleep(0.01)
            reached.append(number)
    assert len(reached) == 3 and capfd.readouterr().err == 3 * "In a moment.\n"


def test_a_failure_meanwhile_is_said_and_not_the_signal_that_was_postponed() -> None:
    with pytest.raises(RuntimeError, match="broken"), interrupts.raised(), interrupts.postponed("later", "done"):
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("broken")


def test_without_a_signal_nothing_is_postponed_and_the_handlers_are_restored(capfd: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with interrupts.postponed("later", "done"):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before and capfd.readouterr().err == ""


def test_the_handlers_are_as_they_were_afterwards() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    with interrupts.raised():
        assert [signal.getsignal(number) for number in numbers] != before
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_thread_that_gets_no_signals_sets_no_handler() -> None:
    reached: list[bool] = []

    def act() -> None:
        with interrupts.raised():
            reached.append(True)

    thread = threading.Thread(target=act)
    thread.start()
    thread.join()
    assert reached == [True]


@pytest.mark.slow
def test_a_final_that_is_ended_goes_on_where_it_was(tmp_path: Path) -> None:
    config = {"architecture": "resnet8", "width": 4, "epochs": 12, "batch_size": 64, "image_size": 14}
    (tmp_path / "one.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "tuning.final", "--config", "one.json", "--seeds", "2"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=-1, stderr=-1, text=True, start_new_session=True
    )
    deadline = time.monotonic() + 300
    while not list(tmp_path.rglob("latest.pt")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGTERM)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (130, "Interrupted. Run the same command again to go on.\n"), out + err
    assert list(tmp_path.rglob("latest.pt")) and not list(tmp_path.rglob("metrics.json"))


def test_a_signal_waits_for_what_is_imported_meanwhile() -> None:
    imported = []
    with pytest.raises(KeyboardInterrupt), interrupts.raised(command=False), interrupts.importing():
        signal.raise_signal(signal.SIGTERM)
        imported.append("all of it")
    assert imported == ["all of it"]
