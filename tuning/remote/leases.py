"""What says in a storage that a process works on a run.

A storage knows no processes, so whoever works on a run there says so again every few seconds; others watch for that, by
their own clocks, and never compare times.
"""

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tuning.base.errors import UserError
from tuning.base.locks import InUseError, described, is_alive, is_here, myself, parsed
from tuning.base.masking import masked
from tuning.remote.storage import META, Store, absolute

BEAT_SECONDS, LEASE_SECONDS = 10.0, 45.0
CLAIM = ".claim"


class Lease:
    """What says in a storage that a process works on a run.

    Args:
        uri: Of the run in the storage.
        what: The command, e.g. "search".
        on_lost: Called from another thread when another process has taken the lease over.
        file: Where it says so there; None is `<what>.lease`.

    Attributes:
        lost: Is set from then on: what is in the storage is another's.
    """

    def __init__(self, uri: str, what: str, on_lost: Callable[[UserError], None], *, file: str | None = None) -> None:
        self._store, self._name, self._uri = Store(uri), file or f"{what}.lease", uri
        self._own: dict[str, Any] = myself(what) | {"lease": secrets.token_hex(6), "beat": 0}
        self._on_lost = on_lost
        self.lost, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True, name="lease")

    def is_free(self) -> bool:
        """Returns whether no process has it that may be alive; raises UserError where the storage cannot be reached."""
        holder = parsed(self._store.read(self._name))
        return not holder or (is_here(holder) and not is_alive(holder))

    def take(self, note: Callable[[str], None], patience: float | None = None) -> None:
        """Takes the lease and renews it from now on; waits until that of a process that may be dead has run out.

        Raises:
            InUseError: Another process holds it.
            UserError: The storage cannot be reached.
        """
        patience = LEASE_SECONDS if patience is None else patience
        found = self._store.read(self._name)
        holder = parsed(found)
        if found and not (is_here(holder) and not is_alive(holder)):
            note(f"{described(holder)} worked on {masked(self._uri)}; waiting {patience:.0f} s to see if it goes on.")
            deadline = time.monotonic() + patience
            while (now := self._store.read(self._name)) == found and time.monotonic() < deadline:
                time.sleep(min(1.0, patience))
            if now not in (found, None):
                raise InUseError(
                    f"{masked(self._uri)} is in use: {described(parsed(now))} works on it. Wait until that has ended, "
                    "or end it, then run the command again."
                )
        self._store.write(self._name, json.dumps(self._own).encode())
        time.sleep(min(0.5, patience))
        quicker = parsed(self._store.read(self._name))
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

    def is_lost(self) -> bool:
        """Returns whether another process has, or had, the run in the storage; one that is away is asked in vain."""
        with contextlib.suppress(UserError):
            return not self.holds(Store(self._uri, patience=0.0))
        return self.lost.is_set()

    def holds(self, store: Store) -> bool:
        """Returns whether the lease is still this process's; one that was taken over, and released since, is not.

        Raises:
            UserError: The storage cannot be reached.
        """
        if self.lost.is_set():
            return False
        found = parsed(store.read(self._name))
        if found.get("lease") == self._own["lease"] or (not found and META not in store.infos()):
            return True  # Without the run's record it is the storage that is away, as a folder that is not mounted.
        self.lost.set()
        there = f"{masked(self._uri)}/{self._name}"
        self._on_lost(
            UserError(
                f"{described(found)} has taken over {masked(self._uri)}, because this process could not reach the "
                f"storage for {LEASE_SECONDS:.0f} s. What is there is left to it."
                if found
                else f"{there} is gone: somebody removed it, or another process has taken the run over and has ended "
                "since. What is there is left as it is. Run the command again to go on with it."
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
def claimed(uri: str, *, wait: bool = False) -> Iterator[bool]:
    """Keeps the URI of a new run to this process; yields False where another was quicker.

    The claim is a lease, so that of a process that was killed runs out.

    Args:
        uri: Of the run in the storage.
        wait: Wait until the claim of a process that may be dead has run out, in the place of yielding False.

    Raises:
        InUseError: The process that was waited for lives.
        UserError: The storage cannot be reached.
    """
    claim = Lease(uri, "search", lambda lost: None, file=CLAIM)
    first = wait or claim.is_free()
    try:
        if first:
            claim.take(print)
    except InUseError:
        if wait:
            raise
        first = False
    try:
        yield first
    finally:
        if first:
            claim.release()
            with contextlib.suppress(OSError):
                Path(absolute(uri)).rmdir()  # Of a shared folder, if nothing came of the run; a bucket has no folders.
