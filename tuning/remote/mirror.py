"""Between a run's folder and its storage: a `Mirror` sends what changes, `fetch` brings a record back.

The run folder is the record that is worked on, because SQLite cannot live in a bucket. Trials, which may run on other
machines, keep their files in a scratch folder of their node, and send them from there. Nothing here knows Ray or torch.
"""

import contextlib
import json
import os
import random
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

from tuning.base import files, locks
from tuning.base.errors import UserError, counted, unknown_name
from tuning.base.masking import masked
from tuning.remote import leases
from tuning.remote.records import stored_is_newer
from tuning.remote.storage import META, Store, is_folder, joined, split
from tuning.runs.run_folder import last_begun
from tuning.runs.study_file import FILE as STUDY
from tuning.runs.study_file import facts, settle, snapshot

FRAMES = ("epochs.csv", "trials.csv")
PROGRESS = "progress.json"  # As `tuning.training.checkpoints` writes it: how many epochs are behind a checkpoint.
Signature = tuple[int, ...]
PAUSE = 30.0  # Seconds: for which the end of a search waits for its storage; half of it lies between two tries at most.


class Mirror:
    """Sends the files of a folder to a store whenever they change, from a thread of its own.

    A store that fails is tried until it answers; that is said once when it begins, and once when it is over. What lies
    in the run's subfolders already counts as sent where the storage has as many epochs of it and files as large; where
    it has more epochs, the trial has run elsewhere since, and nothing of it is sent.

    Args:
        folder: Of the run, or a node's scratch folder.
        uri: Of the run in the storage.
        note: Is told what a person should know.
        part: Only what is in this folder below the folder.
        skip: File names that are not sent.
        every: Seconds between two looks.
        lease: That of this process on the run in the storage; once another has it, nothing is sent any more.

    Raises:
        UserError: The URI leads to the folder itself.
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
        lease: leases.Lease | None = None,
    ) -> None:
        self._folder, self._store, self._note = folder, Store(uri, patience=0.0), note
        if is_folder(uri, folder):  # A study that is written to, replaced by a copy of it, is lost.
            raise UserError(f"The storage of {folder} must be another folder, but got {self._store.uri!r}.")
        self._part, self._skip, self._every = part, skip, every
        self._sent: dict[str, Signature] | None = None
        self._without: set[str] = set()  # Frames that the storage has not.
        self._unreadable: set[Path] = set()
        self._n_failures = 0  # Of the storage, in a row.
        self._is_busy = False  # Something here could not be read just now, though it may be at the next try.
        self._lease, self._lost = lease, lease.lost if lease is not None else threading.Event()
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
        if self._lost.is_set():
            return []
        sent = self._sent or {}
        missing = sorted(name for name, signature in self._files().items() if sent.get(name) != signature)
        if missing:
            some = ", ".join(missing[:4]) + (f" and {len(missing) - 4} more" if len(missing) > 4 else "")
            what = "it can be reached" if self._n_failures else "what is here can be read"
            self._note(f"Not in the storage yet: {some}. {sent_by(self._folder, what)}")
        return missing

    def _run(self) -> None:
        while not self._lost.is_set():
            ended, self._is_busy = self._end.is_set(), False
            try:
                self._send()
                if self._n_failures:
                    self._note(f"Storage {masked(self._store.uri)} is back, and what was missing is sent.")
                self._n_failures = 0
            except (OSError, sqlite3.Error) as error:
                self._is_busy = True
                self._cannot_read(self._folder, error)
            except UserError as error:
                self._n_failures += 1
                if self._n_failures == 1:
                    reason = str(error).rpartition("but got ")[2]
                    self._note(f"Storage cannot be reached: {reason}; training goes on, what is missing is sent later.")
            n = self._n_failures
            if ended and (not (n or self._is_busy) or time.monotonic() > self._deadline):
                return
            pause = min(2.0**n, PAUSE / 2) * random.uniform(0.5, 1.0) if n else self._every
            if ended:
                time.sleep(min(pause, 2.0))
            else:
                self._end.wait(pause)

    def _send(self) -> None:
        """Sends what has changed."""
        found = self._files()
        if self._sent is None:
            stored = self._store.infos(self._part)
            self._sent, self._without = self._stored_already(found, stored), set(FRAMES) - set(stored)
        changed = {name: signature for name, signature in found.items() if self._sent.get(name) != signature}
        if changed and self._lease is not None and not self._lease.holds(self._store):
            return  # This process was cut off for long; what is there has gone on.
        # The study is read after the frames, and sent before them: nothing that they know is ever missing in it.
        record = {name: self._read(name) for name in changed if "/" not in name and name != STUDY}
        if STUDY in found and (record or STUDY in changed):
            changed[STUDY] = self._files().get(STUDY, found[STUDY])
            record[STUDY] = self._read(STUDY)
            if record[STUDY] is None:
                record |= dict.fromkeys(FRAMES)
            else:
                for name in sorted(self._without & set(record)):  # Who reads a study with results never misses these.
                    self._store.write(name, (record[name] or b"").partition(b"\n")[0] + b"\n")
                    self._without.discard(name)
        first = {name: place for place, name in enumerate((META, STUDY, *FRAMES))}
        for name in sorted(changed, key=lambda name: ("/" in name, first.get(name, len(first)), name)):
            data = record[name] if name in record else self._read(name)
            if data is not None and not self._lost.is_set():
                self._store.write(name, data)
                self._sent[name] = changed[name]

    def _read(self, name: str) -> bytes | None:
        """Returns a file's content; None where it has been removed since, or cannot be read, which is said."""
        path = self._folder / name
        try:
            return snapshot(path) if name == STUDY else path.read_bytes()
        except FileNotFoundError:
            return None
        except (OSError, sqlite3.Error) as error:
            self._is_busy |= isinstance(error, sqlite3.OperationalError)
            self._cannot_read(path, error)
            return None

    def _cannot_read(self, path: Path, error: Exception) -> None:
        """Says once that something of this machine cannot be sent; it is tried again, and the rest is sent."""
        if path not in self._unreadable:
            self._unreadable.add(path)
            reason = error.strerror if isinstance(error, OSError) else error
            self._note(f"{path} cannot be read ({reason}). It is not sent to the storage until it can be.")

    def _stored_already(self, found: Mapping[str, Signature], infos: Mapping[str, Any]) -> dict[str, Signature]:
        """Returns the files of subfolders that need not be sent; no clock has a say in that."""
        sent = {}
        for folder in sorted({name.rpartition("/")[0] for name in found} - {""}):
            own = _epochs(self._read(f"{folder}/{PROGRESS}"))
            stored = _epochs(self._store.read(f"{folder}/{PROGRESS}") if f"{folder}/{PROGRESS}" in infos else None)
            for name in (name for name in found if name.rpartition("/")[0] == folder):
                as_large = name in infos and infos[name].size == found[name][1]
                if stored > own or (stored == own >= 0 and as_large):
                    sent[name] = found[name]
        return sent

    def _files(self) -> dict[str, Signature]:
        """Returns what changes when a file does, of each that is to be sent: its time, its bytes."""
        found: dict[str, Signature] = {}
        for path in (self._folder / self._part).rglob("*"):
            name = path.relative_to(self._folder).as_posix()
            # Ray's own state is pickled beside the trials' folders; what begins with a dot is not whole yet.
            unwanted = path.name.startswith((".", f"{STUDY}-")) or path.suffix == ".pkl" or path.name in self._skip
            if unwanted or (name.startswith("trials/") and name.count("/") == 1):
                continue
            with contextlib.suppress(FileNotFoundError):
                if path.is_file():
                    found[name] = _signature(path)
        if STUDY in found:  # SQLite writes beside it at first.
            with contextlib.suppress(FileNotFoundError):
                beside = _signature(self._folder / f"{STUDY}-wal")
                found[STUDY] += beside if beside[1] else ()  # Whoever reads it may leave an empty one.
        return found


def _signature(path: Path) -> Signature:
    info = path.stat()
    return info.st_mtime_ns, info.st_size


def _epochs(progress: bytes | None) -> int:
    """Returns how many epochs a folder's `progress.json` tells of; -1 where there is none."""
    try:
        return int(json.loads(progress or b"{}").get("epochs", -1))
    except (ValueError, AttributeError):
        return -1


def sent_by(run: Path, what: str = "it can be reached") -> str:
    """Returns what sends a run's rest when its storage could not be reached to the end, or what is here not read."""
    return f"When {what} again, `python -m tuning.search --resume {files.quoted(run)}` sends the rest."


def fetch(uri: str, root: Path, *, path: Path | None = None, retrained: bool = False, resumed: bool = False) -> Path:
    """Returns the folder of a run below a folder, with its record (no checkpoints) from a storage; says what it does.

    Where the run is there already, the one that has gone on for longer is taken, or the one that a search works on. A
    URI that leads to the run's folder itself changes nothing.

    Args:
        uri: Of the run; its name may be "latest".
        root: Where the run folders are.
        path: The run's folder, if it has another name here than in the storage.
        retrained: Fetch what `final` has trained, too.
        resumed: From now on the run is kept at this URI, wherever its record says.

    Raises:
        UserError: There is no such run, or it has gone on here and there, or the storage cannot be reached.
    """
    try:
        base, name = split(uri)
    except UserError:
        refuse_storage(uri)
        raise
    if name == "latest":
        name = _latest(Store(base)) or name
    store, path = Store(joined(base, name)), path or root / name
    if is_folder(store.uri, path) and (path / META).exists():
        return path
    wanted = ("trials/",) if retrained else ("trials/", "final/")
    stored = [file for file in store.infos() if not file.startswith(wanted) and not file.endswith(".lease")]
    here = (path / META).exists()
    if META not in stored and not here:
        refuse_storage(uri)
        if not (runs := Store(base).runs()):
            raise UserError(f"The storage {masked(base)!r} has no runs in it. Is its name right?")
        raise unknown_name(f"Run in {masked(base)}", name, runs)
    path.mkdir(parents=True, exist_ok=True)
    try:
        with locks.hold(path, "search"):
            before = _place_of(path)
            if _bring(store, path, stored) or resumed:
                kept = _place_of(path) if before is None else ""  # A copy of a run that is new here may lie elsewhere.
                if resumed or not kept or not _is_in(kept, path):
                    _place(path, base, name, kept or before)
    except locks.InUseError:
        if not (path / META).exists():
            raise
        print(f"{path} is in use on this machine, and is taken as it is.")
    return path


def refuse_storage(uri: str) -> None:
    """Raises UserError where a URI is that of a storage with runs, and not that of one of them."""
    store = Store(uri)
    if store.read(META) is None and (runs := store.runs()):
        raise UserError(
            f"{masked(store.uri)} is a storage. Name one of its runs: {masked(joined(uri, 'RUN'))}, where RUN is one "
            f"of {', '.join(['latest', *sorted(runs)])}."
        )


def _latest(store: Store) -> str | None:
    """Returns the name of the run in a storage that was begun or resumed last, by the records; None without a run."""
    times = store.runs()

    def begun(name: str) -> str:
        with contextlib.suppress(UserError):  # One record that cannot be read must not hide the others.
            return last_begun(locks.parsed(store.read(f"{name}/{META}")))
        return ""

    with ThreadPoolExecutor(16) as pool:
        moments = dict(zip(times, pool.map(begun, times), strict=True))
    return max(times, key=lambda name: (moments[name], times[name]), default=None)


def _bring(store: Store, path: Path, stored: Sequence[str]) -> bool:
    """Brings a run's stored record into its folder, if it has gone on for longer, and in any case what is missing.

    Returns whether `meta.json` came from there.
    """
    has_record = any((path / name).exists() for name in (META, STUDY, *FRAMES))
    take = META in stored and (not has_record or stored_is_newer(store, path))
    wanted = [file for file in stored if take or not (path / file).exists()]
    contents = _contents(store, wanted)
    if take:
        settle(path)  # Else SQLite would play what lies beside the study's file here into the one that comes.
    # The study is written first: that it knows more than the frames is no harm. A folder without meta.json is no run.
    for file in sorted(wanted, key=lambda file: (file == META, file != STUDY, file)):
        if (content := contents[file]) is not None:
            (path / file).parent.mkdir(parents=True, exist_ok=True)
            files.write_bytes(path / file, content)
    if take:
        print(f"Fetched into {path}: {masked(store.uri)}")
    elif META in wanted:
        print(f"{path / META} was missing, and is fetched from {masked(store.uri)}.")
    return META in wanted


def _contents(store: Store, names: Sequence[str]) -> dict[str, bytes | None]:
    """Returns what files of a run hold, the frames no more than the study.

    What goes on there meanwhile sends the study first, so that it is read last. Of a new run it sends the frames' first
    lines before, and their rows in a moment.
    """
    for tries_left in (2, 1, 0):
        found = {name: store.read(name) for name in sorted(names, key=lambda name: (name == STUDY, name))}
        lacks = [name for name in FRAMES if (found.get(name) or b"\n\n").count(b"\n") < 2]
        if not lacks or not tries_left or not _has_ended(found.get(STUDY) or b""):
            break
        time.sleep(1.0)
    return found


def _has_ended(study: bytes) -> bool:
    """Returns whether a study (its file's content) has a trial that has ended; a damaged one has none."""
    with contextlib.suppress(sqlite3.DatabaseError, KeyError):
        return any(state in ("COMPLETE", "PRUNED") for state, _ in facts(study)[1].values())
    return False


def _place_of(path: Path) -> str | None:
    """Returns the URI at which a run folder's record says that it is stored, "" for none; None without a record."""
    try:
        meta = files.read_json(path / META)
        base = meta["settings"].get("storage")
    except (UserError, KeyError, AttributeError):
        return None
    return "" if base is None else joined(base, meta.get("stored_as") or path.name)


def _is_in(uri: str, path: Path) -> bool:
    """Returns whether the place at a URI can be reached, and has the run that is in a folder."""
    with contextlib.suppress(UserError):
        stored = locks.parsed(Store(uri, patience=0.0).read(META))
        return bool(stored) and stored.get("id") == files.read_json(path / META).get("id")
    return False


def _place(path: Path, base: str, name: str, before: str | None) -> None:
    """Writes into a run's `meta.json` that it is kept in this storage; says so where it was kept elsewhere before."""
    try:
        meta = files.read_json(path / META)
        written = meta["settings"].get("storage"), meta.get("stored_as")
    except (UserError, KeyError, AttributeError):  # A damaged one is for whoever reads it to name.
        return
    if written != (base, name):
        meta["settings"]["storage"], meta["stored_as"] = base, name
        files.write_json(path / META, meta)
    if before is not None and before != (there := joined(base, name)):
        no_longer = f", and no longer in {masked(before)}" if before else ""
        print(f"{path} is kept in {masked(there)} from now on{no_longer}.")


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
