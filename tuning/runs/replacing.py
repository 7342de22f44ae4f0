"""The files of a model's folder take the place of the ones before: all or none, on the disk.

They are written into a folder beside those of the model before, and moved when all are there. Whoever reads the folder
ends a move that was killed, so that a model which has been tested need not be tested again.
"""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tuning.base import files, locks
from tuning.base.errors import UserError, disk_full

STAGING = ".new"
WHOLE = ".whole"  # In the staging folder: it has all of a model, to be moved, and the names that are to be removed.
_LAST = ("config.json", "metrics.json")


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yields a folder beside the files of a model's folder, for those of the next model.

    It is removed in the end, unless the move of its files has begun and failed. A model that a killed command had begun
    to move is moved first. The caller holds the folder's lock of `final`.

    Raises:
        UserError: The model's folder cannot be written.
    """
    staging = folder / STAGING
    try:
        if (staging / WHOLE).exists():
            _move(staging, folder)
        if staging.exists():  # A command that was killed left it.
            shutil.rmtree(staging)
        staging.mkdir(parents=True)
    except OSError as error:
        raise disk_full(staging, error) or unwritable(folder, error) from error
    try:
        yield staging
    finally:
        if not (staging / WHOLE).exists():  # A move that has begun can be ended.
            shutil.rmtree(staging, ignore_errors=True)


def publish(staging: Path, folder: Path, removed: Iterable[str]) -> None:
    """Moves the files into the model's folder, and removes those of `removed` that only the model before had.

    The disk has them when this returns. Nobody reads half of two models: without `config.json` there is none, and it
    and `metrics.json` are the first to go and the last to come.
    """
    for path in staging.iterdir():
        files.sync(path)
    without = [name for name in removed if not (staging / name).exists()]
    files.write_json(staging / WHOLE, {"remove": without}, durable=True)
    _move(staging, folder)


def end(folder: Path) -> bool:
    """Ends a move that was killed, where there is one; returns whether there was.

    A command that is still at it, and a folder that cannot be written, are left alone.
    """
    try:
        if not (folder / STAGING / WHOLE).exists():
            return False
        with locks.hold(folder, "final"):
            return end_held(folder)
    except (OSError, UserError):
        return False


def end_held(folder: Path) -> bool:
    """Does as `end` for the process that holds the folder's lock of `final`.

    Raises:
        UserError: The folder cannot be written.
    """
    if not (folder / STAGING / WHOLE).exists():
        return False
    with staged(folder):
        return True


def unwritable(folder: Path, error: OSError) -> UserError:
    """Returns what is said of a model's folder that cannot be written."""
    return UserError(f"{folder} cannot be written ({error.strerror}). Make it writable, or give another --model-dir.")


def _move(staging: Path, folder: Path) -> None:
    first = [name for name in reversed(_LAST) if (staging / name).exists()]
    for name in (*first, *files.read_json(staging / WHOLE)["remove"]):
        (folder / name).unlink(missing_ok=True)
    names = sorted(path.name for path in staging.iterdir() if path.name != WHOLE)
    for name in sorted(names, key=lambda name: _LAST.index(name) if name in _LAST else -1):
        (staging / name).replace(folder / name)
    files.sync(folder)
    (staging / WHOLE).unlink()
