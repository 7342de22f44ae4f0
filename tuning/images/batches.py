"""Images a batch at a time, on the device: shuffled, augmented, normalised.

What augmentation does to images is in `tuning.images.augmentation`.
"""

import functools
import math
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tuning.base.config import TrainConfig
from tuning.images.augmentation import N_DRAWS, N_PHOTO_DRAWS, OPERATIONS, augment, mix, needs_photo_draws
from tuning.images.datasets import Labelled
from tuning.images.mapped import Stored

if TYPE_CHECKING:
    import torch


class Tensors(NamedTuple):
    """A part of a data set as a training uses it.

    Attributes:
        images: uint8 (M, C, H, W), on the device; in their file where they are mapped from one and the device is a CPU,
            or a GPU that has no room for them.
        labels: int64 (N,), on the device.
        rows: int64 (N,), where the images are: those of this part; None: all of them.
    """

    images: "torch.Tensor | Stored"
    labels: "torch.Tensor"
    rows: "torch.Tensor | None" = None

    def __len__(self) -> int:
        """Returns the number of images, N."""
        return len(self.labels)

    def at(self, places: "torch.Tensor | slice") -> "torch.Tensor":
        """Returns the images of some of the N places, on the labels' device."""
        chosen = places if self.rows is None else self.rows[places]
        found: torch.Tensor = self.images[chosen]  # type: ignore[index]  # Of a file only rows are asked for.
        return found.to(self.labels.device)


def to_tensors(part: Labelled, device: "torch.device") -> Tensors:
    """Returns images and labels on the device; on a CPU they share the arrays' memory, or stay in their file."""
    import torch

    with warnings.catch_warnings():
        # Arrays from Ray's object store are read-only; so are the tensors over them, as nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        stays = part.rows is not None and not _has_room(part, device)
        labels = torch.from_numpy(part.labels).to(device)
        if not stays:
            return Tensors(torch.from_numpy(part.pixels()).to(device), labels)
        images = Stored(part.images) if isinstance(part.images, np.memmap) else torch.from_numpy(part.images)
        return Tensors(images, labels, torch.from_numpy(part.rows))


def _has_room(part: Labelled, device: "torch.device") -> bool:
    """Returns whether mapped images can be copied to the device: to a GPU that they fill to a third at most."""
    import torch

    return device.type == "cuda" and 3 * math.prod(part.shape) <= torch.cuda.mem_get_info(device)[0]


class Batch(NamedTuple):
    """What a training step gets.

    Attributes:
        images: uint8 (B, C, H, W).
        labels: int64 (B,); of mixed images those that dominate.
        others: The labels mixed in, (B,); None where nothing is mixed.
        share: Of `labels` in the loss, in [0.5, 1]; the rest is that of `others`.
    """

    images: "torch.Tensor"
    labels: "torch.Tensor"
    others: "torch.Tensor | None" = None
    share: float = 1.0

    def parts(self, asked: int) -> Iterator["Batch"]:
        """Yields the batch in as many parts as asked for, as far as each has two images; see `parts_of`."""
        n_parts = parts_of(len(self.labels), asked)
        others = self.others.tensor_split(n_parts) if self.others is not None else [None] * n_parts
        for part in zip(self.images.tensor_split(n_parts), self.labels.tensor_split(n_parts), others, strict=True):
            yield Batch(*part, self.share)


def train_batches(part: Tensors, config: TrainConfig, generator: "torch.Generator") -> Iterator[Batch]:
    """Yields one epoch of shuffled, augmented batches, on the device of the labels.

    All random numbers of the epoch are drawn at once on the generator's device (the CPU) and sent over once, so that
    every device sees the same batches and none waits inside an epoch: up to 64 bytes an image. The last batch is
    dropped when it is smaller than half a batch, because batch normalisation and the size of the step suffer from it.

    Args:
        part: Its images are only ever indexed, by those of a batch, so that they may be larger than memory.
        config: Batch size and augmentation.
        generator: On the CPU.
    """
    import torch

    n, size, device = len(part), config.batch_size, part.labels.device
    order = torch.randperm(n, generator=generator)
    draws = torch.rand(N_DRAWS, n, generator=generator)
    n_batches = math.ceil(n / size)
    firsts = [0] * n_batches
    # Augmentation that is not asked for draws nothing: the batches of earlier versions stay the same.
    if needs_photo_draws(config):
        draws = torch.cat([draws, torch.rand(N_PHOTO_DRAWS, n, generator=generator)])
        firsts = torch.randint(len(OPERATIONS), (n_batches,), generator=generator).tolist()
    mixing = None
    if config.mixup or config.cutmix:
        mixing = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    places, draws = order.to(device), draws.to(device)
    order = places if part.images.device == device else order
    for number, start in enumerate(range(0, n, size)):
        here = slice(start, start + size)
        if len(order[here]) * 2 < size and start > 0:
            return
        batch = augment(part.at(order[here]), config, draws[:, here], firsts[number])
        truth = part.labels[places[here]]
        yield Batch(batch, truth) if mixing is None else Batch(*mix(batch, truth, config, mixing))


def parts_of(n_images: int, asked: int) -> int:
    """Returns how many parts a batch is cut into: as many as asked for, as far as each has two images.

    Batch normalisation cannot normalise a single image whose features are one pixel, as a small image's are at the end.
    """
    return max(1, min(asked, n_images // 2))


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
