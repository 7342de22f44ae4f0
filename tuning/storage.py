"""A run's record in a place that outlives the machine: `s3://bucket/runs`, `gs://bucket/runs`, or a shared folder.

The local run folder stays the record that is worked on (SQLite cannot live in a bucket); a `Mirror` sends what changes
in it, and the trials' checkpoints from wherever they run. Nothing here knows Ray, Optuna or torch.
"""

import os
import random
import re
import shutil
import sqlite3
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Self, TypeVar

from tuning import files
from tuning.errors import UserError, counted

T = TypeVar("T")

PATIENCE, PAUSE = 10.0, 30.0  # Seconds: for which a failing request is tried again, and between two tries at most.
STUDY = "study.db"
# What does not go away by itself, as pyarrow says it of S3 and of Google's storage.
_LASTING = re.compile(
    "NO_SUCH_BUCKET|ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|PERMISSION_DENIED|UNAUTHENTICATED"
)
_SECRET = re.compile(
    r"(?<=://)[^/@\s]*:[^/@\s]*(?=@)|(?<=[?&])[^=&\s]*(?:key|secret|token|password)[^=&\s]*=[^&\s]*", re.I
)


def masked(text: str) -> str:
    """Returns a text without the passwords and keys of the URIs in it."""
    return _SECRET.sub("***", text)


def joined(base: str, name: str) -> str:
    """Returns the URI of a run (or a file) below a URI; what follows a "?" stays at the end."""
    place, mark, query = base.partition("?")
    return f"{place.rstrip('/')}/{name}{mark}{query}"


def usable(uri: str) -> str:
    """Returns a storage's URI, that of a folder of this machine absolute, after writing to it.

    Raises:
        UserError: It holds a secret, or cannot be written to.
    """
    if masked(uri) != uri:
        raise UserError(
            f"--storage must hold no secret, for it is written down with the run, but got {masked(uri)!r}. Put keys "
            "into the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY) or into the provider's own file."
        )
    if uri.startswith("file:///") or "://" not in uri:
        uri = str(Path(uri.removeprefix("file://")).expanduser().absolute())
        if not Path(uri).is_dir():
            raise UserError(f"--storage must be a folder that is there, but got {uri!r}. Make it first, or mount it.")
    store = Store(uri)
    store.write(".probe", b"")
    store.remove(".probe")
    return uri


class Store:
    """Files in a folder at a URI, through pyarrow's file systems; nothing is asked of it before the first use.

    Args:
        uri: A folder, or one in a bucket: `s3://bucket/runs`, `gs://bucket/runs`. An S3 that is not Amazon's is named
            by `?endpoint_override=host:port&scheme=http`, or by AWS_ENDPOINT_URL.
        patience: Seconds for which what fails is tried again, with growing pauses.

    Every method raises UserError where the URI is none, or its patience is at an end.
    """

    def __init__(self, uri: str, patience: float = PATIENCE) -> None:
        self.uri = uri
        self._patience = patience
        self._opened: tuple[Any, str] | None = None

    def read(self, name: str) -> bytes | None:
        """Returns what a file holds; None where there is none."""

        def read(system: Any, root: str) -> bytes | None:
            try:
                with system.open_input_file(f"{root}/{name}") as file:
                    return bytes(file.read())
            except FileNotFoundError:
                return None

        return self._persist(read)

    def write(self, name: str, data: bytes) -> None:
        """Writes a file whole or not at all."""

        def write(system: Any, root: str) -> None:
            if system.type_name == "local":
                path = Path(root, name)
                path.parent.mkdir(parents=True, exist_ok=True)
                files.write_bytes(path, data)
            else:
                with system.open_output_stream(f"{root}/{name}") as file:
                    file.write(data)

        self._persist(write)

    def remove(self, name: str) -> None:
        """Removes a file, if it is there."""

        def remove(system: Any, root: str) -> None:
            try:
                system.delete_file(f"{root}/{name}")
            except FileNotFoundError:
                return

        self._persist(remove)

    def names(self, prefix: str = "") -> dict[str, float]:
        """Returns the names of all files in a folder below this one, and in those below it, with their times."""

        def names(system: Any, root: str) -> dict[str, float]:
            from pyarrow import fs

            folder = f"{root}/{prefix}".rstrip("/")
            found = system.get_file_info(fs.FileSelector(folder, allow_not_found=True, recursive=True))
            found = [info for info in found if info.type == fs.FileType.File and not info.base_name.startswith(".")]
            return {info.path.removeprefix(f"{root}/"): info.mtime.timestamp() for info in found}

        return self._persist(names)

    def folders(self) -> list[str]:
        """Returns the names of the folders in this one."""

        def folders(system: Any, root: str) -> list[str]:
            from pyarrow import fs

            found = system.get_file_info(fs.FileSelector(root, allow_not_found=True))
            return [info.base_name for info in found if info.type == fs.FileType.Directory]

        return self._persist(folders)

    def _persist(self, request: Callable[[Any, str], T]) -> T:
        """Returns what a request does, tried again while it fails for reasons that may go away."""
        started, pause = time.monotonic(), 0.5
        while True:
            try:
                self._opened = self._opened or _open(self.uri)
                return request(*self._opened)
            except ValueError as error:  # pyarrow's: no URI, or no such scheme.
                raise self._problem("be a folder, or s3:// or gs:// with a bucket and a folder", error) from error
            except OSError as error:
                lasting = isinstance(error, PermissionError | NotADirectoryError) or _LASTING.search(str(error))
                if lasting or time.monotonic() - started + pause > self._patience:
                    raise self._problem("be a place that can be read and written", error) from error
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, PAUSE)

    def _problem(self, rule: str, error: Exception) -> UserError:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return UserError(f"--storage must {rule}, but got {masked(self.uri)!r}: {masked(reason)}")


def _open(uri: str) -> tuple[Any, str]:
    """Returns pyarrow's file system of a URI, and the path in it."""
    from pyarrow import fs

    if "://" not in uri:
        return fs.LocalFileSystem(), str(Path(uri).absolute())
    system, root = fs.FileSystem.from_uri(uri)
    if system.type_name == "s3":  # Pickling is how pyarrow tells the options that it read from the URI.
        # As it comes, a request to a server that accepts and then says nothing took 288 s to fail; so, 12 s.
        options = {"connect_timeout": 3.0, "request_timeout": 5.0, "allow_delayed_open": True}
        retry = fs.AwsStandardS3RetryStrategy(max_attempts=1)
        system = fs.S3FileSystem(**(system.__reduce__()[1][0] | options), retry_strategy=retry)
    return system, root.rstrip("/")


class Mirror:
    """Sends the files of a folder to a store whenever they change, from a thread of its own.

    A store that fails is tried until it answers; that is said once when it begins, and once when it is over. Files of
    other sessions that are not newer than the stored ones count as sent.

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
        """Waits until everything is sent, or for so many seconds; returns the names of what is not."""
        self._deadline = time.monotonic() + patience
        self._end.set()
        self._thread.join()
        sent = self._sent or {}
        return [name for name, signature in self._files().items() if sent.get(name) != signature]

    def _run(self) -> None:
        n_failures = 0
        while True:
            ended = self._end.is_set()
            try:
                self._send()
                if n_failures:
                    self._note(f"Storage {masked(self._store.uri)} is back, and what was missing is sent.")
                n_failures = 0
            except (UserError, OSError) as error:
                n_failures += 1
                if n_failures == 1:
                    reason = str(error).rpartition("but got ")[2]
                    self._note(f"Storage cannot be reached: {reason}; training goes on, what is missing is sent later.")
            if ended and (not n_failures or time.monotonic() > self._deadline):
                return
            if n_failures:
                time.sleep(min(2.0 ** (n_failures - 1), PAUSE / 2) * random.uniform(0.5, 1.0))
            else:
                self._end.wait(self._every)

    def _send(self) -> None:
        """Sends what has changed."""
        found = self._files()
        if self._sent is None:
            stored = self._store.names(self._part or "trials")
            self._sent = {name: sign for name, sign in found.items() if sign[0] / 1e9 <= stored.get(name, 0.0)}
        # The study before the epochs, so that none which it knows is missing from them; it is sent after them.
        study = _snapshot(self._folder / STUDY) if found.get(STUDY) != self._sent.get(STUDY) else b""
        for name, signature in found.items():
            if self._sent.get(name) == signature:
                continue
            try:
                data = study if name == STUDY else (self._folder / name).read_bytes()
            except FileNotFoundError:
                continue
            self._store.write(name, data)
            self._sent[name] = signature

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
    with closing(sqlite3.connect(path)) as database, closing(sqlite3.connect(":memory:")) as copy:
        database.backup(copy)
        return copy.serialize()


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
