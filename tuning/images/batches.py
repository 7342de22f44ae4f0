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

if TYPE_CHECKING:
    import torch


def to_tensors(part: Labelled, device: "torch.device") -> tuple["torch.Tensor", "torch.Tensor"]:
    """Returns images uint8 (N, C, H, W) and labels int64 (N,) on the device; on a CPU they share the arrays' memory."""
    import torch

    with warnings.catch_warnings():
        # Arrays from Ray's object store are read-only; so are the tensors over them, as nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        images, labels = torch.from_numpy(part.pixels()), torch.from_numpy(part.labels)
    return images.to(device), labels.to(device)


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


def train_batches(
    images: "torch.Tensor",
    labels: "torch.Tensor",
    config: TrainConfig,
    generator: "torch.Generator",
    rows: "torch.Tensor | None" = None,
) -> Iterator[Batch]:
    """Yields one epoch of shuffled, augmented batches, on the device of the labels.

    All random numbers of the epoch are drawn at once on the generator's device (the CPU) and sent over once, so that
    every device sees the same batches and none waits inside an epoch: up to 64 bytes an image. The last batch is
    dropped when it is smaller than half a batch, because batch normalisation and the size of the step suffer from it.

    Args:
        images: uint8 (N, C, H, W); only ever indexed, by the rows of a batch, so that they may be larger than memory.
        labels: int64 (N,).
        config: Batch size and augmentation.
        generator: On the CPU.
        rows: Those of the images that are trained on, int64; None: all.
    """
    import torch

    n, size, device = len(labels if rows is None else rows), config.batch_size, labels.device
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
    order = order if rows is None else rows.cpu()[order]
    places, draws = order.to(device), draws.to(device)
    order = places if images.device == device else order
    for number, start in enumerate(range(0, n, size)):
        here = slice(start, start + size)
        if len(order[here]) * 2 < size and start > 0:
            return
        batch = augment(images[order[here]].to(device), config, draws[:, here], firsts[number])
        truth = labels[places[here]]
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
