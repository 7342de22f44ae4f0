"""A private copy of a run's `study.db`, to be read: nothing is ever written into the run's folder for a look at it.

SQLite may want to write beside a file that it only reads. A folder that is read-only, or on a read-only disk, is read
through the copy like any other. Nothing here knows Optuna.
"""

import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tuning.errors import UserError

STUDY = "study.db"


@contextmanager
def copied(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder with a copy of the run folder's `study.db`, also while a search is writing it.

    Raises:
        UserError: There is no study, or it is damaged.
    """
    source = folder.absolute() / STUDY
    if not source.exists():  # SQLite would make an empty one.
        raise UserError(f"{source} must be the run's study, but got no such file.")
    with tempfile.TemporaryDirectory(prefix="tuning-") as name:
        copy = Path(name) / STUDY
        try:
            try:
                _back_up(source, copy)
            except sqlite3.OperationalError:  # The folder is read-only, and SQLite wants to write beside the file.
                for path in (source, source.with_name(f"{STUDY}-wal")):
                    if path.exists():
                        shutil.copyfile(path, copy.with_name(path.name))
            with closing(sqlite3.connect(copy)) as database:
                [found] = database.execute("PRAGMA quick_check(1)").fetchone()
                if found != "ok":
                    raise sqlite3.DatabaseError(found)
                database.execute("SELECT study_name FROM studies").fetchall()
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"{source} cannot be read ({error}): it is damaged, or no study of this project. "
                "Put back a copy of it, if there is one."
            ) from error
        yield copy.parent


def study_names(folder: Path) -> list[str]:
    """Returns the names of the studies in the run folder's `study.db`, the oldest first; raises as `copied`."""
    with copied(folder) as copy, closing(sqlite3.connect(copy / STUDY)) as database:
        return [str(name) for (name,) in database.execute("SELECT study_name FROM studies ORDER BY study_id")]


def _back_up(source: Path, copy: Path) -> None:
    with (
        closing(sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True, timeout=10.0)) as database,
        closing(sqlite3.connect(copy)) as target,
    ):
        database.backup(target)
