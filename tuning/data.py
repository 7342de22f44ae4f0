"""Labelled images: read, checked, split, hashed; whole batches cut, augmented and normalised on the device.

The test split is behind `load_test`, which only `tuning.final` may name (held by a test); everything else sees hashes.
Images stay uint8, (N, C, H, W), until a batch is made; there are no loader processes.
"""

import functools
import hashlib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tuning.config import TrainConfig
from tuning.errors import UserError, counted, unknown_name
from tuning.fetch import FASHION_MNIST, FileSet, parse_idx, read_files

if TYPE_CHECKING:
    import torch

# The valid split is a tenth of the images, but no more than its accuracy needs: with 5,000 its standard error is 0.3 %.
VALID_SHARE, MOST_VALID_IMAGES = 0.1, 5_000
LEAST_IMAGES = 4


@dataclass(frozen=True)
class Dataset:
    """A data set of four IDX files: its classes and where its images and labels are.

    Attributes:
        files: Names, hashes and sources.
        train: Names of the image and the label file of the training images.
        test: The same for the test images.
    """

    name: str
    class_names: tuple[str, ...]
    files: FileSet
    train: tuple[str, str]
    test: tuple[str, str]


@dataclass(frozen=True)
class Labelled:
    """Images uint8 (N, C, H, W) in [0, 255] and their labels int64 (N,) in [0, n_classes)."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Returns the number of images."""
        return len(self.labels)


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


DATASETS = {
    "fashion-mnist": Dataset(
        name="fashion-mnist",
        class_names=(
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        files=FASHION_MNIST,
        train=("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
        test=("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
    ),
}


def find_dataset(name: str) -> Dataset:
    """Returns the data set of that name; raises UserError with the closest match if there is none."""
    if name not in DATASETS:
        raise unknown_name("Data set", name, DATASETS)
    return DATASETS[name]


def load_train(dataset: str, data_dir: Path | None = None) -> Labelled:
    """Returns all training images of the data set, before they are split.

    Raises:
        UserError: The files cannot be had, or are damaged, or images and labels differ in number.
    """
    found = find_dataset(dataset)
    return _load(found, found.train, data_dir)


def load_test(dataset: str, data_dir: Path | None = None) -> Labelled:
    """Returns the test images. For `tuning.final` alone, which logs each time that it calls this."""
    found = find_dataset(dataset)
    return _load(found, found.test, data_dir)


def hash_test(dataset: str, data_dir: Path | None = None) -> HashedTest:
    """Returns what may be known of the test split without opening it: a digest an image, and counts."""
    found = find_dataset(dataset)
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


def load_splits(
    dataset: str, data_dir: Path | None = None, *, seed: int = 0, train_images: int | None = None
) -> Splits:
    """Returns the train and valid splits of a data set.

    Args:
        dataset: A name in `DATASETS`.
        data_dir: A folder that holds the files; None looks where `tuning.fetch` says.
        seed: Chooses which images are valid (a tenth, stratified, but 5,000 at most), and the subset.
        train_images: Keep only this many train images, stratified; None keeps all. The valid split stays whole.

    Raises:
        UserError: As `load_train`; there are fewer than 4 images; or `train_images` is more than there are, or fewer
            than the classes.
    """
    everything = load_train(dataset, data_dir)
    return make_splits(everything, dataset, find_dataset(dataset).class_names, seed=seed, train_images=train_images)


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


def to_tensors(part: Labelled, device: "torch.device") -> tuple["torch.Tensor", "torch.Tensor"]:
    """Returns images uint8 (N, C, H, W) and labels int64 (N,) on the device; on a CPU they share the arrays' memory."""
    import torch

    with warnings.catch_warnings():
        # Arrays from Ray's object store are read-only; so are the tensors over them, as nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        images, labels = torch.from_numpy(part.images), torch.from_numpy(part.labels)
    return images.to(device), labels.to(device)


def train_batches(
    images: "torch.Tensor", labels: "torch.Tensor", config: TrainConfig, generator: "torch.Generator"
) -> Iterator[tuple["torch.Tensor", "torch.Tensor"]]:
    """Yields one epoch of shuffled, augmented batches: images uint8 (B, C, H, W) and labels (B,).

    All random numbers of the epoch are drawn at once on the generator's device (the CPU) and sent over once, so that
    every device sees the same batches and none waits inside an epoch. The last batch is dropped when it is smaller than
    half a batch, because batch normalisation and the size of the step suffer from it.
    """
    import torch

    n, device = len(labels), images.device
    order = torch.randperm(n, generator=generator).to(device)
    draws = torch.rand(5, n, generator=generator).to(device)
    for start in range(0, n, config.batch_size):
        index = order[start : start + config.batch_size]
        if len(index) * 2 < config.batch_size and start > 0:
            return
        yield augment(images[index], config, draws[:, start : start + config.batch_size]), labels[index]


def parts_of(n_images: int, asked: int) -> int:
    """Returns how many parts a batch is cut into: as many as asked for, as far as each has two images.

    Batch normalisation cannot normalise a single image whose features are one pixel, as a small image's are at the end.
    """
    return max(1, min(asked, n_images // 2))


def augment(images: "torch.Tensor", config: TrainConfig, draws: "torch.Tensor") -> "torch.Tensor":
    """Returns the images, each cropped, flipped and erased: uint8 (B, C, H, W) in and out.

    One gather does crop and flip for the whole batch. Pixels from outside the image, and erased ones, are 0: the
    background of Fashion-MNIST.

    Args:
        images: uint8 (B, C, H, W).
        config: Its crop_padding, flip and erase say what is done.
        draws: Uniform in [0, 1), float32 (5, B): row and column of the crop, flip, row and column of the square.
    """
    import torch

    device, (n, _, height, width) = images.device, images.shape
    down, right, mirror, square_row, square_column = draws[:, :, None]
    if config.crop_padding or config.flip:
        pad = config.crop_padding
        rows = torch.arange(height, device=device) + (down * (2 * pad + 1)).long()
        columns = torch.arange(width, device=device).expand(n, width)
        if config.flip:
            columns = torch.where(mirror < 0.5, width - 1 - columns, columns)
        columns = columns + (right * (2 * pad + 1)).long()
        padded = torch.nn.functional.pad(images, (pad, pad, pad, pad))
        batch = torch.arange(n, device=device)[:, None, None]
        images = padded.permute(0, 2, 3, 1)[batch, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    side = round(config.erase * min(height, width))
    if side:
        rows = torch.arange(height, device=device) - (square_row * height).long() + side // 2
        columns = torch.arange(width, device=device) - (square_column * width).long() + side // 2
        inside = ((rows >= 0) & (rows < side))[:, None, :, None] & ((columns >= 0) & (columns < side))[:, None, None, :]
        images = images.masked_fill(inside, 0)
    return images


def normalise(images: "torch.Tensor", mean: tuple[float, ...], std: tuple[float, ...]) -> "torch.Tensor":
    """Returns float32 (B, C, H, W), channels last: pixels / 255, less the mean, over the standard deviation."""
    import torch

    scale, shift = _scale_and_shift(mean, std, images.device)
    return torch.addcmul(shift, images.float(), scale).contiguous(memory_format=torch.channels_last)


@functools.lru_cache(maxsize=16)
def _scale_and_shift(
    mean: tuple[float, ...], std: tuple[float, ...], device: "torch.device"
) -> tuple["torch.Tensor", "torch.Tensor"]:
    """Returns what pixels are multiplied by and what is added, (1, C, 1, 1); kept, as a GPU would be waited for."""
    import torch

    with torch.inference_mode(False):
        scale = torch.tensor([1 / (255 * s) for s in std], device=device)
        shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device)
        return scale.view(1, -1, 1, 1), shift.view(1, -1, 1, 1)


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
