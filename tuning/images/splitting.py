"""Labelled images: split, checked, hashed.

The test split is behind `load_test`, which only `tuning.retraining.opening` may name (held by a test); everything else
sees hashes. Images stay uint8, (N, C, H, W), until a batch is made; there are no loader processes.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tuning.base.errors import UserError, counted
from tuning.images.catalogue import DATASETS
from tuning.images.datasets import Labelled, load_train

if TYPE_CHECKING:
    pass

# The valid split is a tenth of the images, but no more than its accuracy needs: with 5,000 its standard error is 0.3 %.
VALID_SHARE, MOST_VALID_IMAGES = 0.1, 5_000
LEAST_IMAGES = 4
# The largest class may have so many times as many train images as the smallest before a search mentions it.
MOST_UNEVEN = 3


@dataclass(frozen=True)
class Splits:
    """What a training run may see.

    Attributes:
        mean: Per channel, of the train split's pixels in [0, 1]; (C,).
        std: The same for the standard deviation.
        split_hash: 12 hexadecimal digits that are equal for equal train and valid splits.
        valid_hash: The same for the valid split alone: accuracies of runs where it is equal can be compared.
    """

    dataset: str
    class_names: tuple[str, ...]
    train: Labelled
    valid: Labelled
    mean: tuple[float, ...]
    std: tuple[float, ...]
    split_hash: str
    valid_hash: str

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return int(self.train.images.shape[1])


def load_splits(
    dataset: str, data_dir: Path | None = None, *, seed: int = 0, train_images: int | None = None
) -> Splits:
    """Returns the train and valid splits of a data set.

    Args:
        dataset: A name in `DATASETS`.
        data_dir: A folder that holds the files; None looks where `tuning.images.fetch` says.
        seed: Chooses which images are valid (a tenth, stratified, but 5,000 at most), and the subset.
        train_images: Keep only this many train images, stratified; None keeps all. The valid split stays whole.

    Raises:
        UserError: As `load_train`; there are fewer than 4 images; or `train_images` is more than there are, or fewer
            than the classes.
    """
    everything = load_train(dataset, data_dir)
    return make_splits(everything, dataset, DATASETS.find(dataset).class_names, seed=seed, train_images=train_images)


def make_splits(
    everything: Labelled,
    dataset: str,
    class_names: tuple[str, ...],
    *,
    seed: int = 0,
    train_images: int | None = None,
    valid_images: int | None = None,
) -> Splits:
    """Returns `everything` split into train and valid, stratified by label; see `load_splits`.

    Both splits have at least one image of each class of two and more; a class of one image is in train. `valid_images`
    is the size of the valid split, where it is not to follow from the data.
    """
    if len(everything) < LEAST_IMAGES:
        raise UserError(
            f"{dataset} has {counted(len(everything), 'image')}, too few to train on some and judge by others. "
            f"A data set needs {LEAST_IMAGES} images at least, and more to learn anything."
        )
    n_valid = _n_valid(everything.labels) if valid_images is None else valid_images
    if not 1 <= n_valid <= len(everything) - 2:
        raise UserError(f"valid_images must be between 1 and {len(everything) - 2}, but got {n_valid}.")
    order = np.random.default_rng(seed).permutation(len(everything))
    valid_index, rest = _stratified(everything.labels, order, n_valid, leave_one=True)
    n_train = len(rest)
    if train_images is not None:
        if not len(class_names) <= train_images <= n_train:
            rule = f"between {len(class_names)} and {n_train}"
            raise UserError(f"--train-images must be {rule}, but got {train_images}.")
        rest, _ = _stratified(everything.labels, rest, train_images, leave_one=False)
    train, valid = _take(everything, np.sort(rest)), _take(everything, np.sort(valid_index))
    mean, std = _mean_and_std(train.images)
    return Splits(
        dataset=dataset,
        class_names=class_names,
        train=train,
        valid=valid,
        mean=mean,
        std=tuple(max(value, 1e-3) for value in std),
        split_hash=_hash(train, valid),
        valid_hash=_hash(valid),
    )


def imbalance(splits: Splits) -> str | None:
    """Returns a sentence on classes of very different sizes in the train split, and the option for them, or None."""
    counts = np.bincount(splits.train.labels, minlength=splits.n_classes)
    most, least = int(counts.max()), int(counts[counts > 0].min())
    if most <= MOST_UNEVEN * least:
        return None
    return (
        f"The largest class has {most / least:.3g} times as many train images as the smallest; "
        "--metric balanced_accuracy counts each class alike."
    )


def _mean_and_std(images: npt.NDArray[np.uint8]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns both per channel, of pixels in [0, 1]; sums of integers take 0.1 s (floats: 1.5 s, 350 MB)."""
    n = images.size / images.shape[1]
    mean = images.sum(axis=(0, 2, 3), dtype=np.int64) / n
    square = np.square(images, dtype=np.uint16).sum(axis=(0, 2, 3), dtype=np.int64) / n
    return tuple((mean / 255).tolist()), tuple((np.sqrt(square - mean**2) / 255).tolist())


def _hash(*parts: Labelled) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.images.data)
        digest.update(part.labels.data)
    return digest.hexdigest()[:12]


def _n_valid(labels: npt.NDArray[np.int64]) -> int:
    """Returns the size of the valid split: room for each class that has two images, and no more than half of all."""
    n, n_classes = len(labels), int((np.unique(labels, return_counts=True)[1] > 1).sum())
    return min(max(round(n * VALID_SHARE), n_classes, 1), n // 2, MOST_VALID_IMAGES)


def _stratified(
    labels: npt.NDArray[np.int64], order: npt.NDArray[np.int64], n: int, *, leave_one: bool
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the first `n` of `order`, each label in its share (largest remainders get the odd ones), and the rest.

    As far as `n` allows it, no label is without an image; with `leave_one` none is so in the rest, either.
    """
    classes, counts = np.unique(labels[order], return_counts=True)
    exact = counts * (n / len(order))
    take = np.floor(exact).astype(np.int64)
    take[np.argsort(take - exact, kind="stable")[: n - take.sum()]] += 1
    most = counts - 1 if leave_one else counts
    _shift(take, np.minimum(1, most), most)
    ordered = labels[order]
    chosen = np.zeros(len(order), dtype=bool)
    for label, k in zip(classes, take, strict=True):
        chosen[np.flatnonzero(ordered == label)[:k]] = True
    return order[chosen], order[~chosen]


def _shift(take: npt.NDArray[np.int64], least: npt.NDArray[np.int64], most: npt.NDArray[np.int64]) -> None:
    """Moves counts into their bounds as far as others can give or take; their sum stays. Shares are mostly in them."""
    for i in np.flatnonzero(take > most):
        while take[i] > most[i] and (room := most - take).max() > 0:
            take[i] -= 1
            take[room.argmax()] += 1
    for i in np.flatnonzero(take < least):
        if (spare := take - least).max() > 0:
            take[i] += 1
            take[spare.argmax()] -= 1


def _take(part: Labelled, index: npt.NDArray[np.int64]) -> Labelled:
    return Labelled(images=part.images[index], labels=part.labels[index])
