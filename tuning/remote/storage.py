"""A place that outlives the machine: files in `s3://bucket/runs`, `gs://bucket/runs` or a shared folder.

Here is how a file gets there and back, whole, and what is tried again; never which files, and when: see `mirror`.
"""

import os
import random
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from tuning.base import files
from tuning.base.errors import UserError
from tuning.base.masking import masked

if TYPE_CHECKING:
    from pyarrow import fs

T = TypeVar("T")

PATIENCE, PAUSE = 10.0, 8.0  # Seconds: for which a failing request is tried again, and between two tries at most.
META = "meta.json"
_FILE = ("file:///", "file://localhost/")
# What does not go away by itself, as pyarrow says it of S3 and of Google's storage.
_LASTING = re.compile(
    "NO_SUCH_BUCKET|ACCESS_DENIED|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|PERMISSION_DENIED|UNAUTHENTICATED"
)


def absolute(uri: str) -> str:
    """Returns a URI; that of a folder of this machine as its absolute path, so that a storage has one name."""
    if uri.startswith(_FILE):
        uri = unquote(f"/{uri.removeprefix('file://').partition('/')[2]}")
    return uri if "://" in uri else str(files.expanded(uri).absolute())


def joined(base: str, name: str) -> str:
    """Returns the URI of a run (or a file) below a URI; what follows a "?" stays at the end."""
    place, query = _parts(base)
    return f"{place}/{name}{query}"


def split(uri: str) -> tuple[str, str]:
    """Returns the URI of a storage and the name of a run, from the run's URI; raises UserError where it names none."""
    place, query = _parts(uri)
    base, _, name = place.rpartition("/")
    if "://" in absolute(uri) and "/" not in place.partition("://")[2]:
        raise UserError(f"A run in a storage must be named as STORAGE/RUN, but got {masked(uri)!r}.")
    return f"{base or '/'}{query}", name


def _parts(uri: str) -> tuple[str, str]:
    """Returns a URI up to its "?", and the rest; in the path of a folder "?" is a letter like any other."""
    uri = absolute(uri)
    place, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    return place.rstrip("/"), f"{mark}{query}"


def is_at(base: str, path: Path) -> bool:
    """Returns whether a run folder is itself the stored one, in a storage that is a folder of this machine."""
    return is_folder(base, path.resolve().parent) and path.exists()


def is_folder(uri: str, path: Path) -> bool:
    """Returns whether a URI leads to a folder of this machine, whatever its name there."""
    place = Path(absolute(uri))
    return "://" not in absolute(uri) and place.is_dir() and path.exists() and place.samefile(path)


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
    uri = absolute(uri)
    if "://" not in uri and not Path(uri).is_dir():
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
        self.uri = absolute(uri)
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
                Path(root).mkdir(exist_ok=True)  # The storage itself must be there: else it is not mounted.
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

    def infos(self, prefix: str = "") -> dict[str, "fs.FileInfo"]:
        """Returns all files in a folder below this one, and in those below it: name -> what pyarrow tells of it."""

        def infos(system: Any, root: str) -> dict[str, "fs.FileInfo"]:
            from pyarrow import fs

            folder = f"{root}/{prefix}".rstrip("/")
            found = system.get_file_info(fs.FileSelector(folder, allow_not_found=True, recursive=True))
            whole = [info for info in found if info.type == fs.FileType.File and not info.base_name.startswith(".")]
            return {info.path.removeprefix(f"{root}/"): info for info in whole}

        return self._persist(infos)

    def runs(self) -> dict[str, float]:
        """Returns the names of the runs in this folder, with the times of their `meta.json`."""
        return {name: time for name, time in self._folders().items() if time is not None}

    def taken(self) -> set[str]:
        """Returns the names that no new run may have: those of runs, and of folders that this user may not enter."""
        return set(self._folders())

    def _folders(self) -> dict[str, float | None]:
        """Returns the names of the runs as `runs` does, and None for a folder that this user may not enter."""

        def folders(system: Any, root: str) -> dict[str, float | None]:
            from pyarrow import fs

            found = system.get_file_info(fs.FileSelector(root, allow_not_found=True))
            names = [info.base_name for info in found if info.type == fs.FileType.Directory]
            infos = _infos(system, [f"{root}/{name}/{META}" for name in names])
            return {
                name: None if info is None else info.mtime.timestamp()
                for name, info in zip(names, infos, strict=True)
                if info is None or info.mtime
            }

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
                if _lasts(error) or time.monotonic() - started + pause > self._patience:
                    raise self._problem("be a place that can be read and written", error) from error
            time.sleep(pause * random.uniform(0.5, 1.0))
            pause = min(2 * pause, PAUSE)

    def _problem(self, rule: str, error: Exception) -> UserError:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return UserError(f"--storage must {rule}, but got {masked(self.uri)!r}: {masked(reason)}")


def _lasts(error: OSError) -> bool:
    """Returns whether what failed will not go away by itself."""
    return isinstance(error, PermissionError | NotADirectoryError) or bool(_LASTING.search(str(error)))


def _infos(system: Any, paths: Sequence[str]) -> list["fs.FileInfo | None"]:
    """Returns what pyarrow tells of each file; None where this user may not ask."""
    try:
        return list(system.get_file_info(paths))
    except OSError as error:  # One that may not be asked for fails all.
        if not _lasts(error):
            raise
        if len(paths) == 1:
            return [None]
        return [info for path in paths for info in _infos(system, [path])]


def _open(uri: str) -> tuple[Any, str]:
    """Returns pyarrow's file system of a URI, and the path in it."""
    from pyarrow import fs

    if "://" not in uri:
        return fs.LocalFileSystem(), uri
    system, root = fs.FileSystem.from_uri(uri)
    if system.type_name == "s3":
        # As it comes, a request to a server that accepts and then says nothing took 288 s to fail; so, 12 s. `from_uri`
        # takes no such options, so what it has read (and checked) is read again.
        url = urlsplit(uri)
        query = dict(parse_qsl(url.query))
        environment = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        system = fs.S3FileSystem(
            access_key=None if url.username is None else unquote(url.username),
            secret_key=None if url.password is None else unquote(url.password),
            region=system.region,
            scheme=query.get("scheme"),
            endpoint_override=query.get("endpoint_override", environment),
            tls_ca_file_path=query.get("tls_ca_file_path"),
            connect_timeout=3.0,
            request_timeout=5.0,
            allow_delayed_open=True,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=1),
        )
    return system, root.rstrip("/")
