"""One process at a time works on a folder: a lock that the kernel (`flock`) takes from a process that dies."""

import contextlib
import errno
import fcntl
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, Any

from tuning.base.errors import UserError, disk_full
from tuning.base.masking import masked
from tuning.base.temporary import NO_LOCKS, this_machine

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
        holder = parsed(file.read())
        try:
            _lock(file)
        except OSError as error:
            file.seek(0)
            holder = parsed(file.read()) or holder  # Who was quicker may have begun to write only now.
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


def parsed(text: str | bytes | None) -> dict[str, Any]:
    """Returns what a process wrote of itself; nothing where that is damaged."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
