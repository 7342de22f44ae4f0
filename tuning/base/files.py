"""Files of a run: written whole or not at all, appended to line by line, and read with errors that name them.

What is guaranteed: whoever is killed leaves each file as it was before or after a write; a line that was cut off while
it was appended is removed by the next append and passed over by readers. A power cut may undo the last writes that were
not `durable`. What must never live here: what is in the files.
"""

import contextlib
import csv
import errno
import io
import json
import lzma
import os
import secrets
import shlex
import struct
import sys
import tokenize
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any

from tuning.base.errors import UserError, disk_full

# File systems of other machines, as Linux names them: SQLite's shared memory and some locks do not work across them.
NETWORK_FILE_SYSTEMS = {
    *("9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4"),
    *("orangefs", "panfs", "prl_fs", "smb2", "smb3", "smbfs", "vboxsf", "virtiofs", "vmhgfs", "fuse.vmhgfs-fuse"),
}
# What a damaged archive shows as, or an array in it: whatever zipfile, its decompressors and numpy's reader of headers
# stumble over. A header may say that an array is larger than any memory, a bit that a file is encrypted.
DAMAGE = (
    *(OSError, EOFError, ValueError, KeyError, TypeError, SyntaxError, RuntimeError, MemoryError, OverflowError),
    *(struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)
_NOT_THERE = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}
RESULTS, MODEL_DIR = Path("results"), Path("best_model")  # Where commands write, if nothing else is said.
PACKAGE = Path(__file__).parents[1]  # `tuning`, as it is imported; what a cluster's nodes get.
SPACES = PACKAGE.parent / "search_spaces"


def called(run: Path) -> str:
    """Returns what a command takes for a run folder: its name, or its path where the name leads elsewhere from here."""
    for name in dict.fromkeys([run.name, run.resolve().name]):
        if name and (RESULTS / name).exists() and (RESULTS / name).samefile(run):
            return name
    return str(run)


def quoted(run: Path) -> str:
    """Returns the same as a shell reads it, for a command that a person may copy."""
    return as_typed(called(run))


def as_typed(path: Path | str) -> str:
    """Returns a path as a shell reads it, for a command that a person may copy."""
    return shlex.quote(str(path))


def space_names() -> list[str]:
    """Returns the names of the search spaces that come with the project."""
    return sorted(path.stem for path in SPACES.glob("*.py") if not path.stem.startswith("_"))


def make_folder(path: Path, *, exist_ok: bool = False) -> None:
    """Makes a folder; raises UserError where that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=exist_ok)
    except OSError as error:
        raise (disk_full(path, error) or UserError(f"{path} must be a folder that can be made: {error}.")) from error


def write_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Writes a file whole or not at all; raises UserError where the disk is full."""
    write_bytes(path, text.encode(errors="backslashreplace"), durable=durable)  # A file's name may be no UTF-8.


def write_bytes(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Writes a file whole or not at all, through a temporary one beside it; raises UserError where the disk is full.

    What is no regular file is written to as it is, and so is this process's own output: /dev/stdout, or by its name.

    Args:
        path: The file; where it is a link, what it leads to is replaced.
        content: All of it.
        durable: Wait until the disk has it, so that it survives a power cut, too (some milliseconds).
    """
    try:
        if path.exists() and ((descriptor := _descriptor(path)) is not None or not path.is_file()):
            for printed in filter(None, (sys.stdout, sys.stderr)):
                with contextlib.suppress(ValueError):  # It has been closed.
                    printed.flush()  # It comes first.
            with open(path if descriptor is None else descriptor, "wb", closefd=descriptor is None) as stream:
                stream.write(content)
            return
        path = path.resolve() if path.is_symlink() else path
        temporary = beside(path)
        try:
            with create(temporary) as file:
                write(file, content)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            replace(str(temporary), path)
        except BaseException:  # An interrupt, too, must leave nothing hidden.
            temporary.unlink(missing_ok=True)
            raise
        if durable:
            sync(path.parent)
    except OSError as error:
        raise (disk_full(path, error) or error) from error


def _descriptor(path: Path) -> int | None:
    """Returns what this process has open as /dev/fd/<number>, or as its standard output or error; None for others."""
    if os.path.realpath(path.parent) in ("/dev/fd", f"/proc/{os.getpid()}/fd") and path.name.isdigit():
        return int(path.name)
    for descriptor in (1, 2):
        with contextlib.suppress(OSError):
            if os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
    return None


def beside(path: Path) -> Path:
    """Returns a new hidden name beside a file."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}")


def create(path: Path, buffering: int = -1) -> IO[bytes]:
    """Opens a file that must be new, with the permissions that the umask allows; `tempfile`'s are the user's alone."""
    return path.open("xb", buffering)


def write_json(path: Path, value: Any, *, durable: bool = False) -> None:
    """Writes indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n", durable=durable)


def read_json(path: Path) -> dict[str, Any]:
    """Returns a JSON object from a file; raises UserError where it is missing or damaged."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} must be a readable JSON file, but got: {error}.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold a JSON object, but got {type(value).__name__}.")
    return value


def write_rows(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a CSV file whole or not at all; values that a row lacks are left empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def append_row(path: Path, columns: Iterable[str], row: Mapping[str, Any]) -> None:
    """Adds a line to a CSV file, after a header where it is new; a full disk raises UserError.

    A last line that is not whole, because its writer was killed or the disk was full, is removed first.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), extrasaction="ignore", lineterminator="\n")
    try:
        with path.open("a+b") as file:
            if _cut_torn_line(file) == 0:
                writer.writeheader()
            writer.writerow(row)
            write(file, text.getvalue().encode(errors="backslashreplace"))
    except OSError as error:
        raise (disk_full(path, error) or error) from error


def append_line(path: Path, line: str) -> None:
    """Adds a line to a log and waits until the disk has it; a full disk raises UserError.

    A last line that is not whole stays, on a line of its own: a log may be evidence.
    """
    try:
        with path.open("a+b") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            torn = end > 0 and file.read(1) != b"\n"
            write(file, f"{chr(10) if torn else ''}{line}\n".encode(errors="backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise (disk_full(path, error) or error) from error


def whole_lines(path: Path) -> str:
    """Returns the text of a file that is appended to, up to its last whole line; "" where there is none."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    return text[: text.rfind("\n") + 1]


def sync(path: Path) -> None:
    """Waits until the disk has a file, or the names in a folder; does nothing where there is none or that cannot be."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Not every file system can, least of all for the names in a folder.
        if not path.is_dir() and error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EROFS, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def on_network(path: Path) -> bool:
    """Returns whether a folder is on a file system of another machine, as far as Linux says; elsewhere False."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    place, kind, longest = str(path.resolve()), "", -1
    for line in mounts:
        before, _, after = line.partition(" - ")
        point = before.split(" ")[4].replace("\\040", " ").replace("\\011", "\t").replace("\\134", "\\")
        holds = place == point or place.startswith(point.rstrip("/") + "/")
        if holds and len(point) >= longest:  # Of two mounts on one point the later one is seen.
            kind, longest = after.split(" ")[0], len(point)
    return kind in NETWORK_FILE_SYSTEMS


def write(file: IO[bytes], content: bytes) -> None:
    """Writes bytes into an open file: the one place where this module does."""
    file.write(content)


def replace(temporary: str, path: Path) -> None:
    """Gives a whole file its name: the one place where this module does."""
    os.replace(temporary, path)


def _cut_torn_line(file: IO[bytes]) -> int:
    """Cuts a last line without an end off a file that is open for appending; returns the bytes that are left."""
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 1))
    if end == 0 or file.read(1) == b"\n":
        return end
    file.seek(0)
    whole = file.read().rfind(b"\n") + 1
    file.truncate(whole)
    return whole


def cache_dir(name: str) -> Path:
    """Returns the user's folder for the data set: in $TUNING_CACHE, $XDG_CACHE_HOME/tuning or ~/.cache/tuning."""
    parent = os.environ.get("TUNING_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "tuning")
    return with_home(parent) / name


def expanded(path: Path | str) -> Path:
    """Returns a path that a user gave, with their folder in the place of "~".

    Raises:
        UserError: It begins with "~" and the name of a user whom there is not; or whether something is there cannot be
            found out, as the name is too long or a folder may not be searched.
    """
    found = with_home(path)
    try:
        os.stat(os.path.join(found, "."))  # Of a folder: whether it may be searched.
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise UserError(f"{str(path)!r} cannot be looked at: {error.strerror}. Check the path.") from error
    except ValueError as error:  # A byte 0 in it.
        raise UserError(f"{str(path)!r} cannot be looked at: {error}. Check the path.") from error
    return found


def with_home(path: Path | str) -> Path:
    """Returns a path with the user's folder in the place of "~"; raises UserError where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(
            f"{path} begins with the folder of a user, which cannot be found. Write the whole path."
        ) from error
