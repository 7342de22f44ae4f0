"""One process at a time: locks that die with their process, and leases in a storage that run out."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tuning.base import locks, temporary
from tuning.base.errors import UserError
from tuning.remote import leases
from tuning.remote.storage import Store

HOLD = """
import sys, time
from pathlib import Path
from tuning.base import locks
with locks.hold(Path(sys.argv[1]), "search"):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> "subprocess.Popen[str]":
    """Returns a process that holds a folder's lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_lock_says_who_holds_it_and_dies_with_its_process(tmp_path: Path) -> None:
    process = holder(tmp_path)
    with (
        pytest.raises(
            UserError, match=rf"in use: process {process.pid} on .* \(tuning\.search, since 20.*Wait until that"
        ),
        locks.hold(tmp_path, "search"),
    ):
        pass
    with locks.hold(tmp_path, "final"):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with locks.hold(tmp_path, "search"):
        assert json.loads((tmp_path / ".search.lock").read_text())["what"] == "search"


def test_a_lock_is_not_left_to_a_child(tmp_path: Path) -> None:
    with locks.hold(tmp_path, "search"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    with locks.hold(tmp_path, "search"):
        child.kill()
    child.wait()


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    with (
        pytest.raises(
            UserError, match=r"nowhere cannot be written to \(No such file or directory\), which `tuning\.final`"
        ),
        locks.hold(tmp_path / "nowhere", "final"),
    ):
        pass


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_without_locks_the_process_that_the_file_names_is_asked_for_and_it_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def refuse(*given: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with (
        locks.hold(tmp_path, "search"),
        pytest.raises(UserError, match="is in use"),
        locks.hold(tmp_path, "search"),
    ):
        pass
    with locks.hold(tmp_path, "search"):
        pass
    assert capsys.readouterr().out == (
        f"{tmp_path} is on a file system without locks: run no second command on it from another machine meanwhile.\n"
    )
    dead = locks.myself("search") | {"pid": 2**22 + 1}
    (tmp_path / ".search.lock").write_text(json.dumps(dead))
    with locks.hold(tmp_path, "search"):
        pass


def test_a_process_of_another_machine_or_of_an_earlier_start_is_not_here() -> None:
    me = locks.myself("search")
    assert {name: me[name] for name in ("host", "boot")} == temporary.this_machine()
    assert locks.is_here(me)
    assert not locks.is_here(me | {"host": "other"}) and not locks.is_here(me | {"boot": "other"})


def elsewhere(**changed: object) -> bytes:
    """Returns what a process of another machine writes of itself."""
    return json.dumps(
        locks.myself("search") | {"host": "other", "boot": "x", "lease": "y", "beat": 1, **changed}
    ).encode()


def lease(folder: Path, lost: list[UserError] | None = None) -> leases.Lease:
    return leases.Lease(str(folder / "one"), "search", (lost if lost is not None else []).append)


def test_a_lease_of_a_process_that_goes_on_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, notes = Store(str(tmp_path / "one")), list[str]()
    store.write("search.lease", elsewhere())
    monkeypatch.setattr("time.sleep", lambda seconds: store.write("search.lease", elsewhere(beat=2)))
    with pytest.raises(
        UserError, match=r"one is in use: process \d+ on other \(tuning\.search.*Wait until that has ended"
    ):
        lease(tmp_path).take(notes.append, patience=5)
    assert len(notes) == 1 and notes[0].endswith("waiting 5 s to see if it goes on.")


def test_a_lease_that_nobody_renews_runs_out(tmp_path: Path) -> None:
    store, notes, begun = Store(str(tmp_path / "one")), list[str](), time.monotonic()
    store.write("search.lease", elsewhere())
    mine = lease(tmp_path)
    mine.take(notes.append, patience=0.5)
    assert time.monotonic() - begun > 0.4 and len(notes) == 1
    assert json.loads(store.read("search.lease") or b"")["host"] != "other"
    mine.release()
    assert store.read("search.lease") is None


def test_a_lease_of_a_dead_process_of_this_machine_is_taken_at_once(tmp_path: Path) -> None:
    store, notes = Store(str(tmp_path / "one")), list[str]()
    store.write("search.lease", json.dumps(locks.myself("search") | {"pid": 2**22 + 1}).encode())
    mine = lease(tmp_path)
    mine.take(notes.append)
    mine.release()
    assert notes == []


def test_who_has_lost_a_lease_is_told_and_leaves_it_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.05)
    lost: list[UserError] = []
    mine = lease(tmp_path, lost)
    mine.take(print)
    Store(str(tmp_path / "one")).write("search.lease", elsewhere())
    assert mine.lost.wait(10)
    mine.release()
    assert str(lost[0]).startswith("process ") and "on other" in str(lost[0]) and "has taken over" in str(lost[0])
    assert json.loads((tmp_path / "one" / "search.lease").read_text())["host"] == "other"


def test_a_lease_outlives_a_storage_that_is_away_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.05)
    (tmp_path / "runs").mkdir()
    mine = lease(tmp_path / "runs")
    mine.take(print)
    (tmp_path / "runs").rename(tmp_path / "away")
    time.sleep(0.3)
    (tmp_path / "away").rename(tmp_path / "runs")
    deadline, file = time.monotonic() + 100, tmp_path / "runs" / "one" / "search.lease"
    before = json.loads(file.read_text())["beat"]
    while json.loads(file.read_text())["beat"] == before:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    mine.release()
