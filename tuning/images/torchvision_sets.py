"""Named data sets that classes of `torchvision.datasets` read: archives with torchvision's checksums become arrays.

An archive is looked for in `--data-dir` and in the cache, else downloaded. It is unpacked into the cache, whole or not
at all. What must never live here: URLs, checksums and file formats, which torchvision knows; and splits.
"""

import errno
import fnmatch
import gzip
import os
import shutil
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tuning.base.downloads import SourceError, download_into
from tuning.base.errors import DISK_FULL, UserError, disk_full
from tuning.base.files import cache_dir
from tuning.images.catalogue import TorchvisionSet

# What torchvision's classes raise on files that are not there, cut or of another kind; a few check with `assert`.
UNREADABLE = (OSError, RuntimeError, ValueError, TypeError, LookupError, AssertionError, EOFError)

Arrays = tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Archive:
    """A file that torchvision knows.

    Attributes:
        name: Of the file.
        urls: Where it may be had, in the order in which they are asked.
        md5: Its checksum.
    """

    name: str
    urls: tuple[str, ...]
    md5: str


def load(name: str, files: TorchvisionSet, n_classes: int, part: str, data_dir: Path | None = None) -> Arrays:
    """Returns the images of a data set, uint8 (N, C, H, W), and their labels, int64 (N,), in [0, n_classes).

    Args:
        name: Of the data set, in `DATASETS`.
        files: The class of torchvision.
        n_classes: At least 2.
        part: "train" or "test".
        data_dir: A folder with torchvision's archives, or with what torchvision has unpacked. It is asked first.

    Raises:
        UserError: No source has the files undamaged, or the cache cannot be written to.
    """
    if data_dir is not None and not data_dir.is_dir():
        raise UserError(f"--data-dir must be a folder, but got {str(data_dir)!r}. Leave it out to look elsewhere.")
    reader, cache = Reader(name, files, n_classes), cache_dir(name)
    unpacked = cache / "unpacked"
    for source, root in (("--data-dir", data_dir), ("cache", unpacked)):
        if root is None or not root.is_dir():
            continue
        try:
            return reader.read(root, part)
        except UNREADABLE as error:
            if root == unpacked or not reader.has_archives(root):
                said = str(error).partition(". You can use download")[0] or type(error).__name__
                print(f"{source} {root} has no undamaged {name} ({said}); looking elsewhere.", file=sys.stderr)
    try:
        shutil.rmtree(unpacked, ignore_errors=True)  # It is damaged, if it is there.
        reader.unpack(unpacked, data_dir)
        return reader.read(unpacked, part)
    except UNREADABLE as error:
        full = isinstance(error, OSError) and disk_full(cache, error)
        said = f"{DISK_FULL} while writing {cache}" if full else f"{cache} cannot be used: {error}"
        raise UserError(
            f"Data set {name} cannot be unpacked. {said}. Free some space, or set TUNING_CACHE to a folder elsewhere. "
            f"Or put torchvision's files, unpacked by torchvision.datasets.{files.name}, into a folder and pass it as "
            "--data-dir."
        ) from error


@dataclass(frozen=True)
class Reader:
    """A class of torchvision for a data set, with what it does not say of itself."""

    name: str
    files: TorchvisionSet
    n_classes: int

    @property
    def kind(self) -> Any:
        """The class."""
        from torchvision import datasets

        return getattr(datasets, self.files.name)

    @property
    def archives(self) -> Sequence[Archive]:
        """Its archives, all of both parts."""
        kind = self.kind
        if hasattr(kind, "split_list"):  # SVHN
            listed = (kind.split_list[part] for part in ("train", "test"))
            return [Archive(name, (url,), md5) for url, name, md5 in listed]
        if hasattr(kind, "url"):  # CIFAR and EMNIST
            md5 = kind.tgz_md5 if hasattr(kind, "tgz_md5") else kind.md5
            return [Archive(kind.url.rpartition("/")[2], (kind.url,), md5)]
        return [Archive(name, tuple(f"{each}{name}" for each in kind.mirrors), md5) for name, md5 in kind.resources]

    def kept_in(self, root: Path) -> Path:
        """Returns the folder below its root in which the class keeps archives."""
        from torchvision.datasets import MNIST

        return root / self.kind.__name__ / "raw" if issubclass(self.kind, MNIST) else root

    def has_archives(self, root: Path) -> bool:
        """Returns whether all archives lie in a folder, where a person or where torchvision puts them."""
        return all((root / each.name).is_file() or (self.kept_in(root) / each.name).is_file() for each in self.archives)

    def read(self, root: Path, part: str) -> Arrays:
        """Returns what the class reads below its root; nothing is downloaded.

        Raises:
            Exception: One of `UNREADABLE`.
        """
        with warnings.catch_warnings():  # Of numpy, on the pickles of CIFAR, which are of 2009.
            warnings.simplefilter("ignore")
            found = self.kind(str(root), **getattr(self.files, part))
        images, labels = (
            np.asarray(found.data),
            np.asarray(found.targets if hasattr(found, "targets") else found.labels),
        )
        if images.ndim == 3:
            images = images[:, None]
        elif images.shape[1] != 3:
            images = images.transpose(0, 3, 1, 2)
        if self.files.is_transposed:
            images = images.swapaxes(2, 3)
        if len(images) != len(labels) or labels.max(initial=0) >= self.n_classes:
            raise ValueError(f"{len(images)} images have {len(labels)} labels, the greatest {labels.max(initial=0)}")
        return np.ascontiguousarray(images), labels.astype(np.int64)

    def unpack(self, target: Path, data_dir: Path | None) -> None:
        """Puts what the archives hold into a folder, the class's root, whole or not at all.

        Raises:
            UserError: An archive cannot be had.
            OSError: The disk is full, or the folder cannot be written to.
        """
        cache = target.parent
        cache.mkdir(parents=True, exist_ok=True)
        folders = [cache] if data_dir is None else [data_dir, cache]
        paths = [self._find(archive, folders) for archive in self.archives]
        with tempfile.TemporaryDirectory(dir=cache, prefix=".unpacking-") as staging:
            root = Path(staging, "root")
            kept_in = self.kept_in(root)
            kept_in.mkdir(parents=True)
            if self.files.members:
                for path in paths:
                    _unzip(path, self.files.members, kept_in)
            else:
                for path in paths:
                    _link(path, kept_in / path.name)
                for arguments in (self.files.train, self.files.test):
                    self.kind(str(root), download=True, **arguments)  # Finds the archives, and unpacks them.
            try:
                root.rename(target)
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # Else another process was quicker.
                    raise
        for path in paths:
            if path.parent == cache:
                path.unlink(missing_ok=True)

    def _find(self, archive: Archive, folders: Sequence[Path]) -> Path:
        """Returns where an archive is; it is downloaded into the last of the folders where it is in none."""
        from torchvision.datasets.utils import check_integrity

        expected = f"the MD5 must be {archive.md5}, which torchvision knows, but is another"
        reasons = [f"{folder}: has no undamaged {archive.name}" for folder in folders]
        for path in (place / archive.name for folder in folders for place in (folder, self.kept_in(folder))):
            if check_integrity(path, archive.md5):
                return path
            if path.is_file():
                print(f"warning: {path}: {expected}. Passed over.", file=sys.stderr)
        cache = folders[-1]
        for url in archive.urls:
            with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as staging:
                part = Path(staging, archive.name)
                try:
                    with part.open("wb") as file:
                        download_into(url, file)
                    if not check_integrity(part, archive.md5):
                        raise SourceError(f"{expected} ({part.stat().st_size:,} bytes)")
                    return part.replace(cache / archive.name)
                except SourceError as error:
                    if isinstance(error.__cause__, OSError) and disk_full(cache, error.__cause__):
                        raise error.__cause__ from None
                    reasons.append(f"{url}: {error}")
        listed = "".join(f"  {reason}\n" for reason in reasons)
        raise UserError(
            f"Data set {self.name} must be in a folder or downloadable, but no source has {archive.name}:\n{listed}"
            f"Put torchvision's files ({', '.join(each.name for each in self.archives)}) into a folder and pass it as "
            "--data-dir."
        )


def _link(path: Path, place: Path) -> None:
    """Puts a file into another place as well, with its space where the disk is the same."""
    try:
        os.link(path, place)
    except OSError:
        shutil.copyfile(path, place)


def _unzip(path: Path, pattern: str, folder: Path) -> None:
    """Unpacks the gzipped members of a zip whose names fit: EMNIST's has 24, of 1.8 GB, of which four are read."""
    with zipfile.ZipFile(path) as archive:
        for member in fnmatch.filter(archive.namelist(), f"*{pattern}"):
            place = folder / member.rpartition("/")[2].removesuffix(".gz")
            place.write_bytes(gzip.decompress(archive.read(member)))
