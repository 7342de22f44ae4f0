"""NumPy's `.npz` with arrays of images and labels, under the names that Keras and MedMNIST use, and their like."""

import contextlib
import io
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from tuning.base.errors import UserError
from tuning.base.files import DAMAGE
from tuning.images.formats.listing import Listing, Note
from tuning.images.formats.streams import Part, Stream, list_parts, texts_of
from tuning.images.source import Source

_LONGEST_HEADER = 1 << 16  # Bytes of an array's header; usual ones have 128.

_IMAGES = ("x", "images", "data", "X")
_LABELS = ("y", "labels", "label", "target", "Y")
# Split -> what stands before the names of its arrays.
_PREFIXES = {"train": ("train",), "valid": ("val", "valid", "validation"), "test": ("test",)}


def claims(path: Path) -> bool:
    """Returns whether the path is an .npz file."""
    return path.suffix.lower() == ".npz" and path.is_file()


def list_images(source: Source, note: Note) -> Listing:
    """Returns the images of x_train, y_train ... (Keras), train_images, train_labels ... (MedMNIST), or x and y.

    Raises:
        UserError: The file is damaged or has none of these names, or images and labels do not go together.
    """
    path = source.path
    try:
        with zipfile.ZipFile(path) as archive:
            keys = [name.removesuffix(".npy") for name in archive.namelist()]
    except DAMAGE as error:
        raise UserError(f"{path} must be a readable .npz file, but got: {error}.") from error
    pairs = _pairs(keys)
    used = {images for images, _ in pairs.values()}
    if alone := [key for key in keys if key in _ALL_IMAGES and key not in used]:
        note(f"Not read of {path}: {', '.join(alone)}. An array of images needs its labels, as x_test needs y_test.")
    if not pairs:
        raise UserError(
            f"{path} must have arrays called x_train and y_train, train_images and train_labels, or x and y, but has "
            f"{', '.join(keys) or 'none'}. Save them under such names."
        )
    parts = [
        Part(images=_stream(path, images), labels=_labels(path, labels, note), split=split, name=images)
        for split, (images, labels) in pairs.items()
    ]
    return list_parts(parts, [path])


def _of_split(word: str) -> tuple[list[str], list[str]]:
    """Returns what the arrays of images and of labels of a split may be called."""
    images = [f"x_{word}", f"X_{word}", f"{word}_images", f"{word}_x", f"images_{word}"]
    return images, [f"y_{word}", f"Y_{word}", f"{word}_labels", f"{word}_y", f"labels_{word}"]


_ALL_IMAGES = {*_IMAGES, *(name for words in _PREFIXES.values() for word in words for name in _of_split(word)[0])}


def _pairs(keys: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Returns split -> names of the arrays with its images and labels.

    Beside those of another split, arrays that name none are those to train on, if no others are.
    """
    found: dict[str, tuple[str, str]] = {}
    for split, prefixes in _PREFIXES.items():
        for word in prefixes:
            images, labels = _of_split(word)
            pair = _first(keys, images), _first(keys, labels)
            if all(pair):
                found.setdefault(split, pair)
    alone = _first(keys, _IMAGES), _first(keys, _LABELS)
    if all(alone) and "train" not in found:
        return {"train" if found else "": alone, **found}
    return found


def _first(keys: Sequence[str], names: Sequence[str]) -> str:
    return next((name for name in names if name in keys), "")


def _stream(path: Path, key: str) -> Stream:
    """Returns an array that is read row by row, however large it is and whether or not it is compressed."""
    try:
        with _opened(path, key) as file:
            start = file.read(_LONGEST_HEADER)
    except DAMAGE as error:
        raise UserError(f"Array {key} of {path} is damaged: {error}. Replace the file.") from error
    head = io.BytesIO(start)
    try:
        version = np.lib.format.read_magic(head)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, fortran, dtype = read(head)
    except DAMAGE as error:
        raise UserError(f"Array {key} of {path} must be one of numbers, but got: {error}.") from error
    if fortran:
        raise UserError(f"Array {key} of {path} is in Fortran order. Save numpy.ascontiguousarray of it.")
    return Stream(
        shape=shape, dtype=dtype, begin=head.tell(), opened=lambda: _opened(path, key), where=f"Array {key} of {path}"
    )


@contextlib.contextmanager
def _opened(path: Path, key: str) -> Iterator[IO[bytes]]:
    with zipfile.ZipFile(path) as archive:
        try:
            file = zipfile.Path(archive, f"{key}.npy").open("rb")
        except RuntimeError as error:  # It is encrypted, or compressed by a method that Python lacks.
            raise UserError(f"Array {key} of {path} cannot be read: {error}. Save it with numpy.savez.") from error
        with file:
            yield file


def _labels(path: Path, key: str, note: Note) -> list[str]:
    """Returns labels as texts: of numbers, of texts, or of rows with a single 1."""
    try:
        with _opened(path, key) as file:
            labels = np.lib.format.read_array(file, allow_pickle=False)
    except DAMAGE as error:
        raise UserError(
            f"Array {key} of {path} must be one of numbers or texts, but got: {error}. Save Python's objects "
            "as texts: numpy.asarray(labels).astype(str)."
        ) from error
    return texts_of(labels, f"Array {key} of {path}", note)
