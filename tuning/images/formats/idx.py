"""IDX files of images and labels, as MNIST has them, gzipped or not."""

import contextlib
import gzip
import re
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, cast

import numpy as np

from tuning.base.errors import UserError
from tuning.base.files import as_typed
from tuning.images.formats.listing import SPLIT_NAMES, SPLIT_ORDER, Listing, Note, split_of
from tuning.images.formats.streams import Part, Stream, list_parts, texts_of
from tuning.images.formats.walking import IMAGE_SUFFIXES, is_hidden
from tuning.images.source import Source

# The third byte of a file -> what its numbers are.
_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}


def claims(path: Path) -> bool:
    """Returns whether the path is an IDX file of images, or a folder with one."""
    if path.is_dir():
        return any(True for _ in _image_files(path))
    return path.is_file() and _dimensions(path) >= 3


def list_images(source: Source, note: Note) -> Listing:
    """Returns the images of the files in the order train, valid, test, which follows from the files' names.

    A file of images is read with the others that differ from it in the split alone. Its labels are in the file that is
    called like it, with "labels" for "images".

    Raises:
        UserError: There is no file of labels, a file is damaged, or a folder has several sets.
    """
    path = source.path
    if path.is_file() and "images" not in path.name:
        raise UserError(
            f'{path} must have "images" in its name, as train-images-idx3-ubyte has, and its labels beside it in a '
            'file that is called alike with "labels". Rename both.'
        )
    files = list(_image_files(path if path.is_dir() else path.parent))
    families = {_family(file): file for file in files}
    if path.is_file():
        files = [file for file in files if _family(file) == _family(path)]
    elif len(families) > 1:
        several = " or ".join(as_typed(file) for file in families.values())
        raise UserError(f"{path} has several sets of IDX files. Choose one: --dataset {several}.")
    by_split: dict[str, Path] = {}
    for file in sorted(files, key=lambda file: file.suffix == ".gz"):  # Plain ones first.
        by_split.setdefault(split_of(file.name), file)
    parts, used = [], []
    for split in sorted(by_split, key=SPLIT_ORDER.index):
        images = by_split[split]
        labels = _labels_of(images)
        used += [images, labels]
        shape, dtype, begin = _header(images)
        stream = Stream(shape=shape, dtype=dtype, begin=begin, opened=partial(_opened, images), where=str(images))
        parts.append(
            Part(images=stream, labels=_read_labels(labels, note), split=split, name=images.name.removesuffix(".gz"))
        )
    if len(parts) == 1:  # A file of train images alone is split like any other set.
        parts = [Part(images=parts[0].images, labels=parts[0].labels, split="", name=parts[0].name)]
    return list_parts(parts, used)


def _image_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        named = "images" in path.name and not is_hidden(path.name) and path.suffix.lower() not in IMAGE_SUFFIXES
        if named and path.is_file() and _dimensions(path) >= 3:
            yield path


def _family(path: Path) -> str:
    """Returns a file's name without what differs between the files of a set."""
    words = re.split(r"([^a-z0-9]+)", path.name.lower().removesuffix(".gz"))
    return "".join(word for word in words if word not in SPLIT_NAMES)


def _labels_of(images: Path) -> Path:
    """Returns the file with the labels of a file of images: its name differs in "labels" and the dimensions."""
    name = images.name.removesuffix(".gz").replace("images", "labels")
    stem = re.sub(r"idx\d.*", "idx", name)
    for path in sorted(images.parent.iterdir(), key=lambda path: path.suffix == ".gz"):
        if re.sub(r"idx\d.*", "idx", path.name.removesuffix(".gz")) == stem and path.is_file():
            return path
    raise UserError(f"{images} needs its labels in a file called {re.sub('idx[34]', 'idx1', name)} beside it.")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file, decompressed where its content, not its name, says that it is gzipped."""
    with path.open("rb") as raw:
        is_zipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if is_zipped:
            with gzip.GzipFile(fileobj=raw) as file:
                yield cast(IO[bytes], file)
        else:
            yield raw


def _start(path: Path) -> bytes:
    """Returns the first bytes of a file, decompressed; none where it cannot be read."""
    try:
        with _opened(path) as file:
            start = file.read(4)
            return start + file.read(4 * start[3]) if len(start) == 4 else start  # No more: it may be cut.
    except (OSError, EOFError, zlib.error):
        return b""


def _dimensions(path: Path) -> int:
    """Returns how many dimensions an IDX file has; 0 where the file is none."""
    start = _start(path)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in _TYPES or len(start) < 4 + 4 * start[3]:
        return 0
    return start[3]


def _header(path: Path) -> tuple[tuple[int, ...], np.dtype[np.generic], int]:
    """Returns the shape, the kind of number and the bytes of the header."""
    n = _dimensions(path)
    if not n:
        raise UserError(f"{path} must be an IDX file, but its beginning is not that of one. Replace it.")
    start = _start(path)
    shape = tuple(int(size) for size in np.frombuffer(start, ">u4", n, offset=4))
    return shape, np.dtype(_TYPES[start[2]]), 4 + 4 * n


def _read_labels(path: Path, note: Note) -> list[str]:
    shape, dtype, begin = _header(path)
    try:
        with _opened(path) as file:
            content = file.read()[begin:]
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is damaged: {error}. Replace it.") from error
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    if len(content) != n_bytes:
        raise UserError(f"{path} must hold {n_bytes:,} bytes after its header, but has {len(content):,}. Replace it.")
    return texts_of(np.frombuffer(content, dtype).reshape(shape), str(path), note)
