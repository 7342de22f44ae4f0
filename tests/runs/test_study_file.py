"""The study's file: which journal it gets, and that it can be read where nothing can be written."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from tuning.base import files
from tuning.base.errors import DISK_FULL, UserError
from tuning.runs import study_file
from tuning.sampling import study_storage


def make(folder: Path, *, n_trials: int = 2) -> optuna.Study:
    folder.mkdir(exist_ok=True)
    study = optuna.create_study(study_name="first", storage=study_storage.storage(folder))
    for _ in range(n_trials):
        study.ask()
    return study


def mode(folder: Path) -> str:
    with closing(sqlite3.connect(folder / "study.db")) as connection:
        return str(connection.execute("PRAGMA journal_mode").fetchone()[0])


@pytest.mark.parametrize(
    "error", [PermissionError(13, "Permission denied"), sqlite3.OperationalError("unable to open database file")]
)
def test_a_file_that_may_not_be_read_is_not_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refused(*given: object, **named: object) -> None:
        raise error

    make(tmp_path)
    monkeypatch.setattr(study_file.sqlite3, "connect", refused)
    said = getattr(error, "strerror", error)
    for function in (study_file.check, study_file.studies):
        with pytest.raises(UserError, match=rf"study\.db cannot be read \({said}\)\. Make it readable, or put back a"):
            function(tmp_path)
    assert not study_file.has_ended(tmp_path)


def test_on_a_local_disk_it_is_the_write_ahead_log(tmp_path: Path) -> None:
    make(tmp_path)
    assert mode(tmp_path) == "wal"


@pytest.mark.parametrize("text", ["locking protocol", "disk I/O error", "unable to open database file"])
def test_where_a_file_system_refuses_the_log_it_is_the_rollback_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    class Refused(study_storage.Connection):
        def execute(self, sql: str, *given: object) -> sqlite3.Cursor:  # type: ignore[override]
            if "WAL" in sql:
                raise sqlite3.OperationalError(text)
            return super().execute(sql, *given)

    monkeypatch.setattr(study_storage, "Connection", Refused)
    assert len(make(tmp_path).trials) == 2
    assert mode(tmp_path) == "delete"


def test_on_a_network_file_system_it_is_the_rollback_journal_for_a_run_that_comes_from_elsewhere_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path)._storage._backend.engine.dispose()  # type: ignore[attr-defined]
    assert mode(tmp_path) == "wal"
    monkeypatch.setattr(files, "on_network", lambda path: True)
    study = optuna.load_study(study_name="first", storage=study_storage.storage(tmp_path))
    study.ask()
    assert len(study.trials) == 3 and mode(tmp_path) == "delete"


def test_network_file_systems_are_known_by_their_mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = [
        "21 1 8:1 / / rw - ext4 /dev/sda1 rw",
        "30 21 0:40 / /home rw,relatime shared:1 - nfs4 server:/home rw",
        "31 30 0:41 / /home/me/my\\040disk rw - ext4 /dev/sdb1 rw",
    ]
    read = Path.read_text
    monkeypatch.setattr(
        Path, "read_text", lambda p, **named: "\n".join(mounts) if p.name == "mountinfo" else read(p, **named)
    )
    found = {place: files.on_network(Path(place)) for place in ("/tmp", "/home/me/x", "/home/me/my disk/x", "/homes")}
    assert found == {"/tmp": False, "/home/me/x": True, "/home/me/my disk/x": False, "/homes": False}


@pytest.mark.parametrize("closed", [True, False])
def test_a_study_is_read_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, closed: bool
) -> None:
    study = make(tmp_path / "live")
    if closed:
        study._storage._backend.engine.dispose()  # type: ignore[attr-defined]
    shutil.copytree(tmp_path / "live", tmp_path / "run")
    (tmp_path / "run" / "study.db-shm").unlink(missing_ok=True)
    connect = sqlite3.connect
    monkeypatch.setattr(
        "sqlite3.connect", lambda path, *g, **n: Fails() if "mode=ro" in str(path) else connect(path, *g, **n)
    )
    assert study_file.studies(tmp_path / "run") == {"first": 2}
    assert len(study_storage.load(tmp_path / "run").trials) == 2
    assert {path.name for path in (tmp_path / "run").iterdir()} <= {"study.db", "study.db-wal"}


class Fails:
    """A connection as in a folder that cannot be written to: SQLite says so when it is asked for something."""

    def execute(self, sql: str) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("database or disk is full", DISK_FULL),
        (
            "disk I/O error",
            r"study\.db cannot be written any more \(disk I/O error\)\. What was written before is kept",
        ),
        ("attempt to write a readonly database", r"study\.db cannot be written any more"),
    ],
)
def test_what_sqlite_says_of_a_disk_is_a_sentence(tmp_path: Path, text: str, message: str) -> None:
    error = RuntimeError("An exception is raised during the commit.")
    error.__cause__ = sqlite3.OperationalError(text)
    with pytest.raises(UserError, match=message):
        raise study_file.problem(error, tmp_path) or AssertionError
    other = ValueError("no")
    other.__cause__ = other
    assert study_file.problem(other, tmp_path) is None
    with pytest.raises(ValueError, match="no"), study_file.writing(tmp_path):
        raise ValueError("no")


def test_a_study_that_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"study\.db is missing or empty\. Copy it from where the run was made"):
        study_storage.load(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_is_beside_a_study_stays_where_it_cannot_be_brought_into_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make(tmp_path / "run")
    monkeypatch.setattr(study_file, "SECONDS_FOR_A_LOCK", 0.1)
    with closing(sqlite3.connect(tmp_path / "run" / "study.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM trials").fetchall()
        study.ask()
        with pytest.raises(UserError, match=r"study\.db cannot be read \(database is locked\)\."):
            study_file.settle(tmp_path / "run")
    assert (tmp_path / "run" / "study.db-wal").stat().st_size > 0
    study._storage._backend.engine.dispose()  # type: ignore[attr-defined]
    study_file.settle(tmp_path / "run")
    assert study_file.studies(tmp_path / "run") == {"first": 3}
    (tmp_path / "run" / "study.db").write_bytes(b"no study" * 100)
    (tmp_path / "run" / "study.db-wal").write_bytes(b"of no use")
    study_file.settle(tmp_path / "run")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["study.db"]
