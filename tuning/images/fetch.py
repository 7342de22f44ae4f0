"""Where a data set's files come from: a folder, the cache, the system, a mirror or a Debian package; always verified.

What a file holds is checked against the SHA-256 of its uncompressed content, as gzipped files differ from mirror to
mirror. Nothing here needs root, knows what an image is, or imports torch.
"""

import gzip
import hashlib
import math
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tuning.base.downloads import CONNECT_SECONDS, SourceError, download
from tuning.base.errors import UserError
from tuning.base.files import cache_dir, write_bytes
from tuning.images.catalogue import FileSet

COMMAND_SECONDS = 300.0

Contents = Iterator[tuple[str, bytes]]


def read_files(files: FileSet, names: Sequence[str], data_dir: Path | None = None) -> dict[str, bytes]:
    """Returns the verified, uncompressed content of each named file.

    Asks `data_dir` (files plain or .gz), the cache, the system's folder, the mirrors and the Debian package, in this
    order, each for what is still missing. What came over the network is kept in the cache.

    Raises:
        UserError: A file in `data_dir` is damaged, no source has a file, or the disk is full.
    """
    found: dict[str, bytes] = {}
    missing, reasons = list(names), ""
    for source, read in _sources(files, data_dir):
        try:
            for name, content in read(missing):
                found[name] = content
            reason = f"has no undamaged {', '.join(name for name in missing if name not in found)}"
        except SourceError as error:
            reason = str(error)
        missing = [name for name in names if name not in found]
        if not missing:
            return {name: found[name] for name in names}
        reasons += f"  {source}: {reason}\n"
        if source.startswith("--data-dir"):
            print(f"{source} {reason}; looking elsewhere.", file=sys.stderr)
    raise UserError(
        f"Data set {files.name} must be in a folder or downloadable, but no source has {', '.join(missing)}:\n{reasons}"
        f"Put {', '.join(files.sha256)} (each plain or .gz) into a folder and pass it as --data-dir."
    )


def parse_idx(content: bytes, name: str) -> npt.NDArray[np.uint8]:
    """Returns the read-only uint8 array in a file of the IDX format: (N,) for labels, (N, H, W) for images.

    Raises:
        UserError: The header is not that of unsigned bytes, or the length is not what the header promises.
    """
    n_dimensions = content[3] if len(content) >= 4 else 0
    header = 4 + 4 * n_dimensions
    if content[:3] != b"\x00\x00\x08" or n_dimensions == 0 or len(content) < header:
        raise UserError(f"{name} must begin with an IDX header of unsigned bytes (00 00 08), but got {content[:4]!r}.")
    shape = tuple(int(size) for size in np.frombuffer(content, ">u4", n_dimensions, offset=4))
    if len(content) - header != math.prod(shape):
        sizes = " x ".join(map(str, shape))
        raise UserError(f"{name} must hold {sizes} bytes after its header, but got {len(content) - header}.")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _sources(files: FileSet, data_dir: Path | None) -> Iterator[tuple[str, Callable[[Sequence[str]], Contents]]]:
    if data_dir is not None:
        if not data_dir.is_dir():
            raise UserError(f"--data-dir must be a folder, but got {str(data_dir)!r}. Leave it out to look elsewhere.")
        yield f"--data-dir {data_dir}", partial(_from_folder, files, data_dir, strict=True)
    cache = cache_dir(files.name)
    yield f"cache {cache}", partial(_from_folder, files, cache)
    if files.system_dir is not None:
        yield f"system {files.system_dir}", partial(_from_folder, files, files.system_dir)
    for mirror in files.mirrors:
        yield f"mirror {mirror}", partial(_from_mirror, files, mirror)
    if files.debian_package is not None:
        yield f"Debian package {files.debian_package}", partial(_from_debian, files, files.debian_package)


def _from_folder(files: FileSet, folder: Path, names: Sequence[str], *, strict: bool = False) -> Contents:
    """Yields what the folder holds; a damaged file is an error if `strict`, else it is said and passed over."""
    for name in names:
        for path in (folder / name, folder / f"{name}.gz"):
            try:
                if not path.is_file():
                    continue
                content = _verify(str(path), path.read_bytes(), files.sha256[name])
            except (OSError, SourceError) as error:
                if strict:
                    raise UserError(f"{error}. Replace the file, or leave --data-dir out.") from error
                print(f"warning: {error}. Passed over.", file=sys.stderr)
            else:
                yield name, content
                break


def _from_mirror(files: FileSet, mirror: str, names: Sequence[str]) -> Contents:
    for name in names:
        url = f"{mirror}{name}.gz"
        try:
            raw = download(url)
        except SourceError as error:
            raise SourceError(f"{name}.gz: {error}") from error
        content = _verify(url, raw, files.sha256[name])
        _keep(files, f"{name}.gz", raw)
        yield name, content


def _from_debian(files: FileSet, package: str, names: Sequence[str]) -> Contents:
    """Yields the files of a Debian package; apt-get gets a state and a cache folder of its own, so needs no root."""
    absent = [command for command in ("apt-get", "dpkg-deb") if shutil.which(command) is None]
    if absent:
        raise SourceError(f"{' and '.join(absent)} not installed")
    print(f"Fetching the Debian package {package} with apt-get (no root needed) ...", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="tuning-") as folder:
        Path(folder, "lists/partial").mkdir(parents=True)
        Path(folder, "archives/partial").mkdir(parents=True)
        # As root, apt-get would drop its rights to a user who may not enter our folder; the sandbox option keeps them.
        options = (
            f"Dir::State={folder} Dir::State::lists={folder}/lists Dir::State::status=/var/lib/dpkg/status "
            f"Dir::Cache={folder} APT::Sandbox::User=root Acquire::Languages=none "
            f"Acquire::http::Timeout={CONNECT_SECONDS:.0f} Acquire::https::Timeout={CONNECT_SECONDS:.0f}"
        )
        apt = ["apt-get", "-q", *(word for option in options.split() for word in ("-o", option))]
        _run([*apt, "update"], folder)
        _run([*apt, "download", package], folder)
        for archive in Path(folder).glob("*.deb"):
            _run(["dpkg-deb", "-x", archive.name, "unpacked"], folder)
        for path in Path(folder, "unpacked").rglob("*"):
            if (name := path.name.removesuffix(".gz")) in files.sha256:
                raw = path.read_bytes()
                content = _verify(path.name, raw, files.sha256[name])
                _keep(files, path.name, raw)
                yield name, content


def _run(command: Sequence[str], folder: str) -> None:
    """Runs a command in the folder; its first error line becomes the reason if it fails."""
    try:
        done = subprocess.run(command, cwd=folder, timeout=COMMAND_SECONDS, capture_output=True)
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"{command[0]} took more than {COMMAND_SECONDS:g} s") from error
    if done.returncode != 0:
        lines = done.stderr.decode(errors="replace").splitlines() or ["no message"]
        said = next((line for line in lines if line.startswith("E:")), lines[-1])
        raise SourceError(f"{command[0]} failed with exit code {done.returncode}: {said}")


def _verify(source: str, raw: bytes, sha256: str) -> bytes:
    """Returns the uncompressed content of `raw`, if it is the one that the hash names."""
    content = raw
    if source.endswith(".gz"):
        try:
            content = gzip.decompress(raw)
        except (OSError, EOFError, zlib.error) as error:
            raise SourceError(f"{source} must be a whole gzip file, but got: {error}") from error
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise SourceError(f"{source} must have the SHA-256 {sha256} (uncompressed), but got {found}")
    return content


def _keep(files: FileSet, file_name: str, raw: bytes) -> None:
    """Puts a verified file into the cache, whole or not at all."""
    path = cache_dir(files.name) / file_name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, raw)
        if path.suffix == ".gz":  # A plain file of that name was found to be damaged, and would be read first.
            path.with_suffix("").unlink(missing_ok=True)
    except OSError as error:
        print(f"warning: cannot keep {path} ({error.strerror}). Set TUNING_CACHE to another folder.", file=sys.stderr)
