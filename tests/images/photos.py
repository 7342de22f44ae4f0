"""Small labelled images for the tests of reading: arrays that no two of are equal, and folders of them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from tuning.images.reading import Pictures, read
from tuning.images.source import Source

Array = npt.NDArray[Any]


def photo(number: int, height: int = 6, width: int = 5, channels: int = 3) -> Array:
    """Returns an image of noise, uint8 (height, width) or (height, width, channels)."""
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, pixels: Array, **options: Any) -> Path:
    """Writes an image, in the format that its name says or `format`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def class_folders(root: Path, classes: Sequence[str] = ("cat", "dog"), n: int = 3, **options: Any) -> Path:
    """Returns the folder with n PNGs for each class, whose file names go through all classes."""
    for i, name in enumerate(classes):
        for k in range(n):
            number = k * len(classes) + i
            save(root / name / f"{number}.png", photo(number, **options))
    return root


def reading(path: Path | str, **options: Any) -> tuple[Pictures, list[str]]:
    """Returns what is read from a path, and the lines that are said."""
    lines: list[str] = []
    device = options.pop("device", "cpu")
    return read(Source(str(path), **options), device=device, note=lines.append), lines


def same(one: Pictures, other: Pictures) -> bool:
    """Returns whether two data sets have the same images, labels, classes, splits and digests in the same order."""
    names = ("images", "labels", "splits", "digests")
    return one.class_names == other.class_names and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in names
    )
