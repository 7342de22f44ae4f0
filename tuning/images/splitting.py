"""Labelled images: split, checked, hashed.

The test split is behind `load_test`, which only `tuning.retraining.opening` may name (held by a test); everything else
sees hashes. Images stay uint8, (N, C, H, W), until a batch is made; there are no loader processes.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tuning.base.errors import UserError, counted
from tuning.images import partition
from tuning.images.catalogue import DATASETS
from tuning.images.datasets import Labelled, Own, as_source, load_own, load_train, silent
from tuning.images.partition import MOST_VALID_IMAGES, VALID_SHARE
from tuning.images.source import Source

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
        image_size: Of one's own images: side of the stored ones in pixels; None where they are not square.
        resize: Of one's own images: how they were brought to it; None for a data set with a name.
        bits: Of a pixel in the files of one's own images.
    """

    dataset: str
    class_names: tuple[str, ...]
    train: Labelled
    valid: Labelled
    mean: tuple[float, ...]
    std: tuple[float, ...]
    split_hash: str
    valid_hash: str
    image_size: int | None = None
    resize: str | None = None
    bits: int = 8

    @property
    def n_classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def channels(self) -> int:
        """Channels of an image."""
        return int(self.train.images.shape[1])

    def in_memory(self) -> "Splits":
        """Returns the same without a file of this machine, for other machines."""
        return replace(self, train=self.train.in_memory(), valid=self.valid.in_memory())


def load_splits(
    dataset: Source | str,
    data_dir: Path | None = None,
    *,
    seed: int = 0,
    train_images: int | None = None,
    device: str = "cpu",
    note: Callable[[str], None] = silent,
) -> Splits:
    """Returns the train and valid splits of a data set.

    Args:
        dataset: A name in `DATASETS`, or what says which images are read, and how.
        data_dir: A folder that holds the files of a name; None looks where `tuning.images.fetch` says.
        seed: Chooses which images are valid (stratified, and no group or image on both sides), and the subset. Valid
            is a tenth, but 5,000 at most; of one's own images 500 at least, as far as these are no more than a fifth.
        train_images: Keep only this many train images, stratified; None keeps all. The valid split stays whole.
        device: What is trained on: a GPU can have larger images by default.
        note: Receives what a person should know of one's own images, a line each.

    Raises:
        UserError: As `load_train`; there are fewer than 4 images; or `train_images` is more than there are, or fewer
            than the classes.
    """
    source = as_source(dataset, data_dir)
    if source.is_own:
        own = load_own(source, device=device, note=note)
        return splits_of(own, source.name, seed=seed, train_images=train_images)
    everything, found = load_train(source), DATASETS.find(source.dataset)
    return make_splits(everything, source.dataset, found.class_names, seed=seed, train_images=train_images)


def splits_of(own: Own, name: str, *, seed: int = 0, train_images: int | None = None) -> Splits:
    """Returns the train and valid splits of one's own images, which are read; see `load_splits`."""
    return _own_splits(own, name, _own_valid(own, seed), seed=seed, train_images=train_images)


def load_folds(source: Source, n_folds: int, *, seed: int, train_images: int | None = None) -> list[Splits]:
    """Returns as many splits of one's own images as there are folds: each image that is not test is valid in one.

    `train_images` are as many as a fold has, at most: with few folds that is less than in a search.

    Raises:
        UserError: As `load_splits`; or a fold would have no image, or leave a class none to train on.
    """
    own = load_own(source)
    folds = partition.deal(own.known.labels, own.units, [1 / n_folds] * n_folds, seed)
    counts = np.bincount(folds, minlength=n_folds)
    if counts.min() == 0:
        raise UserError(
            f"--folds must be so few that each has images, but got {n_folds} for {counted(len(own.rest), 'image')}. "
            "Take fewer, or --folds 0 for the split that the search had."
        )
    folds = partition.spread_classes(own.known.labels, own.units, folds, own.known.class_names)
    counts = np.bincount(folds, minlength=n_folds)
    most = None if train_images is None else min(train_images, len(own.rest) - int(counts.max()))
    return [_own_splits(own, source.name, folds == fold, seed=seed, train_images=most) for fold in range(n_folds)]


def _own_valid(own: Own, seed: int) -> npt.NDArray[np.bool_]:
    """Returns which of one's own images are valid, (N,): those that the data set gives, or a stratified share."""
    n, labels = len(own.rest), own.known.labels
    if own.valid.any():
        return own.valid
    n_valid = min(max(partition.n_valid(n), len(own.known.class_names)), n // 2)
    valid = np.zeros(n, dtype=bool)
    if len(np.unique(own.units)) == n:
        order = np.random.default_rng(seed).permutation(n)
        valid[_stratified(labels, order, n_valid, leave_one=True)[0]] = True
        return valid
    valid[partition.deal(labels, own.units, [n_valid / n, 1 - n_valid / n], seed) == 0] = True
    return partition.on_both_sides(labels, own.units, valid, own.known.class_names, seed)


def _own_splits(own: Own, name: str, valid: npt.NDArray[np.bool_], *, seed: int, train_images: int | None) -> Splits:
    """Returns the splits of one's own images, of which some are valid."""
    rows = np.flatnonzero(~valid)
    if train_images is not None:
        order = np.random.default_rng(seed).permutation(rows)
        rows = np.sort(
            _stratified(
                own.known.labels, order, _checked(train_images, len(own.known.class_names), len(rows)), leave_one=False
            )[0]
        )
    parts = {"train": rows, "valid": np.flatnonzero(valid)}
    stored = f"{own.image_size} {own.resize} {own.rest.images.shape[1:]}"

    def hashed(*names: str) -> str:
        digest = hashlib.sha256(stored.encode())
        for each in names:
            digest.update(own.known.digests[parts[each]].tobytes())
            digest.update(own.known.labels[parts[each]].tobytes())
        return digest.hexdigest()[:12]

    train = own.rest.at(parts["train"])
    mean, std = _mean_and_std(train)
    return Splits(
        dataset=name,
        class_names=own.known.class_names,
        train=train,
        valid=own.rest.at(parts["valid"]),
        mean=mean,
        std=std,
        split_hash=hashed("train", "valid"),
        valid_hash=hashed("valid"),
        image_size=own.image_size,
        resize=own.facts.preparation.resize,
        bits=own.facts.preparation.bits,
    )


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
        rest, _ = _stratified(
            everything.labels, rest, _checked(train_images, len(class_names), n_train), leave_one=False
        )
    train, valid = everything.at(np.sort(rest)), everything.at(np.sort(valid_index))
    mean, std = _mean_and_std(train)
    return Splits(
        dataset=dataset,
        class_names=class_names,
        train=train,
        valid=valid,
        mean=mean,
        std=std,
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


def _checked(train_images: int, n_classes: int, n_train: int) -> int:
    """Returns the number of train images that was asked for; raises UserError where there are no such."""
    if not n_classes <= train_images <= n_train:
        raise UserError(f"--train-images must be between {n_classes} and {n_train}, but got {train_images}.")
    return train_images


def _mean_and_std(part: Labelled) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns both per channel, of pixels in [0, 1]; sums of integers take 0.1 s (floats: 1.5 s, 350 MB)."""
    _, channels, height, width = part.shape
    total, squares, n = np.zeros(channels, np.int64), np.zeros(channels, np.int64), len(part) * height * width
    for images in part.blocks():
        total += images.sum(axis=(0, 2, 3), dtype=np.int64)
        squares += np.square(images, dtype=np.uint16).sum(axis=(0, 2, 3), dtype=np.int64)
    mean = total / n
    std = np.sqrt(np.maximum(squares / n - mean**2, 0)) / 255
    return tuple((mean / 255).tolist()), tuple(max(value, 1e-3) for value in std.tolist())


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
