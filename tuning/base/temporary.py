"""Folders for what need not outlive a process: Ray's sessions, and a home for a user who has none.

Each is below a folder of this user's own (mode 0700, the owner is checked), so that nobody else can read it, write to
it or be in its way. Nothing here knows Ray's processes or a trial.
"""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import socket
import stat
import string
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

NAME, LOCK = "tuning", "lock"  # Not "ray": somebody's own Ray may have a folder of that name.
# A socket's path has at most 107 bytes (Linux; 103 on macOS), of which Ray adds so many to its temporary folder's:
# "/session_2026-11-28_09-40-31_123456_4194304/sockets/plasma_store", with room for a longer process id.
MOST_BYTES = 103 - len("/session_2026-11-28_09-40-31_123456_4194304/sockets/plasma_store") - 4
N_LETTERS = 5  # Of the name of a folder for one Ray: each of them is one less for the path of TMPDIR.
# What a file system without locks says of one.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def bases() -> list[Path]:
    """Returns the folders that may hold temporary ones, in the order in which they are tried; the first is the usual.

    The usual one is $RAY_TMPDIR, else $TMPDIR, else /tmp, as Ray has it.
    """
    named = [os.environ.get("RAY_TMPDIR"), os.environ.get("TMPDIR")]
    others = ["/tmp", os.environ.get("XDG_RUNTIME_DIR"), "/var/tmp", "/dev/shm"]
    found = [Path(name).absolute() for name in (*named, *others) if name]
    return list(dict.fromkeys(found))


def own_folder(base: Path, name: str) -> Path:
    """Returns a folder of this user's own below `base`, which is made where there is none.

    Raises:
        OSError: It cannot be made or written to, or somebody else made it.
    """
    path = base / f"{name}-{os.geteuid()}"
    base.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to another user")
    if stat.S_IMODE(found.st_mode) & 0o077:
        path.chmod(0o700)
    with tempfile.TemporaryFile(dir=path):  # The mode says nothing of a disk that is full or read-only.
        pass
    return path


@contextlib.contextmanager
def ray_folder(places: Sequence[Path] | None = None) -> Iterator[tuple[Path, str]]:
    """Yields an empty folder for one Ray, removed at the end, and a sentence if it is not in the usual place ("" else).

    Folders of processes that were killed are removed, too. A folder's process holds a lock on a file in it: unlike a
    process id, it can neither be used again nor mean another process in another container. A place whose file system
    has no locks is used where there is no other, and the sentence says so.

    Raises:
        OSError: No place can hold it; its text says why, and what to do.
    """
    folder, lock, note = _first_folder(bases() if places is None else places)
    try:
        yield folder, note
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _first_folder(places: Sequence[Path]) -> tuple[Path, int, str]:
    """Returns a new folder in the first place that can hold one, its open lock, and the sentence of `ray_folder`."""
    reasons, without_locks = [], []
    for base in places:
        try:
            folder, lock = _new_folder(base, locking=True)
        except OSError as error:
            without_locks += [base] if error.errno in NO_LOCKS else []
            reasons.append(f"{base}: {error.strerror or error}")
            continue
        said = f"Ray's temporary folder is {folder}, because another cannot be used ({'; '.join(reasons)})."
        return folder, lock, said if reasons else ""
    for base in without_locks:
        with contextlib.suppress(OSError):
            folder, lock = _new_folder(base, locking=False)
            said = f"Ray's temporary folder is {folder}, on a file system without locks: remove it if this is killed."
            return folder, lock, said
    raise OSError(
        f"Ray needs a temporary folder, and none can be used ({'; '.join(reasons)}). Set RAY_TMPDIR to a folder "
        "that you can write to, with a short path."
    )


def _new_folder(base: Path, *, locking: bool) -> tuple[Path, int]:
    """Returns a new folder for one Ray below `base`, and the open file that holds its lock.

    Raises:
        OSError: It cannot be made there, or, with `locking`, the file system has no locks.
    """
    if len(os.fsencode(base)) + len(f"/{NAME}-{os.geteuid()}/") + N_LETTERS > MOST_BYTES:
        raise OSError("its path is too long for a socket's")
    parent = own_folder(base, NAME)
    with _locked(parent / LOCK, locking=locking):
        if locking:
            _remove_dead(parent)
        folder = _empty_folder(parent)
        lock = os.open(folder / LOCK, os.O_CREAT | os.O_RDWR, 0o600)
        if locking:
            fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(lock, _machine().encode())
    return folder, lock


def _empty_folder(parent: Path) -> Path:
    """Returns a new folder with a short random name; `tempfile` takes eight letters."""
    while True:
        folder = parent / "".join(secrets.choice(string.ascii_lowercase + string.digits) for _ in range(N_LETTERS))
        with contextlib.suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            return folder


def provide_home() -> None:
    """Gives this process, and those that it starts, a home and a cache where the user has none that can be written to.

    A container's user may have neither HOME nor a name, or "/" for a home, which only root can write to. A home that
    can be read only is kept (there may be keys in it); the cache alone moves.
    """
    import getpass

    try:
        getpass.getuser()
    except (KeyError, OSError):  # KeyError before Python 3.13.
        os.environ["USER"] = str(os.getuid())  # Libraries name their folders after it.
    home = os.path.expanduser("~")
    if (home != "~" and os.access(home, os.W_OK | os.X_OK)) or _has_cache(home):
        return
    for base in bases():
        with contextlib.suppress(OSError):
            folder = str(own_folder(base, "home"))
            if not os.access(home, os.R_OK | os.X_OK) or home in ("~", "/"):
                os.environ["HOME"] = folder
            os.environ.setdefault("XDG_CACHE_HOME", f"{folder}/.cache")
            os.environ.setdefault("MPLCONFIGDIR", f"{folder}/.config/matplotlib")
            return


def _has_cache(home: str) -> bool:
    """Returns whether a home that cannot be written to has a cache that can."""
    return home not in ("~", "/") and os.access(f"{home}/.cache", os.W_OK | os.X_OK)


@contextlib.contextmanager
def _locked(path: Path, *, locking: bool) -> Iterator[None]:
    """Keeps others from `path` meanwhile; what one process makes, another must not take for a dead one's."""
    with path.open("a") as file:
        if locking:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def this_machine() -> dict[str, str]:
    """Returns what differs between machines that share a folder, and between two starts of one: `host` and `boot`."""
    host = socket.gethostname()
    try:
        return {"host": host, "boot": Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()}
    except OSError:
        return {"host": host, "boot": host}


def _machine() -> str:
    """Returns the same in a line: a lock may hold on one of the machines that share a folder only."""
    return " ".join(this_machine().values())


def _remove_dead(parent: Path) -> None:
    """Removes the folders of this machine whose process is no more; what has no lock of ours is left, if not empty."""
    for folder in parent.iterdir():
        if folder.is_symlink() or not folder.is_dir():
            continue
        try:
            lock = os.open(folder / LOCK, os.O_RDWR)
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.read(lock, 1000).decode(errors="replace") in ("", _machine()):
                shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            pass
        finally:
            os.close(lock)
