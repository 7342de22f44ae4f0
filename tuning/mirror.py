"""Between a run's folder and its storage: a `Mirror` sends what changes, `fetch` brings a record back.

The run folder is the record that is worked on, because SQLite cannot live in a bucket. Trials, which may run on other
machines, keep their files in a scratch folder of their node, and send them from there. Nothing here knows Ray or torch.
"""

import contextlib
import csv
import io
import json
import os
import random
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Self

from tuning import files
from tuning.errors import UserError, counted, unknown_name
from tuning.storage import META, Store, joined, masked, split

STUDY = "study.db"
PAUSE = 30.0  # Seconds: for which the end of a search waits for its storage; half of it lies between two tries at most.


class Mirror:
    """Sends the files of a folder to a store whenever they change, from a thread of its own.

    A store that fails is tried until it answers; that is said once when it begins, and once when it is over. What lies
    in the run's subfolders already, and is not newer than what is stored, counts as sent.

    Args:
        folder: Of the run, or a node's scratch folder.
        uri: Of the run in the storage.
        note: Is told what a person should know.
        part: Only what is in this folder below the folder.
        skip: File names that are not sent.
        every: Seconds between two looks.
    """

    def __init__(
        self,
        folder: Path,
        uri: str,
        note: Callable[[str], None],
        *,
        part: str = "",
        skip: Sequence[str] = (),
        every: float = 3.0,
    ) -> None:
        self._folder, self._store, self._note = folder, Store(uri, patience=0.0), note
        self._part, self._skip, self._every = part, skip, every
        self._sent: dict[str, tuple[int, int]] | None = None
        self._end, self._deadline = threading.Event(), float("inf")
        self._thread = threading.Thread(target=self._run, daemon=True, name="mirror")

    def __enter__(self) -> Self:
        """Begins to send."""
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Lets the thread send the rest by itself, and end."""
        self._end.set()

    def finish(self, patience: float = PAUSE) -> list[str]:
        """Waits until everything is sent, or for so many seconds; returns the names of what is not, and notes them."""
        self._deadline = time.monotonic() + patience
        self._end.set()
        self._thread.join()
        sent = self._sent or {}
        missing = [name for name, signature in self._files().items() if sent.get(name) != signature]
        if missing:
            some = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
            self._note(f"Not in the storage yet: {some}. {sent_by(self._folder.name)}")
        return missing

    def _run(self) -> None:
        n_failures = 0
        while True:
            ended = self._end.is_set()
            try:
                self._send()
                if n_failures:
                    self._note(f"Storage {masked(self._store.uri)} is back, and what was missing is sent.")
                n_failures = 0
            except (UserError, OSError, sqlite3.Error) as error:
                n_failures += 1
                if n_failures == 1:
                    reason = str(error).rpartition("but got ")[2]
                    self._note(f"Storage cannot be reached: {reason}; training goes on, what is missing is sent later.")
            if ended and (not n_failures or time.monotonic() > self._deadline):
                return
            pause = min(2.0**n_failures, PAUSE / 2) * random.uniform(0.5, 1.0) if n_failures else self._every
            if ended:
                time.sleep(min(pause, 2.0))
            else:
                self._end.wait(pause)

    def _send(self) -> None:
        """Sends what has changed."""
        # The study is read before the epochs are looked at, and sent after them: none that it knows is ever missing.
        before = self._files().get(STUDY)
        study = None if before is None or before == (self._sent or {}).get(STUDY) else _snapshot(self._folder / STUDY)
        found = self._files()
        if self._sent is None:
            stored = self._store.names(self._part)
            older = {name for name, (time_ns, _) in found.items() if time_ns / 1e9 <= stored.get(name, 0.0)}
            self._sent = {name: found[name] for name in older if "/" in name}
        for name, signature in found.items():
            if name != STUDY and self._sent.get(name) != signature:
                with contextlib.suppress(FileNotFoundError):  # It has been removed since.
                    data = (self._folder / name).read_bytes()
                    self._store.write(name, data)
                    self._sent[name] = signature
            elif name == STUDY and study is not None and before is not None:
                self._store.write(name, study)
                self._sent[name] = before

    def _files(self) -> dict[str, tuple[int, int]]:
        """Returns time and size of each file that is to be sent, in the order of sending."""
        found: dict[str, tuple[int, int]] = {}
        for path in (self._folder / self._part).rglob("*"):
            name = path.relative_to(self._folder).as_posix()
            # Ray's own state is pickled beside the trials' folders; what begins with a dot is not whole yet.
            unwanted = path.name.startswith((".", f"{STUDY}-")) or path.suffix == ".pkl" or path.name in self._skip
            if unwanted or (name.startswith("trials/") and name.count("/") == 1):
                continue
            try:
                info = path.stat()
            except FileNotFoundError:
                continue
            if path.is_file():
                found[name] = (info.st_mtime_ns, info.st_size)
        return dict(sorted(found.items(), key=lambda item: ("/" in item[0], item[0] == STUDY, item[0])))


def _snapshot(path: Path) -> bytes:
    """Returns an SQLite database as it is at one moment, also while it is being written."""
    with (
        closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True)) as database,
        closing(sqlite3.connect(":memory:")) as copy,
    ):
        database.backup(copy)
        return copy.serialize()


def sent_by(run: str) -> str:
    """Returns what sends a run's rest when its storage could not be reached to the end."""
    return f"When it can be reached again, `python -m tuning.search --resume {run}` sends the rest."


def fetch(uri: str, root: Path, *, retrained: bool = False) -> Path:
    """Returns the folder of a run below a folder, with its record (no checkpoints) from a storage; says what it does.

    Where the run is there already, the one that has gone on for longer is taken.

    Args:
        uri: Of the run; its name may be "latest".
        root: Where the run folders are.
        retrained: Fetch what `final` has trained, too.

    Raises:
        UserError: There is no such run, or it has gone on here and there, or the storage cannot be reached.
    """
    base, name = split(uri)
    if name == "latest":
        runs = Store(base).runs()
        name = max(runs, key=lambda run: runs[run], default=name)
    store, path = Store(joined(base, name)), root / name
    wanted = ("trials/",) if retrained else ("trials/", "final/")
    stored = {file: moment for file, moment in store.names().items() if not file.startswith(wanted)}
    here = (path / META).exists()
    if META not in stored and not here:
        if not (runs := Store(base).runs()):
            raise UserError(f"{masked(base)!r} must be a storage with runs in it, but got none. Is its name right?")
        raise unknown_name(f"Run in {masked(base)}", name, runs)
    take = META in stored and (not here or _stored_is_newer(store, path))
    # As they were sent: never a study that knows of epochs which are missing. A folder without meta.json is no run.
    for file in sorted(stored, key=lambda file: (file == META, file == STUDY, file)):
        if take or not (path / file).exists():
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            files.write_bytes(path / file, store.read(file) or b"")
            os.utime(path / file, (stored[file], stored[file]))
    if take:
        print(f"Fetched into {path}: {masked(store.uri)}")
        meta = files.read_json(path / META)
        if meta["settings"].get("storage") != base:  # It was moved, or has another address here.
            meta["settings"]["storage"] = base
            files.write_json(path / META, meta)
    return path


def _stored_is_newer(store: Store, path: Path) -> bool:
    """Returns whether the stored record has more epochs, or ends of trials, than the one that is here.

    Raises:
        UserError: Each has what the other has not, or they are of different runs.
    """

    def read(name: str) -> tuple[bytes, bytes]:
        local = (path / name).read_bytes() if (path / name).exists() else b""
        return local, store.read(name) or b""

    ids = [json.loads(text).get("id") for text in read(META)]
    epochs, stored_epochs = (text[: text.rfind(b"\n") + 1] for text in read("epochs.csv"))
    ended, stored_ended = (
        {
            (row["trial"], row["state"])
            for row in csv.DictReader(io.StringIO(text.decode()))
            if row["state"] != "running"
        }
        for text in read("trials.csv")
    )
    if ids[0] == ids[1] and epochs.startswith(stored_epochs) and ended >= stored_ended:
        if (epochs, ended) != (stored_epochs, stored_ended):
            print(f"{path} has gone on for longer than what is stored, and is taken.")
        return False
    if ids[0] == ids[1] and stored_epochs.startswith(epochs) and stored_ended >= ended:
        return True
    raise UserError(
        f"Run {path} must be the stored one, earlier or later, but got another, or one that went on in both places. "
        f"Move {path} or {masked(store.uri)} away to go on with the other."
    )


def scratch(run_id: str) -> Path:
    """Makes and returns the folder of this node in which a run's trials keep their files until they are sent.

    Raises:
        PermissionError: It is somebody else's.
    """
    folder = Path(tempfile.gettempdir()) / f"tuning-{run_id}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise PermissionError(f"{folder} must be a folder of this user, but got one of user {folder.stat().st_uid}.")
    return folder


def sweep(run_id: str, uri: str, patience: float = PAUSE) -> str:
    """Sends what a run's trials on this node have not, and removes their folder; returns what is left, or ""."""
    folder = scratch(run_id)
    with Mirror(folder, uri, lambda text: None, part="trials") as mirror:
        missing = mirror.finish(patience)
    if missing:
        return f"{counted(len(missing), 'file')} in {folder}"
    shutil.rmtree(folder)
    return ""
