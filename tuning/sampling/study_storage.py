"""Optuna's storage over the file of a run's study: opened safely, or read as a copy.

Where SQLite's write-ahead log is unsafe, as on a network file system, it uses a rollback journal.
"""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tuning.base import files
from tuning.base.errors import UserError
from tuning.runs.study_file import FILE, SECONDS_FOR_A_LOCK, damaged, snapshot, studies

if TYPE_CHECKING:
    import optuna


class Connection(sqlite3.Connection):
    """A connection that waits for the disk now and then, and not at each of some 35 commits a trial (16 ms each).

    Whoever is killed loses nothing by that. What must survive a power cut, too, `sync` waits for.
    """

    def __init__(self, database: Any, *given: Any, **named: Any) -> None:
        super().__init__(database, *given, **named)
        if files.on_network(Path(database).parent) or not self._journal("WAL"):
            with contextlib.suppress(sqlite3.OperationalError):
                self.execute("PRAGMA locking_mode=EXCLUSIVE")  # A file in WAL mode needs no shared memory then.
            self._journal("DELETE")
            with contextlib.suppress(sqlite3.OperationalError):
                self.execute("PRAGMA locking_mode=NORMAL")
                self.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()  # Only now the lock is given up.
        self.execute("PRAGMA synchronous=NORMAL")

    def _journal(self, mode: str) -> bool:
        """Sets the journal mode; returns whether it is set. "locking protocol" is how a file system refuses WAL."""
        try:
            return str(self.execute(f"PRAGMA journal_mode={mode}").fetchone()[0]).upper() == mode
        except sqlite3.OperationalError:
            return False


def storage(folder: Path) -> "optuna.storages.RDBStorage":
    """Returns Optuna's storage over the study of a run folder; any path will do, as it is never made a URL."""
    path = folder.absolute() / FILE

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path, timeout=SECONDS_FOR_A_LOCK, factory=Connection, check_same_thread=False)

    return _opened(folder, {"creator": connect})


def _opened(folder: Path, engine: dict[str, Any]) -> "optuna.storages.RDBStorage":
    """Returns Optuna's storage; the URL only says of which kind it is.

    Raises:
        UserError: Another version of Optuna wrote its tables.
    """
    import optuna

    opened = optuna.storages.RDBStorage(f"sqlite:///{FILE}", engine_kwargs=engine, skip_compatibility_check=True)
    found, known = opened.get_current_version(), opened.get_head_version()
    if found != known:
        raise UserError(
            f"{folder / FILE} was written by another version of Optuna: its tables are those of {found}, and Optuna "
            f"{optuna.__version__} uses those of {known}. Install the version that meta.json names."
        )
    return opened


def load(folder: Path) -> "optuna.Study":
    """Returns a copy of a run folder's study, in memory: nothing is written, so that a read-only folder will do.

    Raises:
        UserError: There is no study, or its file is damaged.
    """
    import optuna
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import StaticPool

    names = studies(folder)
    if not names:
        raise UserError(
            f"{folder} has no study: {folder / FILE} is missing or empty. Copy it from where the run was made."
        )
    copy = sqlite3.connect(":memory:", check_same_thread=False)
    copy.deserialize(snapshot(folder / FILE))
    kept = {"creator": lambda: copy, "poolclass": StaticPool}
    try:
        with damaged(folder), quiet():
            study = optuna.load_study(
                study_name=next(iter(names)),
                storage=_opened(folder, kept),
                sampler=optuna.samplers.RandomSampler(seed=0),
                pruner=optuna.pruners.NopPruner(),
            )
            study.get_trials(deepcopy=False)  # A page of them may be damaged.
            return study
    except (SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
        raise UserError(f"{folder / FILE} is damaged: {error}. Put back a copy of it, if there is one.") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps Optuna from printing that a study was made or loaded."""
    import optuna

    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(verbosity)
