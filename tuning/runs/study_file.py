"""The file of a run's study, `study.db`: found by what it holds, checked, copied whole, read unchanged.

What a trial is worth, and what a sampler gets, has no place here; `tuning.sampling.study` does that. SQLite keeps
its latest writes in `study.db-wal` beside the file.
"""

import contextlib
import json
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from tuning.base import files
from tuning.base.errors import DISK_FULL, UserError

FILE = "study.db"
BESIDE = (f"{FILE}-wal", f"{FILE}-shm", f"{FILE}-journal")
EPOCH = "epoch/"  # What the study keeps of an epoch is a trial's user attribute of this name and the epoch's number.
SECONDS_FOR_A_LOCK = 60.0
# What SQLite says of a file that may be whole.
_UNREADABLE = re.compile("unable to open|is locked|locking protocol|disk I/O error|readonly database")


def studies(folder: Path) -> dict[str, int]:
    """Returns the names of the studies in a run folder's file, with their numbers of trials; none where it is missing.

    Raises:
        UserError: The file is damaged.
    """
    if not (folder / FILE).exists():
        return {}
    with damaged(folder), reading(folder) as database:
        tables = "SELECT COUNT(*) FROM sqlite_master WHERE name IN ('studies', 'trials')"
        if database.execute(tables).fetchone()[0] < 2:  # Its maker was killed meanwhile; Optuna makes the rest.
            return {}
        return dict(
            database.execute(
                "SELECT study_name, COUNT(trial_id) FROM studies LEFT JOIN trials USING (study_id) "
                "GROUP BY study_id ORDER BY COUNT(trial_id) DESC, study_id"
            ).fetchall()
        )


def has_ended(folder: Path) -> bool:
    """Returns whether the study of a run folder has a trial that has ended; a file that cannot be read has none."""
    if not (folder / FILE).exists():
        return False
    try:
        with reading(folder) as database:
            ended = "SELECT COUNT(*) FROM trials WHERE state IN ('COMPLETE', 'PRUNED')"
            return bool(database.execute(ended).fetchone()[0])
    except (sqlite3.DatabaseError, OSError):
        return False


def check(folder: Path) -> None:
    """Raises UserError where the file of a run folder's study is there and damaged."""
    if not (folder / FILE).exists():
        return
    with damaged(folder), reading(folder) as database:
        found = database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise sqlite3.DatabaseError(found)


def snapshot(path: Path) -> bytes:
    """Returns the file of a study as it is at one moment, also while it is being written."""
    with reading(path.parent, path.name) as database, closing(sqlite3.connect(":memory:")) as copy:
        database.backup(copy)
        content = bytearray(copy.serialize())
    content[18:20] = b"\x01\x01"  # It has no -wal beside it, and memory could not have one.
    return bytes(content)


def facts(content: bytes) -> tuple[dict[tuple[int, int], float], dict[int, tuple[str, str]]]:
    """Returns what a study (its file's content) knows: the value of each (trial, epoch); state and start of trials.

    Raises:
        sqlite3.DatabaseError: It is no study.
    """
    if not content:
        return {}, {}
    with closing(sqlite3.connect(":memory:")) as database:
        database.deserialize(content[:18] + b"\x01\x01" + content[20:])
        most = database.execute(
            "SELECT study_id FROM studies LEFT JOIN trials USING (study_id) GROUP BY study_id "
            "ORDER BY COUNT(trial_id) DESC, study_id LIMIT 1"
        ).fetchone()
        if most is None:
            return {}, {}
        values = database.execute(
            "SELECT number, step, intermediate_value FROM trial_intermediate_values JOIN trials USING (trial_id) "
            "WHERE study_id = ?",
            most,
        ).fetchall()
        rows = database.execute(
            "SELECT number, key, value_json FROM trial_user_attributes JOIN trials USING (trial_id) "
            "WHERE study_id = ? AND (key = 'started' OR key LIKE ?)",
            (*most, f"{EPOCH}%"),
        ).fetchall()
        states = dict(database.execute("SELECT number, state FROM trials WHERE study_id = ?", most).fetchall())
    epochs = {(number, step): float(value or 0.0) for number, step, value in values}
    started = {number: str(json.loads(text)) for number, key, text in rows if key == "started"}
    for number, key, text in rows:
        if key != "started":
            row = json.loads(text)
            epochs[number, int(row["epoch"])] = float(row["valid_accuracy"])
    return epochs, {number: (state, started.get(number, "")) for number, state in states.items() if state != "WAITING"}


def numbers_drawn(folder: Path) -> list[dict[str, Any]]:
    """Returns the numbers that the trials of a run drew, and from where; none where there is no study.

    Returns:
        A row a trial and parameter: trial, parameter (its name in the space), value, low and high (the range from which
        it was drawn), log (its scale), step (None without a grid), whole (an integer).

    Raises:
        UserError: The file is damaged.
    """
    names = studies(folder)
    if not names:
        return []
    with damaged(folder), reading(folder) as database:
        found = database.execute(
            "SELECT number, param_name, param_value, distribution_json FROM trial_params JOIN trials USING (trial_id) "
            "JOIN studies USING (study_id) WHERE study_name = ? ORDER BY number, param_id",
            (next(iter(names)),),
        ).fetchall()
    rows = []
    for number, name, value, text in found:
        distribution = json.loads(text)
        kind, of = distribution["name"], distribution["attributes"]
        if kind in ("FloatDistribution", "IntDistribution"):
            row = {"trial": number, "parameter": name, "value": value, "low": of["low"], "high": of["high"]}
            rows.append(row | {"log": of["log"], "step": of["step"], "whole": kind == "IntDistribution"})
    return rows


def settle(folder: Path) -> None:
    """Brings what lies beside the study's file into it, unless that is damaged, and removes what is beside it.

    Raises:
        UserError: The file cannot be read, or is in use; nothing is removed then.
    """
    if (folder / FILE).exists():
        try:
            with closing(sqlite3.connect(folder / FILE, timeout=SECONDS_FOR_A_LOCK)) as database:
                [is_busy, *_] = database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
                if is_busy:
                    raise sqlite3.OperationalError("database is locked")
        except (sqlite3.DatabaseError, OSError) as error:
            if (found := unreadable(folder / FILE, error)) is not None:
                raise found from error
    for name in BESIDE:
        (folder / name).unlink(missing_ok=True)


def sync(folder: Path) -> None:
    """Waits until the disk has what the study was told; frames are written after that, so that none is ever ahead."""
    for name in BESIDE[:1]:
        if (folder / name).exists():
            files.sync(folder / name)


@contextlib.contextmanager
def reading(folder: Path, name: str = FILE) -> Iterator[sqlite3.Connection]:
    """Opens the file of a study to be read; of one in a folder that cannot be written to, a copy."""
    path = folder.absolute() / name
    with contextlib.ExitStack() as stack:
        database = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=SECONDS_FOR_A_LOCK)
        try:
            database.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
        except sqlite3.OperationalError:  # In WAL mode SQLite needs files beside it, which it cannot make here.
            database.close()
            if not path.exists():
                raise
            copies = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tuning-")))
            for each in (path, path.with_name(f"{name}-wal")):
                if each.exists():
                    shutil.copyfile(each, copies / each.name)
            database = sqlite3.connect(copies / name)
        stack.enter_context(closing(database))
        yield database


def problem(error: BaseException, folder: Path) -> UserError | None:
    """Returns the error for a user where a write to the study failed because of its disk; None for anything else."""
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        text = str(cause)
        if "database or disk is full" in text:
            file = folder / FILE
            return UserError(f"{DISK_FULL} while writing {file}. Free some space, then run the command again.")
        if "disk I/O error" in text or "readonly database" in text or "unable to open database file" in text:
            return UserError(
                f"{folder / FILE} cannot be written any more ({text.splitlines()[0]}). What was written before is "
                "kept: look after the disk, then resume the run."
            )
        cause = cause.__cause__ or getattr(cause, "orig", None)
    return None


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turns what SQLite says of a disk that takes no more into a UserError; see `problem`."""
    try:
        yield
    except Exception as error:
        if (found := problem(error, folder)) is None:
            raise
        raise found from error


def unreadable(path: Path, error: Exception) -> UserError | None:
    """Returns the error for a file that cannot be read for now; None where what SQLite says of it is that of damage."""
    if not isinstance(error, OSError) and not _UNREADABLE.search(str(error)):
        return None
    said = error.strerror if isinstance(error, OSError) else error
    return UserError(f"{path} cannot be read ({said}). Make it readable, or put back a copy of it.")


@contextlib.contextmanager
def damaged(folder: Path) -> Iterator[None]:
    """Turns what SQLite says of a damaged file, or the system of one that cannot be read, into a UserError."""
    try:
        yield
    except (sqlite3.DatabaseError, OSError) as error:
        if (found := unreadable(folder / FILE, error)) is not None:
            raise found from error
        raise UserError(
            f"{folder / FILE} is damaged ({error}). Put back a copy of it, with {BESIDE[0]} if there is one, or fetch "
            "the run from its storage. Until then trials.csv and epochs.csv can be read, and nothing changes them."
        ) from error
