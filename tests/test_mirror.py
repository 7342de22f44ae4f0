"""Between a run's folder and its storage: what is sent, what is said when that fails, and what is fetched back."""

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tuning import checkpoints, mirror
from tuning.errors import UserError
from tuning.storage import Store

RECORD = {
    "meta.json": '{"id": "a", "settings": {}}',
    "epochs.csv": "trial,epoch\n0,1\n0,2\n",
    "trials.csv": "trial,state\n0,complete\n1,running\n",
    "study.db": "study",
}


def write(folder: Path, **changed: str) -> Path:
    """Returns a folder with the files of a run, some of them changed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (RECORD | {name.replace("_", "."): text for name, text in changed.items()}).items():
        (folder / name).write_text(text)
    return folder


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    path = write(tmp_path / "results" / "one", **{"study.db": ""})
    with sqlite3.connect(path / "study.db") as database:
        database.execute("CREATE TABLE epochs (n INTEGER)")
    database.close()
    (tmp_path / "storage").mkdir()
    return path


def test_what_changes_is_sent_and_what_is_not_whole_is_not(run: Path, tmp_path: Path) -> None:
    trial = run / "trials" / "0003"
    trial.mkdir(parents=True)
    for name in ("trial.log", "latest.pt", ".latest.pt.x", "params.pkl", "../tuner.json", "../../study.db-journal"):
        (trial / name).write_text(name)
    stored, notes = tmp_path / "storage" / "one", list[str]()
    with mirror.Mirror(run, str(stored), notes.append, skip=checkpoints.NAMES, every=0.05) as sending:
        wait_until((stored / "trials/0003/trial.log").exists)
        (trial / "trial.log").write_text("more")
        wait_until(lambda: (stored / "trials/0003/trial.log").read_text() == "more")
        (run / "best.json").write_text("{}")
        assert sending.finish() == []
    names = {path.relative_to(stored).as_posix() for path in stored.rglob("*") if path.is_file()}
    assert names == {*RECORD, "best.json", "trials/0003/trial.log"}
    assert notes == []


def test_the_stored_study_never_knows_an_epoch_that_is_not_stored(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_sent, n_epochs, training = {"epochs.csv": 0}, 0, {"write", "snapshot"}
    database = sqlite3.connect(run / "study.db", isolation_level=None)

    def train_an_epoch() -> None:
        nonlocal n_epochs
        n_epochs += 1
        with (run / "epochs.csv").open("a") as file:
            file.write(f"1,{n_epochs}\n")
        database.execute("INSERT INTO epochs VALUES (?)", (n_epochs,))

    def sent(store: Store, name: str, data: bytes) -> None:
        if name == "epochs.csv":
            n_sent[name] = data.count(b"\n1,")
        elif name == "study.db":
            (tmp_path / "copy.db").write_bytes(data)
            with sqlite3.connect(tmp_path / "copy.db") as copy:
                n_sent[name] = copy.execute("SELECT COUNT(*) FROM epochs").fetchone()[0]
            copy.close()
            assert n_sent[name] <= n_sent["epochs.csv"]
        if "write" in training:
            train_an_epoch()

    def snapshot(path: Path, original: Callable[[Path], bytes] = mirror._snapshot) -> bytes:
        if "snapshot" in training:
            train_an_epoch()
        return original(path)

    monkeypatch.setattr(mirror, "_snapshot", snapshot)
    monkeypatch.setattr(Store, "write", sent)
    sending = mirror.Mirror(run, str(tmp_path / "storage" / "one"), print)
    database.execute("CREATE TABLE trials (n INTEGER)")
    # At last a trial begins, which only the study knows when the mirror looks, and ends an epoch while it does.
    for moments in (training, training, set[str](), {"snapshot"}):
        training = moments
        sending._send()
        database.execute("INSERT INTO trials VALUES (1)")
    assert n_sent["study.db"] > 5
    database.close()


def test_a_storage_that_is_away_is_said_once_and_gets_everything_when_it_is_back(run: Path, tmp_path: Path) -> None:
    notes, storage = list[str](), tmp_path / "storage"
    with mirror.Mirror(run, str(storage / "one"), notes.append, every=0.05) as sending:
        wait_until((storage / "one" / "study.db").exists)
        storage.rename(tmp_path / "away")
        (run / "best.json").write_text("{}")
        wait_until(lambda: bool(notes))
        time.sleep(2)
        (tmp_path / "away").rename(storage)
        assert sending.finish() == []
    assert (storage / "one" / "best.json").read_text() == "{}"
    assert len(notes) == 2
    assert notes[0].startswith(f"Storage cannot be reached: '{storage}/one': [Errno 2]")
    assert notes[0].endswith("; training goes on, what is missing is sent later.")
    assert notes[1] == f"Storage {storage}/one is back, and what was missing is sent."


def test_what_could_not_be_sent_at_the_end_is_named_with_the_command_that_sends_it(run: Path, tmp_path: Path) -> None:
    notes = list[str]()
    (tmp_path / "storage").rmdir()
    with mirror.Mirror(run, str(tmp_path / "storage" / "one"), notes.append) as sending:
        assert len(sending.finish(patience=0.1)) == 4
    assert notes[1] == (
        "Not in the storage yet: epochs.csv, meta.json, trials.csv, study.db. When it can be reached again, "
        "`python -m tuning.search --resume one` sends the rest."
    )


def test_a_node_sends_its_rest_but_nothing_older_than_what_is_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = mirror.scratch("abc")
    assert folder.stat().st_mode & 0o777 == 0o700
    stored = tmp_path / "storage" / "one" / "trials" / "0000"
    stored.mkdir(parents=True)
    (folder / "trials" / "0000").mkdir(parents=True)
    for name, age in (("latest.pt", 100), ("trial.log", -100)):
        (stored / name).write_text("elsewhere")
        (folder / "trials" / "0000" / name).write_text("here")
        os.utime(folder / "trials" / "0000" / name, (time.time() - age,) * 2)
    assert mirror.sweep("abc", str(tmp_path / "storage" / "one")) == ""
    assert ((stored / "latest.pt").read_text(), (stored / "trial.log").read_text()) == ("elsewhere", "here")
    assert not folder.exists()


def test_what_a_node_cannot_send_it_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = mirror.scratch("abc")
    (folder / "trials" / "0000").mkdir(parents=True)
    (folder / "trials" / "0000" / "latest.pt").write_text("here")
    left = mirror.sweep("abc", str(tmp_path / "no storage" / "one"), patience=0.1)
    assert left == f"1 file in {folder}" and folder.exists()


def test_a_scratch_folder_of_somebody_else_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mirror.scratch("abc")
    monkeypatch.setattr("os.getuid", lambda: -1)
    with pytest.raises(PermissionError, match=r"tuning-abc must be a folder of this user, but got one of user"):
        mirror.scratch("abc")


def test_a_record_is_fetched_with_its_times_and_without_checkpoints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stored = write(tmp_path / "storage" / "one")
    for name in ("trials/0000/best.pt", "final/x/weights.pt"):
        (stored / name).parent.mkdir(parents=True)
        (stored / name).touch()
    os.utime(stored / "epochs.csv", (1e9, 1e9))
    path = mirror.fetch(stored.as_uri(), tmp_path / "results")
    assert path == tmp_path / "results" / "one"
    assert {file.name for file in path.iterdir()} == set(RECORD)
    assert (path / "epochs.csv").stat().st_mtime == 1e9
    # It may have been moved since it was written; what goes back goes to where it was fetched from.
    assert json.loads((path / "meta.json").read_text())["settings"]["storage"] == stored.parent.as_uri()
    assert capsys.readouterr().out == f"Fetched into {path}: {stored.as_uri()}\n"
    mirror.fetch(stored.as_uri(), tmp_path / "results", retrained=True)
    assert (path / "final" / "x" / "weights.pt").exists()
    assert capsys.readouterr().out == ""


LONGER = RECORD["epochs.csv"] + "1,1\n"
ENDED = RECORD["trials.csv"].replace("1,running", "1,pruned")


@pytest.mark.parametrize(
    ("here", "stored", "taken"),
    [
        ({}, {"epochs_csv": LONGER}, "stored"),
        ({}, {"epochs_csv": LONGER + "1,2"}, "stored"),  # A line that is cut off is none.
        ({}, {"trials_csv": ENDED}, "stored"),
        ({"epochs_csv": LONGER}, {}, "here"),
        ({"trials_csv": ENDED}, {}, "here"),
        ({}, {}, "here"),
    ],
)
def test_of_two_records_the_one_that_has_gone_on_for_longer_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], here: dict[str, str], stored: dict[str, str], taken: str
) -> None:
    path = write(tmp_path / "results" / "one", **here | {"study_db": "here"})
    write(tmp_path / "storage" / "one", **stored | {"study_db": "stored", "audit_csv": "x"})
    mirror.fetch(str(tmp_path / "storage" / "one"), tmp_path / "results")
    assert (path / "study.db").read_text() == taken
    assert (path / "audit.csv").exists()  # What is missing comes in any case.
    said = capsys.readouterr().out
    assert said.startswith("Fetched into" if taken == "stored" else f"{path} has gone on for longer" if here else "")


@pytest.mark.parametrize(
    ("here", "stored"),
    [
        ({"epochs_csv": LONGER}, {"epochs_csv": LONGER.replace("1,1", "2,1")}),
        ({"epochs_csv": LONGER}, {"trials_csv": ENDED}),
        ({"trials_csv": ENDED}, {"epochs_csv": LONGER}),
        ({"meta_json": '{"id": "b"}'}, {"epochs_csv": LONGER}),
    ],
)
def test_records_that_have_parted_are_refused(tmp_path: Path, here: dict[str, str], stored: dict[str, str]) -> None:
    path = write(tmp_path / "results" / "one", **here)
    uri = write(tmp_path / "storage" / "one", **stored)
    message = rf"Run {path} must be the stored one, earlier or later, but got another, or one that went on in both .*"
    with pytest.raises(UserError, match=rf"{message}Move {path} or {uri} away"):
        mirror.fetch(str(uri), tmp_path / "results")
    assert {name: (path / name).read_text() for name in RECORD} == RECORD | {
        name.replace("_", "."): text for name, text in here.items()
    }


def test_the_latest_run_and_names_that_are_not_there(tmp_path: Path) -> None:
    base = tmp_path / "storage"
    for name in ("newer", "older"):
        write(base / name)
    os.utime(base / "older" / "meta.json", (1e9, 1e9))
    assert mirror.fetch(f"{base}/latest", tmp_path / "results").name == "newer"
    with pytest.raises(UserError, match=rf"Run in {base} must be one of newer, older, but got 'oldr'. Did you mean"):
        mirror.fetch(f"{base}/oldr", tmp_path / "results")
    shutil.rmtree(base)
    with pytest.raises(UserError, match=rf"'{base}' must be a storage with runs in it, but got none. Is its name"):
        mirror.fetch(f"{base}/oldr", tmp_path / "results")
