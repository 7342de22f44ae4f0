"""Between a run's folder and its storage: what is sent, what is said when that fails, and what is fetched back."""

import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tuning.base import locks
from tuning.base.errors import UserError
from tuning.remote import leases, mirror
from tuning.remote.storage import Store
from tuning.training import checkpoints


def study(*trials: tuple[str, int]) -> bytes:
    """Returns the file of a study with trials of these states and numbers of epochs, in the tables that Optuna has."""
    with closing(sqlite3.connect(":memory:")) as database:
        for table in (
            "studies (study_id, study_name)",
            "trials (trial_id, number, study_id, state)",
            "trial_intermediate_values (trial_id, step, intermediate_value)",
            "trial_user_attributes (trial_id, key, value_json)",
        ):
            database.execute(f"CREATE TABLE {table}")
        database.execute("INSERT INTO studies VALUES (1, 'one')")
        for number, (state, n_epochs) in enumerate(trials):
            database.execute("INSERT INTO trials VALUES (?, ?, 1, ?)", (number, number, state))
            values = [(number, epoch, 0.5) for epoch in range(1, n_epochs + 1)]
            database.executemany("INSERT INTO trial_intermediate_values VALUES (?, ?, ?)", values)
        database.commit()
        return database.serialize()


BEGUN = study(("COMPLETE", 2), ("RUNNING", 0))
RECORD = {
    "meta.json": b'{"id": "a", "settings": {}}',
    "epochs.csv": b"trial,epoch\n0,1\n0,2\n",
    "trials.csv": b"trial,state\n0,complete\n1,running\n",
    "study.db": BEGUN,
}


def write(folder: Path, **changed: bytes) -> Path:
    """Returns a folder with the files of a run, some of them changed."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (RECORD | {name.replace("_", "."): content for name, content in changed.items()}).items():
        (folder / name).write_bytes(content)
    return folder


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "storage").mkdir()
    return write(tmp_path / "results" / "one")


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


def test_the_stored_frames_never_know_what_the_stored_study_does_not(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_sent, n_epochs, training = {"study.db": 0}, 0, {"write", "snapshot"}
    database = sqlite3.connect(run / "study.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("CREATE TABLE epochs (n INTEGER)")

    def train_an_epoch() -> None:
        nonlocal n_epochs
        n_epochs += 1
        database.execute("INSERT INTO epochs VALUES (?)", (n_epochs,))
        with (run / "epochs.csv").open("a") as file:
            file.write(f"1,{n_epochs}\n")

    def sent(store: Store, name: str, data: bytes) -> None:
        if name == "epochs.csv":
            n_sent[name] = data.count(b"\n1,")
            assert n_sent[name] <= n_sent["study.db"]
        elif name == "study.db":
            (tmp_path / "copy.db").write_bytes(data)
            with closing(sqlite3.connect(tmp_path / "copy.db")) as copy:
                n_sent[name] = copy.execute("SELECT COUNT(*) FROM epochs").fetchone()[0]
        if "write" in training:
            train_an_epoch()

    def snapshot(path: Path, original: Callable[[Path], bytes] = mirror.snapshot) -> bytes:
        if "snapshot" in training:
            train_an_epoch()
        return original(path)

    monkeypatch.setattr(mirror, "snapshot", snapshot)
    monkeypatch.setattr(Store, "write", sent)
    sending = mirror.Mirror(run, str(tmp_path / "storage" / "one"), print)
    for moments in (training, training, set[str](), {"snapshot"}, set[str]()):
        training = moments
        sending._send()
    assert n_sent["study.db"] > 5 and n_sent["epochs.csv"] == n_epochs
    database.close()


def test_a_reader_of_the_storage_never_finds_a_study_without_its_frames(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, written, original = tmp_path / "storage" / "one", list[tuple[str, bytes]](), Store.write

    def sent(store: Store, name: str, data: bytes) -> None:
        written.append((name, data))
        original(store, name, data)
        if (stored / "study.db").exists():
            assert (stored / "epochs.csv").exists() and (stored / "trials.csv").exists()

    monkeypatch.setattr(Store, "write", sent)
    mirror.Mirror(run, str(stored), print)._send()
    columns = (run / "epochs.csv").read_bytes().partition(b"\n")[0] + b"\n"
    whole = (run / "epochs.csv").read_bytes()
    assert [data for name, data in written if name == "epochs.csv"] == [columns, whole] and columns != whole
    written.clear()
    mirror.Mirror(run, str(stored), print)._send()
    assert [data for name, data in written if name == "epochs.csv"] == [whole]


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
        "Not in the storage yet: epochs.csv, meta.json, study.db, trials.csv. When it can be reached again, "
        f"`python -m tuning.search --resume {run}` sends the rest."
    )


@pytest.mark.parametrize(
    ("own", "stored", "sent"),
    [(3, 2, True), (3, 3, False), (2, 3, False), (1, None, True), (None, 1, False), (None, None, True)],
)
@pytest.mark.parametrize("clock", [-7200, 7200])
def test_a_node_sends_its_rest_but_not_of_a_trial_that_has_gone_on_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: int | None, stored: int | None, sent: bool, clock: int
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = mirror.scratch("abc")
    assert folder.stat().st_mode & 0o777 == 0o700
    here, there = folder / "trials" / "0000", tmp_path / "storage" / "one" / "trials" / "0000"
    for trial, text, epochs in ((here, "here", own), (there, "away", stored)):
        trial.mkdir(parents=True)
        for name in ("latest.pt", "trial.log"):
            (trial / name).write_text(text)
        if epochs is not None:
            (trial / mirror.PROGRESS).write_text(f'{{"epochs": {epochs}}}')
    for file in here.iterdir():  # A node whose clock is ahead, or behind.
        os.utime(file, (time.time() + clock,) * 2)
    assert mirror.sweep("abc", str(tmp_path / "storage" / "one")) == ""
    assert {(there / name).read_text() for name in ("latest.pt", "trial.log")} == {"here" if sent else "away"}
    assert not folder.exists()


def test_nothing_is_sent_once_another_process_has_the_run(run: Path, tmp_path: Path) -> None:
    stored, lost = tmp_path / "storage" / "one", list[UserError]()
    with leases.leased(str(stored), "search", print, lost.append) as lease:
        with mirror.Mirror(run, str(stored), print, every=0.05, lease=lease) as sending:
            wait_until((stored / "trials.csv").exists)
            (stored / "search.lease").unlink()  # Another process took it over, and has ended since.
            (run / "best.json").write_text("{}")
            assert sending.finish() == []
        assert not (stored / "best.json").exists()
    assert str(lost[0]) == (
        f"{stored}/search.lease is gone: somebody removed it, or another process has taken the run over and has ended "
        "since. What is there is left as it is. Run the command again to go on with it."
    )


@pytest.mark.parametrize("unreadable", ["best.json", "study.db"])
def test_a_file_here_that_cannot_be_read_is_named_and_the_others_are_sent(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, unreadable: str
) -> None:
    stored, notes, read = tmp_path / "storage" / "one", list[str](), Path.read_bytes
    (run / "best.json").write_text("{}")

    def snapshot(path: Path) -> bytes:
        if unreadable == "study.db":
            raise sqlite3.DatabaseError("file is not a database")
        return BEGUN

    def read_bytes(path: Path) -> bytes:
        if path == run / unreadable:
            raise PermissionError(13, "Permission denied")
        return read(path)

    monkeypatch.setattr(mirror, "snapshot", snapshot)
    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with mirror.Mirror(run, str(stored), notes.append, every=0.05) as sending:
        wait_until((stored / "meta.json").exists)
        time.sleep(0.3)
        left = sending.finish()
    behind = {"study.db", "epochs.csv", "trials.csv"}  # No frame is sent before the study that knows as much.
    assert set(left) == (behind if unreadable == "study.db" else {"best.json"})
    assert {path.name for path in stored.iterdir()} == {*RECORD, "best.json"} - set(left)
    assert len(notes) == 2 and notes[1].startswith("Not in the storage yet: ")
    reason = "file is not a database" if unreadable == "study.db" else "Permission denied"
    assert notes[0] == f"{run / unreadable} cannot be read ({reason}). It is not sent to the storage until it can be."


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


def test_a_record_is_fetched_without_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = write(tmp_path / "storage" / "one")
    for name in ("trials/0000/best.pt", "final/x/weights.pt", "search.lease"):
        (stored / name).parent.mkdir(parents=True, exist_ok=True)
        (stored / name).touch()
    path = mirror.fetch(stored.as_uri(), tmp_path / "results")
    assert path == tmp_path / "results" / "one"
    assert {file.name for file in path.iterdir()} == {*RECORD, ".search.lock"}
    # It may have been moved since it was written; what goes back goes to where it was fetched from.
    meta = json.loads((path / "meta.json").read_text())
    assert (meta["settings"]["storage"], meta["stored_as"]) == (str(stored.parent), "one")
    assert capsys.readouterr().out == f"Fetched into {path}: {stored}\n"
    mirror.fetch(stored.as_uri(), tmp_path / "results", retrained=True)
    assert (path / "final" / "x" / "weights.pt").exists()
    assert capsys.readouterr().out == ""


def test_the_uri_of_a_run_that_is_here_leads_to_its_folder_which_stays_as_it_is(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert mirror.fetch(run.as_uri(), run.parent) == run
    assert {path.name: path.read_bytes() for path in run.iterdir()} == RECORD
    assert capsys.readouterr().out == ""


def test_frames_are_sent_right_after_the_study_and_fetched_with_it(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored, written, write = tmp_path / "storage" / "one", list[str](), Store.write
    for name in ("best.json", "driver.log"):
        (run / name).write_text("{}")

    def sent(store: Store, name: str, data: bytes) -> None:
        written.append(name)
        write(store, name, data)
        if name == "study.db" and len(written) == 4:  # Whoever fetches now waits for the frames.
            mirror.fetch(str(stored), tmp_path / "results 2")

    def waited(seconds: float) -> None:
        for name in mirror.FRAMES:
            write(Store(str(stored)), name, (run / name).read_bytes())

    monkeypatch.setattr(Store, "write", sent)
    monkeypatch.setattr(mirror.time, "sleep", waited)
    mirror.Mirror(run, str(stored), print)._send()
    assert written == ["epochs.csv", "trials.csv", "meta.json", "study.db", *mirror.FRAMES, "best.json", "driver.log"]
    for name in mirror.FRAMES:
        assert (tmp_path / "results 2" / "one" / name).read_bytes() == RECORD[name]


@pytest.mark.parametrize("as_uri", [True, False])
def test_a_folder_is_not_sent_into_itself(run: Path, tmp_path: Path, as_uri: bool) -> None:
    (tmp_path / "link").symlink_to(run.parent)
    there = tmp_path / "link" / "one"
    with pytest.raises(UserError, match=rf"The storage of {run} must be another folder, but got '{there}'\."):
        mirror.Mirror(run, there.as_uri() if as_uri else str(there), print)


def test_a_record_whose_meta_json_is_lost_is_compared_like_any_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, stored = write(tmp_path / "results" / "one", study_db=ENDED), write(tmp_path / "storage" / "one")
    (path / "meta.json").unlink()
    mirror.fetch(str(stored), tmp_path / "results")
    assert (path / "study.db").read_bytes() == ENDED
    assert json.loads((path / "meta.json").read_text())["id"] == "a"
    assert capsys.readouterr().out.splitlines() == [
        f"{path} has gone on for longer than what is stored, and is taken.",
        f"{path / 'meta.json'} was missing, and is fetched from {stored}.",
    ]
    # What the storage has of another run does not replace it either.
    (path / "meta.json").unlink()
    write(stored, study_db=study(("COMPLETE", 2), ("RUNNING", 0), ("COMPLETE", 2)))
    with pytest.raises(UserError, match="have diverged"):
        mirror.fetch(str(stored), tmp_path / "results")
    assert (path / "study.db").read_bytes() == ENDED and not (path / "meta.json").exists()


def test_who_reads_a_copy_of_a_run_leaves_it_where_it_is_stored(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = json.dumps({"id": "a", "settings": {"storage": "s3://bucket/runs"}, "stored_as": "one"}).encode()
    path = write(tmp_path / "results" / "one", meta_json=meta)
    copy = write(tmp_path / "backup" / "one", meta_json=meta)
    mirror.fetch(str(copy), tmp_path / "results")
    assert (path / "meta.json").read_bytes() == meta and capsys.readouterr().out == ""
    mirror.fetch(str(copy), tmp_path / "results", resumed=True)
    placed = json.loads((path / "meta.json").read_text())
    assert (placed["settings"]["storage"], placed["stored_as"]) == (str(copy.parent), "one")
    assert capsys.readouterr().out == f"{path} is kept in {copy} from now on, and no longer in s3://bucket/runs/one.\n"


def test_a_run_that_is_new_here_stays_where_it_is_stored_if_that_can_be_reached(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "storage"
    meta = json.dumps({"id": "a", "settings": {"storage": str(place)}, "stored_as": "one"}).encode()
    copy, path = write(tmp_path / "backup" / "one", meta_json=meta), tmp_path / "results" / "one"

    def fetched(**how: bool) -> str:
        """Returns where a run that is fetched from the copy is kept from then on."""
        shutil.rmtree(path, ignore_errors=True)
        mirror.fetch(str(copy), tmp_path / "results", **how)
        return str(json.loads((path / "meta.json").read_text())["settings"]["storage"])

    moved = f"Fetched into {path}: {copy}\n{path} is kept in {copy} from now on, and no longer in {place}/one.\n"
    assert fetched() == str(copy.parent) and capsys.readouterr().out == moved
    write(place / "one", meta_json=b'{"id": "b"}')  # Another run.
    assert fetched() == str(copy.parent) and capsys.readouterr().out == moved
    write(place / "one", meta_json=meta)
    assert fetched() == str(place) and capsys.readouterr().out == f"Fetched into {path}: {copy}\n"
    assert fetched(resumed=True) == str(copy.parent) and capsys.readouterr().out == moved


@pytest.mark.parametrize("name", ["study.db", "trials.csv", "epochs.csv"])
def test_a_file_here_that_cannot_be_read_is_not_replaced(tmp_path: Path, name: str) -> None:
    path, stored = write(tmp_path / "results" / "one"), write(tmp_path / "storage" / "one", study_db=ENDED)
    (path / name).unlink()
    (path / name).mkdir()
    with pytest.raises(UserError, match=rf"^{path / name} cannot be read \((Is a dir|disk I/O).*\)\. Make it readable"):
        mirror.fetch(str(stored), tmp_path / "results")
    assert (path / name).is_dir()


def test_a_study_here_that_is_locked_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, stored = write(tmp_path / "results" / "one"), write(tmp_path / "storage" / "one", study_db=ENDED)
    monkeypatch.setattr("tuning.runs.study_file.SECONDS_FOR_A_LOCK", 0.1)
    with closing(sqlite3.connect(path / "study.db", isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserError, match=rf"^{path / 'study.db'} cannot be read \(database is locked\)\. Make it"):
            mirror.fetch(str(stored), tmp_path / "results")
    mirror.fetch(str(stored), tmp_path / "results")
    assert (path / "study.db").read_bytes() == ENDED


def test_a_study_that_is_locked_for_a_moment_at_the_end_is_sent(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes, tries, read = list[str](), list[Path](), mirror.snapshot

    def snapshot(path: Path) -> bytes:
        tries.append(path)
        if len(tries) < locked:
            raise sqlite3.OperationalError("database is locked")
        return read(path)

    monkeypatch.setattr(mirror, "snapshot", snapshot)
    for locked, patience, left in ((3, 30.0, []), (99, 0.1, ["epochs.csv", "study.db", "trials.csv"])):
        tries.clear(), notes.clear()
        with mirror.Mirror(run, str(tmp_path / "storage" / str(locked)), notes.append, every=0.05) as sending:
            assert [name for name in sending.finish(patience) if name != "meta.json"] == left
    assert notes[1] == (
        "Not in the storage yet: epochs.csv, study.db, trials.csv. When what is here can be read again, `python -m "
        f"tuning.search --resume {run}` sends the rest."
    )


LONGER = study(("COMPLETE", 2), ("RUNNING", 1))
ENDED = study(("COMPLETE", 2), ("PRUNED", 1))
FRAME = RECORD["epochs.csv"] + b"1,1\n"


@pytest.mark.parametrize(
    ("here", "stored", "taken"),
    [
        ({}, {"study_db": LONGER}, "stored"),
        ({}, {"study_db": ENDED}, "stored"),
        ({}, {"epochs_csv": FRAME + b"1,2"}, "stored"),  # A line that is cut off is none.
        ({"study_db": LONGER}, {}, "here"),
        ({"study_db": ENDED}, {"study_db": LONGER}, "here"),
        ({"epochs_csv": FRAME}, {}, "here"),
        ({}, {}, "equal"),
        ({"study_db": b""}, {}, "stored"),
        # The study here is of no use, and the frames know more than what is stored: they must not be replaced.
        (
            {"study_db": b"", "epochs_csv": FRAME + b"1,2\n", "trials_csv": b"trial,state\n0,complete\n1,pruned\n"},
            {},
            "here",
        ),
        ({"study_db": BEGUN[:5000]}, {}, "stored"),
        ({}, {"study_db": BEGUN[:5000]}, "equal"),
        # Epochs that were not sent before the process was killed, and were trained again elsewhere, or were not.
        ({"study_db": LONGER}, {"study_db": study(("COMPLETE", 2), ("RUNNING", 0), ("RUNNING", 1))}, "stored"),
        ({"study_db": LONGER}, {"study_db": study(("COMPLETE", 2), ("RUNNING", 0), ("COMPLETE", 2))}, "stored"),
        (
            {"study_db": study(("COMPLETE", 2), ("RUNNING", 2))},
            {"study_db": study(("COMPLETE", 2), ("RUNNING", 0), ("RUNNING", 2))},
            "stored",
        ),
    ],
)
def test_of_two_records_the_one_that_has_gone_on_for_longer_is_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], here: dict[str, bytes], stored: dict[str, bytes], taken: str
) -> None:
    path = write(tmp_path / "results" / "one", **here)
    before = (path / "study.db").read_bytes()
    there = write(tmp_path / "storage" / "one", **stored | {"audit_csv": b"x"})
    mirror.fetch(str(there), tmp_path / "results")
    assert (path / "study.db").read_bytes() == ((there / "study.db").read_bytes() if taken == "stored" else before)
    assert (path / "audit.csv").exists()  # What is missing comes in any case.
    said = capsys.readouterr().out
    assert said.startswith("Fetched into" if taken == "stored" else f"{path} has gone" if taken == "here" else "")


@pytest.mark.parametrize(
    ("here", "stored"),
    [
        (study(("COMPLETE", 2), ("COMPLETE", 2)), study(("COMPLETE", 2), ("RUNNING", 0), ("PRUNED", 2))),
        (study(("COMPLETE", 2), ("PRUNED", 1)), study(("COMPLETE", 2), ("RUNNING", 0), ("COMPLETE", 2))),
    ],
)
def test_records_that_have_diverged_are_refused(tmp_path: Path, here: bytes, stored: bytes) -> None:
    path = write(tmp_path / "results" / "one", study_db=here)
    uri = write(tmp_path / "storage" / "one", study_db=stored)
    with pytest.raises(
        UserError, match=rf"{path} and {uri} have diverged: each has finished trials that the other lacks\. Move"
    ):
        mirror.fetch(str(uri), tmp_path / "results")
    assert {name: (path / name).read_bytes() for name in RECORD} == RECORD | {"study.db": here}


def test_another_run_of_the_same_name_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "results" / "one", meta_json=b'{"id": "b"}')
    uri = write(tmp_path / "storage" / "one")
    with pytest.raises(
        UserError, match=rf"{path} is another run than {uri} \(its id in meta.json is b, not a\)\. Move"
    ):
        mirror.fetch(str(uri), tmp_path / "results")


def test_what_sqlite_left_beside_a_study_does_not_change_the_one_that_is_fetched(tmp_path: Path) -> None:
    path, uri = write(tmp_path / "results" / "one"), write(tmp_path / "storage" / "one", study_db=ENDED)
    database = sqlite3.connect(path / "study.db", isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("UPDATE studies SET study_name = 'stale'")
    for name in ("study.db-wal", "study.db-shm"):  # As a process that was killed leaves them.
        shutil.copy(path / name, tmp_path / name)
    before = (path / "study.db").read_bytes()
    database.close()
    (path / "study.db").write_bytes(before)
    for name in ("study.db-wal", "study.db-shm"):
        shutil.move(tmp_path / name, path / name)
    mirror.fetch(str(uri), tmp_path / "results")
    assert (path / "study.db").read_bytes() == ENDED and not list(path.glob("study.db-*"))


def test_a_run_that_a_search_works_on_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, uri = write(tmp_path / "results" / "one"), write(tmp_path / "storage" / "one", study_db=ENDED)
    with locks.hold(path, "search"):
        mirror.fetch(str(uri), tmp_path / "results")
    assert (path / "study.db").read_bytes() == BEGUN
    assert capsys.readouterr().out == f"{path} is in use on this machine, and is taken as it is.\n"


def test_the_latest_run_and_names_that_are_not_there(tmp_path: Path) -> None:
    base = tmp_path / "storage"
    for name, moments in {"newer": ["2026-11-23", ["x", "2026-11-26"]], "older": ["2026-11-24"]}.items():
        meta = {"id": "a", "settings": {}, "started": moments[0], "pauses": moments[1:]}
        write(base / name, meta_json=json.dumps(meta).encode())
    os.utime(base / "newer" / "meta.json", (1e9, 1e9))  # As in `results/` the records say it, and no file's time.
    assert mirror.fetch(f"{base}/latest", tmp_path / "results").name == "newer"
    os.utime(base / "older" / "meta.json", (2e9, 2e9))
    (base / "newer" / "meta.json").write_text("torn")
    (base / "older" / "meta.json").write_text("torn")
    assert mirror._latest(Store(str(base))) == "older"
    with pytest.raises(UserError, match=rf"Run in {base} must be one of newer, older, but got 'oldr'. Did you mean"):
        mirror.fetch(f"{base}/oldr", tmp_path / "results")
    for uri in (str(base), base.as_uri()):
        with pytest.raises(
            UserError,
            match=rf"^{base} is a storage\. Name one of its runs: {base}/RUN, where RUN is one of latest, newer, older",
        ):
            mirror.fetch(uri, tmp_path / "results")
    shutil.rmtree(base)
    with pytest.raises(UserError, match=rf"The storage '{base}' has no runs in it\. Is its name"):
        mirror.fetch(f"{base}/oldr", tmp_path / "results")
