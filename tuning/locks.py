"""One process at a time: a lock on a folder that dies with its process, and a lease in a storage that runs out.

A lock is the kernel's (`flock`): whoever is killed holds it no longer. A storage knows no processes, so whoever works
on a run there says so again every few seconds; others watch for that, by their own clocks, and never compare times.
"""

import contextlib
import errno
import fcntl
import json
import os
import secrets
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from tuning.errors import UserError, disk_full
from tuning.storage import META, Store, masked
from tuning.temporary import NO_LOCKS, this_machine

BEAT_SECONDS, LEASE_SECONDS = 10.0, 45.0
_without_locks: set[Path] = set()  # Folders of which this process has said that no lock is to be had.


class InUseError(UserError):
    """Another process works on the same; the text says which."""


@contextlib.contextmanager
def hold(folder: Path, what: str, note: Callable[[str], None] = print) -> Iterator[None]:
    """Keeps a folder to this process while something is done with it.

    On a file system without locks, the process that the lock's file names is asked for instead.

    Args:
        folder: Must be there and writable.
        what: The command, e.g. "search"; locks of different commands do not exclude each other.
        note: Receives, once a folder, that its file system has no locks.

    Raises:
        InUseError: Another process does the same with it now.
        UserError: The folder cannot be written to.
    """
    path = folder / f".{what}.lock"
    try:
        opened = path.open("a+", encoding="utf-8")
    except OSError as error:
        raise disk_full(path, error) or UserError(
            f"{folder} cannot be written to ({error.strerror}), which `tuning.{what}` must. Copy it to where it can be."
        ) from error
    with opened as file:
        file.seek(0)
        holder = _parsed(file.read())
        try:
            _lock(file)
        except OSError as error:
            file.seek(0)
            holder = _parsed(file.read()) or holder  # Who was quicker may have begun to write only now.
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES, *NO_LOCKS):
                raise
            if error.errno not in NO_LOCKS or (is_here(holder) and is_alive(holder)):
                raise InUseError(
                    f"{folder} is in use: {described(holder)} works on it. Wait until that has ended, or end it, "
                    "then run the command again."
                ) from error
            _say_without_locks(folder, note)
        file.truncate(0)
        file.write(json.dumps(myself(what)))
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def _say_without_locks(folder: Path, note: Callable[[str], None]) -> None:
    if folder.absolute() not in _without_locks:
        _without_locks.add(folder.absolute())
        note(f"{folder} is on a file system without locks: run no second command on it from another machine meanwhile.")


def _lock(file: IO[str]) -> None:
    """Locks an open file; raises OSError where another process has it for longer than a fetch takes to look at it."""
    for tries_left in reversed(range(5)):
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not tries_left:
                raise
            time.sleep(0.1)
        else:
            return


class Lease:
    """What says in a storage that a process works on a run.

    Args:
        uri: Of the run in the storage.
        what: The command, e.g. "search".
        on_lost: Called from another thread when another process has taken the lease over.

    Attributes:
        lost: Is set from then on: what is in the storage is another's.
    """

    def __init__(self, uri: str, what: str, on_lost: Callable[[UserError], None]) -> None:
        self._store, self._name, self._uri = Store(uri), f"{what}.lease", uri
        self._own: dict[str, Any] = myself(what) | {"lease": secrets.token_hex(6), "beat": 0}
        self._on_lost = on_lost
        self.lost, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")

    def take(self, note: Callable[[str], None], patience: float | None = None) -> None:
        """Takes the lease and renews it from now on; waits until that of a process that may be dead has run out.

        Raises:
            InUseError: Another process holds it.
            UserError: The storage cannot be reached.
        """
        patience = LEASE_SECONDS if patience is None else patience
        found = self._store.read(self._name)
        holder = _parsed(found)
        if found and not (is_here(holder) and not is_alive(holder)):
            note(f"{described(holder)} worked on {masked(self._uri)}; waiting {patience:.0f} s to see if it goes on.")
            deadline = time.monotonic() + patience
            while (now := self._store.read(self._name)) == found and time.monotonic() < deadline:
                time.sleep(min(1.0, patience))
            if now not in (found, None):
                raise InUseError(
                    f"{masked(self._uri)} is in use: {described(_parsed(now))} works on it. Wait until that has ended, "
                    "or end it, then run the command again."
                )
        self._store.write(self._name, json.dumps(self._own).encode())
        time.sleep(min(0.5, patience))
        quicker = _parsed(self._store.read(self._name))
        if quicker.get("lease") != self._own["lease"]:  # Two took it at once.
            raise InUseError(
                f"{masked(self._uri)} is in use: {described(quicker)} was quicker. Run the command again later."
            )
        self._thread.start()

    def release(self) -> None:
        """Ends the lease; the next process need not wait. Where the storage is away, it runs out."""
        self._end.set()
        if self._thread.ident is not None:
            self._thread.join()
        with contextlib.suppress(UserError):
            if self.holds(Store(self._uri, patience=0.0)):
                self._store.remove(self._name)

    def _renew(self) -> None:
        quick = Store(self._uri, patience=0.0)
        while not self._end.wait(BEAT_SECONDS):
            if not self.beat(quick):
                return

    def beat(self, store: Store) -> bool:
        """Renews the lease, once; returns False where another process has, or had it."""
        with contextlib.suppress(UserError):  # The storage is away; the mirror says so.
            if not self.holds(store):
                return False
            self._own["beat"] += 1
            store.write(self._name, json.dumps(self._own).encode())
        return True

    def holds(self, store: Store) -> bool:
        """Returns whether the lease is still this process's; one that was taken over, and released since, is not.

        Raises:
            UserError: The storage cannot be reached.
        """
        if self.lost.is_set():
            return False
        found = _parsed(store.read(self._name))
        if found.get("lease") == self._own["lease"] or (not found and META not in store.names()):
            return True  # Without the run's record it is the storage that is away, as a folder that is not mounted.
        self.lost.set()
        self._on_lost(
            UserError(
                f"{described(found)} has taken over {masked(self._uri)}, because this process could not reach the "
                f"storage for {LEASE_SECONDS:.0f} s. What is there is left to it."
            )
        )
        return False


@contextlib.contextmanager
def leased(uri: str, what: str, note: Callable[[str], None], on_lost: Callable[[UserError], None]) -> Iterator[Lease]:
    """Keeps a run in a storage to this process while something is done with it; arguments as for `Lease`.

    Raises:
        InUseError: Another process holds it.
        UserError: The storage cannot be reached.
    """
    lease = Lease(uri, what, on_lost)
    lease.take(note)
    try:
        yield lease
    finally:
        lease.release()


@contextlib.contextmanager
def claimed(uri: str) -> Iterator[bool]:
    """Keeps the URI of a new run to this process; yields False where another was quicker.

    The claim of a process of this machine that is dead counts for nothing; another's stays until it is removed.

    Raises:
        UserError: The storage cannot be reached.
    """
    store, file = Store(uri), ".claim"
    own = json.dumps(myself("search") | {"claim": secrets.token_hex(6)}).encode()
    holder = _parsed(store.read(file))
    if holder and not (is_here(holder) and not is_alive(holder)):
        yield False
        return
    store.write(file, own)
    time.sleep(0.5)  # Of two that took it at once, the later one's is there by then.
    first = store.read(file) == own
    try:
        yield first
    finally:
        if first:
            with contextlib.suppress(UserError, OSError):
                store.remove(file)
                Path(uri).rmdir()  # Of a shared folder, if nothing came of the run; a bucket has no folders.


def myself(what: str) -> dict[str, Any]:
    """Returns what tells others which process this is."""
    return {
        "what": what,
        **this_machine(),
        "namespace": _namespace(),
        "pid": os.getpid(),
        "born": _born(os.getpid()),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": masked(shlex.join(sys.argv)),
    }


def is_here(holder: dict[str, Any]) -> bool:
    """Returns whether a process is, or was, one of this machine since it was started."""
    own = this_machine() | {"namespace": _namespace()}
    return bool(holder) and {name: holder.get(name) for name in own} == own


def is_alive(holder: dict[str, Any]) -> bool:
    """Returns whether a process of this machine still runs; its number may be another's by now."""
    pid = holder.get("pid")
    return isinstance(pid, int) and (born := _born(pid)) is not None and born == holder.get("born")


def described(holder: dict[str, Any]) -> str:
    """Returns in words which process that is."""
    if not holder:
        return "another process"
    pid, host, what, since = (holder.get(name) for name in ("pid", "host", "what", "since"))
    return f"process {pid} on {host} (tuning.{what}, since {since})"


def _born(pid: int) -> str | None:
    """Returns when a process began, in the kernel's ticks; None where it is dead. Without /proc "" if it is alive."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]  # Dead, and not yet buried by its parent.
    except (OSError, IndexError):
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return ""
    return ""


def _namespace() -> str:
    """Returns what differs between containers of one machine, whose processes do not see each other."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _parsed(text: str | bytes | None) -> dict[str, Any]:
    """Returns what a process wrote of itself; nothing where that is damaged."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
