"""How a data set of `DATASETS` becomes arrays."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tuning.base.errors import UserError
from tuning.images.catalogue import DATASETS, Dataset
from tuning.images.fetch import parse_idx, read_files


@dataclass(frozen=True)
class Labelled:
    """Images uint8 (N, C, H, W) in [0, 255] and their labels int64 (N,) in [0, n_classes)."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.labels)


@dataclass(frozen=True)
class HashedTest:
    """What may be known of the test split outside `tuning.final`: no image of it, and no image's label.

    Attributes:
        digests: One a test image, as `image_digests` gives them.
        counts: Images per class, (n_classes,).
        shape: Of the images, (N, C, H, W).
        value_range: Least and greatest pixel.
    """

    digests: npt.NDArray[np.bytes_]
    counts: npt.NDArray[np.int64]
    shape: tuple[int, ...]
    value_range: tuple[int, int]


def load_train(dataset: str, data_dir: Path | None = None) -> Labelled:
    """Returns all training images of the data set, before they are split.

    Raises:
        UserError: The files cannot be had, or are damaged, or images and labels differ in number.
    """
    found = DATASETS.find(dataset)
    return _load(found, found.train, data_dir)


def load_test(dataset: str, data_dir: Path | None = None) -> Labelled:
    """Returns the test images. For `tuning.final` alone, which logs each time that it calls this."""
    found = DATASETS.find(dataset)
    return _load(found, found.test, data_dir)


def hash_test(dataset: str, data_dir: Path | None = None) -> HashedTest:
    """Returns what may be known of the test split without opening it: a digest an image, and counts."""
    found = DATASETS.find(dataset)
    test = _load(found, found.test, data_dir)
    return HashedTest(
        digests=image_digests(test.images),
        counts=np.bincount(test.labels, minlength=len(found.class_names)),
        shape=test.images.shape,
        value_range=(int(test.images.min()), int(test.images.max())),
    )


def image_digests(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.bytes_]:
    """Returns a 16-byte BLAKE2 digest (as hexadecimal text) for each image; equal for equal images."""
    return np.array([hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest().encode() for image in images])


def _load(dataset: Dataset, names: tuple[str, str], data_dir: Path | None) -> Labelled:
    contents = read_files(dataset.files, names, data_dir)
    images, labels = (parse_idx(contents[name], name) for name in names)
    if len(images) != len(labels):
        raise UserError(
            f"{names[0]} and {names[1]} must hold equally many items, but got {len(images)} images "
            f"and {len(labels)} labels. Fetch both files again."
        )
    n_classes = len(dataset.class_names)
    if labels.max(initial=0) >= n_classes:
        raise UserError(f"{names[1]} must hold labels below {n_classes}, but got {labels.max()}. Fetch the file again.")
    if images.ndim == 3:
        images = images[:, None]
    return Labelled(images=np.ascontiguousarray(images), labels=labels.astype(np.int64))
