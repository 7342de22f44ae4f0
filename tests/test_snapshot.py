"""A private copy of a study: whole, of what is being written too, and nothing is written beside the study."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from conftest import write_run

from tuning import importances, results, snapshot
from tuning.errors import UserError


@pytest.fixture
def run(tmp_path: Path) -> results.Run:
    """A run of nine trials whose study has been closed."""
    found = write_run(tmp_path / "run", 9)
    with closing(sqlite3.connect(found.path / "study.db")) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for path in found.path.glob("study.db-*"):
        path.unlink()
    return found


def test_a_copy_has_what_another_connection_has_written(run: results.Run) -> None:
    with closing(sqlite3.connect(run.path / "study.db")) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("UPDATE studies SET study_name = 'changed'")
        database.commit()
        assert snapshot.study_names(run.path) == ["changed"]


def test_a_folder_that_sqlite_cannot_write_is_read(run: results.Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, copy: Path) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(snapshot, "_back_up", refuse)
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    assert snapshot.study_names(run.path) == ["run"]
    assert len(importances.of_run(run))
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before


@pytest.mark.parametrize("content", [b"", b"no database", b"\0" * 9000, "cut", "another"])
def test_a_damaged_study_is_named(run: results.Run, content: bytes | str) -> None:
    study = run.path / "study.db"
    if isinstance(content, bytes):
        study.write_bytes(content)
    elif content == "cut":
        study.write_bytes(study.read_bytes()[:20_000])
    else:
        with closing(sqlite3.connect(study)) as database:
            database.execute("DROP TABLE studies")
            database.commit()
    with pytest.raises(UserError, match=r"run/study\.db cannot be read \(.*\): it is damaged, or no study"):
        importances.of_run(run)
    assert run.identity == "run"


def test_a_study_of_another_optuna_is_named(run: results.Run) -> None:
    with closing(sqlite3.connect(run.path / "study.db")) as database:
        database.execute("UPDATE version_info SET schema_version = 99")
        database.execute("UPDATE alembic_version SET version_num = 'v99.0.0'")
        database.commit()
    with pytest.raises(
        UserError, match=r"run/study\.db cannot be read as a study: .* another version of Optuna wrote it"
    ):
        importances.of_run(run)


def test_a_study_without_a_name_is_named(run: results.Run) -> None:
    with closing(sqlite3.connect(run.path / "study.db")) as database:
        database.execute("DELETE FROM studies")
        database.commit()
    with pytest.raises(UserError, match=r"run/study\.db cannot be read as a study"):
        importances.of_run(run)
